//! A part of a file as a stream of bytes that knows where it is.
//!
//! ```text
//!   file:   | ... |  read already  |  buffered, 64 KiB  |      not read yet      | ... |
//!                                  ^ position()         ^ offset                 ^ end
//! ```
//!
//! What unpacks takes no byte more than its own: the next archive of an initrd begins at `position`.

use std::io::{self, BufRead, Read};

use axvm_boot::read_at::ReadAt;

/// Bytes read at once.
const BUFFER: usize = 64 << 10;

/// A reader of `file` from one offset to another.
pub struct Input<'a> {
    file: &'a dyn ReadAt,
    /// What is read next.
    offset: u64,
    end: u64,
    buffer: Vec<u8>,
    /// The first byte in the buffer that was not taken yet.
    taken: usize,
}

impl<'a> Input<'a> {
    /// What lies in `file` from `offset` to `end`, or to the file's own end.
    pub fn new(file: &'a dyn ReadAt, offset: u64, end: u64) -> Input<'a> {
        Input { file, offset, end: end.min(file.len()), buffer: Vec::new(), taken: 0 }
    }

    /// Where in the file the next byte is.
    pub fn position(&self) -> u64 {
        self.offset - (self.buffer.len() - self.taken) as u64
    }

    /// The next four bytes, which stay the next; none if there are fewer.
    pub fn peek(&self) -> io::Result<Option<[u8; 4]>> {
        let mut next = [0; 4];
        match self.position().checked_add(4) {
            Some(end) if end <= self.end => self.file.read_at(self.position(), &mut next).map(|()| Some(next)),
            _ => Ok(None),
        }
    }

    /// Leaves out `count` bytes, without reading them where that can be.
    pub fn skip(&mut self, count: u64) {
        let buffered = (self.buffer.len() - self.taken) as u64;
        self.taken += count.min(buffered) as usize;
        self.offset = self.offset.saturating_add(count.saturating_sub(buffered)).min(self.end.max(self.offset));
    }
}

impl Read for Input<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(to)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.taken == self.buffer.len() {
            let len = self.end.saturating_sub(self.offset).min(BUFFER as u64);
            self.buffer.resize(len as usize, 0);
            self.taken = 0;
            if len > 0
                && let Err(error) = self.file.read_at(self.offset, &mut self.buffer)
            {
                self.buffer.clear();
                return Err(error);
            }
            self.offset += len;
        }
        Ok(&self.buffer[self.taken..])
    }

    fn consume(&mut self, count: usize) {
        self.taken = (self.taken + count).min(self.buffer.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_where_it_is_told_to_and_knows_its_place() {
        let file: &[u8] = &(0..=255).collect::<Vec<u8>>().repeat(1000);
        let mut input = Input::new(&file, 3, 200_000);
        let mut start = [0; 5];
        input.read_exact(&mut start).unwrap();
        assert_eq!((start, input.position()), ([3, 4, 5, 6, 7], 8));
        assert_eq!(input.peek().unwrap(), Some([8, 9, 10, 11]));
        input.skip(100_000);
        input.read_exact(&mut start[..1]).unwrap();
        assert_eq!((u64::from(start[0]), input.position()), (100_008 % 256, 100_009));
        let mut rest = Vec::new();
        assert_eq!(input.read_to_end(&mut rest).unwrap(), 200_000 - 100_009);
        input.skip(u64::MAX);
        assert_eq!((input.position(), input.fill_buf().unwrap().len()), (200_000, 0));
        assert_eq!(input.peek().unwrap(), None);
        assert_eq!(Input::new(&file, 300_000, 400_000).fill_buf().unwrap(), b"");
    }
}
