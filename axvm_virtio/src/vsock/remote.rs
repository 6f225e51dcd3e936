//! A connector whose connections are made in another process, for a program whose sandbox makes no sockets.
//!
//! ```text
//!   RemoteConnector --port, 4 bytes-----------------------> serve(): connect(<path>_<port>)
//!                  <--port, and a descriptor (SCM_RIGHTS)--
//!                     port alone: refused
//! ```
//!
//! A pair of SOCK_SEQPACKET sockets lies between them: messages keep their ends, and the end of one process is seen by
//! the other. The process that serves knows the path, and nothing of the guest but a number.
//!
//! Source: unix(7), SCM_RIGHTS; cmsg(3).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::connector::{Connector, connect_to};

/// The end that asks.
pub struct RemoteConnector {
    socket: OwnedFd,
    /// Questions without an answer.
    asked: usize,
}

impl RemoteConnector {
    /// A connector, and the end that [`serve`] wants, in another process.
    pub fn pair() -> io::Result<(RemoteConnector, OwnedFd)> {
        let (socket, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((RemoteConnector { socket, asked: 0 }, other))
    }
}

impl AsFd for RemoteConnector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connector for RemoteConnector {
    /// A process that is behind, or gone, refuses.
    fn ask(&mut self, port: u32) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        retry_on_intr(|| rustix::net::send(&self.socket, &port.to_ne_bytes(), flags))?;
        self.asked += 1;
        Ok(())
    }

    /// When the other process is gone, all questions have an answer: no.
    fn answer(&mut self) -> Option<io::Result<UnixStream>> {
        if self.asked == 0 {
            return None;
        }
        let answer = match receive(&self.socket, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => return None,
            Ok(Some((_, Some(descriptor)))) => Ok(UnixStream::from(descriptor)),
            Ok(Some((_, None))) => Err(io::ErrorKind::ConnectionRefused.into()),
            Ok(None) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(error) => Err(error.into()),
        };
        self.asked -= 1;
        Some(answer)
    }
}

/// Connects to `<path>_<port>` for each port that is asked for, until the other end of `socket` closes.
pub fn serve(socket: impl AsFd, path: &Path) -> io::Result<()> {
    while let Some((port, _)) = receive(&socket, RecvFlags::empty())? {
        let stream = connect_to(path, port).ok();
        let descriptors = stream.as_ref().map(|stream| [stream.as_fd()]);
        let sent = send(&socket, port, descriptors.as_ref().map_or(&[], <[_; 1]>::as_slice));
        match sent {
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
            // Too many descriptors are on their way: a refusal is on its way, too.
            Err(_) if stream.is_some() => send(&socket, port, &[])?,
            other => other?,
        }
    }
    Ok(())
}

fn send(socket: impl AsFd, port: u32, descriptors: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::NOBUFS);
    }
    let bytes = port.to_ne_bytes();
    let sent = retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL));
    sent.map(|_| ())
}

/// A port, and the descriptor that came with it; `None`: the other end is closed.
fn receive(socket: impl AsFd, flags: RecvFlags) -> rustix::io::Result<Option<(u32, Option<OwnedFd>)>> {
    let mut bytes = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let message = retry_on_intr(|| recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags))?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((message.bytes == bytes.len()).then(|| (u32::from_ne_bytes(bytes), descriptor)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    fn wait(connector: &mut RemoteConnector) -> io::Result<UnixStream> {
        loop {
            if let Some(answer) = connector.answer() {
                return answer;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn answers_come_in_order_and_connect() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("v");
        let listener = UnixListener::bind(directory.path().join("v_7")).unwrap();
        let (mut connector, other) = RemoteConnector::pair().unwrap();
        let serving = thread::spawn(move || serve(other, &path));
        assert!(connector.answer().is_none());
        [6, 7, 8].into_iter().for_each(|port| connector.ask(port).unwrap());
        assert!(wait(&mut connector).is_err());
        let mut stream = wait(&mut connector).unwrap();
        assert!(wait(&mut connector).is_err() && connector.answer().is_none());
        listener.accept().unwrap().0.write_all(b"hello").unwrap();
        let mut text = String::new();
        stream.set_nonblocking(false).unwrap();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        drop(connector);
        serving.join().unwrap().unwrap();
    }

    #[test]
    fn a_process_that_is_gone_refuses_all() {
        let (mut connector, other) = RemoteConnector::pair().unwrap();
        [1, 2].into_iter().for_each(|port| connector.ask(port).unwrap());
        assert!(connector.answer().is_none());
        drop(other);
        assert!(connector.answer().unwrap().is_err() && connector.answer().unwrap().is_err());
        assert!(connector.answer().is_none() && connector.ask(3).is_err());
    }

    #[test]
    fn a_process_that_does_not_answer_is_asked_without_waiting() {
        let (mut connector, _other) = RemoteConnector::pair().unwrap();
        assert!((0..1_000_000).any(|port| connector.ask(port).is_err()));
    }
}
