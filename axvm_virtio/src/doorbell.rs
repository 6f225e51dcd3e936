//! A doorbell: an eventfd that a driver's kick, the user or a port rings, and one worker waits for.
//!
//! ```text
//!   guest: write to QueueNotify --KVM ioeventfd--.
//!   host:  Doorbell::ring -----------------------+--> counter > 0: readable --answer--> 0
//! ```
//!
//! Made by rustix, whose poll(2) takes only descriptors that are known to be open; vmm_sys_util's EventFd does not say
//! that of itself.
//!
//! Source: eventfd(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Readable from the first ring to the next answer.
#[derive(Debug)]
pub struct Doorbell(OwnedFd);

impl Doorbell {
    /// A quiet one. To answer it is to wait until it rings.
    pub fn new() -> io::Result<Arc<Doorbell>> {
        Ok(Arc::new(Doorbell(eventfd(0, EventfdFlags::CLOEXEC)?)))
    }

    /// A quiet one; to answer it while it is quiet is an error (`WouldBlock`).
    pub(crate) fn nonblocking() -> io::Result<Arc<Doorbell>> {
        Ok(Arc::new(Doorbell(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Rings.
    pub fn ring(&self) {
        // Refused only after 2^64 - 2 rings without an answer.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Takes all rings so far: how many there were. Waits for the first; a signal may interrupt that.
    pub fn answer(&self) -> io::Result<u64> {
        let mut count = [0; 8];
        rustix::io::read(&self.0, &mut count)?;
        Ok(u64::from_ne_bytes(count))
    }

    /// Whether it has rung; it stays so.
    pub fn has_rung(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&now)), Ok(1))
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// For KVM's ioeventfd.
impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rings_are_one_answer() {
        let doorbell = Doorbell::nonblocking().unwrap();
        assert!(!doorbell.has_rung() && doorbell.answer().is_err());
        doorbell.ring();
        doorbell.ring();
        assert!(doorbell.has_rung() && doorbell.has_rung());
        assert_eq!(doorbell.answer().unwrap(), 2);
        assert!(!doorbell.has_rung());
    }
}
