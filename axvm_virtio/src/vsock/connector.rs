//! How a connection that the guest asks for reaches a program of the host.
//!
//! ```text
//!   guest: REQUEST, port 5000 --> ask(5000) - - (a process outside of the sandbox) - -> connect(<path>_5000)
//!   guest: RESPONSE, or RST   <-- answer()  <- - - - - - - a connected descriptor, or an error
//! ```
//!
//! A sandbox that is closed makes no sockets, so this is a trait, and answers come later. [`PathConnector`] connects
//! in the thread that asks, which only a program without a sandbox may. The plan for one with it, as seccomp cannot
//! look at a path and Landlock (up to ABI 7) does not judge connect(2): a child process, made before the sandbox closes,
//! holds the path and the other end of a pair of SOCK_SEQPACKET sockets. It reads a port (4 bytes), connects, and
//! answers with 4 bytes and the descriptor (SCM_RIGHTS). It can do nothing else, and ends when our end closes.
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
    /// Asks for a connection to `port`. Never waits. An error is the answer; else one comes later.
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

    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut name = OsString::from(&self.path);
        name.push(format!("_{port}"));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // A Unix socket connects at once, or not at all: a full queue of the program's is an error, too.
        connect(&socket, &SocketAddrUnix::new(Path::new(&name))?)?;
        Ok(socket.into())
    }
}

impl AsFd for PathConnector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waiting.as_fd()
    }
}

impl Connector for PathConnector {
    fn ask(&mut self, port: u32) -> io::Result<()> {
        let stream = self.connect(port);
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
