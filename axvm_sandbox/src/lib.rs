//! What each thread of AxVM may do, and a kernel that enforces it.
//!
//! A guest that takes over AxVM finds itself in a process that can do what AxVM does anyway, and nothing else:
//!
//! ```text
//!   set-up: open /dev/kvm, disks, consoles, sockets; lock RAM
//!   arm()   descriptors of others closed, no new privileges, own core cookie, files (Landlock), no capabilities, then Main's filter
//!   then    threads are made by spawn(), which enters the role before anything else:
//!
//!     main (all rows) --+-- ram
//!                       +-- lint, gdb
//!                       +-- console
//!                       +-- api   (queue's rows, threads) --+-- gdb
//!                       '-- vcpuN (queue's rows, threads, KVM) +-- vda-q0 ...
//! ```
//!
//! A thread inherits the filters of the thread that made it, filters add up, and none can be taken off. So a maker's
//! rows must hold those of all it makes. Main makes the RAM threads and the vCPUs, again at each reset of the guest: its
//! list is the whole table. Queue threads are made by a vCPU (the driver's DRIVER_OK arrives there), and by the control
//! socket's thread when a pause ends: their lists hold the queue's. No thread makes a process. The one process beside
//! them, which connects for a socket device, is made before, and has a sandbox of its own ([`arm_connector`]).
//!
//! Spec: Linux `Documentation/userspace-api/{seccomp_filter,landlock,no_new_privs}.rst`,
//! `admin-guide/hw-vuln/core-scheduling.rst`; capabilities(7).
//! Left out: namespaces and chroot (a service manager does them better), cgroups.
#![deny(unsafe_code)]

mod crash;
mod descriptors;
mod filter;
mod kvm;
mod landlock;
mod names;
mod program;
mod report;
mod rights;
mod signals;
mod table;
mod threads;
mod violation;

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;

pub use crate::crash::on_crash;
pub use crate::descriptors::inherited;
use crate::filter::Filters;
pub use crate::landlock::Files;
pub use crate::report::{Availability, Protection, SandboxReport};
pub use crate::signals::CaughtSignals;
pub use crate::threads::{spawn, spawn_scoped};
pub use crate::violation::on_violation;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Builds the machine, serves signals, and makes all threads but those of queues.
    Main,
    /// Runs one vCPU; starts the queue threads when the driver is ready.
    Vcpu,
    /// Serves one virtio queue.
    Queue,
    /// Moves bytes between a console and its socket, file or terminal.
    Console,
    /// Serves the control socket.
    Api,
    /// Helps to populate or clear RAM.
    Ram,
    /// Looks into the guest's kernel and initrd, which are open.
    Lint,
    /// Answers a debugger.
    Gdb,
}

impl Role {
    pub(crate) const ALL: [Role; 8] =
        [Role::Main, Role::Vcpu, Role::Queue, Role::Console, Role::Api, Role::Ram, Role::Lint, Role::Gdb];
}

/// Why the sandbox could not be closed.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// A thread made before would stay outside.
    #[error("Cannot close the sandbox around {0} threads: it must be closed while there is one; this is a bug of AxVM")]
    Threads(usize),
    /// Twice in one process.
    #[error("Cannot close the sandbox twice; this is a bug of AxVM")]
    Twice,
    /// A file of the machine is not there any more.
    #[error("Cannot allow {path} in the sandbox; --sandbox off runs without")]
    Path {
        /// What was to be allowed.
        path: std::path::PathBuf,
        /// Why not.
        source: ::landlock::PathFdError,
    },
    /// Landlock is there and refuses.
    #[error("Cannot limit AxVM to its files; --sandbox off runs without")]
    Landlock(#[from] ::landlock::RulesetError),
    /// The kernel refuses to take rights away.
    #[error("Cannot {what}; --sandbox off runs without")]
    Rights {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The kernel has no seccomp, or an outer filter forbids it.
    #[error("Cannot install the system call filter; --sandbox off runs without")]
    Install(#[source] io::Error),
}

/// A thread that was joined is in /proc for a moment more.
const LINGER: Duration = Duration::from_millis(500);

static FILTERS: OnceLock<Filters> = OnceLock::new();

/// Whether the machine has a bus of PCI.
static PCI: AtomicBool = AtomicBool::new(false);

/// The machine will have a bus of PCI: its vCPUs may route interrupts, and move doorbells. Call it before [`arm`].
pub fn allow_pci() {
    // Relaxed: one thread sets it and makes the filters.
    PCI.store(true, Ordering::Relaxed);
}

fn has_pci() -> bool {
    PCI.load(Ordering::Relaxed)
}

/// Closes the sandbox around this process, for good: call it on the main thread, while there is no other, after the
/// machine's files are open and RAM is locked.
pub fn arm(files: &Files) -> Result<SandboxReport, SandboxError> {
    if FILTERS.get().is_some() {
        return Err(SandboxError::Twice);
    }
    let since = Instant::now();
    while let Some(threads) = others() {
        if since.elapsed() > LINGER {
            return Err(SandboxError::Threads(threads));
        }
        std::thread::yield_now();
    }
    violation::catch()?;
    let mut protections = vec![descriptors::close_inherited(), rights::no_new_privileges()?, rights::own_cores()];
    protections.push(landlock::limit(files)?);
    protections.push(rights::drop_capabilities()?);
    FILTERS.set(Filters::default()).map_err(|_| SandboxError::Twice)?;
    protections.push(enter_armed(Role::Main)?);
    Ok(SandboxReport(protections))
}

/// Closes a sandbox around the process that connects for a socket device: it may connect to Unix sockets and pass them
/// on, and opens no file. Call it as [`arm`].
pub fn arm_connector() -> Result<(), SandboxError> {
    violation::catch()?;
    descriptors::close_inherited();
    rights::no_new_privileges()?;
    landlock::limit(&Files::default())?;
    rights::drop_capabilities()?;
    filter::install(&filter::of_connector())
}

/// How many threads there are, if more than this one.
fn others() -> Option<usize> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    (threads > 1).then_some(threads)
}

/// Restricts this thread to what its role needs. Does nothing unless the sandbox is armed. A thread that cannot be
/// restricted does not run: the process ends with 1. Threads made by [`spawn`] have called it already.
pub fn enter(role: Role) {
    if let Err(error) = enter_armed(role) {
        let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        // Not `eprintln`: it panics when the reader has gone.
        let _ = writeln!(io::stderr(), "axvm: {error}: {why}");
        std::process::exit(1);
    }
}

fn enter_armed(role: Role) -> Result<Protection, SandboxError> {
    if let Some(filters) = FILTERS.get() {
        filters.install(role)?;
    }
    Ok(Protection::on("system calls", format!("{} of them, fewer in each thread", table::TABLE.len())))
}

/// What this host offers, without closing anything.
pub fn probe() -> SandboxReport {
    SandboxReport(vec![rights::probe_privileges(), rights::probe_cores(), landlock::probe(), filter::probe()])
}
