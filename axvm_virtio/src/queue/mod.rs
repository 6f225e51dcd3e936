//! The split virtqueue: how a driver hands buffers to a device and gets them back, without a syscall.
//!
//! ```text
//!            descriptor table          available ring             used ring
//!   driver   writes: buffers    ---->  writes: heads, idx         reads
//!   device   reads (pop)               reads (pop)          ----> writes: heads, lengths, idx (publish)
//!
//!   free-running indices, modulo 2^16:
//!     published <= next_used <= next_avail <= avail.idx <= published + size
//!         |-pushed--|-in work-----|--offered----|
//! ```
//!
//! The loop of a device:
//!
//! ```text
//!   disable_kicks
//!   again: while pop gives a chain { work; push_used }      publish -> interrupt?
//!          enable_kicks says more came? again               else sleep until kicked
//! ```
//!
//! Memory ordering, device (us) against driver (another CPU):
//! * `avail.idx` is loaded with Acquire and pairs with the driver's barrier before its store: ring
//!   entries, descriptors and buffers are read after it and are never older than it.
//! * `used.idx` is stored with Release: a driver that sees it sees the elements and the data.
//! * Two store-then-load pairs need a full fence, as Release and Acquire leave a store free to pass a
//!   later load: (`used.idx`, then `used_event` or `avail.flags`) in `publish`, else an interrupt can
//!   be lost; (`avail_event` or `used.flags`, then `avail.idx`) in `enable_kicks`, else a kick. The
//!   driver has the mirrored fences (2.7.7, 2.7.13.4), so one of the two always sees the other.
//!
//! All of these stand in `rings`, and the tests of `model` fail without one of them.
//!
//! Spec: virtio 1.2, 2.7 "Split Virtqueues". Device side only.
//! Left out: packed rings (2.8), in-order use (2.7.9), the legacy layout (2.7.2).

mod chain;
mod check;
mod descriptor;
mod error;
mod frames;
mod layout;
#[cfg(test)]
mod model;
mod rings;
mod watch;

use std::sync::Arc;

use axvm_events::tape::Kind;
use axvm_memory::{AccessError, GuestArray, GuestRam};

pub use chain::Chain;
pub(crate) use check::{Checked, RingCheck, rule_of};
pub use error::QueueError;
pub use layout::{MAX_SIZE, QueueFeatures, QueueLayout, QueueState};
pub(crate) use watch::Watch;

use chain::{Buffers, Walk};
use rings::{AvailRing, UsedElements, UsedRing};

/// A queue whose three parts are proven to lie in RAM.
#[derive(Debug)]
pub struct VirtQueue {
    layout: QueueLayout,
    features: QueueFeatures,
    ram: Arc<GuestRam>,
    descriptors: GuestArray<u128>,
    avail: AvailRing,
    used: UsedRing,
    elements: UsedElements,
    /// Chains taken.
    next_avail: u16,
    /// `avail.idx` when last looked at: up to here entries are checked and visible.
    avail_seen: u16,
    /// Chains pushed.
    next_used: u16,
    /// Our last `used.idx`.
    published: u16,
    buffers: Buffers,
    /// The first error; nothing is taken after it.
    broken: Option<QueueError>,
    /// Who looks at its requests.
    watch: Option<Box<Watch>>,
}

impl VirtQueue {
    /// Turns the driver's claim into a queue that goes on from `state` (all zero for a new one).
    /// Writes nothing.
    pub fn new(
        ram: &Arc<GuestRam>,
        layout: &QueueLayout,
        features: QueueFeatures,
        state: QueueState,
    ) -> Result<VirtQueue, QueueError> {
        let size = layout.size;
        // The largest power of two in 16 bits is 32768.
        if !size.is_power_of_two() {
            return Err(QueueError::Size(size));
        }
        let in_flight = state.next_avail.wrapping_sub(state.next_used);
        if in_flight > size {
            return Err(QueueError::State { size, in_flight });
        }
        let misplaced = |part| move |reason: AccessError| QueueError::Placement { part, reason };
        let (used, elements) = UsedRing::at(ram, layout.used, size).map_err(misplaced("used ring"))?;
        Ok(VirtQueue {
            layout: *layout,
            features,
            ram: Arc::clone(ram),
            descriptors: ram.array(layout.descriptors, usize::from(size)).map_err(misplaced("descriptor table"))?,
            avail: AvailRing::at(ram, layout.avail, size).map_err(misplaced("available ring"))?,
            used,
            elements,
            next_avail: state.next_avail,
            avail_seen: state.next_avail,
            next_used: state.next_used,
            published: state.next_used,
            buffers: Buffers::default(),
            broken: None,
            watch: None,
        })
    }

