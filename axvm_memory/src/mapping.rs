//! One anonymous mapping of the host, aligned to 2 MiB so that huge pages can back it.
//!
//! ```text
//!   mmap(len + 2 MiB):   |....|==========================|..|
//!                        ^    ^ aligned start            ^  ^
//!                        trim (munmap)                   trim
//! ```
//!
//! Source: mmap(2), madvise(2); Linux Documentation/admin-guide/mm/transhuge.rst.

use std::io;
use std::ptr;

/// Size and alignment of a huge page on x86-64, in bytes.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// A private anonymous mapping; unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: the mapping is plain memory, owned by this value; who accesses it from which thread is
// decided by the types built on it, which use only volatile and atomic accesses.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` only gives out the address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes (a multiple of the page size) without reserving swap.
    pub(crate) fn anonymous(len: usize) -> io::Result<Mapping> {
        let room = len.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { libc::mmap(ptr::null_mut(), room, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = base.cast::<u8>();
        let head = base.align_offset(HUGE_PAGE);
        let tail = room - head - len;
        let start = base.wrapping_add(head);
        unmap(base, head);
        unmap(start.wrapping_add(len), tail);
        Ok(Mapping { start, len })
    }

    /// Asks for huge pages behind the mapping.
    pub(crate) fn advise_huge_pages(&self) -> io::Result<()> {
        self.advise(libc::MADV_HUGEPAGE)
    }

    /// Gives all pages back; they read as zero again.
    pub(crate) fn discard(&self) -> io::Result<()> {
        self.advise(libc::MADV_DONTNEED)
    }

    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is exactly this mapping; both advices used keep it mapped.
        match unsafe { libc::madvise(self.start.cast(), self.len, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.start, self.len);
    }
}

/// Unmaps a part of a mapping that this module made and that nobody uses any more.
fn unmap(start: *mut u8, len: usize) {
    if len > 0 {
        // SAFETY: only called on ranges inside a mapping made above, once each.
        unsafe { libc::munmap(start.cast(), len) };
    }
}
