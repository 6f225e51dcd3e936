//! The guest's RAM as a whole: one or two regions around the hole below 4 GiB.
//!
//! ```text
//!   GPA 0                3 GiB      4 GiB
//!   |==== region 0 ========|  hole   |==== region 1 (if it does not fit below) ===>
//! ```

use std::io;
use std::sync::Arc;

use axvm_arch::{Gpa, layout};
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::mapping::Mapping;

/// The one concrete address-space type of this project.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Where the regions start, in their order.
const STARTS: [Gpa; 2] = [Gpa(0), layout::RAM_ABOVE_4G];

/// What RAM to allocate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamConfig {
    /// Size in bytes: a multiple of 1 MiB, at least 2 MiB.
    pub size: u64,
    /// Ask for transparent huge pages (`MADV_HUGEPAGE`).
    pub huge_pages: bool,
}

/// Guest RAM could not be had.
#[derive(Debug, Error)]
pub enum RamError {
    /// The size is none that a guest can have.
    #[error(
        "Guest RAM of {0} bytes is not possible: give a multiple of 1 MiB, at least 2 MiB (for example 512M or 4G)"
    )]
    Size(u64),
    /// The host refused the mapping.
    #[error("Cannot map {size_mib} MiB for guest RAM; ask for less, or free address space (ulimit -v)")]
    Map {
        /// Size of the region, in MiB.
        size_mib: u64,
        /// What mmap said.
        source: io::Error,
    },
    /// Memory could not be given back.
    #[error("Cannot clear guest RAM for the next start")]
    Clear(#[source] io::Error),
}

/// One contiguous piece of guest RAM, as KVM wants to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRegion {
    /// First guest-physical address.
    pub gpa: Gpa,
    /// Length in bytes.
    pub len: u64,
    /// Host virtual address of the first byte.
    pub hva: u64,
}

/// All RAM of one guest.
///
/// Its layout is fixed at allocation; ranges and arrays proven against it stay valid.
#[derive(Debug)]
pub struct GuestRam {
    // Declared before `maps`, so that the views go before the memory they view.
    memory: GuestMemory,
    maps: Vec<Mapping>,
    size: u64,
    huge_pages: bool,
}

impl GuestRam {
    /// Maps RAM, 2 MiB-aligned on the host, zero-filled, not yet backed by pages.
    pub fn allocate(config: &RamConfig) -> Result<Arc<GuestRam>, RamError> {
        let size = config.size;
        if size < 2 << 20 || !size.is_multiple_of(1 << 20) || size > 1 << 46 {
            return Err(RamError::Size(size));
        }
        let below = size.min(layout::HOLE.0);
        let mut maps = Vec::new();
        let mut regions = Vec::new();
        for (gpa, len) in STARTS.into_iter().zip([below, size - below]).filter(|&(_, len)| len > 0) {
            let map_error = |source| RamError::Map { size_mib: len >> 20, source };
            let map = Mapping::anonymous(len as usize).map_err(map_error)?;
            if config.huge_pages {
                // A kernel without THP refuses; the guest then runs on small pages.
                let _ = map.advise_huge_pages();
            }
            regions.push(view(&map, gpa).ok_or_else(|| map_error(io::ErrorKind::InvalidInput.into()))?);
            maps.push(map);
        }
        let memory = GuestMemory::from_regions(regions)
            .map_err(|error| RamError::Map { size_mib: size >> 20, source: io::Error::other(error) })?;
        Ok(Arc::new(GuestRam { memory, maps, size, huge_pages: config.huge_pages }))
    }

    /// Size in bytes, without the hole.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The regions in ascending order, for `KVM_SET_USER_MEMORY_REGION` and the e820 map.
    pub fn regions(&self) -> impl Iterator<Item = RamRegion> {
        let region = |(map, gpa): (&Mapping, Gpa)| RamRegion { gpa, len: map.len() as u64, hva: map.start() as u64 };
        self.maps.iter().zip(STARTS).map(region)
    }

    /// Where `len` bytes at `gpa` lie on the host, if all of them are RAM of one region.
    #[inline]
    pub(crate) fn host(&self, gpa: Gpa, len: u64) -> Option<*mut u8> {
        let end = gpa.checked_add(len)?;
        self.maps.iter().zip(STARTS).find_map(|(map, start)| {
            let offset = gpa.0.checked_sub(start.0)?;
            (end.0 - start.0 <= map.len() as u64).then(|| map.start().wrapping_add(offset as usize))
        })
    }

    /// Zeroes all RAM by giving its pages back to the host: what a reset machine starts with.
    pub fn clear(&self) -> Result<(), RamError> {
        self.maps.iter().try_for_each(|map| {
            map.discard().map_err(RamError::Clear)?;
            if self.huge_pages {
                let _ = map.advise_huge_pages();
            }
            Ok(())
        })
    }

    /// The address space in rust-vmm's terms, for libraries that speak them.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}

/// A rust-vmm region over `map`, starting at `gpa`.
fn view(map: &Mapping, gpa: Gpa) -> Option<GuestRegionMmap> {
    let builder = MmapRegionBuilder::new(map.len())
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: `map` is a live mapping of that length, and `GuestRam` drops its views before its maps.
    let builder = unsafe { builder.with_raw_mmap_pointer(map.start()) };
    GuestRegionMmap::new(builder.build().ok()?, GuestAddress(gpa.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::HUGE_PAGE;

    fn ram(size: u64) -> Arc<GuestRam> {
        GuestRam::allocate(&RamConfig { size, huge_pages: true }).unwrap()
    }

    fn shape(ram: &GuestRam) -> Vec<(u64, u64)> {
        ram.regions().map(|region| (region.gpa.0, region.len)).collect()
    }

    #[test]
    fn ram_goes_around_the_hole() {
        const GIB: u64 = 1 << 30;
        assert_eq!(shape(&ram(128 << 20)), [(0, 128 << 20)]);
        assert_eq!(shape(&ram(3 * GIB)), [(0, 3 * GIB)]);
        assert_eq!(shape(&ram(6 * GIB)), [(0, 3 * GIB), (4 * GIB, 3 * GIB)]);
        assert_eq!(ram(6 * GIB).size(), 6 * GIB);
    }

    #[test]
    fn regions_are_aligned_for_huge_pages() {
        for region in ram(6 << 30).regions() {
            assert!(region.hva.is_multiple_of(HUGE_PAGE as u64), "{region:?}");
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [0, 1, 1 << 20, (2 << 20) + 1, u64::MAX, 1 << 47] {
            let result = GuestRam::allocate(&RamConfig { size, huge_pages: false });
            assert!(matches!(result, Err(RamError::Size(n)) if n == size), "{size}");
        }
    }

    #[test]
    fn clearing_leaves_zeroes() {
        let ram = ram(4 << 20);
        ram.write(Gpa(0x1000), &[7; 16]).unwrap();
        ram.clear().unwrap();
        let mut data = [1; 16];
        ram.read(Gpa(0x1000), &mut data).unwrap();
        assert_eq!(data, [0; 16]);
    }
}
