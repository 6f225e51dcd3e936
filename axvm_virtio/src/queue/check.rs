//! The check of one queue: which rule an error of the ring is about, and what no error comes of.
//!
//! ```text
//!   pop --error--> rule of the error
//!       --chain--> flags of the ring? as long as the queue at most? head in flight already?
//!   push_used ---> the head is free again
//! ```
//!
//! A bit for each head is all that it keeps. Runs with `--virtio-check` only.
//!
//! Spec: virtio 1.2, 2.7 "Split Virtqueues".

use std::fmt;
use std::sync::Arc;

use axvm_events::Events;
use axvm_events::rules::Rule;

use super::{Chain, QueueError};
use crate::check::rules;

/// What is watched of a queue.
pub(crate) struct RingCheck {
    events: Events,
    device: Arc<str>,
    queue: u16,
    size: u16,
    event_idx: bool,
    /// By head: the device has it.
    in_flight: Vec<bool>,
    last: u16,
}

impl RingCheck {
    /// Of queue number `queue` of a device, with `size` entries and nothing in flight.
    pub(crate) fn new(events: Events, device: Arc<str>, (queue, size): (u16, u16), event_idx: bool) -> RingCheck {
        RingCheck { events, device, queue, size, event_idx, in_flight: vec![false; size.into()], last: 0 }
    }

    /// The ring was found broken.
    #[cold]
    pub(crate) fn error(&self, error: &QueueError) {
        if let Some(rule) = rule_of(error) {
            self.broke(rule, format_args!("{error}"));
        }
    }

    /// The chain was taken; the flags of the available ring are these.
    #[cold]
    pub(crate) fn taken(&mut self, chain: &Chain<'_>, flags: u16) {
        let (head, count) = (chain.head, chain.readable.len() + chain.writable.len());
        if count > usize::from(self.size) {
            self.broke(
                &rules::CHAIN_LONG,
                format_args!("chain {head} has {count} descriptors, the queue {}", self.size),
            );
        }
        if flags > 1 || (self.event_idx && flags != 0) {
            self.broke(&rules::AVAIL_FLAGS, format_args!("flags {flags:#x}, with EVENT_IDX: {}", self.event_idx));
        }
        self.last = head;
        let known = self.in_flight.get_mut(usize::from(head)).map(|slot| std::mem::replace(slot, true));
        if known == Some(true) {
            self.broke(&rules::HEAD_IN_FLIGHT, format_args!("head {head} was offered while the device has it"));
        }
    }

    /// A chain goes back to the driver.
    pub(crate) fn returned(&mut self, head: u16) {
        self.in_flight.get_mut(usize::from(head)).into_iter().for_each(|slot| *slot = false);
    }

    /// The last chain goes back to the ring.
    pub(crate) fn put_back(&mut self) {
        self.returned(self.last);
    }

    fn broke(&self, rule: &'static Rule, seen: fmt::Arguments<'_>) {
        self.events.broke(rule, &self.device, || format!("queue {}: {seen}", self.queue));
    }
}

impl fmt::Debug for RingCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RingCheck({})", self.queue)
    }
}

/// The rule that an error of a ring is about; none for a saved state that is none.
pub(crate) fn rule_of(error: &QueueError) -> Option<&'static Rule> {
    Some(match error {
        QueueError::Size(_) => &rules::QUEUE_SIZE,
        QueueError::Placement { .. } => &rules::QUEUE_MISALIGNED,
        QueueError::State { .. } => return None,
        QueueError::AvailIndex { .. } => &rules::AVAIL_INDEX,
        QueueError::Index { .. } => &rules::DESCRIPTOR_INDEX,
        QueueError::Loop { .. } => &rules::CHAIN_LOOP,
        QueueError::Bytes { .. } => &rules::CHAIN_BYTES,
        QueueError::Order { .. } => &rules::CHAIN_ORDER,
        QueueError::Buffer { .. } => &rules::BUFFER_OUTSIDE,
        QueueError::IndirectUnasked { .. } => &rules::INDIRECT_UNASKED,
        QueueError::IndirectNext { .. } => &rules::INDIRECT_NEXT,
        QueueError::IndirectNested { .. } => &rules::INDIRECT_NESTED,
        QueueError::IndirectLen { .. } => &rules::INDIRECT_LEN,
    })
}
