//! pvpanic: one port through which a dying guest kernel says so.
//!
//! ```text
//!   IN  0x505 --> 0x01: "panicked" is understood
//!   OUT 0x505, bit 0  --> Power::press(Panic)
//! ```
//!
//! Spec: QEMU docs/specs/pvpanic.rst, "ISA Interface" and "ACPI Interface". Left out: bit 1 (a crash
//! kernel takes over; the machine simply goes on).

use std::sync::Arc;

use crate::{BusDevice, Power, PowerEvent};

/// The guest panicked.
const PANICKED: u8 = 1 << 0;

/// The pvpanic port: one byte.
pub struct Pvpanic {
    power: Arc<Power>,
}

impl Pvpanic {
    /// A port wired to `power`.
    pub fn new(power: Arc<Power>) -> Pvpanic {
        Pvpanic { power }
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
            self.power.press(PowerEvent::Panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_panic_bit_ends_the_machine() {
        let power = Arc::new(Power::new().unwrap());
        let port = Pvpanic::new(power.clone());
        let mut events = [0xff];
        port.read(0, &mut events);
        assert_eq!(events, [PANICKED]);
        port.write(0, &[0b10]);
        assert_eq!(power.pressed(), None);
        port.write(0, &[0b01]);
        assert_eq!(power.pressed(), Some(PowerEvent::Panic));
    }
}
