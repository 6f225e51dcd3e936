//! An eventfd: something to signal in one thread and to wait for in another, or in the kernel.
//!
//! ```text
//!   signal() --> counter > 0: readable --> take(): counter = 0
//! ```
//!
//! Several signals before one take are one event. KVM reads such a counter itself (irqfd) or adds to it (ioeventfd).
//!
//! Source: eventfd(2).
#![allow(clippy::disallowed_methods, reason = "this is the one way")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// An eventfd; a [clone](EventFd::try_clone) is the same event.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
    /// A read of it waits for a signal.
    blocking: bool,
}

impl EventFd {
    /// One that is not signalled, made to be polled: [`EventFd::take`] is one system call.
    pub fn new() -> io::Result<EventFd> {
        Ok(EventFd { fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?, blocking: false })
    }

    /// One that is not signalled, made to be waited for: [`EventFd::wait`] is one system call.
    pub fn blocking() -> io::Result<EventFd> {
        Ok(EventFd { fd: eventfd(0, EventfdFlags::CLOEXEC)?, blocking: true })
    }

    /// A second handle to the same event.
    pub fn try_clone(&self) -> io::Result<EventFd> {
        Ok(EventFd { fd: self.fd.try_clone()?, blocking: self.blocking })
    }

    /// Signals it; never waits.
    pub fn signal(&self) {
        // Only a counter at 2^64 - 2 would refuse, and it is signalled then.
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    /// Whether it is signalled; it stays so.
    pub fn is_signalled(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&now)), Ok(1))
    }

    /// Takes the signal, if there is one; never waits. The caller must be the only one that takes.
    pub fn take(&self) -> bool {
        self.take_count() > 0
    }

    /// Takes all signals so far: how many there were.
    pub fn take_count(&self) -> u64 {
        let mut count = [0; 8];
        let may_read = !self.blocking || self.is_signalled();
        match may_read && rustix::io::read(&self.fd, &mut count).is_ok() {
            true => u64::from_ne_bytes(count),
            false => 0,
        }
    }

    /// Waits for the signal and takes it.
    pub fn wait(&self) {
        loop {
            match rustix::io::read(&self.fd, &mut [0; 8]) {
                Err(Errno::INTR) => {}
                // A signal of the process, or a second reader, may end the poll: one look too many.
                Err(Errno::AGAIN) => _ = poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], None),
                _ => return,
            }
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn several_signals_are_one_event() {
        let event = EventFd::new().unwrap();
        assert!(!event.is_signalled() && !event.take());
        event.signal();
        event.signal();
        assert!(event.is_signalled() && event.is_signalled());
        assert!(event.take());
        assert!(!event.take());
        event.signal();
        event.signal();
        assert_eq!((event.take_count(), event.take_count()), (2, 0));
    }

    #[test]
    fn a_waiting_thread_is_woken_through_a_second_handle() {
        for event in [EventFd::new().unwrap(), EventFd::blocking().unwrap()] {
            let other = event.try_clone().unwrap();
            assert!(!other.take());
            thread::scope(|scope| {
                let waiter = scope.spawn(|| event.wait());
                other.signal();
                waiter.join().unwrap();
            });
            assert!(!other.is_signalled());
        }
    }
}
