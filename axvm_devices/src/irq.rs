//! An interrupt line, seen from a device: something to raise.
//!
//! The line is an eventfd. In a machine KVM listens on it (irqfd); in a test, the test does.
//! All lines here are edge-triggered: one `raise`, one edge.

use std::io;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The device's end of an interrupt line.
#[derive(Debug)]
pub struct Irq(EventFd);

impl Irq {
    /// A line that nobody listens to yet.
    pub fn new() -> io::Result<Irq> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Irq)
    }

    /// A second handle to the same line.
    pub fn try_clone(&self) -> io::Result<Irq> {
        self.0.try_clone().map(Irq)
    }

    /// The listener's end: for `KVM_IRQFD`, or to read in a test.
    pub fn event_fd(&self) -> &EventFd {
        &self.0
    }

    /// One edge. An edge that nobody has taken yet absorbs the next one.
    pub fn raise(&self) {
        // The only error of a non-blocking eventfd is "counter full": the edge is already pending.
        let _ = self.0.write(1);
    }
}
