//! The guest's RAM as a whole: one or two regions around the hole below 4 GiB.
//!
//! ```text
//!   GPA 0                3 GiB      4 GiB
//!   |==== region 0 ========|  hole   |==== region 1 (if it does not fit below) ===>
//!
//!   the table:   Region { gpa, map }, ...        looked up by `locate`, once for each claim
//! ```
//!
//! Invariants that all unsafe code of this crate leans on: a region's mapping lives, at one address and in one length, as
//! long as its `GuestRam`; regions do not overlap; pointers into a mapping come from `Mapping::start` and so may reach all
//! of it (provenance, which Miri checks); no reference into it is ever made; a number in `id` is never given twice.
//!
//! No specification: the layout is `axvm_arch::layout`'s. Left out: memory that is plugged or unplugged while a guest runs.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use axvm_arch::{Gpa, layout};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::mapping::Mapping;
use crate::{PageSize, RamConfig, RamError, host, memfd, parallel};

/// The one concrete address-space type of this project.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Tells one RAM from every other that this process ever had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RamId(u64);

impl RamId {
    /// A new one.
    fn new() -> RamId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: the numbers have to differ, not to be in order.
        RamId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
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
    // Declared before `regions`, so that the views go before the memory they view.
    /// The same in rust-vmm's terms, once a library has asked.
    memory: OnceLock<GuestMemory>,
    /// The table, in ascending order.
    regions: Vec<Region>,
    id: RamId,
    config: RamConfig,
}

/// A mapping and where the guest sees it.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) gpa: Gpa,
    pub(crate) map: Mapping,
}

impl GuestRam {
    /// Maps RAM, zero-filled and aligned on the host for the pages behind it.
    ///
    /// It is backed by pages as `config` says: from a pool, all of them are reserved now.
    pub fn allocate(config: &RamConfig) -> Result<Arc<GuestRam>, RamError> {
        check_size(config)?;
        match config.pages.pool() {
            None if config.populates() => host::require_available(config.size)?,
            None => host::require_possible(config.size)?,
            // The pool says it by itself.
            Some(_) => {}
        }
        GuestRam::map(config)
    }

    /// The same for looking at a machine that will not run, of any size, or for a small one that runs a moment: the host is
    /// not asked what it has, and needs no more memory than is written to.
    pub fn allocate_to_inspect(size: u64) -> Result<Arc<GuestRam>, RamError> {
        let config = RamConfig { pages: PageSize::Small, ..RamConfig::new(size) };
        check_size(&config)?;
        GuestRam::map(&config)
    }

    fn map(config: &RamConfig) -> Result<Arc<GuestRam>, RamError> {
        let regions = map_all(config)?;
        if config.pages == PageSize::Thp && !config.populates() {
            regions[0].map.begin_small();
        }
        let ram = GuestRam { memory: OnceLock::new(), regions, id: RamId::new(), config: *config };
        ram.back()?;
        Ok(Arc::new(ram))
    }

    /// Size in bytes, without the hole.
    pub fn size(&self) -> u64 {
        self.config.size
    }

    /// The regions in ascending order, for `KVM_SET_USER_MEMORY_REGION` and the e820 map.
    pub fn regions(&self) -> impl Iterator<Item = RamRegion> {
        self.regions.iter().map(|Region { gpa, map }| RamRegion {
            gpa: *gpa,
            len: map.len() as u64,
            hva: map.start() as u64,
        })
    }

    /// Where `len` bytes at `gpa` lie on the host, if all of them are RAM of one region.
    ///
    /// The pointer is good for these bytes while `self` lives; of an empty range, it may be the end of a region.
    #[inline]
    pub(crate) fn locate(&self, gpa: Gpa, len: u64) -> Option<*mut u8> {
        let end = gpa.checked_add(len)?;
        self.regions.iter().find_map(|region| {
            let offset = gpa.0.checked_sub(region.gpa.0)?;
            let fits = end.0 - region.gpa.0 <= region.map.len() as u64;
            fits.then(|| region.map.start().wrapping_add(offset as usize))
        })
    }

    /// What tells this RAM from others.
    pub(crate) fn id(&self) -> RamId {
        self.id
    }

    /// Zeroes all RAM: what a reset machine starts with. No guest may run meanwhile.
    ///
    /// Memory that the guest was promised (preallocated, locked, or from a pool) is overwritten, so
    /// that no other program can take it now; other memory is given back to the host.
    pub fn clear(&self) -> Result<(), RamError> {
        let promised = self.config.populates() || self.config.pages.pool().is_some();
        let zero = if promised { Mapping::zero } else { Mapping::discard };
        parallel::for_each_chunk(&self.maps(), zero).map_err(RamError::Clear)
    }

