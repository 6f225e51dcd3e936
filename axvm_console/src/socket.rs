//! The socket that console clients connect to.
//!
//! A path left behind by a program that died is taken over; one where a program listens is not. The socket belongs to
//! its user alone from its first moment: Linux makes the file with the mode of the unbound socket.
//!
//! Left out: abstract names (they have no mode).

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{accept_with, bind, connect, listen, socket_with};

/// The longest path: `sun_path` holds 108 bytes, the last is zero.
const PATH_LIMIT: usize = 107;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The kernel has no room for the name.
    #[error(
        "Cannot listen on {path}: the path has {len} bytes, a socket's has {PATH_LIMIT} at most; choose a shorter one"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        len: usize,
    },
    /// A live program has it.
    #[error("Cannot listen on {0}: another program listens there; end it (lsof {0} names it) or choose another path")]
    Taken(PathBuf),
    /// Not a socket.
    #[error("Cannot listen on {0}: something that is no socket has this name; remove it or choose another path")]
    NotSocket(PathBuf),
    /// The rest.
    #[error("Cannot listen on {path}; choose a path in a directory where you may create files")]
    Bind {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A socket that listens; its path goes when it is dropped.
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
    /// Which file is ours: device and inode.
    file: (u64, u64),
}

impl Listener {
    /// Listens on `path`.
    pub fn bind(path: &Path) -> Result<Listener, SocketError> {
        let len = path.as_os_str().as_bytes().len();
        if len > PATH_LIMIT {
            return Err(SocketError::TooLong { path: path.into(), len });
        }
        let failed = |error: Errno| SocketError::Bind { path: path.into(), source: error.into() };
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let fd = socket().map_err(failed)?;
        fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        match bind(&fd, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, &address)?;
                bind(&fd, &address).map_err(failed)?;
            }
            other => other.map_err(failed)?,
        }
        listen(&fd, 16).map_err(failed)?;
        let made = fs::symlink_metadata(path).map_err(|source| SocketError::Bind { path: path.into(), source })?;
        Ok(Listener { fd, path: path.into(), file: identity(&made) })
    }

    /// The next client that waits; its descriptor does not block.
    pub fn accept(&self) -> Result<OwnedFd, Errno> {
        accept_with(&self.fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.file);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// Removes a socket where nobody listens.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), SocketError> {
    let failed = |source: io::Error| SocketError::Bind { path: path.into(), source };
    let found = fs::symlink_metadata(path).map_err(failed)?;
    // A regular file refuses connections just as a stale socket does.
    if !found.file_type().is_socket() {
        return Err(SocketError::NotSocket(path.into()));
    }
    match connect(socket().map_err(|error| failed(error.into()))?, address) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed),
        // AGAIN: its queue is full, so it lives.
        Ok(()) | Err(Errno::AGAIN) => Err(SocketError::Taken(path.into())),
        Err(error) => Err(failed(error.into())),
    }
}