    /// From now on its requests are looked at, or not.
    pub(crate) fn watch_by(&mut self, watch: Option<Box<Watch>>) {
        self.watch = watch;
    }

    /// A kick of the driver woke the worker.
    pub(crate) fn was_kicked(&mut self) {
        self.record(Kind::Doorbell);
    }

    #[inline]
    fn record(&mut self, kind: Kind) {
        if let Some(watch) = &mut self.watch {
            watch.record(kind, 0, 0);
        }
    }

    /// Takes the next chain that the driver made available; `None` if there is none now.
    ///
    /// The work is bounded by the sizes of the descriptor table and of one indirect table. After an
    /// error every call gives the same error: the device sets DEVICE_NEEDS_RESET.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Chain<'_>>, QueueError> {
        match self.take() {
            Ok(None) => Ok(None),
            Ok(Some(head)) => {
                let chain = self.buffers.chain(head);
                if let Some(watch) = &mut self.watch {
                    watch.taken(&chain, self.avail.flags(), &self.descriptors);
                }
                Ok(Some(chain))
            }
            Err(error) => {
                if let (Some(watch), None) = (&mut self.watch, self.broken) {
                    watch.error(&error);
                }
                self.broken = Some(error);
                Err(error)
            }
        }
    }

    /// Writes the used element of a chain from [`VirtQueue::pop`]; the driver sees it at the next
    /// [`VirtQueue::publish`]. `written` counts bytes from the start of the writable part.
    ///
    /// # Panics
    /// If more chains are pushed than were popped: a bug of the device.
    #[inline]
    pub fn push_used(&mut self, head: u16, written: u32) {
        assert!(self.next_used != self.next_avail, "chain {head} pushed to a queue with no chain in flight");
        self.elements.set(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(watch) = &mut self.watch {
            watch.returned(head, written, &self.descriptors);
        }
    }

    /// Gives the chain that was popped last back to the ring: the next [`VirtQueue::pop`] finds it again.
    ///
    /// # Panics
    /// If no chain is in flight: a bug of the device.
    pub fn put_back(&mut self) {
        assert!(self.next_used != self.next_avail, "a chain put back to a queue with no chain in flight");
        self.next_avail = self.next_avail.wrapping_sub(1);
        if let Some(watch) = &mut self.watch {
            watch.put_back(self.avail.head(self.next_avail));
        }
    }

    /// Makes all pushed chains visible to the driver; true if it must be interrupted.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        self.published = new;
        let wanted = self.used.publish(&self.avail, old, new, self.features.event_idx);
        if wanted {
            self.record(Kind::Interrupt);
        }
        wanted
    }

    /// Whether the driver offers a chain that was not taken: a look at one cache line.
    pub fn is_offered(&self) -> bool {
        self.avail.idx() != self.next_avail
    }

    /// Asks the driver for a kick at its next chain; true if chains came before it could know, and
    /// the caller must pop again.
    pub fn enable_kicks(&mut self) -> bool {
        let offered = self.used.ask_for_kick(&self.avail, self.next_avail, self.features.event_idx);
        self.broken.is_none() && offered != self.next_avail
    }

    /// The same as [`VirtQueue::enable_kicks`], of a device that was given all chains and put some back, for they are too few:
    /// they are no reason to try again, the next one is.
    pub fn enable_kicks_for_more(&mut self) -> bool {
        let offered = self.used.ask_for_kick(&self.avail, self.avail_seen, self.features.event_idx);
        self.broken.is_none() && offered != self.avail_seen
    }

    /// Tells the driver that kicks are not needed. With event indices there is nothing to say: the
    /// index that asks for a kick is behind the driver as soon as it has kicked.
    pub fn disable_kicks(&mut self) {
        if !self.features.event_idx {
            self.used.set_no_notify(true);
        }
    }

    /// Where the queue stands. Chains pushed but not published still count as in flight.
    pub fn state(&self) -> QueueState {
        QueueState { next_avail: self.next_avail, next_used: self.published }
    }

    /// Number of ring entries.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// Where the queue is; proven.
    pub fn layout(&self) -> &QueueLayout {
        &self.layout
    }

    /// The RAM that the ring and its buffers lie in.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Collects the next chain into `buffers` and gives its head.
    #[inline]
    fn take(&mut self) -> Result<Option<u16>, QueueError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        if self.next_avail == self.avail_seen {
            self.look()?;
            if self.next_avail == self.avail_seen {
                self.buffers.trim();
                return Ok(None);
            }
        }
        let head = self.avail.head(self.next_avail);
        let walk = Walk { ram: &self.ram, descriptors: &self.descriptors, features: self.features, head };
        self.buffers.collect(&walk)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(head))
    }

    /// Looks how far the driver has come. It has no descriptor for more chains than `size` that it has
    /// not seen returned, so what is offered and what is in flight fit the ring together.
    fn look(&mut self) -> Result<(), QueueError> {
        let (from, to) = (self.next_avail, self.avail.idx());
        let room = self.layout.size - from.wrapping_sub(self.published);
        if to.wrapping_sub(from) > room {
            return Err(QueueError::AvailIndex { from, to, room });
        }
        self.avail_seen = to;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Buffer, FakeDriver};
    use axvm_arch::Gpa;
    use axvm_memory::RamConfig;

    #[test]
    fn chains_that_were_put_back_do_not_count_as_more() {
        for event_idx in [false, true] {
            let ram = GuestRam::allocate(&RamConfig::new(2 << 20)).unwrap();
            let mut driver = FakeDriver::new(&ram, Gpa(0), 8, event_idx);
            let features = QueueFeatures { event_idx, ..QueueFeatures::default() };
            let mut queue = VirtQueue::new(&ram, &driver.layout(), features, QueueState::default()).unwrap();
            let offer = |driver: &mut FakeDriver| {
                driver.add(&[Buffer::writable(Gpa(0x10_0000), 8)]);
                driver.kick()
            };
            offer(&mut driver);
            queue.disable_kicks();
            assert!(queue.pop().unwrap().is_some() && queue.pop().unwrap().is_none());
            queue.put_back();
            assert!(queue.enable_kicks() && !queue.enable_kicks_for_more());
            assert!(offer(&mut driver), "the next one is kicked for");
            assert!(queue.enable_kicks_for_more());
            assert!((0..2).all(|_| queue.pop().unwrap().is_some()), "those that were put back come first");
        }
    }

    #[test]
    fn an_idle_queue_keeps_no_room_for_the_longest_chain() {
        let ram = GuestRam::allocate(&RamConfig::new(16 << 20)).unwrap();
        let mut driver = FakeDriver::new(&ram, Gpa(0), 8, false);
        let features = QueueFeatures { indirect: true, ..QueueFeatures::default() };
        let mut queue = VirtQueue::new(&ram, &driver.layout(), features, QueueState::default()).unwrap();
        for count in [3, usize::from(MAX_SIZE)] {
            driver.add_indirect(Gpa(1 << 20), &vec![Buffer::writable(Gpa(8 << 20), 1); count]);
            driver.kick();
            let head = queue.pop().unwrap().filter(|chain| chain.writable.len() == count).unwrap().head;
            queue.push_used(head, 0);
            assert!(queue.buffers.capacity() >= count);
            assert_eq!(queue.pop(), Ok(None));
            assert!(queue.buffers.capacity() <= chain::KEPT, "{} after {count}", queue.buffers.capacity());
            queue.publish();
            driver.take_used();
        }
    }
}
