//! The guest's half of a queue, for unit tests, property tests, fuzzing and benches.
//!
//! ```text
//!   add / add_indirect --> descriptors, avail.ring      (not yet visible)
//!   kick               --> avail.idx; does the device want a kick?
//!   take_used          <-- used.ring, used.idx
//! ```
//!
//! It writes and reads the ring by the standard, with constants of its own, so that a mistake on the
//! device's side does not repeat here. Hostile drivers are made with [`FakeDriver::write_descriptor`],
//! [`FakeDriver::offer`] and [`FakeDriver::set_avail_idx`]. Everything here panics on misuse.
//!
//! Spec: virtio 1.2, 2.7 "Split Virtqueues", driver side.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use axvm_arch::Gpa;
use axvm_events::Events;
use axvm_memory::{GuestArray, GuestRam};

use crate::queue::{Checked, QueueLayout, RingCheck, VirtQueue, Watch};

/// VIRTQ_DESC_F_NEXT.
pub const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub const INDIRECT: u16 = 4;

/// Has a queue held against the standard, as queue 0 of a device called `queue`, if `events` checks rules.
pub fn check(queue: &mut VirtQueue, event_idx: bool, events: &Events) {
    let checked = Checked { queue: 0, size: queue.size(), event_idx, features: 0, has_frames: false };
    let check = || RingCheck::new(events.clone(), "queue".into(), queue.ram(), checked);
    let watch = Watch::new(None, events.checks_rules().then(check));
    queue.watch_by(watch);
}

/// A descriptor, exactly as a driver writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawDescriptor {
    /// Guest-physical address of the buffer.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor, with [`NEXT`].
    pub next: u16,
}

impl RawDescriptor {
    /// The 16 bytes in guest RAM.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// First address.
    pub gpa: Gpa,
    /// Length in bytes.
    pub len: u32,
    /// The device writes it (true) or reads it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer for the device to read.
    pub fn readable(gpa: Gpa, len: u32) -> Buffer {
        Buffer { gpa, len, writable: false }
    }

    /// A buffer for the device to write.
    pub fn writable(gpa: Gpa, len: u32) -> Buffer {
        Buffer { gpa, len, writable: true }
    }
}

/// A driver's view of one queue.
#[derive(Debug)]
pub struct FakeDriver {
    ram: Arc<GuestRam>,
    layout: QueueLayout,
    event_idx: bool,
    descriptors: GuestArray<u128>,
    avail: GuestArray<u16>,
    used: GuestArray<u16>,
    /// Descriptors in no chain.
    free: Vec<u16>,
    /// By head: the descriptors of a chain in flight.
    chains: Vec<Vec<u16>>,
    /// Chains offered, visible or not.
    offered: u16,
    /// Our last `avail.idx`.
    shown: u16,
    /// Chains taken back.
    taken: u16,
}

impl FakeDriver {
    /// A queue of `size` whose parts lie one after the other from `base` (aligned to 16), zeroed.
    pub fn new(ram: &Arc<GuestRam>, base: Gpa, size: u16, event_idx: bool) -> FakeDriver {
        let count = u64::from(size);
        let avail = base.0 + 16 * count;
        let used = (avail + 6 + 2 * count).next_multiple_of(4);
        let layout = QueueLayout { size, descriptors: base, avail: Gpa(avail), used: Gpa(used) };
        let bytes = vec![0; (used + 6 + 8 * count - base.0) as usize];
        ram.write(base, &bytes).expect("the queue fits into RAM");
        FakeDriver::at(ram, layout, event_idx)
    }

    /// A queue at any layout, which must be valid; its memory is taken to be zero.
    pub fn at(ram: &Arc<GuestRam>, layout: QueueLayout, event_idx: bool) -> FakeDriver {
        let size = usize::from(layout.size);
        FakeDriver {
            ram: Arc::clone(ram),
            layout,
            event_idx,
            descriptors: ram.array(layout.descriptors, size).expect("a valid descriptor table"),
            avail: ram.array(layout.avail, size + 3).expect("a valid available ring"),
            used: ram.array(layout.used, 4 * size + 3).expect("a valid used ring"),
            free: (0..layout.size).rev().collect(),
            chains: vec![Vec::new(); size],
            offered: 0,
            shown: 0,
            taken: 0,
        }
    }

    /// What to tell the device.
    pub fn layout(&self) -> QueueLayout {
        self.layout
    }

    /// How many descriptors are in no chain.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Starts all indices at `index`, as if that many chains had passed (modulo 2^16).
    pub fn start_at(&mut self, index: u16) {
        (self.offered, self.shown, self.taken) = (index, index, index);
        self.avail.store(1, index, Ordering::Release);
        self.used.store(1, index, Ordering::Release);
    }

