//! The bench guest at CPL3: exits and disk requests, so many of a kind, and how long each kind took on COM1.
//!
//! ```text
//!   ~            it runs (bench.s)
//!   =1f00abc     a phase of the job is over, and took so many ticks of the TSC; a line each
//!   z            all done; a reset follows, or a triple fault where there is no port for it
//!   !            a phase failed: no disk, or a request with an error
//! ```
//!
//! The TSC, for it costs no exit, and a byte may be long on its way to the host. Between two phases the guest rests, so that
//! the host can look at the VMM's threads. Polling, so that no interrupt is measured.

#![no_std]
#![no_main]
#![allow(dead_code, reason = "cpu.rs serves the self-test too")]

mod bench_disk;
mod cpu;
mod symbols;

use bench_disk::Disk;
use cpu::{input, output, read};

core::arch::global_asm!(include_str!("long_mode.s"), include_str!("bench.s"), options(att_syntax));

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const UNUSED: u16 = 0x80;
/// Milliseconds.
const REST: u32 = 10;
/// About so many ticks are one.
const TICKS: u64 = 2_500_000;
/// Where a machine without a disk may have nothing, too: a read exits all the same.
const WINDOWS: u64 = 0xd000_0000;

unsafe extern "C" {
    #[link_name = "job"]
    safe static JOB: [u32; 70];
}

/// What one phase does; `count` times.
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
    let windows = bench_disk::window(info).unwrap_or(WINDOWS);
    let mut disk = None;
    for number in 0..u64::from(word(1)) {
        let [kind, len, depth, count] = [0, 1, 2, 3].map(|field| word(2 + number * 4 + field));
        if kind >= 4 && disk.is_none() {
            disk = Some(Disk::start(windows).unwrap_or_else(|| fail()));
        }
        let start = cpu::rdtsc();
        do_phase(&Phase { kind, len, depth, count }, windows, disk.as_mut());
        tell(cpu::rdtsc().wrapping_sub(start));
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

fn do_phase(phase: &Phase, windows: u64, disk: Option<&mut Disk>) {
    match (phase.kind, disk) {
        (0, _) => rest(phase.count),
        (1, _) => (0..phase.count).for_each(|_| output(UNUSED, 0_u8)),
        (2, _) => (0..phase.count).for_each(|_| _ = input::<u8>(LINE_STATUS)),
        (3, _) => (0..phase.count).for_each(|_| _ = read::<u32>(windows)),
        (kind, Some(disk)) => {
            if !disk.requests(phase, kind == 5, kind != 6) {
                fail();
            }
        }
        _ => fail(),
    }
}

fn fail() -> ! {
    output(COM1, b'!');
    output(0x64, 0xfe_u8);
    cpu::undefined()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    fail()
}
