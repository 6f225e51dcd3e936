//! The bench guest's other processors: each does the requests of one queue of the disk, all at the same time.
//!
//! ```text
//!   first   INIT, SIPI to all --> arrived? --> disk n to RAM, phase to RAM --> round + 1 --> its own --> all done?
//!   other                        arrived ---------------------------------> its disk's requests --> done
//! ```
//!
//! They poll, so none needs an interrupt table or a TSS. Spec: Intel SDM volume 3, 10.4 "Multiple-Processor (MP) Initialization".

use core::sync::atomic::{AtomicU32, Ordering};

use crate::bench_disk::Disk;
use crate::cpu::{rdtsc, read, write};
use crate::{Phase, TICKS};

pub const MOST: u16 = 4;
/// The 16-bit code is copied here; the page number is the vector of the SIPI.
const TRAMPOLINE: u64 = 0x1_0000;
const COMMAND: u64 = 0xfee0_0300;
/// INIT and SIPI, to all but the sender.
const INIT: u32 = 0xc_4500;
const STARTUP: u32 = 0xc_4600;
/// Where the disk of each is, and the phase.
const DISKS: u64 = 7 << 20;
const PHASE: u64 = DISKS + 0x8000;

/// What each did, by its number; locks may not hold between processors everywhere.
static ARRIVED: [AtomicU32; MOST as usize] = [const { AtomicU32::new(0) }; MOST as usize];
static DONE: [AtomicU32; MOST as usize] = [const { AtomicU32::new(0) }; MOST as usize];
static ROUND: AtomicU32 = AtomicU32::new(0);
const FAILED: u32 = u32::MAX;

unsafe extern "C" {
    safe static trampoline: u8;
    safe static trampoline_end: u8;
}

/// Has as many processors as there are disks. False: they do not come.
pub fn start(count: u16) -> bool {
    let from = &raw const trampoline as u64;
    (0..&raw const trampoline_end as u64 - from).for_each(|at| write(TRAMPOLINE + at, read::<u8>(from + at)));
    let all = || (1..usize::from(count)).all(|number| ARRIVED[number].load(Ordering::Acquire) == 1);
    if !all() {
        write(COMMAND, INIT);
        wait(20, || false);
        write(COMMAND, STARTUP | (TRAMPOLINE >> 12) as u32);
    }
    wait(5000, all)
}

/// Gives processor `number` its disk.
pub fn give(number: u16, disk: Disk) {
    write(DISKS + u64::from(number) * 0x1000, disk);
}

/// The phase, on all disks. False: one failed.
pub fn together(phase: Phase, count: u16) -> bool {
    write(PHASE, phase);
    let round = ROUND.fetch_add(1, Ordering::AcqRel) + 1;
    work(0, phase, round);
    let done = |number: u16| DONE[usize::from(number)].load(Ordering::Acquire);
    wait(60_000, || (0..count).all(|number| [round, FAILED].contains(&done(number))))
        && (0..count).all(|number| done(number) == round)
}

fn work(number: u16, phase: Phase, round: u32) {
    let at = DISKS + u64::from(number) * 0x1000;
    let mut disk: Disk = read(at);
    let good = disk.requests(&phase, false, true);
    write(at, disk);
    DONE[usize::from(number)].store(if good { round } else { FAILED }, Ordering::Release);
}

/// Where bench.s brings the others, at CPL3.
#[unsafe(no_mangle)]
extern "C" fn bench_other(number: u32) -> ! {
    let number = number as usize;
    let Some(arrived) = ARRIVED.get(number) else { crate::fail() };
    arrived.store(1, Ordering::Release);
    let mut seen = 0;
    loop {
        core::hint::spin_loop();
        let round = ROUND.load(Ordering::Acquire);
        if round != seen {
            work(number as u16, read(PHASE), round);
            seen = round;
        }
    }
}

fn wait(milliseconds: u64, mut until: impl FnMut() -> bool) -> bool {
    let start = rdtsc();
    while !until() {
        if rdtsc().wrapping_sub(start) > milliseconds * TICKS {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}
