//! A target that loses nothing and may be slow: standard output, a file.
//!
//! ```text
//!   terminal, pipe   hub: send(chunk) --> write, as far as there is room --> rest --> poll: room again
//!   file, socket     hub: send(chunk) --> [ one chunk ] --console-out--> write, however long it takes
//! ```
//!
//! While bytes are on their way the hub leaves output in the port, which holds the guest.

mod direct;
mod thread;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::log_file::LogFile;
use crate::shared::ConsoleShared;
use direct::Direct;
use thread::Threaded;

/// The hub's end.
pub enum Writer {
    /// The hub writes.
    Direct(Direct),
    /// A thread writes.
    Threaded(Threaded),
}

impl Writer {
    /// One that writes to `file`; messages call it `name`.
    pub fn start(mut file: LogFile, name: String, shared: Arc<ConsoleShared>) -> io::Result<Writer> {
        Ok(match file.take_own() {
            Some(own) => Writer::Direct(Direct::new(own, name, shared)),
            None => Writer::Threaded(Threaded::start(file, name, shared)?),
        })
    }

    /// Whether bytes are still on their way.
    pub fn is_busy(&self) -> bool {
        match self {
            Writer::Direct(direct) => direct.is_busy(),
            Writer::Threaded(threaded) => threaded.is_busy(),
        }
    }

    /// Writes `chunk`, after the earlier ones; if the target has ended, to nowhere.
    pub fn send(&mut self, chunk: Vec<u8>) {
        match self {
            Writer::Direct(direct) => direct.send(chunk),
            Writer::Threaded(threaded) => threaded.send(chunk),
        }
    }

    /// What to poll for room.
    pub fn waits_for(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Writer::Direct(direct) => direct.waits_for(),
            // It wakes the hub.
            Writer::Threaded(_) => None,
        }
    }

    /// There is room, or an error to tell.
    pub fn flush(&mut self) {
        if let Writer::Direct(direct) = self {
            direct.flush();
        }
    }

    /// Waits until all is written that is not up to the hub.
    pub fn finish(self) {
        if let Writer::Threaded(threaded) = self {
            threaded.finish();
        }
    }
}
