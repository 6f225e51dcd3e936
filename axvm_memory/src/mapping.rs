//! One region of guest RAM in the host's address space, between two guards.
//!
//! ```text
//!   reserved, no access:   |guard...|                          |....guard|
//!   mapped inside it:               |==========================|
//!                                   ^ aligned for the largest page that can back it
//! ```
//!
//! The guards turn a run over the end into a fault, and keep the kernel from merging the mapping
//! with a neighbour: what it reports about the mapping is about guest RAM alone.
//!
//! Spec: mmap(2), madvise(2), mlock(2), fallocate(2); Linux Documentation/admin-guide/mm/
//! transhuge.rst and hugetlbpage.rst. Left out: a mapping that moves or grows.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::{io, ptr};

use crate::errno::check;
use crate::memfd;
use crate::{HugePage, PageSize, RamConfig};

/// Size and alignment of a transparent huge page on x86-64, in bytes.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// Length of the smallest page, and of the smallest guard.
const SMALL_PAGE: usize = 4096;

/// Memory of one region; unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// Held for its drop, which unmaps the memory with the guards.
    _room: Reservation,
    start: *mut u8,
    len: usize,
    /// The memfd behind it: shared RAM and pages from a pool have one.
    file: Option<Arc<File>>,
    shared: bool,
    pool: Option<HugePage>,
}

