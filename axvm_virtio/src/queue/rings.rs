//! The two rings in guest RAM, word by word.
//!
//! ```text
//!   available, 16-bit words (driver writes):          used (device writes):
//!   0      1     2 .. 1+N   2+N                       word 0  1    then N elements      last word
//!   flags  idx   ring[N]    used_event                flags   idx  { id:32, len:32 }    avail_event
//! ```
//!
//! Both event words are part of the size even when VIRTIO_F_EVENT_IDX is off: the standard's table
//! says so, and drivers allocate them.
//!
//! Which access has which order, and where a fence stands, is all here: [`UsedRing::publish`] and [`UsedRing::ask_for_kick`]
//! are the two handshakes of the queue's head. They work on [`Words`], so that the tests can have every order of their
//! accesses tried that a processor may choose (`model`).
//!
//! Spec: virtio 1.2, 2.7.6 "The Virtqueue Available Ring", 2.7.8 "The Virtqueue Used Ring".

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use axvm_arch::Gpa;
use axvm_memory::{AccessError, GuestArray, GuestRam};

const FLAGS: usize = 0;
const IDX: usize = 1;
const RING: usize = 2;

/// `avail.flags`: the driver wants no interrupt.
const NO_INTERRUPT: u16 = 1;
/// `used.flags`: the device wants no kick.
const NO_NOTIFY: u16 = 1;

/// Words that a driver on another CPU reads and writes at the same time.
pub(super) trait Words {
    fn load(&self, index: usize, order: Ordering) -> u16;
    fn store(&self, index: usize, value: u16, order: Ordering);
    /// What [`fence`] does.
    fn fence(order: Ordering);
}

impl Words for GuestArray<u16> {
    #[inline]
    fn load(&self, index: usize, order: Ordering) -> u16 {
        GuestArray::load(self, index, order)
    }

    #[inline]
    fn store(&self, index: usize, value: u16, order: Ordering) {
        GuestArray::store(self, index, value, order);
    }

    #[inline]
    fn fence(order: Ordering) {
        fence(order);
    }
}

/// What the driver offers.
#[derive(Debug)]
pub(super) struct AvailRing<W = GuestArray<u16>> {
    pub(super) words: W,
    pub(super) size: usize,
}

impl AvailRing {
    pub(super) fn at(ram: &Arc<GuestRam>, gpa: Gpa, size: u16) -> Result<AvailRing, AccessError> {
        let size = usize::from(size);
        Ok(AvailRing { words: ram.array(gpa, RING + size + 1)?, size })
    }
}

impl<W: Words> AvailRing<W> {
    /// How many chains the driver ever offered, modulo 2^16. Acquire: what the driver wrote before
    /// this index (ring entries, descriptors, buffers) is visible after the load.
    #[inline]
    pub(super) fn idx(&self) -> u16 {
        self.words.load(IDX, Ordering::Acquire)
    }

    /// Head of the chain at `position`, a free-running index.
    #[inline]
    pub(super) fn head(&self, position: u16) -> u16 {
        self.words.load(RING + (usize::from(position) & (self.size - 1)), Ordering::Relaxed)
    }

    /// What the driver says of interrupts, without event indices.
    #[inline]
    pub(super) fn flags(&self) -> u16 {
        self.words.load(FLAGS, Ordering::Relaxed)
    }

    #[inline]
    fn no_interrupt(&self) -> bool {
        self.flags() & NO_INTERRUPT != 0
    }

    #[inline]
    fn used_event(&self) -> u16 {
        self.words.load(RING + self.size, Ordering::Relaxed)
    }
}

/// What the device returns, but for its elements.
#[derive(Debug)]
pub(super) struct UsedRing<W = GuestArray<u16>> {
    pub(super) words: W,
    pub(super) size: usize,
}

/// The elements of a used ring; the driver does not look at one before [`UsedRing::publish`].
#[derive(Debug)]
pub(super) struct UsedElements(GuestArray<[u32; 2]>);

impl UsedElements {
    /// Writes the element at `position`, a free-running index.
    #[inline]
    pub(super) fn set(&self, position: u16, head: u16, written: u32) {
        let index = usize::from(position) & (self.0.count() - 1);
        self.0.set(index, [u32::from(head).to_le(), written.to_le()]);
    }
}

impl UsedRing {
    pub(super) fn at(ram: &Arc<GuestRam>, gpa: Gpa, size: u16) -> Result<(UsedRing, UsedElements), AccessError> {
        const ALIGN: u64 = 4;
        if !gpa.is_aligned(ALIGN) {
            return Err(AccessError::Unaligned { gpa, align: ALIGN });
        }
        let size = usize::from(size);
        // The whole ring is proven first, so the elements inside it cannot overflow the address.
        let words = ram.array(gpa, RING + 4 * size + 1)?;
        Ok((UsedRing { words, size }, UsedElements(ram.array(Gpa(gpa.0 + 4), size)?)))
    }
}

impl<W: Words> UsedRing<W> {
    /// Makes the elements from `old` to `new` visible to the driver; true if it wants an interrupt for one of them.
    #[inline]
    pub(super) fn publish(&self, avail: &AvailRing<W>, old: u16, new: u16, event_idx: bool) -> bool {
        // Release: elements and buffers written before are visible to a driver that sees this index.
        self.words.store(IDX, new, Ordering::Release);
        // The driver asks for interrupts, then looks at used.idx: one of the two sees the other.
        W::fence(Ordering::SeqCst);
        if event_idx { passes(avail.used_event(), old, new) } else { !avail.no_interrupt() }
    }

    /// Asks the driver for a kick at chain `next`; the driver's index after that.
    #[inline]
    pub(super) fn ask_for_kick(&self, avail: &AvailRing<W>, next: u16, event_idx: bool) -> u16 {
        match event_idx {
            true => self.words.store(RING + 4 * self.size, next, Ordering::Relaxed),
            false => self.set_no_notify(false),
        }
        // The driver adds a chain, then looks whether to kick: one of the two sees the other.
        W::fence(Ordering::SeqCst);
        avail.idx()
    }

    #[inline]
    pub(super) fn set_no_notify(&self, quiet: bool) {
        self.words.store(FLAGS, if quiet { NO_NOTIFY } else { 0 }, Ordering::Relaxed);
    }
}

/// Whether an index that moves from `old` to `new` writes entry `event` on the way (modulo 2^16).
pub(super) fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
