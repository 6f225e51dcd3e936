//! The stop switch of the machine: where every way to end it meets, and why it was taken.
//!
//! ```text
//!  ACPI S5 write -----\
//!  reset registers ----\
//!  triple fault --------> StopSwitch::request(reason) --> eventfd --> main thread stops the machine
//!  failed ioctl -------/        (the first reason wins)
//!  signal, key, API --/
//! ```
//!
//! No specification: this is AxVM's own. Left out: what the reasons lead to (exit code, reset), which the run decides.

use axvm_sync::{EventFd, lock};
use std::io;
use std::sync::Mutex;

/// Why the machine stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The guest entered S5 (soft off).
    Off,
    /// The guest or the user asked for a reset; the text names the reset source.
    Reset(&'static str),
    /// A CPU shut down after a triple fault; a PC answers with a reset.
    TripleFault,
    /// The guest's kernel panicked and said so (pvpanic).
    Panic,
    /// The guest cannot go on; the text says why.
    Crash(String),
    /// The host failed the guest (a KVM call went wrong); the text says how.
    HostError(String),
    /// The user ended the machine with a key.
    Quit,
    /// A signal with this number ended the machine.
    Signal(i32),
}

/// A latch for the first [`StopReason`], with an eventfd to wait on.
#[derive(Debug)]
pub struct StopSwitch {
    fd: EventFd,
    reason: Mutex<Option<StopReason>>,
}

impl StopSwitch {
    /// A switch without a reason yet: the machine may run.
    pub fn new() -> io::Result<StopSwitch> {
        Ok(StopSwitch { fd: EventFd::new()?, reason: Mutex::new(None) })
    }

    /// Asks for a stop. Only the first reason counts.
    pub fn request(&self, reason: StopReason) {
        let mut first = lock(&self.reason);
        if first.is_none() {
            *first = Some(reason);
            self.fd.signal();
        }
    }

    /// The first reason so far.
    pub fn reason(&self) -> Option<StopReason> {
        lock(&self.reason).clone()
    }

    /// Readable from the first request on.
    pub fn event_fd(&self) -> &EventFd {
        &self.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_wins() {
        let stop = StopSwitch::new().unwrap();
        assert_eq!(stop.reason(), None);
        stop.request(StopReason::Off);
        stop.request(StopReason::Reset("late"));
        assert_eq!(stop.reason(), Some(StopReason::Off));
        assert!(stop.event_fd().is_signalled());
    }
}
