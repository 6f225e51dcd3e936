//! A Unix socket that listens, for one user: who may connect, and who owns the path.
//!
//! ```text
//!   socket --fchmod 0600--> bind to another name (the file is born private) --> listen --> rename
//!                                                                              drop: removed, if it is still ours
//! ```
//!
//! A socket file outlives a process that was killed. Whether a process listens behind it is known only by connecting:
//! if none does, the file is replaced. So a file must not be at its path before it is listened to, or another start
//! takes it for a dead one. The directory is locked meanwhile; where a process holds that lock for long, two starts
//! still do not replace each other's: what one of them removes it moves away first, and looks at again.
//!
//! Source: unix(7), "Pathname socket ownership and permissions", SO_PEERCRED.
//! Left out: abstract names (they have no mode).
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, RenameFlags, fchmod, flock, open, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use rustix::process::geteuid;
use thiserror::Error;

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// A process listens there.
    #[error("Cannot listen at {path}: a running process listens there already{id}. Choose another path",
            id = .process.map(|id| format!(" (its id is {id})")).unwrap_or_default())]
    Taken {
        /// Of the socket.
        path: PathBuf,
        /// Its number, where it accepts.
        process: Option<i32>,
    },
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
        let create = |source| SocketError::Create { path: path.to_owned(), source };
        let place = Place::of(path).map_err(error)?;
        let _lock = lock(path);
        clear(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(error)?;
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(error)?;
        let other = place.other_name();
        bind(&socket, &place.address(&other).map_err(error)?).map_err(error)?;
        // From here on the file goes when this fails.
        let mut made = Made { place: &place, name: Some(other) };
        listen(&socket, BACKLOG).map_err(error)?;
        let file = place.stat(made.name()).map_err(error)?;
        while let Err(failed) = place.rename(made.name(), &place.name) {
            if failed != Errno::EXIST {
                return Err(error(failed));
            }
            // Another start was faster.
            clear(path)?;
        }
        made.name = None;
        let path = std::path::absolute(path).map_err(create)?;
        Ok(Socket { listener: socket.into(), path, file })
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
    connect_to(&SocketAddrUnix::new(path)?, patience)
}

fn connect_to(address: &SocketAddrUnix, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patience))?;
    retry_on_intr(|| rustix::net::connect(&socket, address))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, None)?;
    Ok(socket.into())
}

/// Removes the socket at `path` if no process listens to it.
pub fn remove_dead(path: &Path) -> Result<(), SocketError> {
    let _lock = lock(path);
    clear(path)
}

/// The directory of a socket, and the socket's name in it.
struct Place {
    /// As it was given, or empty.
    parent: PathBuf,
    directory: OwnedFd,
    name: OsString,
}

impl Place {
    fn of(path: &Path) -> rustix::io::Result<Place> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(parent(path), flags, Mode::empty())?;
        let name = path.file_name().ok_or(Errno::ISDIR)?.to_owned();
        Ok(Place { parent: path.parent().unwrap_or(Path::new("")).to_owned(), directory, name })
    }

    /// A name in this directory that no other start takes.
    fn other_name(&self) -> OsString {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = OsString::from(format!(".axvm-{}-{count}", std::process::id()));
        // A process of the same number was killed here.
        _ = self.remove(&name);
        name
    }

    /// To bind or connect: there the length of a path is limited.
    fn address(&self, name: &OsStr) -> rustix::io::Result<SocketAddrUnix> {
        let path = self.parent.join(name);
        if path.as_os_str().len() <= PATH_LIMIT {
            return SocketAddrUnix::new(path);
        }
        SocketAddrUnix::new(Path::new(&format!("/proc/self/fd/{}", self.directory.as_raw_fd())).join(name))
    }

    /// Device and inode.
    fn stat(&self, name: &OsStr) -> rustix::io::Result<(u64, u64)> {
        statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW).map(|found| (found.st_dev, found.st_ino))
    }

    /// Replaces nothing, where the file system can promise that.
    fn rename(&self, from: &OsStr, to: &OsStr) -> rustix::io::Result<()> {
        match renameat_with(&self.directory, from, &self.directory, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => renameat(&self.directory, from, &self.directory, to),
            result => result,
        }
    }

    fn remove(&self, name: &OsStr) -> rustix::io::Result<()> {
        unlinkat(&self.directory, name, AtFlags::empty())
    }
}