// SAFETY: the mapping is plain memory, owned by this value; who accesses it from which thread is
// decided by the types built on it, which use only volatile and atomic accesses.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` only gives out the address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes, a multiple of the page, as `config` says; `file` is the memfd, if it needs one.
    pub(crate) fn new(len: usize, config: &RamConfig, file: Option<File>) -> io::Result<Mapping> {
        let pool = config.pages.pool();
        let align = pool.map_or(HUGE_PAGE, |page| page.bytes() as usize);
        let room_len = len.checked_add(align + SMALL_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let room = Reservation::new(room_len)?;
        let start = room.start.wrapping_add(offset(room.start as usize, align));

        let (kind, fd) = match &file {
            Some(file) if config.shared => (libc::MAP_SHARED, file.as_raw_fd()),
            Some(file) => (libc::MAP_PRIVATE, file.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        // Without MAP_NORESERVE, mmap sets aside every page of the pool that the guest may touch
        // later. An empty pool is then an error here, and never a SIGBUS under a running guest.
        let reserve = if pool.is_some() { 0 } else { libc::MAP_NORESERVE };
        let flags = libc::MAP_FIXED | kind | reserve;
        // SAFETY: it replaces a part of our own reservation, which nothing else uses.
        let base = unsafe { libc::mmap(start.cast(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let file = file.map(Arc::new);
        let map = Mapping { _room: room, start, len, file, shared: config.shared, pool };
        map.advise_pages(config.pages);
        // What a guest knows (keys, passwords) has no place in a core dump, which a crash service keeps or sends; and a
        // dump of AxVM would be as long as the guest's RAM. Every kernel since 3.4 takes this.
        let _ = map.advise(0..len, libc::MADV_DONTDUMP);
        Ok(map)
    }

    /// Asks for transparent huge pages, or for none. A kernel without them refuses both, and the
    /// guest runs on small pages.
    fn advise_pages(&self, pages: PageSize) {
        let advice = match pages {
            PageSize::Thp => libc::MADV_HUGEPAGE,
            PageSize::Small => libc::MADV_NOHUGEPAGE,
            PageSize::Huge2M | PageSize::Huge1G => return,
        };
        let _ = self.advise(0..self.len, advice);
    }

    /// Backs the first huge page with small ones after all. Firmware tables, the zero page and the first page tables lie
    /// there, far apart: to zero 2 MiB for them takes longer than the rest of a start.
    pub(crate) fn begin_small(&self) {
        let _ = self.advise(0..HUGE_PAGE.min(self.len), libc::MADV_NOHUGEPAGE);
    }

    /// Gives the pages of `range` back to the host; they read as zero again.
    pub(crate) fn discard(&self, range: Range<usize>) -> io::Result<()> {
        match &self.file {
            Some(file) if self.shared => memfd::punch(file, range),
            _ => self.advise(range, libc::MADV_DONTNEED),
        }
    }

    /// Backs `range` with pages, without changing what is in them.
    ///
    /// A kernel before 5.14 cannot be asked to: there, fresh memory is backed by writing zeroes.
    pub(crate) fn populate(&self, range: Range<usize>) -> io::Result<()> {
        match self.advise(range.clone(), libc::MADV_POPULATE_WRITE) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.zero(range),
            result => result,
        }
    }

    /// Writes zeroes over `range`; its pages stay.
    pub(crate) fn zero(&self, range: Range<usize>) -> io::Result<()> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} in a mapping of {}", self.len);
        let first = self.start.wrapping_add(range.start);
        // SAFETY: checked to be inside the mapping, which is writable, and no reference into it exists.
        unsafe { ptr::write_bytes(first, 0, range.len()) };
        Ok(())
    }

    /// Keeps all pages out of swap, and backs those that are not yet. Pages of a pool are never
    /// swapped, and need no leave.
    pub(crate) fn lock(&self) -> io::Result<()> {
        if self.pool.is_some() {
            return Ok(());
        }
        // SAFETY: the range is exactly this mapping; locking changes no content.
        check(unsafe { libc::mlock(self.start.cast(), self.len) })
    }

    fn advise(&self, range: Range<usize>, advice: libc::c_int) -> io::Result<()> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} in a mapping of {}", self.len);
        let first = self.start.wrapping_add(range.start);
        // SAFETY: checked to be inside this mapping; all advices used here keep it mapped.
        check(unsafe { libc::madvise(first.cast(), range.len(), advice) })
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Length of the largest page behind it.
    pub(crate) fn page_len(&self) -> usize {
        self.pool.map_or(HUGE_PAGE, |page| page.bytes() as usize)
    }

    /// The memfd that another process may map, if the memory is shared.
    pub(crate) fn shared_file(&self) -> Option<&Arc<File>> {
        self.file.as_ref().filter(|_| self.shared)
    }

    /// Host addresses it takes.
    pub(crate) fn addresses(&self) -> Range<u64> {
        let first = self.start as u64;
        first..first + self.len as u64
    }
}

/// Where in a reservation at `base` the mapping starts: behind a guard of one page or more, and at
/// most `align` bytes in, so that the room leaves a page behind the mapping too.
fn offset(base: usize, align: usize) -> usize {
    SMALL_PAGE + base.wrapping_add(SMALL_PAGE).wrapping_neg() % align
}

/// Address space without memory; whatever is mapped inside goes with it on drop.
#[derive(Debug)]
struct Reservation {
    start: *mut u8,
    len: usize,
}

impl Reservation {
    fn new(len: usize) -> io::Result<Reservation> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        match base {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            base => Ok(Reservation { start: base.cast(), len }),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the range was mapped in `new`, once; the mapping inside is no longer used.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `dd` in VmFlags: do not dump.
    #[test]
    fn guest_ram_is_in_no_core_dump() {
        let len = 4 << 20;
        for shared in [false, true] {
            let config = RamConfig { shared, ..RamConfig::new(len as u64) };
            let file = shared.then(|| memfd::create(len as u64, None).unwrap());
            let map = Mapping::new(len, &config, file).unwrap();
            map.zero(0..len).unwrap();
            map.discard(0..len / 2).unwrap();
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let ours =
                smaps.split_inclusive('\n').skip_while(|line| !line.starts_with(&format!("{:x}-", map.start as usize)));
            let flags = ours.filter_map(|line| line.strip_prefix("VmFlags:")).next().unwrap();
            assert!(flags.split_whitespace().any(|flag| flag == "dd"), "shared {shared}: {flags}");
        }
    }

    #[test]
    fn a_mapping_is_aligned_between_two_guards() {
        for align in [HUGE_PAGE, 1 << 30] {
            for base in [0, 1, 2, 511, 512, 513, 0x3_ffff, 0x4_0000].map(|page| (7 << 40) + page * SMALL_PAGE) {
                let offset = offset(base, align);
                assert!((base + offset).is_multiple_of(align), "{base:#x}");
                assert!((SMALL_PAGE..=align).contains(&offset), "{base:#x}: {offset:#x}");
            }
        }
    }
}
