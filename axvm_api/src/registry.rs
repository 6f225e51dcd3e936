//! Where the machines of this user are found: a private directory with one socket each.
//!
//! ```text
//!   $XDG_RUNTIME_DIR/axvm/ | /run/user/UID/axvm/ | /tmp/axvm-UID/        4711.sock  4712.sock  4712.vsock
//! ```
//!
//! In `/tmp` anyone may have been there first; so the directory must be a directory, ours, and closed to others, or it
//! is not used.
//!
//! Spec: XDG Base Directory Specification 0.8, `$XDG_RUNTIME_DIR`.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axvm_socket::remove_dead;
use rustix::process::geteuid;
use thiserror::Error;

use crate::client::{Client, ClientError};
use crate::types::Status;

/// How long `axvm ps` waits for a machine that hangs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why machines cannot be registered.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// It cannot be made or read.
    #[error("Cannot use {path} for sockets: {source}. Set XDG_RUNTIME_DIR to a directory of yours")]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Others could put sockets there.
    #[error("{0} is not a directory that only you can use: remove it, or set XDG_RUNTIME_DIR to a directory of yours")]
    NotPrivate(PathBuf),
}

/// The directory of a user's machines.
#[derive(Clone, Debug)]
pub struct Registry(PathBuf);

/// A machine that was found.
#[derive(Debug)]
pub struct Found {
    /// Its process.
    pub pid: u32,
    /// Its socket.
    pub socket: PathBuf,
    /// What it says, or why it says nothing.
    pub status: Result<Status, ClientError>,
}

impl Registry {
    /// That of the user who runs this process.
    pub fn of_user() -> Registry {
        let uid = geteuid().as_raw();
        let from_session = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let usual = PathBuf::from(format!("/run/user/{uid}"));
        let runtime = from_session.filter(|dir| dir.is_absolute()).or_else(|| usual.is_dir().then_some(usual));
        Registry(runtime.map_or_else(|| format!("/tmp/axvm-{uid}").into(), |dir| dir.join("axvm")))
    }

    /// Any directory.
    pub fn at(directory: impl Into<PathBuf>) -> Registry {
        Registry(directory.into())
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// The path at which the machine of process `pid` listens; its directory is there.
    pub fn default_socket(&self, pid: u32) -> Result<PathBuf, RegistryError> {
        let unusable = |source| RegistryError::Unusable { path: self.0.clone(), source };
        match DirBuilder::new().mode(0o700).create(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(unusable(error)),
            _ => {}
        }
        self.check()
            .map_err(unusable)?
            .then(|| self.0.join(format!("{pid}.sock")))
            .ok_or_else(|| RegistryError::NotPrivate(self.0.clone()))
    }

    /// The path at which the socket device of process `pid` has its socket; its directory need not be there.
    pub fn default_vsock(&self, pid: u32) -> PathBuf {
        self.0.join(format!("{pid}.vsock"))
    }

    /// Whether only we can put something there.
    fn check(&self) -> io::Result<bool> {
        let found = fs::symlink_metadata(&self.0)?;
        Ok(found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o077 == 0)
    }

    /// The machines that are there, by process. Sockets of machines that ended are removed.
    pub fn machines(&self) -> Result<Vec<Found>, RegistryError> {
        let unusable = |source: io::Error| RegistryError::Unusable { path: self.0.clone(), source };
        match self.check() {
            Ok(true) => {}
            Ok(false) => return Err(RegistryError::NotPrivate(self.0.clone())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unusable(error)),
        }
        let entries = fs::read_dir(&self.0).map_err(unusable)?;
        let mut found: Vec<Found> = entries.flatten().filter_map(|entry| look(entry.path())).collect();
        found.sort_by_key(|machine| machine.pid);
        Ok(found)
    }
}

/// The machine behind a socket, if there is one.
fn look(socket: PathBuf) -> Option<Found> {
    let pid = socket.file_name()?.to_str()?.strip_suffix(".sock")?.parse().ok()?;
    match Client::connect_within(&socket, PATIENCE).and_then(|mut client| client.get::<Status>("/status")) {
        Err(ClientError::Ended(_)) => {
            _ = remove_dead(&socket);
            _ = remove_dead(&socket.with_extension("vsock"));
            // A machine for one command listens there, too.
            _ = remove_dead(&socket.with_extension(format!("vsock_{}", axvm_exec::PORT)));
            None
        }
        Err(ClientError::NoSocket(_)) => None,
        status => Some(Found { pid, socket, status }),
    }
}
