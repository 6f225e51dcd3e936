//! Message signalled interrupts: a write to the local APICs' area, instead of a line.
//!
//! ```text
//!   address  0xfee | destination 0-7 (12..20) | destination 8-14 (5..12, if the hypervisor says so) | hint, mode
//!   data     vector (0..8), delivery mode, trigger
//! ```
//!
//! Spec: Intel SDM volume 3, 11.11 "Message Signalled Interrupts"; Linux Documentation/virt/kvm/x86/cpuid.rst
//! (KVM_FEATURE_MSI_EXT_DEST_ID).

/// What bits 20 to 63 of an address are that interrupts.
const AREA: u64 = 0xfee;
/// Bits 8 to 14 of a destination, in the address.
const HIGH_DESTINATION: u64 = 0xfe0;

/// A write that interrupts: the processor is in the address, the vector in the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where to.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// What an interrupt with a number of its own is to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiRoute {
    /// The number: a GSI that is no line.
    pub gsi: u32,
    /// The message; `None`: nothing.
    pub message: Option<MsiMessage>,
}

impl MsiMessage {
    /// The message, if the address is that of a local APIC.
    pub fn interrupt(self) -> Option<MsiMessage> {
        (self.address >> 20 == AREA).then_some(self)
    }

    /// The address as a pair of 32 bits with the destination's bits from 8 on in the upper one, as KVM takes it where APIC
    /// ids have 32 bits.
    pub fn address_with_wide_id(self) -> [u32; 2] {
        let high = (self.address & HIGH_DESTINATION) >> 5;
        [(self.address & 0xffff_ffff & !HIGH_DESTINATION) as u32, (high << 8) as u32]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_local_apics_area_interrupts() {
        let at = |address| MsiMessage { address, data: 0x41 }.interrupt().is_some();
        assert!(at(0xfee0_0000) && at(0xfeef_fffc));
        assert!(!at(0) && !at(0xfedf_fffc) && !at(0xfef0_0000) && !at(1 << 32 | 0xfee0_0000));
    }

    #[test]
    fn the_upper_half_of_an_id_goes_to_the_upper_half_of_the_address() {
        let words = |id: u64| {
            let address = 0xfee0_0000 | (id & 0xff) << 12 | (id >> 8) << 5 | 0xc;
            MsiMessage { address, data: 0 }.address_with_wide_id()
        };
        assert_eq!(words(0x2c), [0xfee2_c00c, 0]);
        assert_eq!(words(0x12c), [0xfee2_c00c, 0x100]);
        assert_eq!(words(0x7fff), [0xfeef_f00c, 0x7f00]);
    }
}
