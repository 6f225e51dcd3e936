//! Descriptors that AxVM was started with: closed before the first guest instruction.
//!
//! A shell that has `exec 9</etc/shadow` behind it gives descriptor 9 to all that it starts. Neither files nor calls are
//! limited for what is open already, so such a descriptor must go. It is told from AxVM's own by its flag: what has
//! close-on-exec did not come through execve, and all that AxVM opens has it.
//!
//! This happens when everything is open, and not first of all: until then `/dev/fd/9` may be named on the command line.
//! Descriptors of systemd (LISTEN_FDS) have no use in AxVM and go as well.
//!
//! Spec: fcntl(2) F_GETFD, execve(2).
#![allow(unsafe_code, reason = "these descriptors have no owner in this program")]

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::report::Protection;

const NAME: &str = "descriptors";

/// Takes over descriptor `number`, which this program was started with, so that it stays open in the sandbox. It is a
/// copy: what is taken twice is there twice.
pub fn inherited(number: u32) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(number).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: F_DUPFD_CLOEXEC takes numbers and makes a new descriptor.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was made just now, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Closes all but standard input, output and errors, and what AxVM opened.
pub(crate) fn close_inherited() -> Protection {
    let Ok(listed) = fs::read_dir("/proc/self/fd") else {
        return Protection::missing(NAME, "no /proc: those that AxVM was started with stay open");
    };
    // The list first: it has a descriptor of its own.
    let open: Vec<i32> = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    let mut closed: Vec<String> = Vec::new();
    for fd in open.into_iter().filter(|&fd| fd > 2) {
        // SAFETY: F_GETFD takes a number and only reads.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
            // SAFETY: it came from outside, so nothing in this program owns it.
            unsafe { libc::close(fd) };
            closed.push(fd.to_string());
        }
    }
    match closed.is_empty() {
        true => Protection::on(NAME, "none but AxVM's own"),
        false => Protection::on(NAME, format!("closed those that AxVM was started with: {}", closed.join(", "))),
    }
}
