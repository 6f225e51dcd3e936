//! The agent as the guest's first process: `axvm run ... -- COMMAND` starts it so, by `rdinit=/axvm-agent`.
//!
//! ```text
//!   mounts, modules of the initrd --> root= on a disk? mounted, and the new root --> lo up
//!     --> connects to the host, which waits for it: one command --> sync, power off
//!     '-> no host waits: listens, as in any guest (axvm exec)
//! ```
//!
//! What goes wrong is said on the guest's console. Left out: an init system of the guest's own; for a guest with one, the
//! agent is a service, and `axvm exec` runs the commands.

mod modules;
mod mounts;
mod root;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Pid, WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

use crate::{Error, listen, port, vsock};

/// How long the host's end of vsock may take to be found.
const PATIENCE: Duration = Duration::from_secs(10);
/// The module that brings vsock.
const VSOCK: &str = "vmw_vsock_virtio_transport";

/// Sets the guest up, runs what the host wants, powers off. Comes back only where not even that works.
pub fn first_process() -> Error {
    if let Err(error) = serve() {
        eprintln!("axvm-agent: {error}");
    }
    rustix::fs::sync();
    root::make_read_only();
    match reboot(RebootCommand::PowerOff) {
        Ok(()) => "The guest is off".into(),
        Err(error) => format!("Cannot power off: {error}").into(),
    }
}

fn serve() -> Result<(), Error> {
    mounts::of_kernel();
    modules::of_initrd();
    let line = fs::read_to_string("/proc/cmdline")?;
    root::enter(&line)?;
    mounts::of_system();
    if let Err(error) = loopback() {
        eprintln!("axvm-agent: The loopback interface stays down: {error}");
    }
    match connect()? {
        Some(connection) => {
            let session = listen::start(connection)?;
            wait_for(Pid::from_child(&session));
            Ok(())
        }
        None => listen::vsock(),
    }
}

/// A connection to the host that waits for one; none if it does not.
///
/// Without the driver the kernel may know vsock all the same, with another transport: then the guest itself takes the
/// host's place (vsock_loopback), and refuses.
fn connect() -> Result<Option<OwnedFd>, Error> {
    // Where the machine has it, that is the way: the command comes by it as any other does.
    if let Some(device) = port::find() {
        return Ok(Some(port::accept(&device)?));
    }
    if !has_driver() {
        modules::probe(&[VSOCK]);
    }
    if !has_driver() {
        return Err(listen::explained(Errno::NODEV));
    }
    let until = Instant::now() + PATIENCE;
    loop {
        match vsock::connect_host(axvm_exec::PORT) {
            Ok(connection) => return Ok(Some(connection)),
            Err(Errno::CONNRESET | Errno::CONNREFUSED) => return Ok(None),
            // Its device may be about to be found.
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(listen::explained(error)),
        }
    }
}

/// Whether the driver is there, as a module or built in.
fn has_driver() -> bool {
    fs::exists(format!("/sys/bus/virtio/drivers/{VSOCK}")).unwrap_or(false)
}

/// Waits for a child, and for all that end before it.
fn wait_for(session: Pid) {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if pid == session => return,
            Err(Errno::CHILD) => return,
            _ => {}
        }
    }
}

/// Brings up `lo`: many tests talk to themselves.
///
/// Source: rtnetlink(7), RTM_NEWLINK.
fn loopback() -> io::Result<()> {
    /// The first interface of each network namespace.
    const LO: u32 = 1;
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const IFF_UP: u32 = 1;
    let mut message = Vec::with_capacity(32);
    // Header: length, kind, flags, sequence, port; then family and type of the interface, its index, flags, which of them.
    message.extend_from_slice(&32_u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    for word in [0, LO, IFF_UP, IFF_UP] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::io::write(&socket, &message)?;
    Ok(())
}
