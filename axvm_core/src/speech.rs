//! How AxVM speaks: answers on standard output, everything else on standard error.
//!
//! Nobody may listen: `axvm ps | head -1` closes the pipe early, a service may outlive who reads its errors. Neither
//! is a reason to stop, least of all for a machine that runs. (The standard library's `print!` and `eprint!` panic.)

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};

/// Says one line on standard error, in one write; lost if it can not be written.
pub fn tell(words: impl Display) {
    // A raw terminal only feeds the line.
    let end = if axvm_console::is_raw() && io::stderr().is_terminal() { "\r\n" } else { "\n" };
    let _ = io::stderr().write_all(format!("axvm: {words}{end}").as_bytes());
}

/// Prints an answer on standard output. A reader that has seen enough is no error.
pub fn print(answer: impl AsRef<[u8]>) -> io::Result<()> {
    let mut to = io::stdout().lock();
    match to.write_all(answer.as_ref()).and_then(|()| to.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