    /// Puts a chain of `buffers` into the ring's own table and offers it; returns its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        assert!(!buffers.is_empty() && buffers.len() <= self.free.len(), "no room for {} descriptors", buffers.len());
        let indices: Vec<_> = buffers.iter().filter_map(|_| self.free.pop()).collect();
        for (position, buffer) in buffers.iter().enumerate() {
            let next = indices.get(position + 1).copied();
            self.write_descriptor(indices[position], describe(buffer, next));
        }
        self.offer_chain(indices)
    }

    /// Writes a table of `buffers` at `table` and offers one descriptor that points to it.
    pub fn add_indirect(&mut self, table: Gpa, buffers: &[Buffer]) -> u16 {
        for (position, buffer) in buffers.iter().enumerate() {
            let next = (position + 1 < buffers.len()).then_some(position as u16 + 1);
            let bytes = describe(buffer, next).to_bytes();
            self.ram.write(Gpa(table.0 + 16 * position as u64), &bytes).expect("a table in RAM");
        }
        let link = RawDescriptor { addr: table.0, len: 16 * buffers.len() as u32, flags: INDIRECT, next: 0 };
        let index = self.free.pop().expect("room for a descriptor");
        self.write_descriptor(index, link);
        self.offer_chain(vec![index])
    }

    /// Shows the offered chains to the device; true if it wants a kick.
    pub fn kick(&mut self) -> bool {
        let (old, new) = (self.shown, self.offered);
        self.avail.store(1, new, Ordering::Release);
        self.shown = new;
        // SeqCst: the index is out before the device's wish is read, as the device does it the other way round.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.used.load(2 + 4 * usize::from(self.layout.size), Ordering::Relaxed);
            (1..=new.wrapping_sub(old)).any(|step| old.wrapping_add(step) == event.wrapping_add(1))
        } else {
            old != new && self.used.load(0, Ordering::Relaxed) & 1 == 0
        }
    }

    /// Takes back the next chain: its head, and the bytes written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.used.load(1, Ordering::Acquire) == self.taken {
            return None;
        }
        let word = |offset| u32::from(self.used.get(2 + 4 * self.slot(self.taken) + offset));
        let (head, written) = (word(0) | word(1) << 16, word(2) | word(3) << 16);
        let head = u16::try_from(head).expect("a head that was offered");
        self.taken = self.taken.wrapping_add(1);
        self.free.append(&mut self.chains[usize::from(head)]);
        Some((head, written))
    }

    /// Asks for an interrupt at the next returned chain; true if there is one already.
    pub fn enable_interrupts(&mut self) -> bool {
        if self.event_idx {
            self.set_used_event(self.taken);
        } else {
            self.avail.store(0, 0, Ordering::Relaxed);
        }
        // SeqCst: the wish is out before the index is read, or both sides sleep.
        fence(Ordering::SeqCst);
        self.used.load(1, Ordering::Acquire) != self.taken
    }

    /// Asks for no interrupts (with event indices: none before the indices come round again).
    pub fn disable_interrupts(&mut self) {
        if self.event_idx {
            self.set_used_event(self.taken.wrapping_sub(1));
        } else {
            self.avail.store(0, 1, Ordering::Relaxed);
        }
    }

    /// Asks for an interrupt when the device writes used entry `index`.
    pub fn set_used_event(&mut self, index: u16) {
        self.avail.store(2 + usize::from(self.layout.size), index, Ordering::Relaxed);
    }

    /// Writes entry `index` of the ring's own descriptor table.
    pub fn write_descriptor(&self, index: u16, descriptor: RawDescriptor) {
        self.descriptors.set(usize::from(index), u128::from_ne_bytes(descriptor.to_bytes()));
    }

    /// Writes `head` into the available ring, whatever it is; visible after [`FakeDriver::kick`].
    pub fn offer(&mut self, head: u16) {
        self.avail.set(2 + self.slot(self.offered), head);
        self.offered = self.offered.wrapping_add(1);
    }

    /// Writes `avail.idx` directly, with no regard to what was offered.
    pub fn set_avail_idx(&mut self, index: u16) {
        self.avail.store(1, index, Ordering::Release);
    }

    fn offer_chain(&mut self, indices: Vec<u16>) -> u16 {
        let head = indices[0];
        self.chains[usize::from(head)] = indices;
        self.offer(head);
        head
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index % self.layout.size)
    }
}

fn describe(buffer: &Buffer, next: Option<u16>) -> RawDescriptor {
    let flags = if buffer.writable { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
    RawDescriptor { addr: buffer.gpa.0, len: buffer.len, flags, next: next.unwrap_or(0) }
}
