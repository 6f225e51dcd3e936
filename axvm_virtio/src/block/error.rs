//! Why a disk image cannot be used, and what to do about it: one mistake, one variant, one sentence with a remedy.
//!
//! Source: open(2), flock(2).

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A disk image was refused.
#[derive(Debug, Error)]
pub enum DiskError {
    /// Nothing is there.
    #[error("Cannot open disk image {0}: there is no such file. Check the path, or create it: truncate -s 1G {0}")]
    Missing(PathBuf),
    /// The user may not.
    #[error("Cannot open disk image {path} for {access}: permission denied. {remedy}")]
    Permission {
        /// The image.
        path: PathBuf,
        /// "reading" or "reading and writing".
        access: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The file system, or the disk behind it, is read-only.
    #[error("Cannot open disk image {0} for writing: it is on read-only storage. Attach it read-only (ro), or copy it")]
    ReadOnlyStorage(PathBuf),
    /// A directory, a pipe, a terminal ...
    #[error("Cannot use {0} as a disk image: it is {1}. Give a regular file or a block device")]
    NotADisk(PathBuf, &'static str),
    /// No sectors, or a broken one.
    #[error(
        "Cannot use disk image {path}: its size of {size} bytes is not a positive multiple of {block_size}. \
         Make it fit: truncate -s %{block_size} {path}; or, if it is empty, give it a size: truncate -s 1G {path}"
    )]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Block size in bytes.
        block_size: u32,
    },
    /// A block device with nothing in it.
    #[error(
        "Cannot use {0} as a disk: there is nothing behind this block device. Bind a loop device to its file \
         (losetup {0} FILE), or insert the medium; or give another one"
    )]
    NoMedium(PathBuf),
    /// A block device whose end is a part of a block.
    #[error(
        "Cannot use {path} as a disk: the size of this block device, {size} bytes, is not a multiple of {block_size}. \
         What is behind it must be whole blocks: give a loop device a file that is, a volume another size"
    )]
    DeviceSize {
        /// The device.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Block size in bytes.
        block_size: u32,
    },
    /// Two options that exclude each other.
    #[error(
        "Cannot attach disk image {0} both read-only (ro) and ephemeral: ephemeral is for a guest that writes, and never \
         changes the image either. Leave one out"
    )]
    Contradiction(PathBuf),
    /// Two options that exclude each other.
    #[error(
        "Cannot attach disk image {0} both direct and ephemeral: what the guest writes goes to a temporary file, through \
         the page cache. Leave one out"
    )]
    DirectEphemeral(PathBuf),
    /// Its file system works through the page cache only.
    #[error(
        "Cannot use disk image {0} directly: the file system that it is on has no way past the page cache (O_DIRECT). \
         Leave direct out, or move the image to one that has: ext4, XFS and Btrfs do"
    )]
    NotDirect(PathBuf),
    /// No place for what the guest writes.
    #[error(
        "Cannot make a temporary file in {directory} for what the guest writes to {path}: {why}. Name a directory with \
         room for it: TMPDIR=DIRECTORY"
    )]
    Temporary {
        /// The image.
        path: PathBuf,
        /// Where the temporary file was to be.
        directory: PathBuf,
        /// What the host said.
        why: String,
    },
    /// It has its size for good.
    #[error(
        "Cannot resize {0}: it is attached as ephemeral, and the temporary file for its changes is as long as the image \
         was at the start. End the machine, and start it again"
    )]
    Ephemeral(PathBuf),
    /// It has fewer bytes than the guest was told.
    #[error(
        "Cannot resize {path}: it has {here} bytes on the host now, and the guest was told {was}. A disk only grows \
         while its machine runs, and what was cut off is lost: make it as long again (truncate -s {was} {path})"
    )]
    Shrunk {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        here: u64,
        /// What the guest was told.
        was: u64,
    },
    /// Not a raw image, by the look of it.
    #[error(
        "Disk image {path} is {what}, and AxVM takes raw images: the guest would destroy what is in it. {remedy}. Only \
         if it is a raw disk, and its guest has written these bytes: insist on it (format=raw), and do not convert it"
    )]
    Format {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What to do.
        remedy: String,
    },
    /// Not a block size that a disk has.
    #[error("Cannot give disk image {path} blocks of {block_size} bytes: use 512 or 4096")]
    BlockSize {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        block_size: u32,
    },
    /// The serial number does not fit.
    #[error("Cannot give disk image {path} the serial {serial:?}: use at most 20 printable ASCII characters")]
    Serial {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        serial: String,
    },
    /// It is in use.
    #[error(
        "Disk image {path} is in use by {holder}. Stop that one (lsof {path} names it), or attach the image read-only \
         (ro) wherever it is used"
    )]
    Locked {
        /// The image.
        path: PathBuf,
        /// Who has locked it, in words.
        holder: String,
    },
    /// Another process hands over something else than it says.
    #[error(
        "What was handed over for disk image {0} are not the open files of such a disk; axvm ctl MACHINE disk add opens \
         and sends them"
    )]
    Handed(PathBuf),
    /// The host has made a device of the image.
    #[error(
        "Disk image {path} is in use by the host: {device} is bound to it, and may be mounted. Unmount it \
         (umount {device}) and unbind it (losetup -d {device}), or attach the image read-only (ro)"
    )]
    LoopDevice {
        /// The image.
        path: PathBuf,
        /// The loop device.
        device: String,
    },
    /// The host, or another program, has the block device for itself.
    #[error(
        "Cannot use {0} as a writable disk: this block device is in use by the host (mounted, swap, a part of a RAID or \
         a volume group) or by another program. lsblk {0} and lsof {0} tell; unmount it, or attach it read-only (ro)"
    )]
    DeviceBusy(PathBuf),
    /// The host said something else.
    #[error("Cannot {action} disk image {path}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// Whether the host has no room: none on the file system, or none for this user.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether the host cannot do this at all.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}
