//! Reads and writes that a worker has taken from its ring and not yet answered.
//!
//! ```text
//!   taken:    | r 0..8 | r 8..16 | w 40..48 | r 16..24 | r 99..100 |      in the order of the ring
//!   groups:   |------------------|                                        neighbours on the disk: one transfer
//!   answered: in any order, but nothing behind a write that the host may have no room for: a chain can go back to its
//!             ring only with all that was taken after it
//! ```
//!
//! Nothing here allocates for requests of usual length, once as much has been in flight as ever will be.
//!
//! Spec: virtio 1.2, 2.7.4 "Message Framing": a driver that needs an order waits for answers.

use std::collections::VecDeque;
use std::io;

use axvm_memory::{Direction, GuestRange};

use super::QUEUE_SIZE;
use super::request::Extent;

/// Ranges that a vector keeps room for: 256 KiB of a driver that has its memory in pages. So a queue keeps 640 KiB at most.
const KEPT: usize = 64;

/// One read or write.
#[derive(Debug)]
pub(super) struct Slot {
    /// The chain's name.
    pub(super) head: u16,
    /// Where its answer goes.
    pub(super) status: GuestRange,
    pub(super) direction: Direction,
    pub(super) extent: Extent,
    pub(super) ranges: Vec<GuestRange>,
    /// Bytes of the writable part before the status.
    pub(super) room: u64,
    pub(super) state: State,
    /// When it was begun.
    pub(super) began: u64,
}

/// How far it is.
#[derive(Debug)]
pub(super) enum State {
    /// Not begun.
    Waiting,
    /// The first of so many that the host has as one.
    Begun(usize),
    /// The host has it, as a part of one that began before.
    Joined,
    /// Answered by this status, but the driver does not know.
    Done(u8),
    /// The host has no room for it.
    Full(io::Error),
    /// The driver has it.
    Pushed,
}

/// See the module's head. A slot is named by its number among all that ever were.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    slots: VecDeque<Slot>,
    /// Number of the first slot.
    first: u64,
    /// Number of the first one that is not begun.
    next: u64,
    /// Bytes of what is not pushed.
    bytes: u64,
    spare: Vec<Vec<GuestRange>>,
}

/// Neighbours that go as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) first: u64,
    pub(super) count: usize,
    pub(super) extent: Extent,
}

/// How long a group may get.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pub(super) bytes: u64,
    pub(super) ranges: usize,
}

impl Transfers {
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.slots.len() < usize::from(QUEUE_SIZE)
    }

    /// Bytes of all that the driver does not have yet.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// An empty vector for the ranges of the next one.
    pub(super) fn ranges(&mut self) -> Vec<GuestRange> {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes a vector back; not one that an unusual request has made long.
    pub(super) fn reuse(&mut self, mut ranges: Vec<GuestRange>) {
        if ranges.capacity() <= KEPT {
            ranges.clear();
            self.spare.push(ranges);
        }
    }

    pub(super) fn add(&mut self, slot: Slot) {
        self.bytes += slot.extent.len;
        self.slots.push_back(slot);
    }

    pub(super) fn slot(&mut self, number: u64) -> &mut Slot {
        &mut self.slots[(number - self.first) as usize]
    }

    /// The next neighbours that are not begun, and begins them.
    pub(super) fn begin(&mut self, most: Most, stamp: u64) -> Option<Group> {
        let at = (self.next - self.first) as usize;
        let first = self.slots.get(at)?;
        let (direction, mut extent, mut ranges, mut count) = (first.direction, first.extent, first.ranges.len(), 1);
        for slot in self.slots.iter().skip(at + 1) {
            ranges += slot.ranges.len();
            let joins = slot.direction == direction && slot.extent.offset == extent.offset + extent.len;
            if !joins || extent.len + slot.extent.len > most.bytes || ranges > most.ranges {
                break;
            }
            extent.len += slot.extent.len;
            count += 1;
        }
        for (n, slot) in self.slots.range_mut(at..at + count).enumerate() {
            slot.state = if n == 0 { State::Begun(count) } else { State::Joined };
            slot.began = stamp;
        }
        let first = self.next;
        self.next += count as u64;
        Some(Group { first, count, extent })
    }

    /// The group that begins with slot `first`.
    pub(super) fn group(&self, first: u64) -> Group {
        let at = (first - self.first) as usize;
        let State::Begun(count) = self.slots[at].state else { panic!("slot {first} begins no group") };
        let len = self.slots.range(at..at + count).map(|slot| slot.extent.len).sum();
        Group { first, count, extent: Extent { len, ..self.slots[at].extent } }
    }

    /// The ranges of a group, one after the other.
    pub(super) fn collect(&self, group: Group, ranges: &mut Vec<GuestRange>) {
        let at = (group.first - self.first) as usize;
        ranges.clear();
        self.slots.range(at..at + group.count).for_each(|slot| ranges.extend_from_slice(&slot.ranges));
    }

    /// When the oldest that the host has was begun.
    pub(super) fn oldest(&self) -> Option<u64> {
        let in_host = |slot: &&Slot| matches!(slot.state, State::Begun(_) | State::Joined);
        self.slots.iter().find(in_host).map(|slot| slot.began)
    }

    /// Hands all that may be answered to `push`, with their status. Behind a write that is not done nothing is, if a write
    /// `may_wait` for room.
    pub(super) fn answer(&mut self, may_wait: bool, mut push: impl FnMut(&Slot, u8)) {
        for slot in &mut self.slots {
            match slot.state {
                State::Done(status) => {
                    push(slot, status);
                    slot.state = State::Pushed;
                    self.bytes -= slot.extent.len;
                }
                State::Pushed => {}
                _ if may_wait && slot.direction == Direction::Write => break,
                _ => {}
            }
        }
        while self.slots.front().is_some_and(|slot| matches!(slot.state, State::Pushed)) {
            self.first += 1;
            let ranges = self.slots.pop_front().map(|slot| slot.ranges);
            ranges.into_iter().for_each(|ranges| self.reuse(ranges));
        }
    }

    /// Takes all back, from the first write that the host has no room for to the last that was taken: what the host said.
    /// `give_back` gets each. All before it has been answered, as every read that was begun is done.
    pub(super) fn take_back(&mut self, mut give_back: impl FnMut(&Slot)) -> Option<io::Error> {
        let mut error = None;
        while let Some(slot) = self.slots.pop_front() {
            self.first += 1;
            assert!(!matches!(slot.state, State::Pushed), "chain {} was answered, and goes back", slot.head);
            give_back(&slot);
            if let (None, State::Full(why)) = (&error, slot.state) {
                error = Some(why);
            }
            self.reuse(slot.ranges);
        }
        (self.next, self.bytes) = (self.first, 0);
        error
    }
}
