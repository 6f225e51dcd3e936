//! The PC's interval timer as a value: three counters and the speaker's gate.
//!
//! ```text
//!   1.193182 MHz --> counter 0 --> GSI 0      counter 1 (was DRAM refresh)
//!                --> counter 2 --> speaker, if port 0x61 says so
//! ```
//!
//! Spec: Intel 8254 datasheet (1993), "Functional Description"; IBM PC AT Technical Reference (1984), port 0x61.
//! Left out: how it counts; KVM does that.

use serde::{Deserialize, Serialize};

/// The timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PitState {
    /// The three counters.
    pub channels: [PitChannel; 3],
    /// The speaker's data bit of port 0x61 is on.
    pub speaker: bool,
    /// Counter 0 is taken over by an HPET and does not interrupt.
    pub hpet_legacy: bool,
}

/// One counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PitChannel {
    /// What it counts down from; 0x10000 for a written 0.
    pub count: u32,
    /// The count as it was latched.
    pub latched_count: u16,
    /// What of the latched count is still to be read, as KVM numbers it.
    pub count_latched: u8,
    /// The status is latched and not yet read.
    pub status_latched: bool,
    /// The latched status.
    pub status: u8,
    /// Which byte the next read gives, as KVM numbers it.
    pub read_step: u8,
    /// Which byte the next write sets, as KVM numbers it.
    pub write_step: u8,
    /// The low byte of a count whose high byte is to come.
    pub write_latch: u8,
    /// 1 low byte, 2 high byte, 3 both (control word, RW).
    pub access: u8,
    /// 0 to 5 (control word, M).
    pub mode: u8,
    /// Counts in BCD.
    pub bcd: bool,
    /// Level of the gate.
    pub gate: bool,
    /// Nanoseconds since the count was loaded.
    pub loaded_ns_ago: i64,
}
