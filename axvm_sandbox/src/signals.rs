//! Signals as something to wait for: they stay pending, and are read from a descriptor.
//!
//! ```text
//!   kill(2), the terminal --> pending, for no thread takes them --> signalfd, readable --> arrived()
//! ```
//!
//! No handler runs, so no thread is disturbed: a vCPU stays in its guest, and no filter has to allow what a handler
//! does. Two calls set this up for any number of signals.
//!
//! Spec: signalfd(2), pthread_sigmask(3), signal(7). Left out: who sent a signal, and with which value.
#![allow(unsafe_code, reason = "the C library's sets of signals are built through pointers")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, signalfd_siginfo, sigset_t};
use rustix::io::Errno;

/// Bytes of one signal that is read.
const LEN: usize = size_of::<signalfd_siginfo>();
/// Signals read at once.
const AT_ONCE: usize = 8;

/// Signals that this process waits for.
#[derive(Debug)]
pub struct CaughtSignals(OwnedFd);

impl CaughtSignals {
    /// Catches `signals` from now on. Those of `mute` do nothing any more, not even end the process.
    ///
    /// They are blocked in this thread and in all that it makes: call it while there is no other, and after the last
    /// child process, which would inherit that.
    pub fn catch(signals: impl IntoIterator<Item = c_int>, mute: &[c_int]) -> io::Result<CaughtSignals> {
        let mut set = empty();
        for signal in signals {
            add(&mut set, signal)?;
        }
        // SAFETY: makes a new descriptor, and reads the set, which lives through the call.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was made just now, so nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        for &signal in mute {
            add(&mut set, signal)?;
        }
        // SAFETY: reads the set, which lives through the call; a null old set is not written.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
            0 => Ok(CaughtSignals(fd)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Takes what arrived; several of one kind count as one.
    pub fn arrived(&self) -> Vec<c_int> {
        let mut arrived = Vec::new();
        let mut bytes = [0; AT_ONCE * LEN];
        loop {
            match rustix::io::read(&self.0, &mut bytes) {
                Ok(count) => arrived.extend(bytes[..count].chunks_exact(LEN).map(number)),
                Err(Errno::INTR) => {}
                // None is left.
                Err(_) => return arrived,
            }
        }
    }
}

impl AsFd for CaughtSignals {
    /// Readable when a signal has arrived.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The first field of `signalfd_siginfo`.
fn number(info: &[u8]) -> c_int {
    c_int::from_ne_bytes([info[0], info[1], info[2], info[3]])
}

fn empty() -> sigset_t {
    // SAFETY: all zeroes is a valid set, and what sigemptyset makes of it.
    let mut set = unsafe { std::mem::zeroed() };
    // SAFETY: writes a set, and cannot fail.
    unsafe { libc::sigemptyset(&mut set) };
    set
}

fn add(set: &mut sigset_t, signal: c_int) -> io::Result<()> {
    // SAFETY: writes a set that was initialized; a number that is no signal is an error.
    match unsafe { libc::sigaddset(set, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own: the mask is the thread's, and so is the signal.
    #[test]
    fn what_arrives_is_read_once_and_what_is_mute_does_nothing() {
        let run = || {
            let caught = CaughtSignals::catch([libc::SIGUSR1, 40], &[libc::SIGXFSZ]).unwrap();
            assert_eq!(caught.arrived(), []);
            // SAFETY: takes nothing, and cannot fail.
            let thread = unsafe { libc::gettid() };
            for signal in [40, libc::SIGUSR1, libc::SIGUSR1, libc::SIGXFSZ] {
                // SAFETY: takes numbers; the thread is this one.
                unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, signal) };
            }
            assert_eq!(caught.arrived(), [libc::SIGUSR1, 40]);
            assert_eq!(caught.arrived(), []);
        };
        crate::spawn(crate::Role::Console, "signals", run).unwrap().join().unwrap();
    }
}
