//! Time: the TSC and its frequency, waiting with a limit, and the PIT's channel 2 to measure by.
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

/// Looks at `condition` until it holds or `microseconds` are over; says whether it held.
pub fn wait(microseconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let start = cpu::rdtsc();
    let limit = microseconds * tsc_per_microsecond();
    loop {
        if condition() {
            return true;
        }
        if cpu::rdtsc().wrapping_sub(start) > limit {
            return condition();
        }
        core::hint::spin_loop();
    }
}

pub fn sleep(microseconds: u64) {
    wait(microseconds, || false);
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
