//! The bench guest's disk: a driver that keeps `depth` requests under way and polls, as fio does with io_uring.
//!
//! ```text
//!   slot s: descriptors 3s, 3s+1, 3s+2 = header | data | status     made once; a request only changes type and sector
//!   loop:   take all that is used --> offer the same slots again --> one avail index, one kick if the device asks for it
//! ```
//!
//! Kicks follow EVENT_IDX if the device offers it, else the flag in the used ring; interrupts are declined.
//! Spec: virtio 1.2, 2.7 "Split Virtqueues", 4.2 "Virtio Over MMIO", 5.2 "Block Device".

use core::sync::atomic::{Ordering, fence};

use crate::Phase;
use crate::cpu::{read, write};

/// Where AxVM puts its windows; others say it on the command line.
const WINDOWS: u64 = 0xd000_0000;
const MAGIC: u32 = 0x7472_6976;
const BLOCK: u32 = 2;
const EVENT_IDX: u32 = 1 << 29;
/// Taken, though nothing is flushed: without it a device has to put each write on the medium at once (5.2.6.2).
const FLUSH: u32 = 1 << 9;
const QUEUE_LEN: u16 = 128;
const DESCRIPTORS: u64 = 8 << 20;
const AVAIL: u64 = DESCRIPTORS + 0x1000;
const USED: u64 = DESCRIPTORS + 0x2000;
/// Headers of 16 bytes, each with its status byte 8 KiB further on.
const HEADERS: u64 = DESCRIPTORS + 0x4000;
const STATUSES: u64 = DESCRIPTORS + 0x6000;
const DATA: u64 = 16 << 20;
const DATA_ROOM: u64 = 128 << 10;
/// Polls without a completion until a request counts as lost: seconds at least.
const PATIENCE: u32 = 1 << 31;

/// The window of the disk: what the command line names, else the first with a disk of those that AxVM has.
pub fn window(info: u64) -> Option<u64> {
    let line: u64 = read(info + 24);
    let end = if line == 0 { 0 } else { line + 4096 };
    let named =
        (line..end).take_while(|&at| read::<u8>(at) != 0).filter(|&at| starts(at, b"@0x")).map(|at| hex(at + 3));
    named.chain((0..16).map(|number| WINDOWS + number * 0x1000)).find(|&base| is_disk(base))
}

fn is_disk(base: u64) -> bool {
    read::<u32>(base) == MAGIC && read::<u32>(base + 8) == BLOCK
}

fn starts(at: u64, with: &[u8]) -> bool {
    (at..).zip(with).all(|(at, &byte)| read::<u8>(at) == byte)
}

fn hex(mut at: u64) -> u64 {
    let mut value = 0_u64;
    loop {
        let digit = match read::<u8>(at) {
            digit @ b'0'..=b'9' => digit - b'0',
            digit @ b'a'..=b'f' => digit - b'a' + 10,
            _ => return value,
        };
        value = value << 4 | u64::from(digit);
        at += 1;
    }
}

pub struct Disk {
    base: u64,
    event_idx: bool,
    sectors: u64,
    /// Free-running counts, as in the rings.
    avail: u16,
    used: u16,
    random: u64,
}

impl Disk {
    pub fn start(base: u64) -> Option<Disk> {
        let set = |register: u64, value: u32| write(base + register, value);
        if !is_disk(base) || read::<u32>(base + 4) != 2 {
            return None;
        }
        [0, 1, 3].into_iter().for_each(|status| set(0x70, status));
        set(0x14, 0);
        let taken = read::<u32>(base + 0x10) & (EVENT_IDX | FLUSH);
        for (half, features) in [(0, taken), (1, 1)] {
            set(0x24, half);
            set(0x20, features);
        }
        set(0x70, 11);
        set(0x30, 0);
        if read::<u32>(base + 0x34) < QUEUE_LEN.into() {
            return None;
        }
        set(0x38, QUEUE_LEN.into());
        for (register, address) in [(0x80, DESCRIPTORS), (0x90, AVAIL), (0xa0, USED)] {
            set(register, address as u32);
            set(register + 4, 0);
        }
        write(AVAIL, 1_u16); // no interrupts
        set(0x44, 1);
        set(0x70, 15);
        let sectors = u64::from(read::<u32>(base + 0x100)) | u64::from(read::<u32>(base + 0x104)) << 32;
        (read::<u32>(base + 0x70) == 15 && sectors >= 2048).then_some(Disk {
            base,
            event_idx: taken & EVENT_IDX != 0,
            sectors,
            avail: 0,
            used: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        })
    }

