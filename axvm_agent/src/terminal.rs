//! `axvm-agent terminal PROGRAM ...`: makes its terminal the controlling one of a new session, and becomes the program.
//!
//! ```text
//!   standard input, output   the terminal
//!   standard error           a pipe to the session; it closes when the program runs, and else carries an error number
//! ```
//!
//! A program of its own, for between fork and exec a process of Rust may do nothing that is not `unsafe`.
//!
//! Source: setsid(2), TIOCSCTTY in ioctl_tty(2).

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{fcntl_dupfd_cloexec, write};
use rustix::process::{ioctl_tiocsctty, setsid};
use rustix::stdio::{dup2_stderr, stderr, stdin};

use crate::Error;

/// Comes back only with an error.
pub fn become_command(command: &[&OsString]) -> Error {
    let report = match fcntl_dupfd_cloexec(stderr(), 3) {
        Ok(report) => report,
        Err(error) => return error.into(),
    };
    let error = enter().map_or_else(io::Error::from, |()| exec(command));
    // The session is there, or has no use for it.
    _ = write(&report, &error.raw_os_error().unwrap_or(0).to_le_bytes());
    error.into()
}

fn enter() -> rustix::io::Result<()> {
    dup2_stderr(stdin())?;
    setsid()?;
    ioctl_tiocsctty(stdin())
}

fn exec(command: &[&OsString]) -> io::Error {
    match command {
        [program, arguments @ ..] => Command::new(program).args(arguments).exec(),
        [] => io::ErrorKind::InvalidInput.into(),
    }
}
