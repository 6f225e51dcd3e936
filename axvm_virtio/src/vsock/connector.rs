//! How a connection that the guest asks for reaches a program of the host.
//!
//! ```text
//!   guest: REQUEST, port 5000 --> ask(5000) - - (a process outside of the sandbox) - -> connect(<path>_5000)
//!   guest: RESPONSE, or RST   <-- answer()  <- - - - - - - a connected descriptor, or an error
//! ```
//!
//! A sandbox that is closed makes no sockets, so this is a trait, and answers come later. [`PathConnector`] connects
//! in the thread that asks, which only a program without a sandbox may. One with it has a child process, made before the
//! sandbox closes: seccomp cannot look at a path, and Landlock (up to ABI 7) does not judge connect(2), so a thread that
//! may connect could reach each socket of the user. The child runs [`serve`](super::serve) with the other end of a
//! [`RemoteConnector`](super::RemoteConnector), and can have a sandbox of its own: socket, connect, recvmsg, sendmsg.
//!
//! Source: unix(7), connect(2).

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use axvm_sync::EventFd;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Makes connections to programs of the host. As a descriptor, it is readable while an answer waits.
pub trait Connector: AsFd + Send + 'static {
    /// Asks for a connection to `port`. Never waits. An error is the answer; else one comes later, in any case.
    fn ask(&mut self, port: u32) -> io::Result<()>;
    /// The answer to the oldest question that has none, if it is there. Never waits. The socket does not block.
    fn answer(&mut self) -> Option<io::Result<UnixStream>>;
}

/// Connects to `<path>_<port>`, in the thread that asks.
pub struct PathConnector {
    path: PathBuf,
    answers: VecDeque<io::Result<UnixStream>>,
    waiting: EventFd,
}

impl PathConnector {
    /// A connector to the sockets whose names begin with `path`.
    pub fn new(path: &Path) -> io::Result<PathConnector> {
        Ok(PathConnector { path: path.to_owned(), answers: VecDeque::new(), waiting: EventFd::new()? })
    }
}

/// Connects to `<path>_<port>`, at once or not at all: a program whose queue of connections is full refuses, too.
pub(super) fn connect_to(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut name = OsString::from(path);
    name.push(format!("_{port}"));
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(Path::new(&name))?)?;
    Ok(socket.into())
}

impl AsFd for PathConnector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waiting.as_fd()
    }
}

impl Connector for PathConnector {
    fn ask(&mut self, port: u32) -> io::Result<()> {
        let stream = connect_to(&self.path, port);
        self.answers.push_back(stream);
        self.waiting.signal();
        Ok(())
    }

    fn answer(&mut self) -> Option<io::Result<UnixStream>> {
        let answer = self.answers.pop_front();
        if answer.is_none() {
            self.waiting.take();
        }
        answer
    }
}
