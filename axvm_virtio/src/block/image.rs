//! A disk image on the host: opened once, locked against a second writer, never mapped.
//!
//! ```text
//!   open: kind of file -> permission -> can the device write? -> does the host use it? -> lock -> format -> size
//!                                                     writer: exclusive lock      reader: shared lock
//!   adopt: the same without opening, where another process has done that: its descriptors come over a socket
//!   an ephemeral disk is a reader of its image; its writes go to an Overlay
//! ```
//!
//! Raw images only: byte n of the file is byte n of the disk. Regular files and block devices. The
//! size is taken at the start, and again when the user asks for it; a file that shrinks gives I/O errors, which the guest
//! sees as such.
//!
//! Source: flock(2), preadv(2), fallocate(2), fdatasync(2).

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use axvm_memory::{FileRing, GuestRam, GuestRange};
use axvm_sync::lock as lock_mutex;
use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_getfl, fstatvfs};
use rustix::io::{Errno, pwritev};

use super::QUEUE_SIZE;
use super::direct::{Direct, reopen};
use super::disk_config::{BLOCK_SIZES, Cache, DiskConfig, Engine, Format, OnFull, SERIAL_LEN};
use super::error::{DiskError, is_full, is_unsupported};
use super::format::looks_like;
use super::lock::{LockError, lock, lock_again, loop_device, unlock_for_another};
use super::overlay::Overlay;
use crate::limiter::{Limiter, RateLimit};
use crate::signals::whole;

/// What the host's page cache works in, in bytes: the guest's writes are best whole pages.
pub(super) const HOST_PAGE: u32 = 4096;
/// Zeroes for hosts that cannot make them by themselves.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// An open image. Keeps its lock until dropped.
#[derive(Debug)]
pub struct DiskImage {
    file: File,
    /// Where the writes to an ephemeral disk go.
    overlay: Option<Overlay>,
    /// The way past the page cache, of a direct disk.
    direct: Option<Direct>,
    config: DiskConfig,
    /// What the guest is told. Only grows.
    size: AtomicU64,
    block_size: u32,
    serial: [u8; SERIAL_LEN],
    syncs: AtomicU64,
    /// What the guest wrote may be lost. For ever: the image outlives every reset, and only its end forgets.
    sync_failed: AtomicBool,
    /// Of requests, and of the bytes in them. It outlives resets, too.
    limiter: Limiter,
    /// The rings that no worker has: made before the sandbox closes, and used again after each reset.
    rings: Mutex<Vec<FileRing>>,
    /// The image, opened once more for them: a ring ends some time after its last user, and would keep the lock of `file`
    /// until then. It stays as long as that, as the other kind of lock would be lost with it.
    again: OnceLock<File>,
}

/// Why what was written is not safe.
pub(super) enum SyncError {
    /// The host could not write it.
    Now(io::Error),
    /// The host could not write something before, and what was lost then stays lost.
    Earlier,
}

impl DiskImage {
    /// Opens, checks and locks an image.
    pub fn open(config: &DiskConfig) -> Result<Arc<DiskImage>, DiskError> {
        let path = &config.path;
        let serial = serial(config)?;
        if config.read_only && config.ephemeral {
            return Err(DiskError::Contradiction(path.clone()));
        }
        if config.direct && config.ephemeral {
            return Err(DiskError::DirectEphemeral(path.clone()));
        }
        if let Some(block_size) = config.block_size.filter(|size| !BLOCK_SIZES.contains(size)) {
            return Err(DiskError::BlockSize { path: path.clone(), block_size });
        }
        // Of a block device the host keeps account itself: one exclusive user, as a mount is.
        let alone = if check_kind(config)? && config.changes_image() { OFlags::EXCL } else { OFlags::empty() };
        let options =
            OpenOptions::new().read(true).write(config.changes_image()).custom_flags(alone.bits() as i32).open(path);
        let file = options.map_err(|error| open_error(config, error))?;
        check_device(config, &file)?;
        if let Some(device) = loop_device(&file).filter(|_| config.changes_image()) {
            return Err(DiskError::LoopDevice { path: path.clone(), device });
        }
        lock(&file, !config.changes_image()).map_err(|error| match error {
            LockError::Taken(holder) => DiskError::Locked { path: path.clone(), holder },
            LockError::Host(source) => DiskError::Host { action: "lock", path: path.clone(), source },
        })?;
        let size = measure(config, &file)?;
        // The format first: what is said of a size is meant for raw images, and destroys others.
        check_format(config, &file, size)?;
        let block_size = config.block_size.unwrap_or_else(|| own_block_size(&file));
        check_size(config, &file, size, block_size)?;
        let overlay = config.ephemeral.then(|| Overlay::new(size)).transpose();
        let temporary =
            |(directory, source)| DiskError::Temporary { path: path.clone(), directory, why: whole(&source) };
        let overlay = overlay.map_err(temporary)?;
        let direct = if config.direct { Some(Direct::open(&file, config)?) } else { None };
        Ok(Arc::new(DiskImage::of(file, (overlay, direct), config, (size, block_size), serial)))
    }

