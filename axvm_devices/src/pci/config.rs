//! The configuration space of one function, as a value: what a guest reads, and which of its bits it may write.
//!
//! ```text
//!   0x00  vendor, device | command, status | revision, class | header type
//!   0x10  BAR 0 (low, high): memory, 64-bit; the other BARs read as zero
//!   0x2c  subsystem | 0x34 first capability | 0x3c interrupt line (a note of the guest), pin 0: no INTx
//!   0x40  capabilities, each with the offset of the next
//!   0x100 nothing: a conventional function has 256 bytes
//! ```
//!
//! A guest sizes a BAR by writing all ones to it: the bits below the size do not take them.
//!
//! Spec: PCI Local Bus 3.0, 6.1 "Configuration Space Organization", 6.2.5.1 "Address Maps", 6.7 "Capabilities List".

use axvm_arch::HexBytes;

use crate::ChipStateError;
use crate::state::Check;

/// Bytes of a conventional configuration space.
pub(super) const LEN: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const HEADER_TYPE: usize = 0x0e;
const BAR: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const FIRST_CAPABILITY: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const CAPABILITIES: usize = 0x40;

/// Command: the function answers in memory.
const MEMORY: u16 = 1 << 1;
/// Command: it may use RAM; kept, and obeyed at all times.
const BUS_MASTER: u16 = 1 << 2;
/// Command: it must not raise INTx, which it never does.
const NO_INTX: u16 = 1 << 10;
/// Status: there are capabilities.
const HAS_CAPABILITIES: u16 = 1 << 4;
/// Header type: other functions share the slot.
const MULTI_FUNCTION: u8 = 1 << 7;
/// BAR: memory of a 64-bit address, not prefetchable.
const MEMORY_64: u32 = 0b100;

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who made it.
    pub vendor: u16,
    /// What it is, to its maker.
    pub device: u16,
    /// Base class, subclass and programming interface, 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Vendor and device of the board that it is on.
    pub subsystem: (u16, u16),
}

/// An entry of the list of capabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its kind.
    pub id: u8,
    /// What follows kind and next pointer.
    pub body: Vec<u8>,
    /// The bits of it that the guest may write; missing bytes are none.
    pub writable: Vec<u8>,
}

/// A function's configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; LEN],
    /// The bits that the guest may write.
    writable: [u8; LEN],
    /// Where the next capability goes.
    end: usize,
    /// The pointer to it.
    link: usize,
}

