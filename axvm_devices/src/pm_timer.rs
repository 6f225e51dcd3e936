//! ACPI's power management timer: a counter of known speed, for guests that do not know kvmclock.
//!
//! ```text
//!   IN 32 bits --> nanoseconds since power-on  x  3.579545 MHz          0xffffffff --> 0, each 20 minutes
//! ```
//!
//! Linux calls it `acpi_pm`: it checks and calibrates the TSC by it, and falls back to it where the TSC cannot be trusted.
//! The FADT says where it is, and that all 32 bits count (TMR_VAL_EXT). It runs on while the machine is paused, as the TSC
//! and kvmclock do: a guest that compares them finds no difference.
//!
//! Spec: ACPI 6.5, 4.8.2.1 "Power Management Timer" and 4.8.3.3 "Power Management Timer (PM_TMR)".
//! Left out: TMR_STS and its interrupt, the carry of bit 31; a guest that looks every 20 minutes misses no turn.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::{BusDevice, ChipStateError, RegisterNames};

/// Ticks in a second.
const HZ: u128 = 3_579_545;
/// Length of the counter on the bus, in bytes.
const LEN: usize = 4;

/// The counter.
pub struct PmTimer(Mutex<Elapsed>);

/// Time that has passed for the guest.
#[derive(Clone, Copy)]
struct Elapsed {
    /// Before `since`, in another process.
    before: Duration,
    since: Instant,
}

/// All state of a [`PmTimer`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmTimerState {
    /// Nanoseconds that the counter has run.
    pub nanos: u64,
}

impl Elapsed {
    fn now(self) -> Duration {
        self.before.saturating_add(self.since.elapsed())
    }
}

/// What the counter shows after this time.
fn ticks(elapsed: Duration) -> u32 {
    (elapsed.as_nanos() * HZ / 1_000_000_000) as u32
}

impl PmTimer {
    /// Length of the counter on the bus, in bytes.
    pub const LEN: u64 = LEN as u64;

    /// A counter that begins at zero, now.
    pub fn new() -> PmTimer {
        PmTimer(Mutex::new(Elapsed { before: Duration::ZERO, since: Instant::now() }))
    }

    /// The counter's state.
    pub fn state(&self) -> PmTimerState {
        let nanos = self.elapsed().now().as_nanos();
        PmTimerState { nanos: u64::try_from(nanos).unwrap_or(u64::MAX) }
    }

    /// Goes on from what `state` says.
    pub fn restore(&self, state: &PmTimerState) -> Result<(), ChipStateError> {
        *self.elapsed() = Elapsed { before: Duration::from_nanos(state.nanos), since: Instant::now() };
        Ok(())
    }

    fn elapsed(&self) -> MutexGuard<'_, Elapsed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for PmTimer {
    fn default() -> PmTimer {
        PmTimer::new()
    }
}

impl BusDevice for PmTimer {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = ticks(self.elapsed().now()).to_le_bytes();
        let from = usize::try_from(offset).unwrap_or(LEN).min(LEN);
        for (byte, &value) in data.iter_mut().zip(&bytes[from..]) {
            *byte = value;
        }
    }

    /// Read-only.
    fn write(&self, _: u64, _: &[u8]) {}

    fn registers(&self) -> RegisterNames {
        |_, _| Some("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn read(timer: &PmTimer) -> u32 {
        let mut data = [0; 4];
        timer.read(0, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn it_counts_at_three_times_the_colour_carrier_and_turns_over() {
        assert_eq!(ticks(Duration::ZERO), 0);
        assert_eq!(ticks(Duration::from_nanos(280)), 1);
        assert_eq!(ticks(Duration::from_secs(1)), 3_579_545);
        // 2^32 ticks.
        let turn = Duration::from_nanos(1_199_864_031_882);
        assert_eq!((ticks(turn - Duration::from_nanos(280)), ticks(turn)), (u32::MAX, 0));
        ticks(Duration::MAX);
    }

    #[test]
    fn it_runs_with_the_hosts_clock() {
        let timer = PmTimer::new();
        let (first, start) = (read(&timer), Instant::now());
        thread::sleep(Duration::from_millis(20));
        let passed = read(&timer).wrapping_sub(first);
        let most = ticks(start.elapsed()) + 36_000; // 10 ms in between, on a busy host
        assert!((71_590..=most).contains(&passed), "{passed}, and not up to {most}");
    }

    #[test]
    fn it_is_carried_without_the_time_between() {
        let old = PmTimer::new();
        thread::sleep(Duration::from_millis(2));
        let state = old.state();
        let text = serde_json::to_string(&state).unwrap();
        thread::sleep(Duration::from_millis(50));
        let (new, start) = (PmTimer::new(), Instant::now());
        new.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        let passed = new.state().nanos - state.nanos;
        assert!(passed <= start.elapsed().as_nanos() as u64, "{passed}");
        assert!(read(&new).wrapping_sub(ticks(Duration::from_nanos(state.nanos))) < ticks(old.elapsed().now()));
        // A state that was tampered with is some time, and no panic.
        new.restore(&PmTimerState { nanos: u64::MAX }).unwrap();
        assert!(new.state().nanos > 0);
        read(&new);
    }

    #[test]
    fn it_cannot_be_written_and_has_four_bytes() {
        let timer = PmTimer::new();
        timer.restore(&PmTimerState { nanos: 1_000_000_000_000 }).unwrap();
        let before = read(&timer);
        timer.write(0, &[0; 4]);
        let after = read(&timer);
        assert!(after.wrapping_sub(before) < 1 << 30, "{before} {after}");
        let mut data = [0xff; 8];
        timer.read(2, &mut data);
        let upper = u16::from_le_bytes([data[0], data[1]]);
        assert!(upper.wrapping_sub((after >> 16) as u16) < 1 << 14, "{after} {upper}");
        assert_eq!(data[2..], [0xff; 6]);
        for offset in [4, u64::MAX] {
            let mut data = [0xff; 4];
            timer.read(offset, &mut data);
            assert_eq!(data, [0xff; 4]);
        }
    }
}
