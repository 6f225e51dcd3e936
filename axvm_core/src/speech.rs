//! How AxVM speaks: answers on standard output, everything else on standard error.
//!
//! ```text
//!   print     an answer   --> stdout                                waits; a reader that has seen enough is no error
//!   tell      one line    --> [ lines, 64 KiB ] --stderr--> stderr  waits a while; lost if it cannot be written
//!   try_tell  one line    --> [ lines, 64 KiB ]                     never waits; says what became of it
//! ```
//!
//! There may be no reader: `axvm ps | head -1` closes the pipe early, a service may outlive the program that reads its
//! errors. Neither is a reason to stop, least of all for a machine that runs. (The standard library's `print!` and
//! `eprint!` panic.)
//!
//! Whether a write would wait cannot be known before: standard error is shared with other processes, which may fill a
//! pipe just after `poll` said that it has room, and a terminal has room for a byte and not for a line. For the same
//! reason it must not be made non-blocking. So while a machine runs, a thread `stderr` does the waiting.
//!
use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axvm_sandbox::Role;
use axvm_sync::lock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Bytes that may wait for a slow reader of standard error.
const QUEUE_LEN: usize = 64 << 10;
/// How long an important line, or the end of AxVM, waits for a reader that takes nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Lines on their way to standard error; set by [`start_writer`].
static LINES: OnceLock<Arc<Lines>> = OnceLock::new();

#[derive(Default)]
struct Lines {
    queue: Mutex<LineQueue>,
    changed: Condvar,
}

#[derive(Default)]
struct LineQueue {
    lines: VecDeque<Vec<u8>>,
    /// Their bytes, with those of the line that is being written.
    len: usize,
    /// Lines that could not be written and were not asked for.
    lost: u64,
}

/// Starts the thread that writes lines. Before that, [`tell`] and [`try_tell`] write themselves.
pub fn start_writer() -> io::Result<()> {
    let lines = Arc::new(Lines::default());
    let written = Arc::clone(&lines);
    axvm_sandbox::spawn(Role::Console, "stderr", move || written.write_all())?;
    let _ = LINES.set(lines);
    Ok(())
}

/// Waits until all is written that was said; not long for a reader that takes nothing.
pub fn finish() {
    if let Some(lines) = LINES.get() {
        lines.settle();
    }
}

impl Lines {
    fn write_all(&self) -> ! {
        let mut queue = lock(&self.queue);
        loop {
            let Some(line) = queue.lines.pop_front() else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queue);
            let written = write_waiting(&line);
            queue = lock(&self.queue);
            queue.len -= line.len();
            queue.lost += u64::from(written.is_err());
            self.changed.notify_all();
        }
    }

    /// Adds a line if there is room.
    fn push(&self, line: Vec<u8>) -> TellOutcome {
        let mut queue = lock(&self.queue);
        if queue.len + line.len() > QUEUE_LEN {
            return TellOutcome::WouldWait;
        }
        queue.len += line.len();
        queue.lines.push_back(line);
        self.changed.notify_all();
        TellOutcome::Told
    }

    /// Waits until all is written, as long as something is.
    fn settle(&self) {
        let mut queue = lock(&self.queue);
        while queue.len > 0 {
            let before = queue.len;
            let waited = self.changed.wait_timeout(queue, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            queue = waited.0;
            if queue.len == before && waited.1.timed_out() {
                return;
            }
        }
    }
}

/// Writes all of a line, however long that takes.
fn write_waiting(mut line: &[u8]) -> Result<(), Errno> {
    let stderr = io::stderr();
    while !line.is_empty() {
        // Past the standard library's lock: another thread may panic, and must not wait.
        match rustix::io::write(&stderr, line) {
            Ok(count) => line = &line[count..],
            Err(Errno::INTR) => {}
            // Another process made it non-blocking.
            Err(Errno::AGAIN) => drop(poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Says one line on standard error; lost if it cannot be written.
pub fn tell(words: impl Display) {
    let line = line(words);
    match LINES.get() {
        None => drop(io::stderr().write_all(&line)),
        Some(lines) => {
            lines.settle();
            lines.push(line);
            lines.settle();
        }
    }
}

/// What became of a line of [`try_tell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TellOutcome {
    /// It is written, or on its way.
    Told,
    /// The reader is slow, and enough lines wait for it.
    WouldWait,
    /// It cannot be written: the reader is gone, or a disk is full.
    Failed,
}

/// Says one line on standard error without waiting for its reader. For threads that must not wait.
pub fn try_tell(words: impl Display) -> TellOutcome {
    let line = line(words);
    match LINES.get() {
        Some(lines) => lines.push(line),
        // Only the main thread is there yet, and sets up.
        None => match poll(&mut [PollFd::new(&io::stderr(), PollFlags::OUT)], Some(&Timespec::default())) {
            Ok(0) | Err(Errno::INTR) => TellOutcome::WouldWait,
            Err(_) => TellOutcome::Failed,
            Ok(_) => write_waiting(&line).map_or(TellOutcome::Failed, |()| TellOutcome::Told),
        },
    }
}

/// Lines that [`try_tell`] took and that could not be written, since the last call.
pub fn take_lost() -> u64 {
    LINES.get().map_or(0, |lines| std::mem::take(&mut lock(&lines.queue).lost))
}

fn line(words: impl Display) -> Vec<u8> {
    // A raw terminal only feeds the line.
    let end = if axvm_console::is_raw() && io::stderr().is_terminal() { "\r\n" } else { "\n" };
    format!("axvm: {words}{end}").into_bytes()
}

/// Prints an answer on standard output. A reader that has seen enough is no error.
pub fn print(answer: impl AsRef<[u8]>) -> io::Result<()> {
    let mut to = io::stdout().lock();
    match to.write_all(answer.as_ref()).and_then(|()| to.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| io::Error::new(error.kind(), format!("Cannot print the answer: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_up_to_a_limit_and_no_caller_does() {
        let lines = Lines::default();
        let line = || vec![b'x'; 1000];
        for n in 0..QUEUE_LEN / 1000 {
            assert_eq!(lines.push(line()), TellOutcome::Told, "line {n}");
        }
        assert_eq!(lines.push(line()), TellOutcome::WouldWait);
    }
}
