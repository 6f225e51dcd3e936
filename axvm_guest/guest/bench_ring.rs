//! The bench guest's split virtqueues: what is offered is shown at once, with a kick only if the device asks for one.
//!
//! ```text
//!   area of a queue, 32 KiB:  0 descriptors | 0x1000 avail | 0x2000 used | 0x3000 its user's
//! ```
//!
//! Kicks follow EVENT_IDX if the device offers it, else the flag in the used ring; interrupts likewise, if they are wanted.
//! Spec: virtio 1.2, 2.7 "Split Virtqueues".

use core::sync::atomic::{Ordering, fence};

use crate::bench_bus::{Device, Notifier};
use crate::bench_wait;
use crate::cpu::{read, write};

pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;
const AREAS: u64 = 8 << 20;
const LEN: u16 = 256;

/// One part of a chain.
#[derive(Clone, Copy)]
pub struct Part {
    pub address: u64,
    pub len: u32,
    pub device_writes: bool,
}

/// A queue.
#[derive(Clone, Copy)]
pub struct Ring {
    area: u64,
    notifier: Notifier,
    pub len: u16,
    event_idx: bool,
    /// Whether the driver sleeps until an interrupt.
    wakes: bool,
    /// Free-running counts, as in the rings.
    pub avail: u16,
    used: u16,
}

impl Ring {
    /// Queue `number` of a device, in area `area`.
    pub fn place(device: Device, number: u16, area: u16, taken: u64, wakes: bool) -> Option<Ring> {
        let area = AREAS + u64::from(area) * 0x8000;
        (0..0x3000).step_by(8).for_each(|at| write(area + at, 0_u64));
        // Flag 1 of the avail ring: no interrupts.
        write(area + 0x1000, u16::from(!wakes));
        let (len, notifier) = device.queue(number, LEN, [0, 0x1000, 0x2000].map(|part| area + part), wakes)?;
        Some(Ring { area, notifier, len, event_idx: taken & EVENT_IDX != 0, wakes, avail: 0, used: 0 })
    }

    /// Room for what its user has: 20 KiB.
    pub fn room(&self) -> u64 {
        self.area + 0x3000
    }

    /// Writes a chain into descriptors from `first` on.
    pub fn describe(&self, first: u16, parts: &[Part]) {
        table(self.area, first, parts);
    }

    /// Makes descriptor `first` one that names a table elsewhere.
    pub fn describe_indirect(&self, first: u16, at: u64, parts: &[Part]) {
        table(at, 0, parts);
        let at_first = self.area + u64::from(first) * 16;
        write(at_first, at);
        write(at_first + 8, parts.len() as u32 * 16);
        write(at_first + 12, 4_u32);
    }

    pub fn offer(&mut self, first: u16) {
        write(self.area + 0x1004 + u64::from(self.avail % self.len) * 2, first);
        self.avail = self.avail.wrapping_add(1);
    }

    /// Shows what was offered since the index was `before`, and kicks if the device wants that.
    pub fn publish(&self, before: u16) {
        if self.avail == before {
            return;
        }
        self.ask_for_interrupt();
        fence(Ordering::Release);
        write(self.area + 0x1002, self.avail);
        // SeqCst: the index is out before the look at what the device wants (2.7.13.4).
        fence(Ordering::SeqCst);
        let event: u16 = read(self.area + 0x2004 + u64::from(self.len) * 8);
        let wanted = match self.event_idx {
            true => self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(before),
            false => read::<u16>(self.area + 0x2000) & 1 == 0,
        };
        if wanted {
            self.notifier.notify();
        }
    }

    /// With the next that is used; or with one that is never reached.
    fn ask_for_interrupt(&self) {
        let event = if self.wakes { self.used } else { self.used.wrapping_sub(1) };
        write(self.area + 0x1004 + u64::from(self.len) * 2, event);
    }

    /// Until something is used. False: nothing is.
    pub fn wait(&self) -> bool {
        let index = self.area + 0x2002;
        if !self.wakes {
            return bench_wait::poll(index, self.used);
        }
        self.ask_for_interrupt();
        // SeqCst: the device sees the wish before this looks for what is used (2.7.7.1).
        fence(Ordering::SeqCst);
        while read::<u16>(index) == self.used {
            bench_wait::sleep(index, self.used);
            self.notifier.acknowledge();
        }
        true
    }

    /// The next that is used: its first descriptor, and how much was written.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if read::<u16>(self.area + 0x2002) == self.used {
            return None;
        }
        fence(Ordering::Acquire);
        let at = self.area + 0x2004 + u64::from(self.used % self.len) * 8;
        self.used = self.used.wrapping_add(1);
        Some((read::<u32>(at) as u16, read(at + 4)))
    }
}

fn table(at: u64, first: u16, parts: &[Part]) {
    for (number, part) in (first..).zip(parts) {
        let last = usize::from(number - first) + 1 == parts.len();
        let at = at + u64::from(number) * 16;
        write(at, part.address);
        write(at + 8, part.len);
        write(at + 12, u16::from(!last) | u16::from(part.device_writes) << 1);
        write(at + 14, number + 1);
    }
}
