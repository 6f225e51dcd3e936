//! A file as the loader sees it: a length, and bytes at an offset.
//!
//! ```text
//!   kernel file:  | header |   ...   | notes |   ...   |
//!                     '--- read_at -----'         the rest: never here, its owner loads it (see `linux::Piece`)
//! ```
//!
//! Files are large and may change while they are read; headers are small, and copied before anything is decided by them.

use std::io;

/// Bytes with a length, read at any offset.
pub trait ReadAt {
    /// Length in bytes, now.
    fn len(&self) -> u64;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `bytes` with what is at `offset`; `UnexpectedEof` if the end comes first.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let found = rest.and_then(|rest| rest.get(..bytes.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(found);
        Ok(())
    }
}
