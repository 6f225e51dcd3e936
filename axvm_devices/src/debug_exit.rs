//! Debug exit: a port through which a guest ends its machine with a code of its own.
//!
//! ```text
//!   OUT port, value  --> StopSwitch::request(DebugExit(value)) --> exit code of the process: (value << 1) | 1
//! ```
//!
//! For kernels that test themselves. The formula never gives 0: a guest that ends so is told apart from one that powered
//! off. As wide as QEMU's device is usually made, so that a write of 32 bits reaches it whole.
//!
//! No specification: the behaviour is that of QEMU's `isa-debug-exit`. It has no state: a save has nothing to carry.

use std::sync::Arc;

use crate::{BusDevice, RegisterNames, StopReason, StopSwitch};

/// The debug-exit port: one register, 1 to 4 bytes.
pub struct DebugExit {
    stop: Arc<StopSwitch>,
}

impl DebugExit {
    /// A port wired to `stop`.
    pub fn new(stop: Arc<StopSwitch>) -> DebugExit {
        DebugExit { stop }
    }
}

impl BusDevice for DebugExit {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) {
        let mut value = [0; 4];
        value.iter_mut().zip(data).for_each(|(byte, &written)| *byte = written);
        self.stop.request(StopReason::DebugExit(u32::from_le_bytes(value)));
    }

    fn registers(&self) -> RegisterNames {
        |_, _| Some("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_ends_the_machine_at_every_width() {
        for (data, value) in
            [(&[0x10][..], 0x10), (&[1, 2], 0x201), (&[1, 2, 3, 4], 0x0403_0201), (&[1, 2, 3, 4, 5], 0x0403_0201)]
        {
            let stop = Arc::new(StopSwitch::new().unwrap());
            let port = DebugExit::new(stop.clone());
            let mut answer = [0xff; 2];
            port.read(0, &mut answer);
            assert_eq!((answer, stop.reason()), ([0; 2], None), "a read ends nothing");
            port.write(0, data);
            port.write(0, &[7]);
            assert_eq!(stop.reason(), Some(StopReason::DebugExit(value)));
        }
    }
}
