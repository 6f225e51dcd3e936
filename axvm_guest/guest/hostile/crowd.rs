//! All processors at one device at once: one resets it while others kick, move its queues and write its status.
//!
//! ```text
//!   first processor: TARGET = device, interrupts the others --> acts ... --> TARGET = none, waits for all
//!   the others:      woken --> act, each with noise of its own, until TARGET is another one --> sleep
//! ```
//!
//! TARGET and BUSY are SeqCst: a processor says "busy", then looks for a target; the first takes the target away, then
//! looks who is busy. With less, both could miss what the other wrote.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::noise::{Noise, one_of};
use super::rings::{begin, honest, place};
use crate::cpu::{self, read, write};
use crate::report::{Line, Verdict};
use crate::virtio::{self, Buffer, Device, QUEUE_LEN, Queue, register::*};
use crate::{apic, clock, ipi};

/// How often the first processor acts.
const ACTS: u32 = 150;

/// The device under attack: its number and one; 0 is none.
static TARGET: AtomicU64 = AtomicU64::new(0);
/// How often each processor acted, and whether it is at it: written by itself only.
static ACTED: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
static BUSY: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

pub fn attack(device: Device, noise: &mut Noise, line: &mut Line) -> Verdict {
    let acted = || ACTED.iter().fold(0, |sum: u32, count| sum.wrapping_add(count.load(Ordering::Relaxed)));
    let before = acted();
    TARGET.store(device.number + 1, Ordering::SeqCst);
    ipi::call_others();
    for _ in 0..ACTS {
        act(device, noise);
    }
    TARGET.store(0, Ordering::SeqCst);
    let idle = || BUSY.iter().all(|busy| busy.load(Ordering::SeqCst) == 0);
    line.check(clock::wait(2_000_000, idle), "waited 2 s for the others")?;
    line.text(", others acted ").decimal(acted().wrapping_sub(before).into());
    Ok(())
}

/// What another processor does when it is woken.
pub fn join() {
    let id = usize::from(apic::id());
    BUSY[id].store(1, Ordering::SeqCst);
    let target = TARGET.load(Ordering::SeqCst);
    if target != 0
        && let Some(device) = virtio::devices().nth(target as usize - 1)
    {
        let mut noise = Noise::new(cpu::rdtsc());
        while TARGET.load(Ordering::SeqCst) == target {
            act(device, &mut noise);
            ACTED[id].store(ACTED[id].load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }
    BUSY[id].store(0, Ordering::SeqCst);
}

fn act(device: Device, noise: &mut Noise) {
    let queue = Queue::of(device, noise.below(6) as u16);
    match noise.below(12) {
        0 => device.write(STATUS, 0),
        1 => device.write(STATUS, noise.next() as u32 & 0xff),
        2 | 3 => set_up(device, noise),
        4 => {
            device.write(QUEUE_SELECT, queue.number.into());
            device.write_address(one_of([QUEUE_DESCRIPTORS, QUEUE_AVAIL, QUEUE_USED], noise), noise.bad_address());
        }
        5 => device.write(QUEUE_READY, noise.next() as u32),
        6 => device.write(QUEUE_RESET, 1),
        7 => device.write(CONFIG + noise.below(0x40) * 4, noise.next() as u32),
        8 => {
            let address = one_of([queue.room(), queue.room() + 64, noise.bad_address()], noise);
            let buffer = Buffer { address, len: noise.below(512) as u32, device_writes: noise.below(2) == 0 };
            let next = one_of([None, Some(noise.below(9) as u16)], noise);
            queue.describe(noise.below(QUEUE_LEN.into()) as u16, buffer, next);
        }
        9 => write(queue.avail() + 2, read::<u16>(queue.avail() + 2).wrapping_add(one_of([1, 7, 9, u16::MAX], noise))),
        10 => device.write(INTERRUPT_ACK, device.read(INTERRUPT_STATUS)),
        _ => queue.offer(noise.below(QUEUE_LEN.into()) as u16),
    }
}

/// As an honest driver does it, if no other CPU meddles.
fn set_up(device: Device, noise: &mut Noise) {
    begin(device, noise);
    for number in 0..6 {
        let queue = Queue::of(device, number);
        place(queue, QUEUE_LEN.into(), honest(queue));
    }
    device.write(STATUS, 15);
}
