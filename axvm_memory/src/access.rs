//! Ranges of guest RAM, and copies in and out.
//!
//! ```text
//!   Gpa, len --range(): looked up in the table, once--> GuestRange { gpa, len, host address, whose }
//!                                                          | copy, get, preadv: compares whose, and uses the address
//! ```
//!
//! A proof is worth nothing for other RAM, which may have ended: `whose` is compared at each use, in release builds too. It
//! costs one comparison, where a lookup costs a walk of the table.
//!
//! No specification: the guest's addresses are claims, and this is where they are checked. Left out: ranges across the hole.

use axvm_arch::Gpa;
use thiserror::Error;
use vm_memory::VolatileSlice;

use crate::ram::RamId;
use crate::{GuestRam, Plain};

/// An address from the guest (or from a layout) does not name RAM.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AccessError {
    /// Some byte of the range is not RAM.
    #[error("{len} bytes at {gpa} are not all in guest RAM")]
    NotRam {
        /// First address.
        gpa: Gpa,
        /// Length in bytes.
        len: u64,
    },
    /// The address breaks the alignment of what is said to be there.
    #[error("{gpa} is not aligned to {align} bytes")]
    Unaligned {
        /// The address.
        gpa: Gpa,
        /// Required alignment in bytes.
        align: u64,
    },
}

/// A range proven to lie inside one region of guest RAM.
///
/// Made only by [`GuestRam::range`]; good for the RAM that made it, and refused by any other. May be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRange {
    gpa: Gpa,
    len: usize,
    /// The first byte, while the RAM `whose` lives; of an empty range, perhaps the end of a region.
    host: *mut u8,
    whose: RamId,
}

// SAFETY: the address is used only by a `GuestRam` that it belongs to, whose memory any thread may access.
unsafe impl Send for GuestRange {}
// SAFETY: as above; `&GuestRange` gives out numbers only.
unsafe impl Sync for GuestRange {}

impl GuestRange {
    /// First address.
    pub fn gpa(&self) -> Gpa {
        self.gpa
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it begins and ends at multiples of `align`, a power of two, in the host's address space.
    pub fn is_aligned(&self, align: usize) -> bool {
        (self.host as usize | self.len) & (align - 1) == 0
    }

    /// The first `count` bytes and the rest; all bytes and an empty rest if it is shorter.
    pub fn split_at(&self, count: usize) -> (GuestRange, GuestRange) {
        let count = count.min(self.len);
        let (gpa, host) = (Gpa(self.gpa.0 + count as u64), self.host.wrapping_add(count));
        (GuestRange { len: count, ..*self }, GuestRange { gpa, host, len: self.len - count, ..*self })
    }
}

impl GuestRam {
    /// Proves that `len` bytes from `gpa` are RAM, in one region.
    #[inline]
    pub fn range(&self, gpa: Gpa, len: u64) -> Result<GuestRange, AccessError> {
        match (self.locate(gpa, len), usize::try_from(len)) {
            (Some(host), Ok(size)) => Ok(GuestRange { gpa, len: size, host, whose: self.id() }),
            _ => Err(AccessError::NotRam { gpa, len }),
        }
    }

    /// Copies from guest RAM.
    pub fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), AccessError> {
        let range = self.range(gpa, data.len() as u64)?;
        self.copy_from(&range, data);
        Ok(())
    }