/// A socket that is not at its path yet.
struct Made<'a> {
    place: &'a Place,
    name: Option<OsString>,
}

impl Made<'_> {
    fn name(&self) -> &OsStr {
        self.name.as_deref().unwrap_or_default()
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            _ = self.place.remove(name);
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Keeps others that start out of the directory of `path` while the lock lives; best effort, for any process may hold it long.
fn lock(path: &Path) -> Option<fs::File> {
    let directory = fs::File::open(parent(path)).ok()?;
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
    let error = |source: Errno| SocketError::Create { path: path.to_owned(), source: source.into() };
    let place = Place::of(path).map_err(error)?;
    let taken = |process| Err(SocketError::Taken { path: path.to_owned(), process });
    if let Some(Listening(process)) = place.listening(&place.name).map_err(error)? {
        return taken(process);
    }
    let aside = place.other_name();
    match renameat(&place.directory, &place.name, &place.directory, &aside) {
        // Another start removed it.
        Err(Errno::NOENT) => return Ok(()),
        result => result.map_err(error)?,
    }
    match place.listening(&aside).map_err(error)? {
        // Another start removed the dead one, and this is its own.
        Some(Listening(process)) => {
            place.rename(&aside, &place.name).map_err(error)?;
            taken(process)
        }
        None => place.remove(&aside).map_err(error),
    }
}

/// A process listens; its number, where it accepts.
struct Listening(Option<i32>);

impl Place {
    /// Whether a process listens behind a socket file.
    fn listening(&self, name: &OsStr) -> rustix::io::Result<Option<Listening>> {
        Ok(match connect_to(&self.address(name)?, PATIENCE) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => None,
            // Another start removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(_) => Some(Listening(None)),
            Ok(stream) => Some(Listening(sockopt::socket_peercred(&stream).ok().map(|peer| peer.pid.as_raw_pid()))),
        })
    }
}

/// Whether the process at the other end is of our user, or root.
pub fn is_own(peer: impl AsFd) -> bool {
    sockopt::socket_peercred(peer).is_ok_and(|peer| peer.uid == geteuid() || peer.uid.is_root())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test starts threads of its own")]
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
        let id = format!("(its id is {})", std::process::id());
        assert!(matches!(error, SocketError::Taken { .. }) && error.to_string().contains(&id), "{error}");
        UnixStream::connect(&path).unwrap();
        drop(living);
    }

    /// Between bind and listen a socket looks as a dead one does.
    #[test]
    fn a_socket_is_at_its_path_only_when_it_listens() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..300).map(|n| dir.path().join(format!("s{n}"))).collect();
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                for path in &paths {
                    while let Err(error) = UnixStream::connect(path) {
                        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{}", path.display());
                    }
                }
            });
            let all: Vec<_> = paths.iter().map(|path| Socket::listen(path).unwrap()).collect();
            client.join().unwrap();
            drop(all);
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left, under no name");
    }

    /// Any process that may read a directory can hold its lock, and two starts then do not wait for each other.
    #[test]
    fn of_two_starts_at_once_one_listens_with_the_lock_and_without() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        for round in 0..20 {
            let held = fs::File::open(dir.path()).unwrap();
            if round % 2 == 0 {
                flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
            }
            drop(UnixListener::bind(&path).unwrap());
            let start = std::sync::Barrier::new(2);
            let listen = || {
                start.wait();
                Socket::listen(&path)
            };
            let both =
                std::thread::scope(|scope| [scope.spawn(listen), scope.spawn(listen)].map(|one| one.join().unwrap()));
            let failed: Vec<_> = both.iter().filter_map(|one| one.as_ref().err()).collect();
            assert!(matches!(failed[..], [SocketError::Taken { .. }]), "round {round}: {both:?}");
            UnixStream::connect(&path).unwrap();
            drop(both);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left, under no name");
        }
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
        assert!(matches!(Socket::listen(&path), Err(SocketError::Taken { .. })), "it lives");
        drop(socket);
    }

    #[test]
    fn a_path_may_be_as_long_as_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let left = PATH_LIMIT - dir.path().as_os_str().len() - 1;
        let path = dir.path().join("x".repeat(left));
        drop(UnixListener::bind(&path).unwrap());
        let socket = Socket::listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        assert!(matches!(Socket::listen(&path), Err(SocketError::Taken { .. })));
        drop(socket);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left, under no name");
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
