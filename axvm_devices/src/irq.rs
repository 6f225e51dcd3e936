//! An interrupt line, seen from a device: something to raise.
//!
//! ```text
//!   device --raise()--> eventfd --> KVM (irqfd) --> PIC, IOAPIC        in a test, the test reads the eventfd
//! ```
//!
//! All lines here are edge-triggered: one `raise`, one edge.
//!
//! Spec: KVM API 4.75 `KVM_IRQFD`; eventfd(2). Left out: level-triggered lines (irqfd with a resample eventfd).

use std::io;

use axvm_sync::EventFd;

/// The device's end of an interrupt line.
#[derive(Debug)]
pub struct Irq(EventFd);

impl Irq {
    /// A line that is connected to no interrupt controller yet.
    pub fn new() -> io::Result<Irq> {
        EventFd::new().map(Irq)
    }

    /// A second handle to the same line.
    pub fn try_clone(&self) -> io::Result<Irq> {
        self.0.try_clone().map(Irq)
    }

    /// The far end: for `KVM_IRQFD`, or to take from in a test.
    pub fn event_fd(&self) -> &EventFd {
        &self.0
    }

    /// One edge. An edge that was not taken yet absorbs the next one.
    pub fn raise(&self) {
        self.0.signal();
    }
}
