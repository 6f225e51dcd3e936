//! Sockets as cables: connected to a stream, between two places for datagrams, or inherited.
//!
//! ```text
//!   stream=PATH          AxVM --connect--> PATH, where QEMU, a switch or passt listens
//!   dgram=LOCAL:REMOTE   AxVM at LOCAL <--a frame each--> REMOTE
//! ```
//!
//! A socket file of ours has mode 0600: only this user (and root) sends frames to the guest.
//!
//! Source: unix(7), udp(7), connect(2); QEMU's `-netdev stream` and `-netdev dgram`.
//! Left out: to wait for a client of ours (two machines: datagrams over UDP); a peer that binds its file again.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axvm_virtio::net::{Link, LinkKind, Tap};
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::sockopt::socket_type;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with};

use super::NetworkError;
use crate::settings::Datagrams;

/// How long a peer that does not accept keeps the start waiting.
const PATIENCE: Duration = Duration::from_secs(2);

const LISTEN: &str =
    "start what listens there first, such as qemu-system-x86_64 -netdev stream,server=on,addr.type=unix";
const REMOTE: &str = "the socket of the other side must be there before; between two that start at any time use \
                      dgram=127.0.0.1:4001:127.0.0.1:4002";
const ROUTE: &str = "give an address that this host reaches";
const LOCAL: &str = "choose a path in a directory that can be written, where no other process has its socket";
const FREE: &str = "choose an address of this host, and a port that no other process has";

/// A link to the process that listens at `path`.
pub fn stream(card: &str, path: &Path) -> Result<Link, NetworkError> {
    let connected = axvm_socket::connect(path, PATIENCE);
    let linked = connected.and_then(|stream| Link::new(LinkKind::Stream, stream.into()));
    let place = path.display().to_string();
    linked.map_err(|source| NetworkError::Connect { card: card.into(), place, remedy: LISTEN, source })
}

/// A link between two places, and the file that it has made.
pub fn datagrams(card: &str, places: &Datagrams) -> Result<(Link, Option<SocketFile>), NetworkError> {
    let (local, remote) = match places {
        Datagrams::Unix { local, remote } => (local.display().to_string(), remote.display().to_string()),
        Datagrams::Udp { local, remote } => (local.to_string(), remote.to_string()),
    };
    let (bind_remedy, connect_remedy) = match places {
        Datagrams::Unix { .. } => (LOCAL, REMOTE),
        Datagrams::Udp { .. } => (FREE, ROUTE),
    };
    let bound = |source| NetworkError::Bind { card: card.into(), place: local.clone(), remedy: bind_remedy, source };
    let connected = |source| {
        let (card, place) = (card.into(), remote.clone());
        NetworkError::Connect { card, place, remedy: connect_remedy, source }
    };
    let (socket, file) = match places {
        Datagrams::Unix { local, remote } => {
            let (socket, file) = bind_file(local).map_err(bound)?;
            let address = SocketAddrUnix::new(remote.as_path()).map_err(|error| connected(error.into()))?;
            connect(&socket, &address).map_err(|error| connected(error.into()))?;
            (socket, Some(file))
        }
        Datagrams::Udp { local, remote } => {
            let socket = std::net::UdpSocket::bind(local).map_err(bound)?;
            socket.connect(remote).map_err(connected)?;
            (OwnedFd::from(socket), None)
        }
    };
    Ok((Link::new(LinkKind::Datagram, socket).map_err(connected)?, file))
}

/// A link over a descriptor that AxVM was started with.
pub fn inherited(card: &str, number: u32) -> Result<Link, NetworkError> {
    let refused = |why: String| NetworkError::Descriptor { card: card.into(), number, why };
    let taken = axvm_sandbox::inherited(number);
    let descriptor = taken.map_err(|error| refused(format!("it is not open ({error})")))?;
    let kind = match socket_type(&descriptor) {
        Ok(SocketType::STREAM) => LinkKind::Stream,
        Ok(SocketType::DGRAM) => LinkKind::Datagram,
        Ok(_) => return Err(refused("it is a socket of another kind".into())),
        Err(_) => {
            let tap = Tap::from_fd(descriptor).map_err(|error| refused(error.to_string()))?;
            return Link::tap(vec![tap]).map_err(|error| refused(error.to_string()));
        }
    };
    Link::new(kind, descriptor).map_err(|error| refused(error.to_string()))
}

/// A socket file of ours; removed at the end, if it is still ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |found: fs::Metadata| (found.dev(), found.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            _ = fs::remove_file(&self.path);
        }
    }
}

/// A datagram socket at `path`. A file that no socket is behind any more is replaced.
fn bind_file(path: &Path) -> io::Result<(OwnedFd, SocketFile)> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // The file is born private.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    match bind(&socket, &address) {
        Err(Errno::ADDRINUSE) if is_dead(path) => {
            fs::remove_file(path)?;
            bind(&socket, &address)?;
        }
        bound => bound?,
    }
    let path = std::path::absolute(path)?;
    let found = fs::symlink_metadata(&path)?;
    Ok((socket, SocketFile { file: (found.dev(), found.ino()), path }))
}

/// Whether a socket file, and nothing else, is left of a process that is gone.
fn is_dead(path: &Path) -> bool {
    if !fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        return false;
    }
    let tried = UnixDatagram::unbound().and_then(|probe| probe.connect(path));
    matches!(tried, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}
