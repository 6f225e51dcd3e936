//! pvpanic: one port through which a dying guest kernel says so.
//!
//! ```text
//!   IN  0x505 --> 0x01: "panicked" is understood
//!   OUT 0x505, bit 0  --> StopSwitch::request(Panic)
//! ```
//!
//! Spec: QEMU docs/specs/pvpanic.rst, "ISA Interface" and "ACPI Interface". Left out: bit 1 (a crash
//! kernel takes over; the machine simply goes on). It has no state: a save has nothing to carry.

use std::sync::Arc;

use crate::{BusDevice, StopReason, StopSwitch};

/// The guest panicked.
const PANICKED: u8 = 1 << 0;

/// The pvpanic port: one byte.
pub struct Pvpanic {
    stop: Arc<StopSwitch>,
}

impl Pvpanic {
    /// A port wired to `stop`.
    pub fn new(stop: Arc<StopSwitch>) -> Pvpanic {
        Pvpanic { stop }
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
            self.stop.request(StopReason::Panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_panic_bit_ends_the_machine() {
        let stop = Arc::new(StopSwitch::new().unwrap());
        let port = Pvpanic::new(stop.clone());
        let mut events = [0xff];
        port.read(0, &mut events);
        assert_eq!(events, [PANICKED]);
        port.write(0, &[0b10]);
        assert_eq!(stop.reason(), None);
        port.write(0, &[0b01]);
        assert_eq!(stop.reason(), Some(StopReason::Panic));
    }
}
