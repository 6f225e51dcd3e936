//! How AxVM speaks: answers on standard output, everything else on standard error.
//!
//! Nobody may listen: `axvm ps | head -1` closes the pipe early, a service may outlive who reads its errors. Neither
//! is a reason to stop, least of all for a machine that runs. (The standard library's `print!` and `eprint!` panic.)

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The longest line that [`try_tell`] says whole: what fits a pipe that can be written at all.
const LONGEST: usize = 4096;

/// Says one line on standard error, in one write; lost if it can not be written.
pub fn tell(words: impl Display) {
    let _ = io::stderr().write_all(&line(words));
}

/// Says one line on standard error if that takes it at once; whether it did. For threads that must not wait.
pub fn try_tell(words: impl Display) -> bool {
    let (stderr, now) = (io::stderr(), Timespec::default());
    let listens = matches!(poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&now)), Ok(1));
    let line = line(words);
    // Past the standard library's lock: somebody may wait there.
    listens && rustix::io::write(&stderr, &line[..line.len().min(LONGEST)]).is_ok()
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
