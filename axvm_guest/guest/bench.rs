//! The bench guest at CPL3: exits and disk requests, so many of a kind, and how long each kind took on COM1.
//!
//! ```text
//!   ~            it runs (bench.s)
//!   =1f00abc     a phase of the job is over, and took so many ticks of the TSC; a line each; 0: this machine cannot
//!   z            all done; a reset follows, or a triple fault where there is no port for it
//!   !            a phase failed: no disk, or a request with an error
//! ```
//!
//! The TSC, for it costs no exit, and a byte may be long on its way to the host. Between two phases the guest rests, so that
//! the host can look at the VMM's threads. It polls, but for phases whose subject are interrupts.

#![no_std]
#![no_main]
#![allow(dead_code, reason = "cpu.rs serves the self-test too")]

mod bench_bus;
mod bench_card;
mod bench_disk;
mod bench_others;
mod bench_ring;
mod bench_wait;
mod cpu;
mod symbols;

use bench_bus::Device;
use bench_card::Card;
use bench_disk::Disk;
use cpu::{input, output, read};

core::arch::global_asm!(include_str!("long_mode.s"), include_str!("bench.s"), options(att_syntax));

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const UNUSED: u16 = 0x80;
/// Milliseconds.
const REST: u32 = 10;
/// About so many ticks are one.
pub const TICKS: u64 = 2_500_000;

unsafe extern "C" {
    #[link_name = "job"]
    safe static JOB: [u32; 70];
}

/// What one phase does; `count` times.
#[derive(Clone, Copy)]
pub struct Phase {
    kind: u32,
    pub len: u32,
    pub depth: u32,
    pub count: u32,
}

/// Where bench.s arrives, at CPL3.
#[unsafe(no_mangle)]
extern "C" fn bench_main(info: u64) -> ! {
    // Behind 16 bytes of name and the mode: the number of phases, then four numbers each.
    let word = |index: u64| read::<u32>(&raw const JOB as u64 + 16 + index * 4);
    bench_wait::prepare();
    let mut machine = Machine { info, disk: Device::find(bench_bus::BLOCK, info), queue: None, card: None };
    for number in 0..u64::from(word(1)) {
        let [kind, len, depth, count] = [0, 1, 2, 3].map(|field| word(2 + number * 4 + field));
        let phase = Phase { kind, len, depth, count };
        let able = machine.prepare(&phase);
        let start = cpu::rdtsc();
        if able {
            machine.run(phase);
        }
        tell(if able { cpu::rdtsc().wrapping_sub(start) } else { 0 });
        rest(REST);
    }
    output(COM1, b'z');
    output(0x64, 0xfe_u8);
    cpu::undefined()
}

fn tell(ticks: u64) {
    output(COM1, b'=');
    let digits = (64 - ticks.leading_zeros()).div_ceil(4).max(1);
    (0..digits).rev().for_each(|digit| output(COM1, b"0123456789abcdef"[(ticks >> (digit * 4)) as usize & 15]));
    output(COM1, b'\n');
}

fn rest(milliseconds: u32) {
    let start = cpu::rdtsc();
    while cpu::rdtsc().wrapping_sub(start) < u64::from(milliseconds) * TICKS {
        core::hint::spin_loop();
    }
}

/// What the phases use.
struct Machine {
    info: u64,
    disk: Option<Device>,
    /// Its first queue, started for phases of one kind.
    queue: Option<(Use, Disk)>,
    card: Option<Card>,
}

/// How a disk is started: its queues, and whether they wake the guest.
#[derive(Clone, Copy, PartialEq)]
struct Use {
    queues: u16,
    wakes: bool,
}

impl Machine {
    /// What must not be measured. False: this machine cannot do the phase.
    fn prepare(&mut self, phase: &Phase) -> bool {
        let wanted = match phase.kind {
            4..=6 => Use { queues: 1, wakes: false },
            7 => Use { queues: 1, wakes: true },
            8 => Use { queues: bench_others::MOST, wakes: false },
            16.. => return self.prepare_card(phase),
            _ => return true,
        };
        if self.queue.is_none_or(|(now, _)| now != wanted) {
            let (mut first, mut count) = (None, 0);
            let started = self.disk.and_then(|device| {
                Disk::start(device, wanted.queues, wanted.wakes, |number, disk| {
                    if number == 0 {
                        first = Some(disk);
                    }
                    bench_others::give(number, disk);
                    count += 1;
                })
            });
            let (Some(()), Some(disk)) = (started, first) else { fail() };
            if count < wanted.queues || count > 1 && !bench_others::start(count) {
                return false;
            }
            self.queue = Some((wanted, disk));
        }
        self.queue.is_some_and(|(_, disk)| disk.holds(phase.depth))
    }

    /// Started once, for not every VMM lets a card be reset; a job that receives does nothing else. One frame that is
    /// received starts the clock.
    fn prepare_card(&mut self, phase: &Phase) -> bool {
        let receives = phase.kind == 17;
        if self.card.is_none() {
            let device = Device::find(bench_bus::NET, self.info).unwrap_or_else(|| fail());
            self.card = Card::start(device, !receives);
        }
        let Some(card) = &mut self.card else { fail() };
        card.takes(phase.len) && (!receives || card.receive(1))
    }

    fn run(&mut self, phase: Phase) {
        // Where a machine without a disk may have nothing, too: a read exits all the same.
        let register = self.disk.map_or(0xd000_0000, |disk| disk.registers);
        if let (16.., Some(card)) = (phase.kind, &mut self.card) {
            let good = match phase.kind {
                16 => card.send(&phase),
                17 => card.receive(phase.count),
                _ => card.echo(&phase),
            };
            if !good {
                fail();
            }
            return;
        }
        let good = match (phase.kind, &mut self.queue) {
            (0, _) => Some(rest(phase.count)),
            (1, _) => Some((0..phase.count).for_each(|_| output(UNUSED, 0_u8))),
            (2, _) => Some((0..phase.count).for_each(|_| _ = input::<u8>(LINE_STATUS))),
            (3, _) => Some((0..phase.count).for_each(|_| _ = read::<u32>(register))),
            (4..=7, Some((_, disk))) => disk.requests(&phase, phase.kind == 5, phase.kind != 6).then_some(()),
            (8, Some((used, _))) => bench_others::together(phase, used.queues).then_some(()),
            _ => None,
        };
        if good.is_none() {
            fail();
        }
    }
}

pub fn fail() -> ! {
    output(COM1, b'!');
    output(0x64, 0xfe_u8);
    cpu::undefined()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    fail()
}
