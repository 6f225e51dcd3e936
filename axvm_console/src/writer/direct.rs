//! A terminal or a pipe, written by the hub itself: its descriptor does not block.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use crate::shared::ConsoleShared;

/// The target, and what it has not taken yet.
pub struct Direct {
    fd: OwnedFd,
    name: String,
    shared: Arc<ConsoleShared>,
    rest: Vec<u8>,
    /// So many of `rest` are written.
    written: usize,
    ended: bool,
}

impl Direct {
    /// Writes to `fd`, which does not block; messages call it `name`.
    pub fn new(fd: OwnedFd, name: String, shared: Arc<ConsoleShared>) -> Direct {
        Direct { fd, name, shared, rest: Vec::new(), written: 0, ended: false }
    }

    /// Whether bytes wait for room.
    pub fn is_busy(&self) -> bool {
        !self.rest.is_empty()
    }

    /// What to poll for room, if bytes wait for it.
    pub fn waits_for(&self) -> Option<BorrowedFd<'_>> {
        self.is_busy().then(|| self.fd.as_fd())
    }

    /// Writes `chunk` as far as there is room, and the rest when there is.
    pub fn send(&mut self, chunk: Vec<u8>) {
        if self.ended {
            return;
        }
        match self.is_busy() {
            true => self.rest.extend(chunk),
            false => self.rest = chunk,
        }
        self.flush();
    }

    /// Writes what waits, as far as there is room. An error is the end of the target, and told.
    pub fn flush(&mut self) {
        while self.written < self.rest.len() {
            match rustix::io::write(&self.fd, &self.rest[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    let name = &self.name;
                    let words = format!("Cannot write to the console's {name}: {error}. The guest goes on");
                    (self.shared.hooks.on_warning)(words);
                    self.ended = true;
                    break;
                }
            }
        }
        (self.rest, self.written) = (Vec::new(), 0);
    }
}
