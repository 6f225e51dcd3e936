//! The bench guest's disk: a driver that keeps `depth` requests under way, as fio does with io_uring.
//!
//! ```text
//!   slot s: header | data | status     made once; a request only changes sector and status
//!   loop:   take all that is used --> offer the same slots again --> one avail index, one kick if the device asks for it
//! ```
//!
//! Chains lie in the queue's own descriptors, in tables of their own where there are more than fit (INDIRECT_DESC).
//! Spec: virtio 1.2, 5.2 "Block Device".

use crate::Phase;
use crate::bench_bus::Device;
use crate::bench_ring::{EVENT_IDX, INDIRECT, Part, Ring};
use crate::cpu::{read, write};

/// Taken, though nothing is flushed: without it a device has to put each write on the medium at once (5.2.6.2).
const FLUSH: u64 = 1 << 9;
/// Several queues.
const MQ: u64 = 1 << 12;
/// In a queue's room: headers of 16 bytes, a status byte each, tables of 48 bytes.
const STATUSES: u64 = 0x800;
const TABLES: u64 = 0x1000;
pub const MOST: u16 = 128;
const DATA: u64 = 16 << 20;
const DATA_ROOM: u64 = 128 << 10;

/// A queue of a disk.
#[derive(Clone, Copy)]
pub struct Disk {
    ring: Ring,
    indirect: bool,
    sectors: u64,
    data: u64,
    random: u64,
}

impl Disk {
    /// Starts a disk with so many queues, or as many as it has; gives each to `take`.
    pub fn start(device: Device, queues: u16, wakes: bool, mut take: impl FnMut(u16, Disk)) -> Option<()> {
        let taken = device.start(EVENT_IDX | INDIRECT | FLUSH | if queues > 1 { MQ } else { 0 })?;
        let there = if taken & MQ != 0 { device.config(34) } else { 1 };
        for number in 0..queues.min(there) {
            let ring = Ring::place(device, number, number, taken, wakes)?;
            let sectors = u64::from(device.config::<u32>(0)) | u64::from(device.config::<u32>(4)) << 32;
            if sectors < 2048 {
                return None;
            }
            let data = DATA + u64::from(number) * u64::from(MOST) * DATA_ROOM;
            let random = 0x9e37_79b9_7f4a_7c15_u64.rotate_left(number.into());
            take(number, Disk { ring, indirect: taken & INDIRECT != 0, sectors, data, random });
        }
        device.ready().then_some(())
    }

    /// Whether so many requests may be under way at once.
    pub fn holds(&self, depth: u32) -> bool {
        let chains = if self.indirect { self.ring.len } else { self.ring.len / 3 };
        depth <= chains.min(MOST).into()
    }

    /// Does the requests of a phase. False: one failed, or was lost.
    pub fn requests(&mut self, phase: &Phase, writes: bool, random: bool) -> bool {
        let (depth, len) = (phase.depth as u16, phase.len.min(DATA_ROOM as u32));
        // With tables a request needs one descriptor of the queue.
        let step = if depth > self.ring.len / 3 { 1 } else { 3 };
        (0..depth).for_each(|slot| self.describe(slot, step, len, writes));
        let blocks = self.sectors / u64::from(len / 512);
        let (mut sent, mut done) = (0_u32, 0_u32);
        let next = |disk: &mut Disk, slot: u16, sent: &mut u32| {
            let block = if random { disk.random() % blocks } else { u64::from(*sent) % blocks };
            write(disk.ring.room() + u64::from(slot) * 16 + 8, block * u64::from(len / 512));
            write(disk.ring.room() + STATUSES + u64::from(slot), 0xff_u8);
            disk.ring.offer(slot * step);
            *sent += 1;
        };
        let first = self.ring.avail;
        for slot in 0..depth.min(phase.count as u16) {
            next(self, slot, &mut sent);
        }
        self.ring.publish(first);
        while done < phase.count {
            if !self.ring.wait() {
                return false;
            }
            let first = self.ring.avail;
            while let Some((head, _)) = self.ring.take() {
                let slot = head / step;
                done += 1;
                if slot >= depth || read::<u8>(self.ring.room() + STATUSES + u64::from(slot)) != 0 {
                    return false;
                }
                if sent < phase.count {
                    next(self, slot, &mut sent);
                }
            }
            self.ring.publish(first);
        }
        true
    }

    fn describe(&self, slot: u16, step: u16, len: u32, writes: bool) {
        let (room, first, slot) = (self.ring.room(), slot * step, u64::from(slot));
        write(room + slot * 16, u64::from(writes));
        let part = |address, len, device_writes| Part { address, len, device_writes };
        let parts = [
            part(room + slot * 16, 16, false),
            part(self.data + slot * DATA_ROOM, len, !writes),
            part(room + STATUSES + slot, 1, true),
        ];
        match step {
            1 => self.ring.describe_indirect(first, room + TABLES + slot * 48, &parts),
            _ => self.ring.describe(first, &parts),
        }
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
