//! The reset control register at port 0xcf9, which the FADT names as the reset register.
//!
//! ```text
//!   7     3     2        1        0
//!  | ... |CPU reset|hard|  ...  |        writing bit 2 as 1 resets the machine
//! ```
//!
//! Spec: ACPI 6.5, 4.8.3.6 "Reset Register" (the FADT says port and value); Intel ICH10 datasheet
//! (319973), "RST_CNT: Reset Control Register". Left out: the difference between a soft and a hard
//! reset; each one restarts the machine. Only this byte is on the bus: a 4-byte access to 0xcf8 is
//! PCI configuration, another matter.

use std::sync::Arc;

use crate::{BusDevice, Power, PowerEvent};

/// RST_CPU: the reset happens when this bit is written as 1.
const RESET_CPU: u8 = 1 << 2;

/// The reset control register: one byte.
pub struct ResetRegister {
    power: Arc<Power>,
}

impl ResetRegister {
    /// A register wired to `power`.
    pub fn new(power: Arc<Power>) -> ResetRegister {
        ResetRegister { power }
    }
}

impl BusDevice for ResetRegister {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (0, [value, ..]) = (offset, data) {
            *value = 0;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, [value, ..]) = (offset, data)
            && value & RESET_CPU != 0
        {
            self.power.press(PowerEvent::Reset("ACPI reset register"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_arch::layout::port::RESET_VALUE;

    #[test]
    fn the_value_in_the_fadt_resets() {
        let power = Arc::new(Power::new().unwrap());
        let register = ResetRegister::new(power.clone());
        register.write(0, &[0x02]);
        register.write(1, &[RESET_VALUE]);
        assert_eq!(power.pressed(), None, "choosing the kind of reset is not yet a reset");
        register.write(0, &[RESET_VALUE]);
        assert_eq!(power.pressed(), Some(PowerEvent::Reset("ACPI reset register")));
    }

    #[test]
    fn it_reads_as_zero() {
        let register = ResetRegister::new(Arc::new(Power::new().unwrap()));
        let mut value = [0xff];
        register.read(0, &mut value);
        assert_eq!(value, [0]);
    }
}
