//! Memory with a file descriptor: for RAM that another process maps, and for pages from a pool.
//!
//! ```text
//!   memfd_create --> length --> sealed --> mapped here, and perhaps by another process
//! ```
//!
//! Spec: memfd_create(2), fcntl(2) "File Sealing", fallocate(2). Left out: files with a name.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};

use crate::HugePage;
use crate::errno::check;

/// Makes `len` bytes, of pages from `pool` if given.
///
/// Its size is sealed: a process that shares it cannot shrink it under the guest.
pub(crate) fn create(len: u64, pool: Option<HugePage>) -> io::Result<File> {
    let pages = match pool {
        None => 0,
        Some(HugePage::TwoMib) => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
        Some(HugePage::OneGib) => libc::MFD_HUGETLB | libc::MFD_HUGE_1GB,
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | pages;
    // Linux 6.3 wants to be told that it will not be executed; older kernels do not know the word.
    let file = match open(flags | libc::MFD_NOEXEC_SEAL) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(flags)?,
        result => result?,
    };
    file.set_len(len)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: sealing takes no pointer and touches no memory.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    Ok(file)
}

fn open(flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: the name is a constant C string.
    match unsafe { libc::memfd_create(c"guest-ram".as_ptr(), flags) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: a descriptor just made, that nothing else owns.
        fd => Ok(unsafe { File::from_raw_fd(fd) }),
    }
}

/// Frees the pages of `range`, in every process that maps them; they read as zero again.
pub(crate) fn punch(file: &File, range: Range<usize>) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no pointer is passed; the mapping stays, and only its content changes.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, range.start as libc::off_t, range.len() as libc::off_t) })
}
