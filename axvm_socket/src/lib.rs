//! A Unix socket that listens, for one user: who may connect, and who owns the path.
//!
//! ```text
//!   socket --fchmod 0600--> bind (the file is born private) --> listen         drop: removed, if it is still ours
//! ```
//!
//! A socket file outlives a process that was killed. Whether a process listens behind it is known only by connecting:
//! if none does, the file is replaced. The directory is locked meanwhile, so that two processes that start at once do
//! not replace each other's.
//!
//! Source: unix(7), "Pathname socket ownership and permissions", SO_PEERCRED.
//! Left out: abstract names (they have no mode).
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use rustix::process::geteuid;
use thiserror::Error;

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// A process listens there.
    #[error("Cannot listen at {0}: a running process listens there already (lsof {0} names it). Choose another path")]
    Taken(PathBuf),
    /// The path names a file, a directory, ...
    #[error("Cannot listen at {0}: it exists and is no socket. Choose another path, or remove it")]
    NotASocket(PathBuf),
    /// A kernel limit.
    #[error("Cannot listen at {path}: {len} bytes are too many for the path of a socket, {PATH_LIMIT} is the limit. \
             Choose a shorter path", path = .0.display(), len = .0.as_os_str().len())]
    TooLong(PathBuf),
    /// The directory is missing or not ours.
    #[error("Cannot make the socket {path}: {source}. Its directory must exist and be writable")]
    Create {
        /// Of the socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// `sun_path` holds 108 bytes, the last is zero.
const PATH_LIMIT: usize = 107;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// How long to wait for a sign of life behind a socket.
const PATIENCE: Duration = Duration::from_secs(1);

/// A socket that listens, at its path until dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: what is removed must be what was made.
    file: (u64, u64),
}

impl Socket {
    /// Listens at `path`. A socket that no process listens to any more is replaced.
    pub fn listen(path: &Path) -> Result<Socket, SocketError> {
        let error = |source: Errno| SocketError::Create { path: path.to_owned(), source: source.into() };
        // The kernel takes one byte more, without the zero at the end; not every client does.
        if path.as_os_str().len() > PATH_LIMIT {
            return Err(SocketError::TooLong(path.to_owned()));
        }
        let address = SocketAddrUnix::new(path).map_err(error)?;
        let _lock = lock(path);
        clear(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(error)?;
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(error)?;
        bind(&socket, &address).map_err(error)?;
        listen(&socket, BACKLOG).map_err(error)?;
        let create = |source| SocketError::Create { path: path.to_owned(), source };
        let made = fs::symlink_metadata(path).map_err(create)?;
        let path = std::path::absolute(path).map_err(create)?;
        Ok(Socket { listener: socket.into(), path, file: (made.dev(), made.ino()) })
    }

    /// The same listener once more, for a thread that serves; it does not block.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let is_ours = |found: fs::Metadata| (found.dev(), found.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            _ = fs::remove_file(&self.path);
        }
    }
}

/// Connects to the socket at `path`. A process that does not accept keeps some clients waiting; one that finds too many
/// of them there waits for `patience` at most ([`io::ErrorKind::WouldBlock`]).
pub fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patience))?;
    retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, None)?;
    Ok(socket.into())
}

/// Removes the socket at `path` if no process listens to it.
pub fn remove_dead(path: &Path) -> Result<(), SocketError> {
    let _lock = lock(path);
    clear(path)
}

/// Keeps others that start out of the directory of `path` while the lock lives; best effort, for any process may hold it long.
fn lock(path: &Path) -> Option<fs::File> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = fs::File::open(parent).ok()?;
    for _ in 0..20 {
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Some(directory)
}

/// Removes a socket at `path` that no process listens to.
fn clear(path: &Path) -> Result<(), SocketError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match connect(path, PATIENCE) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| SocketError::Create { path: path.to_owned(), source })
        }
        _ => Err(SocketError::Taken(path.to_owned())),
    }
}

/// Whether the process at the other end is of our user, or root.
pub fn is_own(peer: impl AsFd) -> bool {
    sockopt::socket_peercred(peer).is_ok_and(|peer| peer.uid == geteuid() || peer.uid.is_root())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_socket_is_private_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = Socket::listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let client = UnixStream::connect(&path).unwrap();
        assert!(is_own(&client));
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let living = Socket::listen(&path).unwrap();
        let error = Socket::listen(&path).unwrap_err();
        assert!(matches!(error, SocketError::Taken(_)), "{error}");
        UnixStream::connect(&path).unwrap();
        drop(living);
    }

    #[test]
    fn a_process_that_does_not_accept_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = Socket::listen(&path).unwrap();
        let patience = Duration::from_millis(1);
        let waiting: Vec<_> = (0..1000).map_while(|_| connect(&path, patience).ok()).collect();
        assert!(waiting.len() < 1000, "so many may wait");
        assert_eq!(connect(&path, patience).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(matches!(Socket::listen(&path), Err(SocketError::Taken(_))), "it lives");
        drop(socket);
    }

    #[test]
    fn only_what_is_ours_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = Socket::listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "someone else's").unwrap();
        drop(socket);
        assert!(path.exists());
        let error = Socket::listen(&path).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
    }

    #[test]
    fn errors_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(120));
        for (path, words) in [
            (long, "too many"),
            (dir.path().join("no/s"), "must exist"),
            ("/proc/s".into(), "Cannot make"),
            (dir.path().into(), "no socket"),
        ] {
            let error = Socket::listen(&path).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(&path.display().to_string()), "{error}");
        }
    }
}
