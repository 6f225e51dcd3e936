//! A file or a socket, written by a thread of its own: such a write may wait.
//!
//! ```text
//!   hub: send(chunk) --> [ one chunk ] --> write, 4 KiB at a time --> done: wake the hub
//! ```
//!
//! A socket is shared with the program that started AxVM, so it is not made non-blocking; and if another one made it so,
//! the thread waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use axvm_sandbox::Role;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::log_file::LogFile;
use crate::shared::ConsoleShared;

/// What a pipe with room takes in one go (PIPE_BUF).
const PIECE: usize = 4096;
/// Between two tries on a full disk.
const DISK_FULL_PAUSE: Duration = Duration::from_secs(1);

/// The hub's end.
pub struct Threaded {
    chunks: Sender<Vec<u8>>,
    /// Chunks on their way.
    queued: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Threaded {
    /// Starts the thread, which writes to `file`; messages call it `name`.
    pub fn start(file: LogFile, name: String, shared: Arc<ConsoleShared>) -> std::io::Result<Threaded> {
        let (chunks, received) = channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let target = Target { file, name, shared, warned: false };
        let counter = Arc::clone(&queued);
        let thread = axvm_sandbox::spawn(Role::Console, "console-out", move || target.run(&received, &counter))?;
        Ok(Threaded { chunks, queued, thread })
    }

    /// Whether a chunk is still on its way.
    pub fn is_busy(&self) -> bool {
        self.queued.load(Ordering::Acquire) > 0
    }

    /// Writes `chunk`, after the earlier ones; if the target has ended, to nowhere.
    pub fn send(&self, chunk: Vec<u8>) {
        self.queued.fetch_add(1, Ordering::AcqRel);
        let _ = self.chunks.send(chunk);
    }

    /// Waits until all is written.
    pub fn finish(self) {
        drop(self.chunks);
        let _ = self.thread.join();
    }
}

struct Target {
    file: LogFile,
    name: String,
    shared: Arc<ConsoleShared>,
    warned: bool,
}

impl Target {
    fn run(mut self, chunks: &Receiver<Vec<u8>>, queued: &AtomicUsize) {
        let mut ended = false;
        for chunk in chunks {
            ended = ended || self.write(&chunk).is_err();
            queued.fetch_sub(1, Ordering::AcqRel);
            self.shared.wake.signal();
        }
    }

    /// Writes all of `bytes`; an error is the end of the target, and was told.
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            self.wait_for_room()?;
            let piece = &bytes[..bytes.len().min(PIECE)];
            if let Err(error) = self.file.make_room(piece.len()) {
                self.warn(format!("The console's {} started over, and its older output is lost: {error}", self.name));
            }
            match rustix::io::write(&self.file, piece) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::NOSPC | Errno::DQUOT) => self.wait_for_space(bytes.len())?,
                Err(error) => {
                    self.warn(format!("Cannot write to the console's {}: {error}. The guest goes on", self.name));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Waits until the target takes bytes, or has an error to tell.
    fn wait_for_room(&self) -> Result<(), Errno> {
        loop {
            let mut ready =
                [PollFd::new(&self.file, PollFlags::OUT), PollFd::new(&self.shared.given_up, PollFlags::IN)];
            match poll(&mut ready, None) {
                Ok(_) if !ready[1].revents().is_empty() => return Err(Errno::CANCELED),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The disk is full: tries again each second, but not once the machine has ended.
    fn wait_for_space(&mut self, left: usize) -> Result<(), Errno> {
        if self.shared.closing.is_signalled() {
            self.warned = false;
            self.warn(format!("The disk with the console's {} is full: lost the last {left} bytes", self.name));
            return Err(Errno::NOSPC);
        }
        let name = &self.name;
        self.warn(format!("The disk with the console's {name} is full: free some space, AxVM tries each second"));
        let pause = Timespec::try_from(DISK_FULL_PAUSE).ok();
        let mut ready =
            [PollFd::new(&self.shared.given_up, PollFlags::IN), PollFd::new(&self.shared.closing, PollFlags::IN)];
        match poll(&mut ready, pause.as_ref()) {
            Ok(_) if !ready[0].revents().is_empty() => Err(Errno::CANCELED),
            _ => Ok(()),
        }
    }

    fn warn(&mut self, text: String) {
        if !std::mem::replace(&mut self.warned, true) {
            (self.shared.hooks.on_warning)(text);
        }
    }
}
