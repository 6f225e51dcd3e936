//! The stop switch of the machine: where every way to end it meets, and why it was taken.
//!
//! ```text
//!  ACPI S5 write -----\
//!  reset registers ----\
//!  triple fault --------> StopSwitch::request(reason) --> eventfd --> main thread stops the machine
//!  failed ioctl -------/        (the first reason wins)
//!  signal, key, API --> StopSwitch::insist(reason)    (goes before what the guest asked for)
//! ```
//!
//! No specification: this is AxVM's own. Left out: what the reasons lead to (exit code, reset), which the run decides.

use axvm_sync::{EventFd, lock};
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// The guest ended the machine through the debug-exit port, with this value.
    DebugExit(u32),
    /// The guest cannot go on; the text says why.
    Crash(String),
    /// Every vCPU is halted for good; the text says where.
    Halted(String),
    /// A virtio driver of the guest broke a rule of the standard, and the user wants to know; the text says which.
    DriverFault(String),
    /// The host failed the guest (a KVM call went wrong); the text says how.
    HostError(String),
    /// The user ended the machine with a key.
    Quit,
    /// The time that the machine was given is over.
    TimeOver,
    /// A signal with this number ended the machine.
    Signal(i32),
}

/// A latch for the first [`StopReason`], with an eventfd to wait on.
#[derive(Debug)]
pub struct StopSwitch {
    fd: EventFd,
    pressed: Mutex<Option<Pressed>>,
    /// The guest's kernel said that it panicked, and was let go on.
    panicked: AtomicBool,
}

#[derive(Debug)]
struct Pressed {
    reason: StopReason,
    by_user: bool,
}

impl Pressed {
    /// Only the guest wants it.
    fn is_guests(&self) -> bool {
        !self.by_user && !matches!(self.reason, StopReason::HostError(_))
    }
}

impl StopSwitch {
    /// A switch without a reason yet: the machine may run.
    pub fn new() -> io::Result<StopSwitch> {
        Ok(StopSwitch { fd: EventFd::new()?, pressed: Mutex::new(None), panicked: AtomicBool::new(false) })
    }

    /// Asks for a stop, on the guest's or the host's behalf. Only the first reason counts.
    pub fn request(&self, reason: StopReason) {
        let mut pressed = lock(&self.pressed);
        if pressed.is_none() {
            *pressed = Some(Pressed { reason, by_user: false });
            self.fd.signal();
        }
    }

    /// Asks for a stop on the user's behalf: it takes the place of a reason that only the guest has.
    pub fn insist(&self, reason: StopReason) {
        let mut pressed = lock(&self.pressed);
        if pressed.as_ref().is_none_or(Pressed::is_guests) {
            *pressed = Some(Pressed { reason, by_user: true });
            self.fd.signal();
        }
    }

    /// Notes that the guest's kernel panicked and goes on; whether that is the first time.
    pub fn note_panic(&self) -> bool {
        !self.panicked.swap(true, Ordering::Relaxed)
    }

    /// Whether the guest's kernel panicked and was let go on.
    pub fn has_panicked(&self) -> bool {
        self.panicked.load(Ordering::Relaxed)
    }

    /// The reason so far.
    pub fn reason(&self) -> Option<StopReason> {
        lock(&self.pressed).as_ref().map(|pressed| pressed.reason.clone())
    }

    /// Whether there is a reason, and only the guest has it: one that can wait while the machine is paused.
    pub fn can_wait(&self) -> bool {
        lock(&self.pressed).as_ref().is_some_and(Pressed::is_guests)
    }

    /// Readable from the first request on, unless it was taken.
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

    #[test]
    fn the_user_goes_before_the_guest_and_not_before_the_host() {
        let stop = StopSwitch::new().unwrap();
        stop.request(StopReason::Reset("guest"));
        assert!(stop.can_wait());
        stop.insist(StopReason::Quit);
        stop.insist(StopReason::Signal(15));
        assert_eq!((stop.reason(), stop.can_wait()), (Some(StopReason::Quit), false));
        let stop = StopSwitch::new().unwrap();
        let failed = StopReason::HostError("gone".into());
        stop.request(failed.clone());
        assert!(!stop.can_wait());
        stop.insist(StopReason::Quit);
        assert_eq!(stop.reason(), Some(failed));
    }
}
