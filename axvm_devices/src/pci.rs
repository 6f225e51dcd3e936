//! The PCI configuration ports, with a host bridge and nothing behind it; and the reset control
//! register that lives among them.
//!
//! ```text
//!   0xcf8  address  |1| reserved | bus | device | function | register |00|   32-bit access only
//!   0xcf9  reset control, 8-bit access only: bit 2 resets the CPU
//!   0xcfc  data     4 bytes of the addressed function; all ones where there is none
//! ```
//!
//! This machine's devices are virtio-mmio, so why PCI? Linux looks for a way to configure PCI and
//! calls it fatal (in its log) if there is none. One host bridge on an empty bus is the smallest
//! truthful answer, and the ACPI tables do not mention it, so nothing is ever enumerated.
//!
//! Spec: PCI Local Bus 3.0, 3.2.2.3.2 "Software Generation of Configuration Transactions", 6.1
//! "Configuration Space Organization"; ACPI 6.5, 4.8.3.6 "Reset Register"; Intel ICH10 datasheet
//! (319973), "RST_CNT: Reset Control Register".
//! Left out: every device but the bridge, writes to its configuration, soft versus hard reset.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use crate::state::Check;
use crate::{BusDevice, ChipStateError, StopReason, StopSwitch};

/// Bit 31 of the address register: configuration accesses are on.
const ENABLE: u32 = 1 << 31;
/// What the address register keeps: bit 31, and bus, device, function and register of 4 bytes.
const ADDRESS: u32 = ENABLE | 0x00ff_fffc;
/// RST_CPU of the reset control register: the reset happens when this bit is written as 1.
const RESET_CPU: u8 = 1 << 2;

/// First 16 bytes of the bridge's configuration space: an Intel 440FX (8086:1237), revision 2,
/// class 06 00 00 (host bridge), header type 0. The rest reads as zero.
const BRIDGE: [u32; 4] = [0x1237_8086, 0, 0x0600_0002, 0];

/// All state of a [`PciHost`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciHostState {
    /// The address register: what the data port shows.
    pub address: u32,
}

/// Ports 0xcf8 to 0xcff.
pub struct PciHost {
    /// One register of one vCPU at a time: the guest's own lock orders accesses to it, so that Relaxed is enough.
    address: AtomicU32,
    stop: Arc<StopSwitch>,
}

impl PciHost {
    /// Length of the port range, in bytes.
    pub const LEN: u64 = 8;

    /// A host bridge whose reset register is wired to `stop`.
    pub fn new(stop: Arc<StopSwitch>) -> PciHost {
        PciHost { address: AtomicU32::new(0), stop }
    }

    /// The bridge's state.
    pub fn state(&self) -> PciHostState {
        PciHostState { address: self.address.load(Ordering::Relaxed) }
    }

    /// Makes a fresh bridge what `state` says.
    pub fn restore(&self, state: &PciHostState) -> Result<(), ChipStateError> {
        Check("the PCI host bridge").bits("address", state.address, ADDRESS)?;
        self.address.store(state.address, Ordering::Relaxed);
        Ok(())
    }

    /// The addressed 32-bit register.
    fn register(&self) -> u32 {
        let address = self.address.load(Ordering::Relaxed);
        // Bus, device and function 0 are the bridge.
        if address & ENABLE == 0 || address & 0x00ff_ff00 != 0 {
            return u32::MAX;
        }
        BRIDGE.get((address >> 2 & 0x3f) as usize).copied().unwrap_or(0)
    }
}

impl BusDevice for PciHost {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes()),
            (1, 1) => data[0] = 0,
            (4..8, len) if offset as usize + len <= 8 => {
                let at = offset as usize - 4;
                data.copy_from_slice(&self.register().to_le_bytes()[at..at + len]);
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, &[a, b, c, d]) => self.address.store(u32::from_le_bytes([a, b, c, d]) & ADDRESS, Ordering::Relaxed),
            (1, &[value]) if value & RESET_CPU != 0 => self.stop.request(StopReason::Reset("reset register")),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_arch::layout::port::RESET_VALUE;

    fn host() -> (PciHost, Arc<StopSwitch>) {
        let stop = Arc::new(StopSwitch::new().unwrap());
        (PciHost::new(stop.clone()), stop)
    }

    fn config(host: &PciHost, address: u32) -> u32 {
        host.write(0, &address.to_le_bytes());
        let mut data = [0; 4];
        host.read(4, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_address_register_can_be_read_back() {
        let (host, _) = host();
        host.write(0, &0x8000_1234u32.to_le_bytes());
        let mut data = [0; 4];
        host.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x8000_1234);
    }

    #[test]
    fn a_scan_finds_one_host_bridge() {
        let (host, _) = host();
        assert_eq!(config(&host, 0x8000_0000), 0x1237_8086);
        assert_eq!(config(&host, 0x8000_0008) >> 16, 0x0600);
        assert_eq!(config(&host, 0x8000_0040), 0);
        let others = (1..1 << 16).map(|n| 0x8000_0000 | n << 8);
        assert!(others.into_iter().all(|address| config(&host, address) == u32::MAX));
        assert_eq!(config(&host, 0), u32::MAX, "accesses are off");
    }

    #[test]
    fn narrow_reads_see_their_part_of_the_register() {
        let (host, _) = host();
        host.write(0, &0x8000_0008u32.to_le_bytes());
        let mut class = [0; 2];
        host.read(6, &mut class);
        assert_eq!(class, [0x00, 0x06]);
        let mut beyond = [0xff; 4];
        host.read(6, &mut beyond);
        assert_eq!(beyond, [0xff; 4]);
    }

    #[test]
    fn the_address_is_carried() {
        let (old, _) = host();
        old.write(0, &u32::MAX.to_le_bytes());
        let text = serde_json::to_string(&old.state()).unwrap();
        let (new, _) = host();
        new.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!((new.state(), new.state().address), (old.state(), 0x80ff_fffc));
        let error = new.restore(&PciHostState { address: 1 }).unwrap_err().to_string();
        assert!(error.contains("address is 0x1, and must be within 0x80fffffc"), "{error}");
    }

    #[test]
    fn only_a_byte_with_the_cpu_bit_resets() {
        let (host, stop) = host();
        host.write(1, &[0x02]);
        host.write(0, &[0xff; 4]);
        host.write(1, &[RESET_VALUE, 0]);
        assert_eq!(stop.reason(), None);
        host.write(1, &[RESET_VALUE]);
        assert_eq!(stop.reason(), Some(StopReason::Reset("reset register")));
    }
}