    /// Does the requests of a phase. False: one failed, or was lost.
    pub fn requests(&mut self, phase: &Phase, writes: bool, random: bool) -> bool {
        let (depth, len) = (phase.depth.min(32) as u16, phase.len.min(DATA_ROOM as u32));
        (0..depth).for_each(|slot| describe(slot, len, writes));
        let blocks = self.sectors / u64::from(len / 512);
        let (mut sent, mut done) = (0_u32, 0_u32);
        let next = |disk: &mut Disk, slot: u16, sent: &mut u32| {
            let block = if random { disk.random() % blocks } else { u64::from(*sent) % blocks };
            disk.offer(slot, block * u64::from(len / 512));
            *sent += 1;
        };
        let first = self.avail;
        for slot in 0..depth.min(phase.count as u16) {
            next(self, slot, &mut sent);
        }
        self.publish(first);
        while done < phase.count {
            if !self.wait() {
                return false;
            }
            let first = self.avail;
            while self.used != used_index() {
                let slot = (read::<u32>(USED + 4 + u64::from(self.used % QUEUE_LEN) * 8) / 3) as u16;
                self.used = self.used.wrapping_add(1);
                done += 1;
                if slot >= depth || read::<u8>(STATUSES + u64::from(slot)) != 0 {
                    return false;
                }
                if sent < phase.count {
                    next(self, slot, &mut sent);
                }
            }
            self.publish(first);
        }
        true
    }

    /// Until something is used.
    fn wait(&self) -> bool {
        (0..PATIENCE).any(|_| {
            core::hint::spin_loop();
            self.used != used_index()
        })
    }

    fn offer(&mut self, slot: u16, sector: u64) {
        write(HEADERS + u64::from(slot) * 16 + 8, sector);
        write(STATUSES + u64::from(slot), 0xff_u8);
        write(AVAIL + 4 + u64::from(self.avail % QUEUE_LEN) * 2, slot * 3);
        self.avail = self.avail.wrapping_add(1);
    }

    /// Shows what was offered since the index was `before`, and kicks if the device wants that.
    fn publish(&self, before: u16) {
        if self.avail == before {
            return;
        }
        // Never reached: no interrupts by EVENT_IDX either.
        write(AVAIL + 4 + u64::from(QUEUE_LEN) * 2, self.used.wrapping_sub(1));
        fence(Ordering::Release);
        write(AVAIL + 2, self.avail);
        // SeqCst: the index is out before the look at what the device wants (2.7.13.4).
        fence(Ordering::SeqCst);
        let event: u16 = read(USED + 4 + u64::from(QUEUE_LEN) * 8);
        let wanted = match self.event_idx {
            true => self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(before),
            false => read::<u16>(USED) & 1 == 0,
        };
        if wanted {
            write(self.base + 0x50, 0_u32);
        }
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

fn used_index() -> u16 {
    let index = read(USED + 2);
    fence(Ordering::Acquire);
    index
}

fn describe(slot: u16, len: u32, writes: bool) {
    const NEXT: u16 = 1;
    let slot64 = u64::from(slot);
    write(HEADERS + slot64 * 16, u64::from(writes));
    let data_flags = if writes { NEXT } else { NEXT | 2 };
    let parts =
        [(HEADERS + slot64 * 16, 16, NEXT), (DATA + slot64 * DATA_ROOM, len, data_flags), (STATUSES + slot64, 1, 2)];
    for (number, (address, len, flags)) in (slot * 3..).zip(parts) {
        let at = DESCRIPTORS + u64::from(number) * 16;
        write(at, address);
        write(at + 8, len);
        write(at + 12, flags);
        write(at + 14, number + 1);
    }
}
