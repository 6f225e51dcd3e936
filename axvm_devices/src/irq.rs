//! An interrupt line, seen from a device: something to raise.
//!
//! ```text
//!   device --raise()--> eventfd --> KVM (irqfd) --> PIC, IOAPIC        in a test, the test reads the eventfd
//! ```
//!
//! An [`Irq`] is edge-triggered: one `raise`, one edge. A [`LevelIrq`] is up or down, and is set by a call, since an irqfd
//! cannot be lowered before the guest's end of interrupt.
//!
//! Spec: KVM API 4.75 `KVM_IRQFD`, 4.25 `KVM_IRQ_LINE`; eventfd(2). Left out: lines that two devices share.

use std::fmt;
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

/// The device's end of a level-triggered line.
pub struct LevelIrq(Box<dyn Fn(bool) + Send + Sync>);

impl LevelIrq {
    /// A line whose level `set` sets, which must not block.
    pub fn new(set: impl Fn(bool) + Send + Sync + 'static) -> LevelIrq {
        LevelIrq(Box::new(set))
    }

    /// Up or down; the same again is no change.
    pub fn set(&self, level: bool) {
        (self.0)(level);
    }
}

impl fmt::Debug for LevelIrq {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("LevelIrq")
    }
}
