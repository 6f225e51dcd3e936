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
//! Spec: virtio 1.2, 2.7.6 "The Virtqueue Available Ring", 2.7.8 "The Virtqueue Used Ring".

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axvm_arch::Gpa;
use axvm_memory::{AccessError, GuestArray, GuestRam};

const FLAGS: usize = 0;
const IDX: usize = 1;
const RING: usize = 2;

/// `avail.flags`: the driver wants no interrupt.
const NO_INTERRUPT: u16 = 1;
/// `used.flags`: the device wants no kick.
const NO_NOTIFY: u16 = 1;

/// What the driver offers.
#[derive(Debug)]
pub(super) struct AvailRing {
    words: GuestArray<u16>,
    size: usize,
}

impl AvailRing {
    pub(super) fn at(ram: &Arc<GuestRam>, gpa: Gpa, size: u16) -> Result<AvailRing, AccessError> {
        let size = usize::from(size);
        Ok(AvailRing { words: ram.array(gpa, RING + size + 1)?, size })
    }

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

    #[inline]
    pub(super) fn no_interrupt(&self) -> bool {
        self.words.load(FLAGS, Ordering::Relaxed) & NO_INTERRUPT != 0
    }

    #[inline]
    pub(super) fn used_event(&self) -> u16 {
        self.words.load(RING + self.size, Ordering::Relaxed)
    }
}

/// What the device returns.
#[derive(Debug)]
pub(super) struct UsedRing {
    words: GuestArray<u16>,
    elements: GuestArray<[u32; 2]>,
}

impl UsedRing {
    pub(super) fn at(ram: &Arc<GuestRam>, gpa: Gpa, size: u16) -> Result<UsedRing, AccessError> {
        const ALIGN: u64 = 4;
        if !gpa.is_aligned(ALIGN) {
            return Err(AccessError::Unaligned { gpa, align: ALIGN });
        }
        let size = usize::from(size);
        // The whole ring is proven first, so the elements inside it cannot overflow the address.
        let words = ram.array(gpa, RING + 4 * size + 1)?;
        Ok(UsedRing { words, elements: ram.array(Gpa(gpa.0 + 4), size)? })
    }

    /// Writes the element at `position`, a free-running index; the driver does not look at it before
    /// [`UsedRing::set_idx`].
    #[inline]
    pub(super) fn set(&self, position: u16, head: u16, written: u32) {
        let index = usize::from(position) & (self.elements.count() - 1);
        self.elements.set(index, [u32::from(head).to_le(), written.to_le()]);
    }

    /// Release: elements and buffers written before are visible to a driver that sees this index.
    #[inline]
    pub(super) fn set_idx(&self, idx: u16) {
        self.words.store(IDX, idx, Ordering::Release);
    }

    #[inline]
    pub(super) fn set_no_notify(&self, quiet: bool) {
        self.words.store(FLAGS, if quiet { NO_NOTIFY } else { 0 }, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn set_avail_event(&self, idx: u16) {
        self.words.store(RING + 4 * self.elements.count(), idx, Ordering::Relaxed);
    }
}
