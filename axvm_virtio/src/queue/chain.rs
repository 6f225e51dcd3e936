//! A chain: the buffers of one request, collected from descriptors and checked on the way.
//!
//! ```text
//!   head --> [readable] --NEXT--> [readable] --NEXT--> [writable]          in the ring's own table
//!   head --> [readable] --NEXT--> [INDIRECT] --> table: [readable] --> [writable] --> [writable]
//! ```
//!
//! A walk that takes more steps than its table has entries has met one twice, so counting finds loops.
//! Descriptors are copied before they are checked: the driver may rewrite its table at any time.
//!
//! Three decisions where the standard leaves room:
//! * A buffer of no bytes is taken and dropped: it names no memory, so its address does not matter.
//! * An indirect table may be longer than the queue (up to 32768 descriptors, the longest queue).
//!   2.7.5.3.1 forbids it to drivers, Linux does it when a device's segment limit allows.
//! * The buffers may come to exactly 2^32 bytes, the most that 2.7.5.2 allows.
//!
//! Spec: virtio 1.2, 2.7.4 "Message Framing", 2.7.5 "The Virtqueue Descriptor Table".

use axvm_memory::{GuestArray, GuestRam, GuestRange};

use super::descriptor::{DESCRIPTOR_LEN, Descriptor};
use super::{MAX_SIZE, QueueError, QueueFeatures};

/// Most bytes in one chain.
const MAX_BYTES: u64 = 1 << 32;
/// Room for ranges that an idle queue keeps: as many as a chain of a good driver has.
pub(super) const KEPT: usize = 256;

/// The buffers of one request, proven to be RAM.
///
/// The slices live in the queue and are reused by the next [`pop`](super::VirtQueue::pop), so no chain
/// costs an allocation. Return it with `push_used(head, written)`; a device that finishes requests out
/// of order copies the head and what it needs of the ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain<'a> {
    /// The chain's name: what [`push_used`](super::VirtQueue::push_used) wants back.
    pub head: u16,
    /// What the device may read, in order; no range is empty.
    pub readable: &'a [GuestRange],
    /// What the device may write, in order; no range is empty.
    pub writable: &'a [GuestRange],
    /// Bytes in `readable`.
    pub readable_len: u64,
    /// Bytes in `writable`.
    pub writable_len: u64,
}

/// A table of descriptors, with its bound. Its two kinds have a walk of their own each: a walk that asked at every
/// descriptor which table it is in took a fifth longer.
trait Table {
    fn count(&self) -> usize;

    /// A copy of the 16 bytes of entry `at`, below `count`.
    fn bits(&self, at: usize) -> u128;

    /// A copy of one descriptor.
    #[inline]
    fn get(&self, index: u16) -> Result<Descriptor, QueueError> {
        let (at, count) = (usize::from(index), self.count());
        if at >= count {
            return Err(QueueError::Index { index, count });
        }
        Ok(Descriptor::from_bits(self.bits(at)))
    }
}

/// The queue's own.
impl Table for GuestArray<u128> {
    #[inline]
    fn count(&self) -> usize {
        self.count()
    }

    #[inline]
    fn bits(&self, at: usize) -> u128 {
        self.get(at)
    }
}

/// One that a descriptor points to; it need not be aligned.
struct IndirectTable<'a>(&'a GuestRam, GuestRange);

impl Table for IndirectTable<'_> {
    #[inline]
    fn count(&self) -> usize {
        self.1.len() / DESCRIPTOR_LEN
    }

    #[inline]
    fn bits(&self, at: usize) -> u128 {
        self.0.get(&self.1, at * DESCRIPTOR_LEN)
    }
}

/// Where a chain is walked: the tables it may use.
pub(super) struct Walk<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) descriptors: &'a GuestArray<u128>,
    pub(super) features: QueueFeatures,
    pub(super) head: u16,
}

/// What a walk collected; reused from chain to chain.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    ranges: Vec<GuestRange>,
    /// Bytes in `ranges`.
    len: u64,
    /// The readable part, in ranges and bytes, from the first writable descriptor on: no readable one may follow.
    readable: Option<(usize, u64)>,
}

impl Buffers {
    /// What the last successful walk collected.
    #[inline]
    pub(super) fn chain(&self, head: u16) -> Chain<'_> {
        let (count, readable_len) = self.readable.unwrap_or((self.ranges.len(), self.len));
        let (readable, writable) = self.ranges.split_at(count);
        Chain { head, readable, writable, readable_len, writable_len: self.len - readable_len }
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.ranges.capacity()
    }

    /// Gives back what a long chain took, when no chain is in use.
    #[inline]
    pub(super) fn trim(&mut self) {
        if self.ranges.capacity() > KEPT {
            self.ranges = Vec::with_capacity(KEPT);
        }
    }

    /// Collects the chain at `walk.head`: its direct part, then the indirect table that may end it.
    #[inline]
    pub(super) fn collect(&mut self, walk: &Walk<'_>) -> Result<(), QueueError> {
        self.ranges.clear();
        (self.len, self.readable) = (0, None);
        if let Some(link) = self.follow(walk, walk.descriptors, walk.head)? {
            let table = walk.indirect(&link)?;
            if self.follow(walk, &table, 0)?.is_some() {
                return Err(QueueError::IndirectNested { head: walk.head });
            }
        }
        Ok(())
    }

    /// Collects from `first` to the end of the chain, or to the descriptor of an indirect table.
    fn follow(&mut self, walk: &Walk<'_>, table: &impl Table, first: u16) -> Result<Option<Descriptor>, QueueError> {
        let mut index = first;
        for _ in 0..table.count() {
            let descriptor = table.get(index)?;
            if descriptor.is_indirect() {
                return Ok(Some(descriptor));
            }
            self.add(walk, &descriptor)?;
            match descriptor.next() {
                Some(next) => index = next,
                None => return Ok(None),
            }
        }
        Err(QueueError::Loop { head: walk.head })
    }

    #[inline]
    fn add(&mut self, walk: &Walk<'_>, descriptor: &Descriptor) -> Result<(), QueueError> {
        let (head, gpa, len) = (walk.head, descriptor.addr, descriptor.len);
        if self.readable.is_some() != descriptor.is_writable() {
            if self.readable.is_some() {
                return Err(QueueError::Order { head });
            }
            self.readable = Some((self.ranges.len(), self.len));
        }
        if len == 0 {
            return Ok(());
        }
        let bytes = u64::from(len);
        if self.len + bytes > MAX_BYTES {
            return Err(QueueError::Bytes { head });
        }
        self.ranges.push(walk.ram.range(gpa, bytes).map_err(|_| QueueError::Buffer { head, gpa, len })?);
        self.len += bytes;
        Ok(())
    }
}

impl Walk<'_> {
    /// Proves the table that `link` points to. Its WRITE flag means nothing (2.7.5.3.2).
    fn indirect(&self, link: &Descriptor) -> Result<IndirectTable<'_>, QueueError> {
        let (head, gpa, len) = (self.head, link.addr, link.len);
        if !self.features.indirect {
            return Err(QueueError::IndirectUnasked { head });
        }
        if link.next().is_some() {
            return Err(QueueError::IndirectNext { head });
        }
        let size = len as usize;
        if size == 0 || !size.is_multiple_of(DESCRIPTOR_LEN) || size / DESCRIPTOR_LEN > usize::from(MAX_SIZE) {
            return Err(QueueError::IndirectLen { head, len });
        }
        let range = self.ram.range(gpa, u64::from(len)).map_err(|_| QueueError::Buffer { head, gpa, len })?;
        Ok(IndirectTable(self.ram, range))
    }
}
