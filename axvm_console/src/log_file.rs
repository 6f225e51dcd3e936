//! A console file that does not fill the disk: at its limit it moves to an older generation, and starts over.
//!
//! ```text
//!             append                       at the limit: copy, truncate
//!   output ----------> web.log  (<= limit) -----------------------------> web.log.1  (<= limit, the older output)
//! ```
//!
//! Both files are opened before the sandbox closes, and from then on only these two descriptors are used: a rename would
//! need the right to make and remove files in that directory for as long as the guest runs. So `web.log` stays the same
//! file, which `tail -f` and others that have it open follow; and `web.log.1` is there, empty, from the beginning. What
//! the disk gives during the copy is the older generation of before, which goes first.
//!
//! A pipe, a terminal or a device has no end, and so no limit.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fstat, ftruncate};
use rustix::io::{Errno, pread, write};

use crate::FileLimit;
use crate::open_again::opened_again;

/// Bytes copied at once.
const CHUNK: usize = 64 << 10;

/// Why there is no console file.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// The file cannot be opened.
    #[error("Cannot append to console file {path}; choose a path where you may write, in a directory that exists")]
    File {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file for what it held before cannot be opened.
    #[error(
        "Cannot open {path}, which keeps the older output of the console file beside it; choose a directory where you may \
         write, or let the file grow without a limit (limit=none)"
    )]
    OlderFile {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where output goes, and, if that has a limit, where it goes then.
pub struct LogFile {
    fd: OwnedFd,
    /// The same terminal or pipe, if it is one, for writes that do not wait.
    own: Option<OwnedFd>,
    limit: Option<Limit>,
}

struct Limit {
    bytes: u64,
    older: OwnedFd,
}

impl LogFile {
    /// Opens the file at `path` to append to, and the one beside it that `limit` needs.
    pub fn open(path: &Path, limit: FileLimit) -> Result<LogFile, LogFileError> {
        let file = append_to(path, limit.0.is_some())
            .map_err(|source| LogFileError::File { path: path.to_owned(), source })?;
        let is_regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        let limit = limit.0.filter(|_| is_regular);
        let limit = limit.map(|bytes| Ok::<_, LogFileError>(Limit { bytes, older: open_older(path)? })).transpose()?;
        Ok(LogFile { limit, ..LogFile::without_limit(file.into()) })
    }

    /// What `fd` is, however much is written to it.
    pub fn without_limit(fd: OwnedFd) -> LogFile {
        LogFile { own: opened_again(&fd), fd, limit: None }
    }

    /// Its descriptor that does not block, if it has one; it is given once.
    pub fn take_own(&mut self) -> Option<OwnedFd> {
        self.own.take()
    }

    /// Starts over if `count` more bytes would be beyond the limit. An error says that the older output was not kept, or
    /// not whole; there is room in any case.
    pub fn make_room(&self, count: usize) -> Result<(), Errno> {
        let Some(limit) = &self.limit else { return Ok(()) };
        let len = u64::try_from(fstat(&self.fd)?.st_size).unwrap_or(0);
        if len.saturating_add(count as u64) <= limit.bytes {
            return Ok(());
        }
        // A file from before may be longer: its end counts.
        let copied = self.copy(len.saturating_sub(limit.bytes), len, &limit.older);
        ftruncate(&self.fd, 0)?;
        copied
    }

    fn copy(&self, from: u64, to: u64, older: &OwnedFd) -> Result<(), Errno> {
        ftruncate(older, 0)?;
        let (mut at, mut chunk) = (from, vec![0; CHUNK]);
        while at < to {
            let count = match pread(&self.fd, &mut chunk, at) {
                Ok(0) => break,
                Ok(count) => count.min(usize::try_from(to - at).unwrap_or(count)),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            };
            let mut rest = &chunk[..count];
            while !rest.is_empty() {
                match write(older, rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
            at += count as u64;
        }
        Ok(())
    }
}

impl AsFd for LogFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens a console file. A log from before is kept. A FIFO without a reader is an error rather than a long wait.
fn append_to(path: &Path, reads: bool) -> io::Result<File> {
    let flags = OFlags::NOCTTY | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(flags.bits().cast_signed());
    // A FIFO that is open for reading too has a reader, itself; what is no file is never read.
    let is_file = std::fs::metadata(path).map_or(true, |metadata| metadata.is_file());
    options.read(reads && is_file).open(path)
}

fn open_older(path: &Path) -> Result<OwnedFd, LogFileError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    let path = PathBuf::from(name);
    append_to(&path, false).map(OwnedFd::from).map_err(|source| LogFileError::OlderFile { path, source })
}
