//! The host's end of the socket device: its socket, and the process that connects for it.
//!
//! ```text
//!   axvm (closed sandbox) <--socket pair--> "axvm: vsock" (a sandbox of its own: socket, connect, pass on)
//!     listens at PATH                         connects to PATH_PORT, and to nothing else
//! ```
//!
//! A program whose sandbox is closed makes no sockets, and no filter reads a path: a process that may connect could reach
//! each socket of the user. So the one that may is not the one that serves the guest. It is this program once more,
//! started before the sandbox closes; of the guest it gets a port number, and it ends when AxVM does.
//!
//! No specification: it is how AxVM keeps its own fence. Left out: a confinement of the path by the kernel (Landlock up
//! to ABI 7 does not judge connect(2)).

use std::env;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use axvm_api::Registry;
use axvm_events::{Event, Events};
use axvm_socket::Socket;
use axvm_virtio::vsock::{RemoteConnector, VsockHost, serve};

use crate::config::Config;
use crate::error::ConfigError;
use crate::settings::VSOCK_PATH_LIMIT;

/// What the process that connects is called: its first word.
const NAME: &str = "axvm: vsock";
/// The same for the kernel, which keeps 15 bytes.
const THREAD: &CStr = c"axvm-vsock";

/// The socket at which programs of the host reach the guest; dropped, it is removed.
pub struct VsockSocket {
    _socket: Socket,
    host: VsockHost,
}

impl VsockSocket {
    /// Listens, and starts the process that connects, if the machine has a socket device.
    pub fn open(config: &Config, events: &Events) -> Result<Option<VsockSocket>> {
        let (Some(path), since) = (&config.vsock, Instant::now()) else { return Ok(None) };
        let len = path.as_os_str().len();
        if len > VSOCK_PATH_LIMIT {
            let why = format!(
                "{len} bytes are too many for this path, {VSOCK_PATH_LIMIT} are the limit: _PORT comes after it. \
                 Choose a shorter one: socket=PATH"
            );
            return Err(ConfigError::option("--vsock", path.display(), why).into());
        }
        if config.settings.vsock.as_ref().is_none_or(|vsock| vsock.socket.is_none()) {
            // Its directory may not be there yet.
            Registry::of_user().default_socket(std::process::id())?;
        }
        let socket = Socket::listen(path)?;
        let (connector, other) = RemoteConnector::pair().context("Cannot make a socket device")?;
        start(other, path, config.settings.sandbox())
            .context("Cannot start the process that connects for the socket device (see ulimit -u)")?;
        let listener = socket.listener().context("Cannot make a socket device")?;
        let host = VsockHost::new(listener, connector).context("Cannot make a socket device")?;
        let cid = config.machine.vsock.unwrap_or_default();
        let detail = || format!("CID {cid}, listens at {}", path.display());
        events.emit(|| Event::BootStep { what: "vsock", detail: detail(), took: since.elapsed() });
        Ok(Some(VsockSocket { _socket: socket, host }))
    }

    /// The device's end.
    pub fn host(&self) -> VsockHost {
        self.host.clone()
    }
}

/// Starts the process. It gets no signals of the terminal: it ends when the other end of `socket` closes.
fn start(socket: OwnedFd, path: &Path, sandbox: bool) -> io::Result<()> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME).arg(path).args((!sandbox).then_some("--sandbox=off"));
    // It writes nothing there, and is not to keep ours open; /dev/null may be missing in a bare root.
    let output = Stdio::from(socket.try_clone()?);
    command.stdin(Stdio::from(socket)).stdout(output).process_group(0);
    command.env_clear().current_dir("/");
    // It is not waited for: it ends when this process does, or has nothing more to do.
    command.spawn().map(drop)
}

/// Whether this process is the one that connects; then it does, to its end.
pub fn serve_if_asked() -> Option<Result<u8>> {
    let mut words = env::args_os();
    (words.next().as_deref() == Some(OsStr::new(NAME))).then(|| connect(words.next(), words.next().is_none()))
}

fn connect(path: Option<OsString>, sandbox: bool) -> Result<u8> {
    let path = PathBuf::from(path.context("The process that connects for a socket device is AxVM's own")?);
    let _ = rustix::thread::set_name(THREAD);
    if sandbox {
        axvm_sandbox::arm_connector()?;
    }
    serve(io::stdin(), &path).context("Cannot connect for the socket device any more")?;
    Ok(0)
}
