//! Who looks at a queue's requests, beside the device that serves them.
//!
//! ```text
//!   pop, push_used, publish --one branch--> (off: that was all)
//!                                       '-> Watch --> tape:  what happened, and when
//!                                                 '-> check: whether the driver keeps to the standard
//! ```
//!
//! One field of the queue for both, so that a queue at which nothing looks asks once.

use axvm_events::tape::{Kind, Tape};
use axvm_memory::GuestArray;

use super::{Chain, QueueError, RingCheck};

/// What looks at one queue.
#[derive(Debug)]
pub(crate) struct Watch {
    tape: Option<Tape>,
    check: Option<RingCheck>,
}

impl Watch {
    /// By these two, if there is one of them.
    pub(crate) fn new(tape: Option<Tape>, check: Option<RingCheck>) -> Option<Box<Watch>> {
        (tape.is_some() || check.is_some()).then(|| Box::new(Watch { tape, check }))
    }

    /// For the tape only.
    pub(super) fn record(&mut self, kind: Kind, head: u16, written: u32) {
        if let Some(tape) = &mut self.tape {
            tape.mark(kind, head.into(), written.into());
        }
    }

    /// A chain was taken; `flags` are those of the available ring.
    pub(super) fn taken(&mut self, chain: &Chain<'_>, flags: u16, descriptors: &GuestArray<u128>) {
        self.record(Kind::Pop, chain.head, 0);
        if let Some(check) = &mut self.check {
            check.taken(chain, flags, descriptors);
        }
    }

    /// A chain goes back to the driver.
    pub(super) fn returned(&mut self, head: u16, written: u32, descriptors: &GuestArray<u128>) {
        self.record(Kind::Complete, head, written);
        if let Some(check) = &mut self.check {
            check.returned(head, descriptors);
        }
    }

    /// A chain goes back to the ring.
    pub(super) fn put_back(&mut self, head: u16) {
        if let Some(check) = &mut self.check {
            check.put_back(head);
        }
    }

    /// The ring was found broken.
    pub(super) fn error(&mut self, error: &QueueError) {
        if let Some(check) = &mut self.check {
            check.error(error);
        }
    }
}
