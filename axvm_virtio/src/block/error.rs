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
    /// Another process has it.
    #[error(
        "Disk image {0} is in use by another disk or another virtual machine. Stop that one (lsof {0} names it), \
         or attach the image read-only (ro) in all of them"
    )]
    Locked(PathBuf),
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
