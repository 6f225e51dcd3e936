//! The way to an image past the host's page cache.
//!
//! ```text
//!   aligned in file and memory   --O_DIRECT--> the disk        what the guest caches is not cached twice
//!   anything else, or refused    --cached---->  page cache --> the disk
//! ```
//!
//! The host's kernel keeps both ways in step: before a direct transfer it writes back what the page cache has of the range,
//! and after a direct write it drops it. So what is not aligned needs no buffer of ours, and no lock against its neighbours.
//!
//! Source: open(2) O_DIRECT, statx(2) STATX_DIOALIGN.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use axvm_memory::GuestRange;
use rustix::fs::{AtFlags, OFlags, StatxFlags, fcntl_getfl, statx};

use super::disk_config::DiskConfig;
use super::error::DiskError;

/// An image opened with O_DIRECT: what the guest moves does not stay in the host's page cache.
#[derive(Debug)]
pub(super) struct Direct {
    pub(super) file: File,
    /// What places in memory, and in the file, must be multiples of, in bytes: powers of two.
    memory_align: usize,
    file_align: u64,
}

impl Direct {
    /// Opens the image of `file` so.
    pub(super) fn open(file: &File, config: &DiskConfig) -> Result<Direct, DiskError> {
        let path = &config.path;
        let direct = reopen(file, config, OFlags::DIRECT).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidInput => DiskError::NotDirect(path.clone()),
            _ => DiskError::Host { action: "open", path: path.clone(), source },
        })?;
        let direct = Direct::over(direct);
        // It lets itself be opened so, and says that it is not.
        if direct.file_align == 0 { Err(DiskError::NotDirect(path.clone())) } else { Ok(direct) }
    }

    /// Over a file that was opened so.
    pub(super) fn over(file: File) -> Direct {
        let about = statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
        let told = about.filter(|about| about.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
        // A kernel before 6.1, or a file system that does not say: what disks have; a refusal is no harm.
        let (memory, offset) = told.map_or((512, 512), |told| (told.stx_dio_mem_align, told.stx_dio_offset_align));
        Direct { file, memory_align: memory.max(1) as usize, file_align: offset.into() }
    }

    /// Whether `direct` is the image of `file`, opened so.
    pub(super) fn is_of(direct: &File, file: &File) -> bool {
        let is_direct = fcntl_getfl(direct).is_ok_and(|flags| flags.contains(OFlags::DIRECT));
        let inode = |file: &File| file.metadata().map(|about| (about.dev(), about.ino())).ok();
        is_direct && inode(direct).is_some_and(|inode_of| Some(inode_of) == inode(file))
    }

    /// Whether the host takes such a transfer.
    pub(super) fn takes(&self, ranges: &[GuestRange], offset: u64) -> bool {
        let len = ranges.iter().map(|range| range.len() as u64).sum::<u64>();
        (offset | len) & (self.file_align - 1) == 0 && ranges.iter().all(|range| range.is_aligned(self.memory_align))
    }
}

/// Opens the same file once more, whatever its name is by now.
pub(super) fn reopen(file: &File, config: &DiskConfig, flags: OFlags) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().read(true).write(config.changes_image()).custom_flags(flags.bits() as i32).open(path)
}
