//! Time: the TSC and its frequency, waiting with a limit that a busy host does not use up, and the PIT's channel 2 to measure by.
//!
//! Spec: Intel SDM volume 3, "Time-Stamp Counter"; Intel 8254.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::{self, input, output};

/// How fast the PIT counts.
pub const PIT_HZ: u64 = 1_193_182;

static TSC_PER_MICROSECOND: AtomicU64 = AtomicU64::new(0);

/// Learns the TSC's frequency: told by the hypervisor (0x40000010), by the processor (0x15), or measured.
/// Gives where it comes from.
pub fn find() -> &'static str {
    let hypervisor = cpu::cpuid(0x4000_0000)[0] >= 0x4000_0010;
    let [khz, ..] = if hypervisor { cpu::cpuid(0x4000_0010) } else { [0; 4] };
    let [denominator, numerator, crystal, _] = if cpu::cpuid(0)[0] >= 0x15 { cpu::cpuid(0x15) } else { [0; 4] };
    let (per_microsecond, source) = if khz >= 1000 {
        (u64::from(khz) / 1000, "CPUID 0x40000010")
    } else if denominator > 0 && numerator > 0 && crystal > 0 {
        (u64::from(crystal) * u64::from(numerator) / u64::from(denominator) / 1_000_000, "CPUID 0x15")
    } else {
        (measure(), "the PIT")
    };
    TSC_PER_MICROSECOND.store(per_microsecond.max(1), Ordering::Relaxed);
    source
}

pub fn tsc_per_microsecond() -> u64 {
    TSC_PER_MICROSECOND.load(Ordering::Relaxed).max(1)
}

/// More than this between two looks at the TSC, in microseconds, is time in which this processor did not run: the host
/// had other work, or the machine was paused.
const LONGEST_LOOK: u64 = 1000;

/// Looks at `condition` until it holds or `microseconds` are over; says whether it held. Only time in which this processor
/// ran counts: while the host holds up the whole machine, no device can answer either.
pub fn wait(microseconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let (limit, longest_look) = (microseconds * tsc_per_microsecond(), LONGEST_LOOK * tsc_per_microsecond());
    let (mut last, mut waited) = (cpu::rdtsc(), 0);
    while waited <= limit {
        if condition() {
            return true;
        }
        core::hint::spin_loop();
        let now = cpu::rdtsc();
        waited += now.wrapping_sub(last).min(longest_look);
        last = now;
    }
    condition()
}

/// Lets time pass, whether this processor runs or not.
pub fn sleep(microseconds: u64) {
    let (start, limit) = (cpu::rdtsc(), microseconds * tsc_per_microsecond());
    while cpu::rdtsc().wrapping_sub(start) <= limit {
        core::hint::spin_loop();
    }
}

/// TSC ticks per microsecond, by some 10 ms of PIT channel 2. A PIT that stands still gives a guess.
fn measure() -> u64 {
    start_channel_2();
    let (start, first) = (cpu::rdtsc(), channel_2());
    for _ in 0..1_000_000 {
        let counts = u64::from(first.wrapping_sub(channel_2()));
        if counts > PIT_HZ / 100 {
            return cpu::rdtsc().wrapping_sub(start) * PIT_HZ / counts / 1_000_000;
        }
    }
    1000
}

/// PIT channel 2 counts down from 65535, silently.
pub fn start_channel_2() {
    output(0x61, input::<u8>(0x61) & !2 | 1); // gate on, speaker off
    output(0x43, 0xb0_u8); // channel 2, mode 0
    output(0x42, 0xff_u8);
    output(0x42, 0xff_u8);
}

/// Where it stands.
pub fn channel_2() -> u16 {
    output(0x43, 0x80_u8); // latch
    let low: u8 = input(0x42);
    u16::from_le_bytes([low, input(0x42)])
}
