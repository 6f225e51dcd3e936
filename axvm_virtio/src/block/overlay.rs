//! Writes that do not reach the image: an unlinked temporary file for them, and a map of what is in it.
//!
//! ```text
//!   sector:        0    1    2    3    4    5
//!   map:           0    1    1    0    0    1        1: written, 0: as in the image
//!   temporary:     .    W    W    .    .    W        byte n is byte n of the disk; the rest are holes
//!   read 1..5:        | temporary |  image  |        one transfer for each run of equal bits
//! ```
//!
//! A sector is the unit of the protocol, so no write covers a part of one, and nothing is ever copied from the image. The
//! map has 256 KiB for each GiB of disk, of which the host gives what is touched.
//!
//! Source: tmpfile(3), open(2) O_TMPFILE.

use std::env;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use axvm_memory::{GuestRam, GuestRange};

use super::disk_config::SECTOR;

/// Where the writes of an ephemeral disk go.
#[derive(Debug)]
pub(super) struct Overlay {
    pub(super) file: File,
    directory: PathBuf,
    /// A bit for each sector. One worker at a time uses it.
    map: Mutex<Vec<u64>>,
}

/// Sectors that are all in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    len: u64,
    /// In the temporary file; else in the image.
    written: bool,
}

impl Overlay {
    /// Over a disk of `size` bytes, in the directory for large temporary files.
    pub(super) fn new(size: u64) -> Result<Overlay, (PathBuf, io::Error)> {
        let directory = env::var_os("TMPDIR").filter(|path| !path.is_empty());
        let directory = directory.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        match Overlay::in_directory(&directory, size) {
            Ok((file, map)) => Ok(Overlay { file, directory, map: Mutex::new(map) }),
            Err(error) => Err((directory, error)),
        }
    }

    /// Over a disk of `size` bytes, in a temporary file that another process has made.
    pub(super) fn over(file: File, size: u64) -> Overlay {
        let words = usize::try_from(size.div_ceil(SECTOR * 64)).unwrap_or(0);
        Overlay { file, directory: PathBuf::from("its temporary file"), map: Mutex::new(vec![0; words]) }
    }

    fn in_directory(directory: &Path, size: u64) -> io::Result<(File, Vec<u64>)> {
        let file = tempfile::tempfile_in(directory)?;
        file.set_len(size)?;
        let words = usize::try_from(size.div_ceil(SECTOR * 64)).map_err(io::Error::other)?;
        // Zeroed memory that is not touched takes no room.
        Ok((file, vec![0; words]))
    }

    /// Where the temporary file is.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whole sectors are in the temporary file now.
    pub(super) fn note(&self, offset: u64, len: u64) {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        for sector in offset / SECTOR..(offset + len) / SECTOR {
            map[(sector / 64) as usize] |= 1 << (sector % 64);
        }
    }

    /// The first run of the whole sectors from `offset`, of at most `len` bytes.
    fn run(&self, offset: u64, len: u64) -> Run {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let is_written = |sector: u64| map[(sector / 64) as usize] >> (sector % 64) & 1 == 1;
        let (first, end) = (offset / SECTOR, (offset + len) / SECTOR);
        let written = is_written(first);
        let last = (first..end).find(|&sector| is_written(sector) != written).unwrap_or(end);
        Run { len: (last - first) * SECTOR, written }
    }
}

impl Overlay {
    /// Fills guest memory, each run from its place.
    pub(super) fn read(&self, image: &File, ram: &GuestRam, ranges: &[GuestRange], offset: u64) -> io::Result<()> {
        let end = offset + ranges.iter().map(|range| range.len() as u64).sum::<u64>();
        let (mut rest, mut at) = (ranges.to_vec(), offset);
        while at < end {
            let run = self.run(at, end - at);
            let part = take_front(&mut rest, run.len);
            ram.read_exact_at(if run.written { &self.file } else { image }, &part, at)?;
            at += run.len;
        }
        Ok(())
    }
}

/// Takes the first `len` bytes of `ranges` away from them.
fn take_front(ranges: &mut Vec<GuestRange>, len: u64) -> Vec<GuestRange> {
    let (mut front, mut left, mut whole) = (Vec::new(), len, 0);
    for range in ranges.iter_mut() {
        let (head, tail) = range.split_at(usize::try_from(left).unwrap_or(usize::MAX));
        left -= head.len() as u64;
        front.push(head);
        *range = tail;
        if !tail.is_empty() {
            break;
        }
        whole += 1;
    }
    ranges.drain(..whole);
    front
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_the_place_changes() {
        let overlay = Overlay::new(200 * SECTOR).unwrap();
        let run = |first: u64, count: u64| {
            let Run { len, written } = overlay.run(first * SECTOR, count * SECTOR);
            (len / SECTOR, written)
        };
        assert_eq!(run(0, 200), (200, false));
        overlay.note(63 * SECTOR, 2 * SECTOR);
        overlay.note(199 * SECTOR, SECTOR);
        assert_eq!(
            [run(0, 200), run(63, 137), run(65, 135), run(199, 1)],
            [(63, false), (2, true), (134, false), (1, true)]
        );
        assert_eq!((run(64, 1), run(0, 10)), ((1, true), (10, false)));
    }
}
