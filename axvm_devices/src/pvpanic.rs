//! pvpanic: one port through which a dying guest kernel says so.
//!
//! ```text
//!   IN  0x505 --> 0x01: "panicked" is understood
//!   OUT 0x505, bit 0  --> StopSwitch::request(Panic), or a note and a warning: the guest goes on
//! ```
//!
//! Spec: QEMU docs/specs/pvpanic.rst, "ISA Interface" and "ACPI Interface". Left out: bit 1 (a crash
//! kernel takes over; the machine simply goes on). It has no state: a save has nothing to carry.

use std::sync::Arc;

use axvm_events::{Event, Events};

use crate::{BusDevice, RegisterNames, StopReason, StopSwitch};

/// The guest panicked.
const PANICKED: u8 = 1 << 0;

/// What a panic does.
pub enum PanicAnswer {
    /// It stops the machine.
    Stop,
    /// It is noted and told to these; the guest goes on, and may reset itself.
    Note(Events),
}

/// The pvpanic port: one byte.
pub struct Pvpanic {
    stop: Arc<StopSwitch>,
    answer: PanicAnswer,
}

impl Pvpanic {
    /// A port wired to `stop`.
    pub fn new(stop: Arc<StopSwitch>, answer: PanicAnswer) -> Pvpanic {
        Pvpanic { stop, answer }
    }

    fn panicked(&self) {
        match &self.answer {
            PanicAnswer::Stop => self.stop.request(StopReason::Panic),
            // A guest may say so again and again.
            PanicAnswer::Note(events) if self.stop.note_panic() => {
                let message = "its kernel panicked, and goes on as it likes (--on-panic continue)".into();
                events.warn(|| Event::Warning { from: "guest", message });
            }
            PanicAnswer::Note(_) => {}
        }
    }
}

impl BusDevice for Pvpanic {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
        if let [events, ..] = data {
            *events = PANICKED;
        }
    }

    fn write(&self, _: u64, data: &[u8]) {
        if data.first().is_some_and(|events| events & PANICKED != 0) {
            self.panicked();
        }
    }

    fn registers(&self) -> RegisterNames {
        |_, _| Some("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn only_the_panic_bit_ends_the_machine() {
        let stop = Arc::new(StopSwitch::new().unwrap());
        let port = Pvpanic::new(stop.clone(), PanicAnswer::Stop);
        let mut events = [0xff];
        port.read(0, &mut events);
        assert_eq!(events, [PANICKED]);
        port.write(0, &[0b10]);
        assert_eq!(stop.reason(), None);
        port.write(0, &[0b01]);
        assert_eq!(stop.reason(), Some(StopReason::Panic));
    }

    #[test]
    fn a_panic_that_is_left_to_the_guest_is_noted_and_told_once() {
        #[derive(Default)]
        struct Told(Mutex<Vec<String>>);
        impl axvm_events::Sink for Told {
            fn event(&self, event: &Event) {
                self.0.lock().unwrap().push(event.to_string());
            }
        }
        let (stop, told) = (Arc::new(StopSwitch::new().unwrap()), Arc::new(Told::default()));
        let port = Pvpanic::new(stop.clone(), PanicAnswer::Note(Events::warnings_to(told.clone())));
        port.write(0, &[0b10]);
        assert!(!stop.has_panicked());
        (0..3).for_each(|_| port.write(0, &[0b01]));
        assert_eq!((stop.reason(), stop.has_panicked()), (None, true));
        assert_eq!(told.0.lock().unwrap().len(), 1);
    }
}