    /// How it was allocated.
    pub(crate) fn config(&self) -> &RamConfig {
        &self.config
    }

    /// The table.
    pub(crate) fn table(&self) -> &[Region] {
        &self.regions
    }

    /// The mappings behind the regions, in their order.
    fn maps(&self) -> Vec<&Mapping> {
        self.regions.iter().map(|region| &region.map).collect()
    }

    /// Backs RAM with pages now, and locks it, if its configuration says so.
    fn back(&self) -> Result<(), RamError> {
        let size_mib = self.config.size >> 20;
        if self.config.populates() {
            parallel::for_each_chunk(&self.maps(), Mapping::populate)
                .map_err(|source| RamError::Populate { size_mib, source })?;
        }
        if self.config.lock {
            let locked = self.regions.iter().try_for_each(|region| region.map.lock());
            locked.map_err(|source| RamError::Lock { size_mib, limit: host::lock_limit(), source })?;
        }
        Ok(())
    }

    /// The address space in rust-vmm's terms, for libraries that speak them. AxVM itself uses the table.
    pub fn memory(&self) -> &GuestMemory {
        self.memory.get_or_init(|| {
            let views = self.regions.iter().map(view).collect::<io::Result<Vec<_>>>();
            let views = views.expect("a view of a mapping that is there");
            GuestMemory::from_regions(views).expect("regions in order, with a hole between them")
        })
    }
}

/// Whether a guest can have RAM of that size, in those pages.
fn check_size(config: &RamConfig) -> Result<(), RamError> {
    let size = config.size;
    if size < 2 << 20 || !size.is_multiple_of(1 << 20) || size > 1 << 46 {
        return Err(RamError::Size(size));
    }
    match config.pages.pool() {
        Some(page) if !size.is_multiple_of(page.bytes()) => Err(RamError::Unaligned { size_mib: size >> 20, page }),
        _ => Ok(()),
    }
}

/// Maps each region.
fn map_all(config: &RamConfig) -> Result<Vec<Region>, RamError> {
    let below = config.size.min(layout::HOLE.0);
    let pieces = [(Gpa(0), below), (layout::RAM_ABOVE_4G, config.size - below)];
    let region = |(gpa, len)| Ok(Region { gpa, map: map_one(len, config)? });
    let regions: Result<Vec<_>, _> = pieces.into_iter().filter(|&(_, len)| len > 0).map(region).collect();
    // What had been mapped of the RAM is gone by now, and so not counted as taken.
    regions.map_err(|error| match (error, config.pages.pool()) {
        (RamError::Map { source, .. }, Some(page)) => host::pool_error(config.size, page, source),
        (error, _) => error,
    })
}

fn map_one(len: u64, config: &RamConfig) -> Result<Mapping, RamError> {
    let map_error = |source| RamError::Map { size_mib: len >> 20, source };
    let pool = config.pages.pool();
    let file = if config.shared || pool.is_some() {
        Some(memfd::create(len, pool).map_err(|source| match pool {
            Some(page) => RamError::NoHugePages { page, source },
            None => map_error(source),
        })?)
    } else {
        None
    };
    Mapping::new(len as usize, config, file).map_err(map_error)
}

/// A rust-vmm region over one of ours; it names the memfd of shared memory.
fn view(Region { gpa, map }: &Region) -> io::Result<GuestRegionMmap> {
    let mut builder = MmapRegionBuilder::new(map.len()).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    if let Some(file) = map.shared_file() {
        builder = builder.with_mmap_flags(libc::MAP_SHARED).with_file_offset(FileOffset::from_arc(Arc::clone(file), 0));
    }
    // SAFETY: `map` is a live mapping of that length, and `GuestRam` drops its views before its table.
    let builder = unsafe { builder.with_raw_mmap_pointer(map.start()) };
    let region = builder.build().map_err(io::Error::other)?;
    GuestRegionMmap::new(region, GuestAddress(gpa.0)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::HUGE_PAGE;

    fn ram(size: u64) -> Arc<GuestRam> {
        GuestRam::allocate(&RamConfig::new(size)).unwrap()
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
    fn what_lies_at_the_start_takes_no_huge_page() {
        let ram = ram(8 << 20);
        ram.write(Gpa(0x1000), &[1]).unwrap();
        assert_eq!(ram.backing().unwrap().resident(), 4096);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [0, 1, 1 << 20, (2 << 20) + 1, u64::MAX, 1 << 47] {
            let result = GuestRam::allocate(&RamConfig::new(size));
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
