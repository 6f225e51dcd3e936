//! Giving RAM that the guest does not need back to the host.
//!
//! ```text
//!   pages   |......|......|......|......|
//!   range       |------------------|
//!   back           |======|======|          what is shared with a neighbour stays
//! ```
//!
//! Spec: madvise(2) MADV_DONTNEED, fallocate(2) FALLOC_FL_PUNCH_HOLE. Left out: RAM that is a private mapping of a file,
//! which would show the file again.

use std::io;

use axvm_arch::Gpa;

use crate::{GuestRam, GuestRange};

/// Size of the smallest page.
const SMALL_PAGE: u64 = 4096;

impl GuestRam {
    /// Gives the pages inside `range` back to the host; the guest finds zeroes when it touches them again.
    ///
    /// A page that lies only partly in the range stays as it is; so RAM from a pool of huge pages goes back
    /// in huge pages. Locked RAM cannot be given back: an error.
    pub fn discard(&self, range: &GuestRange) -> io::Result<()> {
        let page = self.config().pages.pool().map_or(SMALL_PAGE, |page| page.bytes());
        let Gpa(gpa) = range.gpa();
        let (first, end) = (gpa.next_multiple_of(page), (gpa + range.len() as u64) / page * page);
        if first >= end {
            return Ok(());
        }
        let place = self.place(range) as usize + (first - gpa) as usize;
        let mut maps = self.table().iter().map(|region| &region.map);
        let map = maps.find(|map| map.addresses().contains(&(place as u64)));
        let map = map.expect("a GuestRange lies in a region of the RAM that made it");
        let offset = place - map.start() as usize;
        map.discard(offset..offset + (end - first) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RamConfig;

    const MIB: u64 = 1 << 20;
    const FULL: u8 = 0x5a;

    fn discard(ram: &GuestRam, gpa: u64, len: u64) -> io::Result<()> {
        ram.discard(&ram.range(Gpa(gpa), len).unwrap())
    }

    #[test]
    fn discarded_memory_leaves_the_host_and_reads_as_zero() {
        for shared in [false, true] {
            let ram = GuestRam::allocate(&RamConfig { shared, ..RamConfig::new(32 * MIB) }).unwrap();
            ram.write(Gpa(0), &vec![FULL; 16 << 20]).unwrap();
            assert!(ram.backing().unwrap().resident() >= 16 * MIB, "shared: {shared}");
            discard(&ram, 4 * MIB, 8 * MIB).unwrap();
            assert!(ram.backing().unwrap().resident() <= 24 * MIB, "shared: {shared}");
            let mut data = vec![1; 16 << 20];
            ram.read(Gpa(0), &mut data).unwrap();
            let (before, rest) = data.split_at(4 << 20);
            let (inside, after) = rest.split_at(8 << 20);
            assert!(before.iter().chain(after).all(|&byte| byte == FULL));
            assert!(inside.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn a_page_that_is_only_partly_in_the_range_stays() {
        let ram = GuestRam::allocate(&RamConfig::new(2 * MIB)).unwrap();
        ram.write(Gpa(0), &[FULL; 0x4000]).unwrap();
        for (gpa, len) in [(0x1001, 0xfff), (0x1001, 0x1ffe), (0x1000, 0xfff), (0x1234, 0), (0x1000, 0)] {
            discard(&ram, gpa, len).unwrap();
        }
        let mut data = [0; 0x4000];
        ram.read(Gpa(0), &mut data).unwrap();
        assert_eq!(data, [FULL; 0x4000]);

        discard(&ram, 0xfff, 0x2002).unwrap();
        ram.read(Gpa(0), &mut data).unwrap();
        assert!(data[..0x1000].iter().chain(&data[0x3000..]).all(|&byte| byte == FULL));
        assert!(data[0x1000..0x3000].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn memory_above_the_hole_and_the_last_page_can_be_discarded() {
        const GIB: u64 = 1 << 30;
        let ram = GuestRam::allocate(&RamConfig::new(4 * GIB)).unwrap();
        for gpa in [0, 3 * GIB - 0x1000, 4 * GIB, 5 * GIB - 0x1000] {
            ram.write(Gpa(gpa), &[FULL; 0x1000]).unwrap();
            discard(&ram, gpa, 0x1000).unwrap();
            let mut data = [1; 0x1000];
            ram.read(Gpa(gpa), &mut data).unwrap();
            assert_eq!(data, [0; 0x1000], "{gpa:#x}");
        }
    }
}