    /// Takes an image that another process has opened, checked and locked as [`DiskImage::open`] does: its
    /// [descriptors](DiskImage::descriptors), and what the disk is to be, with a block size.
    pub fn adopt(config: &DiskConfig, descriptors: Vec<OwnedFd>) -> Result<Arc<DiskImage>, DiskError> {
        let path = &config.path;
        let serial = serial(config)?;
        let not_whole = || DiskError::Handed(path.clone());
        let mut descriptors = descriptors.into_iter().map(File::from);
        let (Some(file), second, None) = (descriptors.next(), descriptors.next(), descriptors.next()) else {
            return Err(not_whole());
        };
        let (temporary, direct) = if config.direct { (None, second) } else { (second, None) };
        let block_size = config.block_size.filter(|size| BLOCK_SIZES.contains(size)).ok_or_else(not_whole)?;
        let writable = |file: &File| fcntl_getfl(file).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::RDWR);
        let kind =
            file.metadata().map_err(|source| DiskError::Host { action: "look at", path: path.clone(), source })?;
        let is_disk = kind.file_type().is_file() || kind.file_type().is_block_device();
        if !is_disk
            || config.changes_image() && ![Some(&file), direct.as_ref()].into_iter().flatten().all(writable)
            || config.ephemeral != temporary.is_some()
            || config.direct != direct.as_ref().is_some_and(|direct| Direct::is_of(direct, &file))
        {
            return Err(not_whole());
        }
        lock_again(&file, !config.changes_image())
            .map_err(|holder| DiskError::Locked { path: path.clone(), holder })?;
        let size = measure(config, &file)?;
        check_size(config, &file, size, block_size)?;
        let overlay = temporary.filter(writable).map(|temporary| Overlay::over(temporary, size));
        if overlay.is_some() != config.ephemeral {
            return Err(not_whole());
        }
        let direct = direct.map(Direct::over);
        Ok(Arc::new(DiskImage::of(file, (overlay, direct), config, (size, block_size), serial)))
    }

    /// The open files of an image, for a process that [adopts](DiskImage::adopt) it: its lock goes with them.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        unlock_for_another(&self.file);
        let (overlay, direct) = (self.overlay.as_ref(), self.direct.as_ref());
        [Some(&self.file), overlay.map(|overlay| &overlay.file), direct.map(|direct| &direct.file)]
            .into_iter()
            .flatten()
            .map(File::as_fd)
            .collect()
    }

    fn of(
        file: File,
        (overlay, direct): (Option<Overlay>, Option<Direct>),
        config: &DiskConfig,
        (size, block_size): (u64, u32),
        serial: [u8; SERIAL_LEN],
    ) -> DiskImage {
        let (syncs, sync_failed, size) = (AtomicU64::new(0), AtomicBool::new(false), AtomicU64::new(size));
        let (config, limiter) = (config.clone(), Limiter::new(config.rate));
        let (rings, again) = Default::default();
        DiskImage { file, overlay, direct, config, size, block_size, serial, syncs, sync_failed, limiter, rings, again }
    }

    /// Makes what `queues` workers need for their engine, while system calls for that are allowed. Where the host has no
    /// io_uring for a disk that is to have it, why: the disk then works without.
    pub fn open_engines(&self, queues: u16) -> Result<(), io::Error> {
        let is_device = self.file.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
        let wanted = match self.config.engine {
            Engine::Auto => self.config.direct || is_device,
            Engine::Sync => false,
            Engine::IoUring => true,
        };
        if !wanted || self.is_ephemeral() {
            return Ok(());
        }
        let again = reopen(&self.file, &self.config, OFlags::empty())?;
        let again = self.again.get_or_init(|| again);
        // The places that `place` names.
        let files: Vec<_> = self.direct.iter().map(|direct| direct.file.as_fd()).chain([again.as_fd()]).collect();
        let mut rings = lock_mutex(&self.rings);
        for _ in rings.len()..usize::from(queues) {
            rings.push(FileRing::open(&files, QUEUE_SIZE.into())?);
        }
        Ok(())
    }

    /// A ring for a worker, if there is one.
    pub(super) fn take_ring(&self) -> Option<FileRing> {
        lock_mutex(&self.rings).pop()
    }

    /// The worker's end: another one may have it.
    pub(super) fn give_ring(&self, ring: FileRing) {
        lock_mutex(&self.rings).push(ring);
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.config.path
    }

    /// Size in bytes, a multiple of the block size.
    pub fn size(&self) -> u64 {
        // Relaxed, as the store: a driver sees it by the configuration's generation, a worker by the ring.
        self.size.load(Ordering::Relaxed)
    }

    /// Looks at the size again, for an image that grew on the host. Whether it did.
    pub(super) fn remeasure(&self) -> Result<bool, DiskError> {
        if self.is_ephemeral() {
            return Err(DiskError::Ephemeral(self.config.path.clone()));
        }
        let (was, here) = (self.size(), measure(&self.config, &self.file)?);
        if here < was {
            return Err(DiskError::Shrunk { path: self.config.path.clone(), here, was });
        }
        check_size(&self.config, &self.file, here, self.block_size)?;
        self.size.store(here, Ordering::Relaxed);
        Ok(here > was)
    }

    /// Whether the guest may only read.
    pub fn read_only(&self) -> bool {
        self.config.read_only
    }

    /// Cache mode at the start of the guest.
    pub fn cache(&self) -> Cache {
        self.config.cache
    }

    /// What happens when the host has no room.
    pub fn on_full(&self) -> OnFull {
        self.config.on_full
    }

    /// What limits its requests.
    pub fn rate(&self) -> RateLimit {
        self.limiter.limit()
    }

    pub(super) fn limiter(&self) -> &Limiter {
        &self.limiter
    }

    /// Whether what the guest writes is gone when AxVM ends.
    pub fn is_ephemeral(&self) -> bool {
        self.overlay.is_some()
    }

    /// Where it is that the guest's writes take room.
    pub(super) fn storage(&self) -> &Path {
        self.overlay.as_ref().map_or(&self.config.path, Overlay::directory)
    }

    /// The file that changes when the guest writes.
    fn written(&self) -> &File {
        self.overlay.as_ref().map_or(&self.file, |overlay| &overlay.file)
    }

    /// A range has changed.
    fn note(&self, offset: u64, len: u64) {
        self.overlay.iter().for_each(|overlay| overlay.note(offset, len));
    }

    /// Bytes that are free on the file system where the guest's writes go; `None` for a block device.
    pub(super) fn free(&self) -> Option<u64> {
        let file = self.written();
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        let about = fstatvfs(file).ok().filter(|_| is_file)?;
        Some(about.f_bavail.saturating_mul(about.f_frsize))
    }

    /// Logical block size in bytes.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// How often the guest has made its writes safe: flushes, and writes in write-through mode.
    pub fn sync_count(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Identity of the disk, padded with zeroes.
    pub(super) fn serial(&self) -> &[u8; SERIAL_LEN] {
        &self.serial
    }

    /// Which of a ring's files a transfer is for.
    pub(super) fn place(&self, ranges: &[GuestRange], offset: u64) -> usize {
        usize::from(self.direct.as_ref().is_some_and(|direct| !direct.takes(ranges, offset)))
    }

    /// Fills guest memory from the image.
    pub(super) fn read(&self, ram: &GuestRam, ranges: &[GuestRange], offset: u64) -> io::Result<()> {
        match &self.overlay {
            Some(overlay) => overlay.read(&self.file, ram, ranges, offset),
            None => self.by_way(ranges, offset, |file| ram.read_exact_at(file, ranges, offset)),
        }
    }

    /// Writes guest memory to the image.
    pub(super) fn write(&self, ram: &GuestRam, ranges: &[GuestRange], offset: u64) -> io::Result<()> {
        match &self.overlay {
            Some(overlay) => {
                ram.write_all_at(&overlay.file, ranges, offset)?;
                overlay.note(offset, ranges.iter().map(|range| range.len() as u64).sum());
                Ok(())
            }
            None => self.by_way(ranges, offset, |file| ram.write_all_at(file, ranges, offset)),
        }
    }

    /// Past the page cache, if the disk is direct and the host takes this transfer so; else through it. The host's kernel
    /// keeps both ways in step.
    fn by_way(&self, ranges: &[GuestRange], offset: u64, transfer: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
        let direct = self.direct.as_ref().filter(|direct| direct.takes(ranges, offset));
        match direct.map(|direct| transfer(&direct.file)) {
            // It wants more than it says, or a part of the transfer was done and the rest does not fit.
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => transfer(&self.file),
            Some(result) => result,
            None => transfer(&self.file),
        }
    }

    /// Makes everything written so far safe; of an ephemeral disk nothing is to be. After a failure it cannot any more: the host's kernel has dropped what it
    /// could not write, and says so to the first who asks only; an fdatasync after that would succeed.
    pub(super) fn sync(&self) -> Result<(), SyncError> {
        if self.is_ephemeral() {
            return Ok(());
        }
        // Relaxed: one worker serves an image, and it is joined before the next one starts.
        if self.sync_failed.load(Ordering::Relaxed) {
            return Err(SyncError::Earlier);
        }
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync_data().map_err(|error| {
            self.sync_failed.store(true, Ordering::Relaxed);
            SyncError::Now(error)
        })
    }

    /// Gives the space of a range back to the host: a hint, which a block device may not take at this alignment, nor a
    /// file system that is too full to note a hole.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.allocate(FallocateFlags::PUNCH_HOLE, offset, len) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput || is_full(&error) => Ok(()),
            result => result.map(|()| self.note(offset, len)),
        }
    }

    /// Zeroes a range; `unmap` allows giving its space back. Writes zeroes if the host cannot.
    pub(super) fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let how = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        let zeroed = match self.allocate(how, offset, len) {
            // EOPNOTSUPP: this file system cannot. EINVAL: this block device cannot at this alignment. ENOSPC: there may
            // still be room where the image has some already.
            Err(error) if is_unsupported(&error) || is_full(&error) || error.kind() == io::ErrorKind::InvalidInput => {
                self.write_zeroes(offset, len)
            }
            result => result,
        };
        zeroed.map(|()| self.note(offset, len))
    }

    fn allocate(&self, how: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        loop {
            match fallocate(self.written(), how | FallocateFlags::KEEP_SIZE, offset, len) {
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    /// By pwritev, as all writes to an image: the sandbox has no other call for it.
    fn write_zeroes(&self, mut offset: u64, len: u64) -> io::Result<()> {
        let end = offset + len;
        while offset < end {
            let count = (end - offset).min(ZEROES.len() as u64);
            match pwritev(self.written(), &[IoSlice::new(&ZEROES[..count as usize])], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => offset += written as u64,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Unlike the metadata, the end is right for block devices too.
fn measure(config: &DiskConfig, mut file: &File) -> Result<u64, DiskError> {
    let size = file.seek(SeekFrom::End(0));
    size.map_err(|source| DiskError::Host { action: "measure", path: config.path.clone(), source })
}

fn serial(config: &DiskConfig) -> Result<[u8; SERIAL_LEN], DiskError> {
    let text = config.serial.as_deref().unwrap_or_default();
    let mut serial = [0; SERIAL_LEN];
    if text.len() > SERIAL_LEN || !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(DiskError::Serial { path: config.path.clone(), serial: text.to_owned() });
    }
    serial[..text.len()].copy_from_slice(text.as_bytes());
    Ok(serial)
}

/// Looks before opening: opening a pipe would wait, and may have effects on a device. Whether it is a block device.
fn check_kind(config: &DiskConfig) -> Result<bool, DiskError> {
    let metadata = config.path.metadata().map_err(|error| open_error(config, error))?;
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_file() || kind.is_block_device() => return Ok(kind.is_block_device()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a character device",
    };
    Err(DiskError::NotADisk(config.path.clone(), what))
}

fn open_error(config: &DiskConfig, source: io::Error) -> DiskError {
    let path = config.path.clone();
    let (access, remedy) = match config.changes_image() {
        false => ("reading", "Change its mode or owner (chmod, chown)"),
        true => ("reading and writing", "Change its mode or owner (chmod, chown), or attach it read-only (ro)"),
    };
    match source.kind() {
        io::ErrorKind::NotFound => DiskError::Missing(path),
        io::ErrorKind::PermissionDenied => DiskError::Permission { path, access, remedy },
        io::ErrorKind::ResourceBusy => DiskError::DeviceBusy(path),
        io::ErrorKind::ReadOnlyFilesystem => DiskError::ReadOnlyStorage(path),
        _ if [Errno::NOMEDIUM, Errno::NXIO]
            .map(|errno| Some(errno.raw_os_error()))
            .contains(&source.raw_os_error()) =>
        {
            DiskError::NoMedium(path)
        }
        _ => DiskError::Host { action: "open", path, source },
    }
}

/// A device that the host cannot write to takes an open for writing all the same, and fails at the first write. Without
/// sysfs there is no answer, and the first write has it.
fn check_device(config: &DiskConfig, file: &File) -> Result<(), DiskError> {
    match attribute(file, "ro") {
        Some(1) if config.changes_image() => Err(DiskError::ReadOnlyStorage(config.path.clone())),
        _ => Ok(()),
    }
}

/// The block size of a device, as near as a disk of the guest has it; that of most disks for a file.
fn own_block_size(file: &File) -> u32 {
    // A partition has the queue of its disk.
    let size = attribute(file, "queue/logical_block_size").or_else(|| attribute(file, "../queue/logical_block_size"));
    if size.is_some_and(|size| size >= HOST_PAGE) { HOST_PAGE } else { BLOCK_SIZES[0] }
}

/// What sysfs says of a block device; `None` for a file.
fn attribute(file: &File, name: &str) -> Option<u32> {
    let metadata = file.metadata().ok().filter(|metadata| metadata.file_type().is_block_device())?;
    let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{name}")).ok()?.trim().parse().ok()
}

/// Raw, or called raw by the user.
fn check_format(config: &DiskConfig, file: &File, size: u64) -> Result<(), DiskError> {
    if config.format == Some(Format::Raw) {
        return Ok(());
    }
    match looks_like(file, &config.path, size, !config.changes_image()) {
        Some((what, remedy)) => Err(DiskError::Format { path: config.path.clone(), what, remedy }),
        None => Ok(()),
    }
}

fn check_size(config: &DiskConfig, file: &File, size: u64, block_size: u32) -> Result<(), DiskError> {
    let path = config.path.clone();
    if size > 0 && size.is_multiple_of(block_size.into()) {
        return Ok(());
    }
    let is_device = file.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
    Err(match is_device {
        true if size == 0 => DiskError::NoMedium(path),
        true => DiskError::DeviceSize { path, size, block_size },
        false => DiskError::Size { path, size, block_size },
    })
}
