//! The keyboard controller's command port, for the one line that matters: CPU reset.
//!
//! ```text
//!  OUT 0x64, 0xfe --> pulse output line 0 --> StopSwitch::request(Reset)
//!  IN  0x64       --> 0x01: output buffer full, input buffer empty; for ever
//! ```
//!
//! Software meets this port on two ways, and the status byte must please both:
//!
//! - *Is a keyboard controller there?* A probe first drains the output buffer: while OBF (bit 0)
//!   is set it reads data. A buffer that never runs dry is no controller, which Linux concludes
//!   after 16 reads (under a millisecond). Were OBF clear, Linux would send a self-test and wait
//!   half a second for the answer.
//! - *Reset the machine.* The reboot code waits for IBF (bit 1) to clear before it sends 0xfe. It
//!   is never set, so the command comes at once.
//!
//! Spec: IBM PC AT Technical Reference (1984), "Keyboard Controller", status register and command
//! list. Data port 0x60 belongs to no chip (all ones), and 0x61 belongs to the PIT's speaker gate.
//! Left out: keyboard, mouse, A20, and the reset by command 0xd1. It has no state: a save has nothing to carry.

use std::sync::Arc;

use crate::{BusDevice, RegisterNames, StopReason, StopSwitch};

/// OBF: the output buffer holds a byte for the CPU.
const OUTPUT_BUFFER_FULL: u8 = 1 << 0;

/// The command and status register of an i8042: one byte, at port 0x64.
pub struct I8042 {
    stop: Arc<StopSwitch>,
}

impl I8042 {
    /// A controller whose reset line is wired to `stop`.
    pub fn new(stop: Arc<StopSwitch>) -> I8042 {
        I8042 { stop }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (0, [status, ..]) = (offset, data) {
            *status = OUTPUT_BUFFER_FULL;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Commands 0xf0 to 0xff pulse each output line whose bit is 0; line 0 is CPU reset.
        if let (0, [0xf0..=0xff, ..]) = (offset, data)
            && data[0] & 1 == 0
        {
            self.stop.request(StopReason::Reset("i8042"));
        }
    }

    fn registers(&self) -> RegisterNames {
        |_, write| Some(if write { "command" } else { "status" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chip() -> (I8042, Arc<StopSwitch>) {
        let stop = Arc::new(StopSwitch::new().unwrap());
        (I8042::new(stop.clone()), stop)
    }

    #[test]
    fn pulsing_line_0_resets() {
        let (chip, stop) = chip();
        chip.write(0, &[0xfe]);
        assert_eq!(stop.reason(), Some(StopReason::Reset("i8042")));
    }

    #[test]
    fn other_commands_do_not_reset() {
        let (chip, stop) = chip();
        for command in (0..=0xef).chain([0xff, 0xf1]) {
            chip.write(0, &[command]);
        }
        chip.write(1, &[0xfe]);
        chip.write(0, &[0x00, 0xfe]);
        assert_eq!(stop.reason(), None);
    }

    #[test]
    fn a_probe_finds_a_buffer_that_never_runs_dry_and_a_reset_need_not_wait() {
        let (chip, _) = chip();
        for _ in 0..17 {
            let mut status = [0xff];
            chip.read(0, &mut status);
            assert_eq!(status, [0b01]);
        }
    }
}