impl ConfigSpace {
    /// A function without a BAR and without capabilities.
    pub fn new(identity: Identity) -> ConfigSpace {
        let mut space = ConfigSpace { bytes: [0; LEN], writable: [0; LEN], end: CAPABILITIES, link: FIRST_CAPABILITY };
        space.put(0, &identity.vendor.to_le_bytes());
        space.put(2, &identity.device.to_le_bytes());
        space.put(REVISION, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        space.put(SUBSYSTEM, &identity.subsystem.0.to_le_bytes());
        space.put(SUBSYSTEM + 2, &identity.subsystem.1.to_le_bytes());
        space
    }

    /// The same with BAR 0 of `len` bytes, a power of two of at least 16, at `base`. Memory decoding is off.
    pub fn with_bar(mut self, base: u64, len: u64) -> ConfigSpace {
        self.put(BAR, &(base | u64::from(MEMORY_64)).to_le_bytes());
        self.allow(BAR, &(!(len - 1)).to_le_bytes());
        self.allow(COMMAND, &(MEMORY | BUS_MASTER | NO_INTX).to_le_bytes());
        self.allow(INTERRUPT_LINE, &[0xff]);
        self
    }

    /// Appends a capability; where it begins. The machine gives a function no more than it has room for.
    pub fn add(&mut self, capability: &Capability) -> usize {
        let at = self.end;
        self.put(self.link, &[at as u8]);
        self.put(STATUS, &HAS_CAPABILITIES.to_le_bytes());
        self.put(at, &[capability.id, 0]);
        self.put(at + 2, &capability.body);
        self.allow(at + 2, &capability.writable);
        (self.link, self.end) = (at + 1, (at + 2 + capability.body.len()).next_multiple_of(4));
        at
    }

    /// Other functions share the slot.
    pub fn set_multi_function(&mut self) {
        self.bytes[HEADER_TYPE] |= MULTI_FUNCTION;
    }

    /// The guest reads; what is not there reads as all ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// The guest writes; bits that it may not write stay.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let space = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, writable), written) in space.zip(data) {
            *byte = *byte & !writable | written & writable;
        }
    }

    /// Where BAR 0 is, if the function answers in memory.
    pub fn bar(&self) -> Option<u64> {
        let base = u64::from_le_bytes(self.field(BAR)) & !0xf;
        (u16::from_le_bytes(self.field(COMMAND)) & MEMORY != 0).then_some(base)
    }

    /// `N` bytes at `offset`, which must be within the space.
    pub fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        std::array::from_fn(|n| self.bytes[offset + n])
    }

    /// All of it, for a saved state.
    pub fn state(&self) -> HexBytes {
        HexBytes(self.bytes.into())
    }

    /// Takes what the guest wrote from a saved state; the rest must be as it is here.
    pub fn restore(&mut self, HexBytes(saved): &HexBytes) -> Result<(), ChipStateError> {
        let check = Check("a PCI function");
        let Ok(saved) = <[u8; LEN]>::try_from(saved.as_slice()) else {
            return check.that(false, "configuration space", format_args!("{} bytes", saved.len()), "256 bytes");
        };
        let fixed = saved.iter().zip(&self.bytes).zip(&self.writable);
        if let Some(at) = fixed.into_iter().position(|((saved, here), writable)| (saved ^ here) & !writable != 0) {
            let (found, here) = (saved[at], self.bytes[at]);
            let (found, allowed) = (format!("{found:#x} at {at:#x}"), format!("{here:#x} there, as on this machine"));
            return check.that(false, "configuration space", found, allowed);
        }
        self.bytes = saved;
        Ok(())
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity =
        Identity { vendor: 0x1af4, device: 0x1042, class: 0x01_8000, revision: 1, subsystem: (0x1af4, 0x1042) };

    fn space() -> ConfigSpace {
        ConfigSpace::new(IDENTITY).with_bar(0xc000_8000, 0x8000)
    }

    fn dword(space: &ConfigSpace, offset: usize) -> u32 {
        u32::from_le_bytes(space.field(offset))
    }

    #[test]
    fn a_guest_finds_out_what_it_is() {
        let space = space();
        assert_eq!(dword(&space, 0), 0x1042_1af4);
        assert_eq!(dword(&space, 8), 0x0180_0001);
        assert_eq!(dword(&space, 0x2c), 0x1042_1af4);
        assert_eq!(dword(&space, 0x3c), 0, "no interrupt pin");
        let mut beyond = [0; 4];
        space.read(0xfe, &mut beyond);
        assert_eq!(beyond, [0, 0, 0xff, 0xff]);
    }

    #[test]
    fn a_bar_shows_its_size_and_moves() {
        let mut space = space();
        assert_eq!((space.bar(), dword(&space, 0x10)), (None, 0xc000_8004), "decoding is off");
        space.write(0x10, &[0xff; 8]);
        assert_eq!((dword(&space, 0x10), dword(&space, 0x14)), (0xffff_8004, u32::MAX));
        space.write(0x10, &0x12_3456_7890_u64.to_le_bytes());
        space.write(COMMAND, &[2]);
        assert_eq!(space.bar(), Some(0x12_3456_0000));
        space.write(0x18, &[0xff; 24]);
        assert_eq!([0x18, 0x1c, 0x20, 0x24, 0x28].map(|bar| dword(&space, bar)), [0; 5], "no other BARs, no CIS");
        assert_eq!(dword(&space, 0x30), 0, "no ROM");
    }

    #[test]
    fn only_what_is_writable_is_written() {
        let mut space = space();
        let before = space.clone();
        for offset in (0..LEN).filter(|offset| !matches!(offset, 0x04..0x06 | 0x10..0x18 | 0x3c)) {
            space.write(offset, &[!before.bytes[offset]]);
        }
        assert_eq!(space, before);
        space.write(COMMAND, &[0xff, 0xff, 0xff, 0xff]);
        assert_eq!(dword(&space, COMMAND), 0x0406);
        space.write(0xfe, &[0xff; 8]);
        space.write(0xfff, &[0xff; 8]);
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = space();
        let first = Capability { id: 0x11, body: vec![1, 2, 3], writable: vec![0, 0xc0] };
        let second = Capability { id: 0x09, body: vec![4], writable: Vec::new() };
        assert_eq!((space.add(&first), space.add(&second)), (0x40, 0x48));
        assert_eq!((space.bytes[FIRST_CAPABILITY], space.bytes[STATUS]), (0x40, 0x10));
        assert_eq!(space.field(0x40), [0x11, 0x48, 1, 2, 3]);
        assert_eq!(space.field(0x48), [0x09, 0, 4]);
        space.write(0x40, &[0xff; 8]);
        assert_eq!(space.field(0x40), [0x11, 0x48, 1, 0xc2, 3]);
    }

    #[test]
    fn a_state_of_another_function_is_refused() {
        let mut old = space();
        old.write(COMMAND, &[6]);
        old.write(0x12, &[0xc7]);
        let mut new = space();
        new.restore(&old.state()).unwrap();
        assert_eq!((&new, new.bar()), (&old, Some(0xc0c7_8000 & !0x7fff)));
        let mut other = ConfigSpace::new(Identity { device: 0x1044, ..IDENTITY }).with_bar(0, 0x8000);
        let why = other.restore(&old.state()).unwrap_err().to_string();
        assert!(why.contains("is 0x42 at 0x2, and must be 0x44 there"), "{why}");
        assert!(other.restore(&HexBytes(vec![0; 255])).unwrap_err().to_string().contains("255 bytes"));
    }
}
