//! How AxVM speaks: answers on standard output, everything else on standard error.
//!
//! ```text
//!   print     an answer   --> stdout   waits; a reader that has seen enough is no error
//!   tell      one line    --> stderr   waits; lost if it cannot be written
//!   try_tell  one line    --> stderr   never waits; says what became of it
//! ```
//!
//! There may be no reader: `axvm ps | head -1` closes the pipe early, a service may outlive the program that reads its
//! errors. Neither is a reason to stop, least of all for a machine that runs. (The standard library's `print!` and
//! `eprint!` panic.)
//!
//! Source: pipe(7), "PIPE_BUF": a pipe that is writable takes that many bytes at once.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The longest line that [`try_tell`] says whole: what fits a pipe that can be written at all.
const LONGEST: usize = 4096;

/// Says one line on standard error, in one write; lost if it cannot be written.
pub fn tell(words: impl Display) {
    let _ = io::stderr().write_all(&line(words));
}

/// What became of a line of [`try_tell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TellOutcome {
    /// Standard error has it.
    Told,
    /// Its reader is slow: to write would have been to wait.
    WouldWait,
    /// It cannot be written: the reader is gone, or a disk is full.
    Failed,
}

/// Says one line on standard error if that takes it at once. For threads that must not wait.
pub fn try_tell(words: impl Display) -> TellOutcome {
    let (stderr, now) = (io::stderr(), Timespec::default());
    let line = line(words);
    match poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&now)) {
        Ok(0) | Err(Errno::INTR) => TellOutcome::WouldWait,
        Err(_) => TellOutcome::Failed,
        // Past the standard library's lock: another thread may wait with it.
        Ok(_) => match rustix::io::write(&stderr, &line[..line.len().min(LONGEST)]) {
            Ok(_) => TellOutcome::Told,
            Err(_) => TellOutcome::Failed,
        },
    }
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