    /// Copies into guest RAM.
    pub fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
        let range = self.range(gpa, data.len() as u64)?;
        self.copy_to(&range, data);
        Ok(())
    }

    /// Copies `data.len()` bytes out of the front of `range`; stops at the shorter of the two.
    pub fn copy_from(&self, range: &GuestRange, data: &mut [u8]) -> usize {
        self.volatile(range).copy_to(data)
    }

    /// Copies `data` to the front of `range`; stops at the shorter of the two.
    pub fn copy_to(&self, range: &GuestRange, data: &[u8]) -> usize {
        let count = data.len().min(range.len());
        self.volatile(range).copy_from(&data[..count]);
        count
    }

    /// Volatile read of a `T` at `offset` bytes into `range`, aligned or not. The `T` must end inside
    /// the range; one that does not is our bug and panics.
    #[inline]
    pub fn get<T: Plain>(&self, range: &GuestRange, offset: usize) -> T {
        #[repr(C, packed)]
        #[derive(Clone, Copy)]
        struct Unaligned<T>(T);

        let fits = offset <= range.len && range.len - offset >= size_of::<T>();
        assert!(fits, "{} bytes at {offset} in a range of {}", size_of::<T>(), range.len);
        let place = self.place(range).wrapping_add(offset).cast::<Unaligned<T>>();
        // SAFETY: the range, which is of this RAM, holds a whole `T` from `place` on, packed needs no alignment, and every bit
        // pattern is a `T`.
        unsafe { place.read_volatile() }.0
    }

    /// Host address of a proven range; a range of other RAM panics, as it proves nothing here.
    #[inline]
    pub(crate) fn place(&self, range: &GuestRange) -> *mut u8 {
        assert!(range.whose == self.id(), "a GuestRange belongs to the RAM that made it");
        range.host
    }

    /// Host view of a proven range.
    #[inline]
    fn volatile(&self, range: &GuestRange) -> VolatileSlice<'_> {
        let place = self.place(range);
        // SAFETY: `locate` found that many bytes there when this very RAM made the range, its mappings stay as long as
        // `self` is borrowed, and all accesses to them are volatile or atomic.
        unsafe { VolatileSlice::new(place, range.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RamConfig;
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;

    fn ram(size: u64) -> Arc<GuestRam> {
        GuestRam::allocate(&RamConfig::new(size)).unwrap()
    }

    #[test]
    fn ranges_end_where_ram_ends() {
        let ram = ram(4 * MIB);
        assert_eq!(ram.range(Gpa(0), 4 * MIB).unwrap().len(), 4 << 20);
        assert!(ram.range(Gpa(4 * MIB - 1), 1).is_ok());
        assert!(ram.range(Gpa(4 * MIB), 0).is_ok());
        for (gpa, len) in [(0, 4 * MIB + 1), (4 * MIB - 1, 2), (4 * MIB, 1), (u64::MAX, 1), (1, u64::MAX)] {
            let gpa = Gpa(gpa);
            assert_eq!(ram.range(gpa, len), Err(AccessError::NotRam { gpa, len }));
        }
    }

    #[test]
    fn no_range_crosses_the_hole() {
        let ram = ram(6 << 30);
        assert!(ram.range(Gpa((3 << 30) - 8), 8).is_ok());
        assert!(ram.range(Gpa((3 << 30) - 8), 9).is_err());
        assert!(ram.range(Gpa(0xd000_0000), 1).is_err());
        assert!(ram.range(Gpa(4 << 30), 3 << 30).is_ok());
        assert!(ram.range(Gpa((4 << 30) - 1), 2).is_err());
    }

    #[test]
    fn copies_stop_at_the_shorter_side() {
        let ram = ram(2 * MIB);
        let range = ram.range(Gpa(2 * MIB - 4), 4).unwrap();
        assert_eq!(ram.copy_to(&range, &[1, 2, 3, 4, 5, 6]), 4);
        let mut data = [9; 6];
        assert_eq!(ram.copy_from(&range, &mut data), 4);
        assert_eq!(data, [1, 2, 3, 4, 9, 9]);
        let mut two = [0; 2];
        assert_eq!(ram.copy_from(&range, &mut two), 2);
        assert_eq!(two, [1, 2]);
    }

    #[test]
    fn an_empty_range_copies_nothing() {
        let ram = ram(2 * MIB);
        let range = ram.range(Gpa(2 * MIB), 0).unwrap();
        assert_eq!(ram.copy_to(&range, &[1]), 0);
        assert_eq!(ram.copy_from(&range, &mut [0]), 0);
    }

    #[test]
    fn values_need_no_alignment() {
        let ram = ram(2 * MIB);
        ram.write(Gpa(0x1001), &[1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
        let range = ram.range(Gpa(0x1001), 9).unwrap();
        assert_eq!(ram.get::<u64>(&range, 1), 0x0908_0706_0504_0302);
        assert_eq!(ram.get::<u8>(&range, 8), 9);
        let longer = ram.range(Gpa(0x0ff0), 25).unwrap();
        assert_eq!(ram.get::<u64>(&longer, 17), 0x0807_0605_0403_0201, "up to the last byte");
    }

    #[test]
    #[should_panic(expected = "8 bytes at 1 in a range of 8")]
    fn a_value_past_the_end_is_our_bug() {
        let ram = ram(2 * MIB);
        ram.get::<u64>(&ram.range(Gpa(0x1000), 8).unwrap(), 1);
    }

    #[test]
    fn splitting_keeps_every_byte_once() {
        let ram = ram(2 * MIB);
        let (head, tail) = ram.range(Gpa(0x1000), 10).unwrap().split_at(4);
        assert_eq!((head.gpa(), head.len(), tail.gpa(), tail.len()), (Gpa(0x1000), 4, Gpa(0x1004), 6));
        assert!(head.split_at(9).1.is_empty());
    }

    #[test]
    #[should_panic(expected = "belongs to the RAM that made it")]
    fn a_range_of_other_ram_is_our_bug() {
        let range = ram(2 * MIB).range(Gpa(0x1000), 8).unwrap();
        // The RAM that made it is gone, and this one may lie where that one lay.
        ram(2 * MIB).get::<u64>(&range, 0);
    }

    #[test]
    fn both_parts_of_a_range_are_where_the_whole_was() {
        let ram = ram(2 * MIB);
        ram.write(Gpa(0x1000), &[1, 2, 3, 4]).unwrap();
        let (head, tail) = ram.range(Gpa(0x1000), 4).unwrap().split_at(1);
        assert_eq!((ram.get::<u8>(&head, 0), ram.get::<u16>(&tail, 0)), (1, 0x0302));
        assert_eq!(tail, ram.range(Gpa(0x1001), 3).unwrap());
    }

    #[test]
    fn writes_outside_ram_are_errors() {
        let ram = ram(2 * MIB);
        assert!(ram.write(Gpa(2 * MIB - 1), &[0; 2]).is_err());
        assert!(ram.read(Gpa(u64::MAX), &mut [0]).is_err());
    }
}
