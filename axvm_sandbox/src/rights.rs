//! Rights given up: new privileges, capabilities, and sharing a core with other processes.
//!
//! Capabilities go from all five sets, those of root too: from then on root is a user who owns root's files. What needs
//! one comes before: locking RAM beyond the limit (CAP_IPC_LOCK), opening files of other users (CAP_DAC_OVERRIDE).
//! A reset keeps RAM and needs neither, if the kernel file is readable by its owner's rights.
//!
//! Core scheduling: the two hyperthreads of a core share caches and buffers, so a process on the other one may
//! observe AxVM. With a cookie of its own, AxVM shares a core with its own threads only; the price is an idle
//! hyperthread whenever AxVM has but one thread to run there.
//!
//! Spec: capabilities(7), prctl(2) PR_SET_NO_NEW_PRIVS and PR_SCHED_CORE.

use rustix::io::Errno;
use rustix::process::getpid;
use rustix::thread::{self, CapabilitySet, CapabilitySets, CoreSchedulingScope};

use crate::SandboxError;
use crate::report::Protection;

/// execve gives no right that the process has not: set-user-ID bits count for nothing.
pub(crate) fn no_new_privileges() -> Result<Protection, SandboxError> {
    thread::set_no_new_privs(true).map_err(failed("forbid new privileges"))?;
    Ok(Protection::on("no new privileges", "set-user-ID programs gain nothing"))
}

/// Empties every capability set of this thread.
pub(crate) fn drop_capabilities() -> Result<Protection, SandboxError> {
    // The bounding set first: this needs CAP_SETPCAP. Without it nothing is lost: no new privileges come from there.
    let bounded = (0..64)
        .map(|bit| CapabilitySet::from_bits_retain(1 << bit))
        .map(thread::remove_capability_from_bounding_set)
        .take_while(|result| *result != Err(Errno::INVAL))
        .any(|result| result.is_err());
    let none = CapabilitySet::empty();
    // Kernels before 4.3 have no ambient set to clear.
    let _ = thread::clear_ambient_capability_set();
    thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(failed("drop capabilities"))?;
    let how = if bounded { "none left; the bounding set stays" } else { "none left" };
    Ok(Protection::on("capabilities", how))
}

/// Lets no other process run on the other hyperthread of a core that runs AxVM.
pub(crate) fn own_cores() -> Protection {
    cores(thread::create_core_scheduling_cookie(getpid(), CoreSchedulingScope::ThreadGroup))
}

pub(crate) fn probe_cores() -> Protection {
    cores(thread::core_scheduling_cookie(getpid(), CoreSchedulingScope::Thread).map(drop))
}

pub(crate) fn probe_privileges() -> Protection {
    match thread::no_new_privs() {
        Ok(_) => Protection::on("no new privileges", "and no capabilities"),
        Err(error) => Protection::missing("no new privileges", error.to_string()),
    }
}

fn cores(result: rustix::io::Result<()>) -> Protection {
    match result {
        Ok(()) => Protection::on("cores", "no other process on the same core's hyperthreads"),
        Err(Errno::NODEV) => Protection::missing("cores", "this processor runs one thread a core: nothing to share"),
        Err(Errno::INVAL) => Protection::missing("cores", "this kernel has no core scheduling"),
        Err(error) => Protection::missing("cores", error.to_string()),
    }
}

fn failed(what: &'static str) -> impl Fn(Errno) -> SandboxError {
    move |error| SandboxError::Rights { what, source: error.into() }
}
