//! The agent that waits for connections: each gets a session, a process of its own.
//!
//! ```text
//!   accept --> axvm-agent session <connection        the thread `reaper` waits for those that have ended
//! ```

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};

use crate::{Error, port, vsock};

/// How long no connection is accepted when the guest has no descriptor or process left.
const REST: Duration = Duration::from_millis(100);

/// Serves the host, for ever: by the agent's port if the machine was given one, else by vsock.
pub fn host() -> Result<(), Error> {
    match port::find() {
        Some(device) => at_port(&device),
        None => vsock(),
    }
}

/// Serves at the agent's port, one connection after the other.
pub fn at_port(device: &Path) -> Result<(), Error> {
    serve(|| port::accept(device).map(Some))
}

/// Serves at the agent's vsock port, for ever.
pub fn vsock() -> Result<(), Error> {
    let listener = vsock::listen_at(axvm_exec::PORT).map_err(explained)?;
    serve(|| {
        let (connection, is_host) = vsock::accept(&listener)?;
        // Another process of the guest (by its own address) would become root here.
        Ok(is_host.then_some(connection))
    })
}

/// Serves at a Unix socket, for every process that may open it: for tests.
pub fn unix(path: &OsStr) -> Result<(), Error> {
    let listener = UnixListener::bind(path)?;
    serve(|| Ok(Some(listener.accept()?.0.into())))
}

/// Why there is no listener, and what is missing.
pub fn explained(error: Errno) -> Error {
    let why = match error {
        Errno::AFNOSUPPORT | Errno::NODEV | Errno::ADDRNOTAVAIL => {
            "this kernel has no vsock: it needs CONFIG_VIRTIO_VSOCKETS (the module vmw_vsock_virtio_transport)"
        }
        Errno::ADDRINUSE => "another agent listens already",
        Errno::ACCESS => "only root may; start the agent as root",
        _ => return format!("Cannot use vsock port {}: {error}", axvm_exec::PORT).into(),
    };
    format!("Cannot use vsock port {}: {why}", axvm_exec::PORT).into()
}

fn serve(mut accept: impl FnMut() -> io::Result<Option<OwnedFd>>) -> Result<(), Error> {
    let started = start_reaper()?;
    loop {
        let session = accept().and_then(|connection| connection.map(start).transpose());
        match session {
            Ok(Some(_)) => _ = started.send(()),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                eprintln!("axvm-agent: Cannot serve a connection: {error}");
                thread::sleep(REST);
            }
        }
    }
}

/// Starts a session on `connection`.
pub fn start(connection: OwnedFd) -> io::Result<Child> {
    let mut session = Command::new("/proc/self/exe");
    session.arg("session").stdin(connection).stdout(Stdio::null()).spawn()
}

/// Starts the thread that waits for processes that have ended; it is to be told of each session.
#[allow(clippy::disallowed_methods, reason = "a guest has no roles of AxVM's threads")]
fn start_reaper() -> io::Result<Sender<()>> {
    let (sender, receiver) = channel();
    thread::Builder::new().name("reaper".into()).spawn(move || reap(&receiver))?;
    Ok(sender)
}

fn reap(started: &Receiver<()>) {
    while started.recv().is_ok() {
        // Until there is no child; as first process it has those of all sessions.
        while !matches!(wait(WaitOptions::empty()), Err(Errno::CHILD)) {}
    }
}
