//! The check of one queue: which rule an error of the ring is about, and what no error comes of.
//!
//! ```text
//!   pop --error--> rule of the error
//!       --chain--> flags of the ring? as long as the queue at most? descriptors free? the header of a frame?
//!                  |
//!                  '--> held: each descriptor, as it was
//!   push_used ---> the same as when it was taken? it is free again
//! ```
//!
//! A copy of each descriptor in flight is all that it keeps. Runs with `--virtio-check` only.
//!
//! Spec: virtio 1.2, 2.7 "Split Virtqueues".

use std::fmt;
use std::sync::Arc;

use axvm_events::Events;
use axvm_events::rules::Rule;
use axvm_memory::{GuestArray, GuestRam};

use super::descriptor::Descriptor;
use super::{Chain, QueueError, frames};
use crate::check::rules;

/// A queue as its driver set it up.
#[derive(Clone, Copy)]
pub(crate) struct Checked {
    /// Its number.
    pub(crate) queue: u16,
    /// Its entries.
    pub(crate) size: u16,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub(crate) event_idx: bool,
    /// All features that were negotiated.
    pub(crate) features: u64,
    /// Its chains are frames to send.
    pub(crate) has_frames: bool,
}

/// A descriptor that the device has.
#[derive(Clone, Copy)]
struct Held {
    /// The chain that it belongs to.
    head: u16,
    /// It, when the chain was taken.
    bits: u128,
}

/// What is watched of a queue.
pub(crate) struct RingCheck {
    events: Events,
    device: Arc<str>,
    ram: Arc<GuestRam>,
    checked: Checked,
    /// By number of the descriptor.
    held: Vec<Option<Held>>,
}

impl RingCheck {
    /// Of a queue with nothing in flight.
    pub(crate) fn new(events: Events, device: Arc<str>, ram: &Arc<GuestRam>, checked: Checked) -> RingCheck {
        let held = vec![None; checked.size.into()];
        RingCheck { events, device, ram: Arc::clone(ram), checked, held }
    }

    /// The ring was found broken.
    pub(crate) fn error(&self, error: &QueueError) {
        if let Some(rule) = rule_of(error) {
            self.broke(rule, format_args!("{error}"));
        }
    }

    /// The chain was taken; the flags of the available ring are these.
    pub(crate) fn taken(&mut self, chain: &Chain<'_>, flags: u16, descriptors: &GuestArray<u128>) {
        let Checked { size, event_idx, features, has_frames, .. } = self.checked;
        let (head, count) = (chain.head, chain.readable.len() + chain.writable.len());
        if count > usize::from(size) {
            self.broke(&rules::CHAIN_LONG, format_args!("chain {head} has {count} descriptors, the queue {size}"));
        }
        if flags > 1 || (event_idx && flags != 0) {
            self.broke(&rules::AVAIL_FLAGS, format_args!("flags {flags:#x}, with EVENT_IDX: {event_idx}"));
        }
        if has_frames {
            frames::sent(&self.ram, chain, features, &mut |rule, seen| self.broke(rule, seen));
        }
        self.hold(head, descriptors);
    }

    /// The device has the descriptors of this chain now: none of them is in a chain that it has already.
    fn hold(&mut self, head: u16, descriptors: &GuestArray<u128>) {
        let mut index = head;
        for _ in 0..descriptors.count() {
            let Some(slot) = self.held.get_mut(usize::from(index)) else { return };
            if let Some(Held { head: other, .. }) = *slot {
                return match index == head && other == head {
                    true => self.broke(&rules::HEAD_IN_FLIGHT, format_args!("head {head} was offered again")),
                    false => self.broke(
                        &rules::DESCRIPTOR_IN_FLIGHT,
                        format_args!("descriptor {index} is in the chains {other} and {head}"),
                    ),
                };
            }
            let bits = descriptors.get(index.into());
            *slot = Some(Held { head, bits });
            match following(bits) {
                Some(next) => index = next,
                None => return,
            }
        }
    }

    /// A chain goes back to the driver: its descriptors are as they were.
    pub(crate) fn returned(&mut self, head: u16, descriptors: &GuestArray<u128>) {
        for (index, bits) in self.release(head) {
            let now = descriptors.get(index.into());
            if now != bits {
                let [was, is] = [bits, now].map(u128::from_le);
                let seen = format_args!("descriptor {index} of chain {head} was {was:#034x}, and is {is:#034x}");
                self.broke(&rules::DESCRIPTOR_CHANGED, seen);
            }
        }
    }

    /// A chain goes back to the ring.
    pub(crate) fn put_back(&mut self, head: u16) {
        self.release(head);
    }

    /// The device has this chain no more; what its descriptors were.
    fn release(&mut self, head: u16) -> Vec<(u16, u128)> {
        let (mut index, mut released) = (head, Vec::new());
        while let Some(slot) = self.held.get_mut(usize::from(index))
            && let Some(held) = slot.take_if(|held| held.head == head)
        {
            released.push((index, held.bits));
            match following(held.bits) {
                Some(next) => index = next,
                None => break,
            }
        }
        released
    }

    fn broke(&self, rule: &'static Rule, seen: fmt::Arguments<'_>) {
        self.events.broke(rule, &self.device, || format!("queue {}: {seen}", self.checked.queue));
    }
}

/// The next descriptor in the ring's own table.
fn following(bits: u128) -> Option<u16> {
    let descriptor = Descriptor::from_bits(bits);
    descriptor.next().filter(|_| !descriptor.is_indirect())
}

impl fmt::Debug for RingCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RingCheck({})", self.checked.queue)
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
