//! The power switch of the machine: where every way to stop it ends up.
//!
//! ```text
//!  ACPI S5 write ----\
//!  reset registers ---> Power::press(reason) --> eventfd --> main thread stops the machine
//!  triple fault -----/        (the first press wins)
//! ```

use std::io;
use std::sync::{Mutex, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why the machine stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// The guest entered S5 (soft off).
    Off,
    /// The guest asked for a reset; the text says through which door.
    Reset(&'static str),
    /// A CPU shut down after a triple fault; a PC answers with a reset.
    TripleFault,
    /// The guest's kernel panicked and said so (pvpanic).
    Panic,
    /// The guest can not go on; the text says why.
    Crash(String),
    /// The host failed the guest (a KVM call went wrong); the text says how.
    HostError(String),
    /// The user ended the machine with a key.
    Quit,
    /// A signal with this number ended the machine.
    Signal(i32),
}

/// A latch for the first [`PowerEvent`], with an eventfd to wait on.
#[derive(Debug)]
pub struct Power {
    fd: EventFd,
    event: Mutex<Option<PowerEvent>>,
}

impl Power {
    /// A switch nobody has pressed.
    pub fn new() -> io::Result<Power> {
        Ok(Power { fd: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?, event: Mutex::new(None) })
    }

    /// Presses the switch. Only the first press counts.
    pub fn press(&self, event: PowerEvent) {
        let mut slot = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(event);
            let _ = self.fd.write(1);
        }
    }

    /// The first press so far.
    pub fn pressed(&self) -> Option<PowerEvent> {
        self.event.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Readable from the first press on.
    pub fn event_fd(&self) -> &EventFd {
        &self.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_press_wins() {
        let power = Power::new().unwrap();
        assert_eq!(power.pressed(), None);
        power.press(PowerEvent::Off);
        power.press(PowerEvent::Reset("late"));
        assert_eq!(power.pressed(), Some(PowerEvent::Off));
        assert_eq!(power.event_fd().read().unwrap(), 1);
    }
}
