//! Bytes on their way to the host: what is said, until the connection has taken it.

use std::os::fd::AsFd;

use rustix::io::{Errno, write};

/// No more output of a command is read while so many bytes wait.
const FULL: usize = 64 << 10;

/// What waits to be written.
#[derive(Default)]
pub struct Output {
    bytes: Vec<u8>,
    start: usize,
}

impl Output {
    /// To add to.
    pub fn add(&mut self) -> &mut Vec<u8> {
        self.bytes.drain(..self.start);
        self.start = 0;
        &mut self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    pub fn has_room(&self) -> bool {
        self.bytes.len() - self.start < FULL
    }

    /// Writes what `to` takes without waiting.
    pub fn send(&mut self, to: impl AsFd) -> rustix::io::Result<()> {
        while !self.is_empty() {
            match write(&to, &self.bytes[self.start..]) {
                Ok(count) => self.start += count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
