//! One entry of a descriptor table: a buffer, or the address of an indirect table.
//!
//! ```text
//!   bit 0                       64          96      112     127
//!       |        addr            |   len     | flags | next |      little-endian, 16 bytes
//! ```
//!
//! Spec: virtio 1.2, 2.7.5 "The Virtqueue Descriptor Table".

use axvm_arch::Gpa;

/// The chain goes on at `next`.
const NEXT: u16 = 1;
/// The device writes the buffer (else it reads it).
const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
const INDIRECT: u16 = 4;

/// Size of a descriptor in bytes.
pub(crate) const DESCRIPTOR_LEN: usize = 16;

/// A private copy of one descriptor: read once, so that the driver cannot change what was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) addr: Gpa,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    /// Takes apart the 16 bytes of a table entry.
    #[inline]
    pub(crate) fn from_bits(bits: u128) -> Descriptor {
        let bits = u128::from_le(bits);
        Descriptor {
            addr: Gpa(bits as u64),
            len: (bits >> 64) as u32,
            flags: (bits >> 96) as u16,
            next: (bits >> 112) as u16,
        }
    }

    /// The chain's next index, if it goes on.
    #[inline]
    pub(crate) fn next(&self) -> Option<u16> {
        (self.flags & NEXT != 0).then_some(self.next)
    }

    /// Whether the device may write the buffer, and only write it.
    #[inline]
    pub(crate) fn is_writable(&self) -> bool {
        self.flags & WRITE != 0
    }

    /// Whether the buffer is a table of descriptors.
    #[inline]
    pub(crate) fn is_indirect(&self) -> bool {
        self.flags & INDIRECT != 0
    }
}
