//! ACPI's power management timer: a counter of known speed, for guests that do not know kvmclock.
//!
//! ```text
//!   IN 32 bits --> nanoseconds since power-on, pauses left out  x  3.579545 MHz          0xffffffff --> 0, each 20 minutes
//! ```
//!
//! Linux calls it `acpi_pm`: it checks and calibrates the TSC by it, and falls back to it where the TSC cannot be trusted.
//! The FADT says where it is, and that all 32 bits count (TMR_VAL_EXT).
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

/// The counter. It stands still while the machine does.
pub struct PmTimer(Mutex<Elapsed>);

/// Time that has passed for the guest.
#[derive(Clone, Copy)]
struct Elapsed {
    before: Duration,
    /// When it went on; `None` while it stands still.
    since: Option<Instant>,
}

/// All state of a [`PmTimer`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmTimerState {
    /// Nanoseconds that the counter has run.
    pub nanos: u64,
}

impl Elapsed {
    fn at(&self, now: Instant) -> Duration {
        self.before.saturating_add(self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)))
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
        PmTimer(Mutex::new(Elapsed { before: Duration::ZERO, since: Some(Instant::now()) }))
    }

    /// Stands still.
    pub fn pause(&self) {
        let mut elapsed = self.elapsed();
        *elapsed = Elapsed { before: elapsed.at(Instant::now()), since: None };
    }

    /// Goes on from where it stood.
    pub fn resume(&self) {
        self.elapsed().since.get_or_insert_with(Instant::now);
    }

    /// The counter's state.
    pub fn state(&self) -> PmTimerState {
        let nanos = self.elapsed().at(Instant::now()).as_nanos();
        PmTimerState { nanos: u64::try_from(nanos).unwrap_or(u64::MAX) }
    }

    /// Makes a counter what `state` says; it runs or stands still as before.
    pub fn restore(&self, state: &PmTimerState) -> Result<(), ChipStateError> {
        let mut elapsed = self.elapsed();
        elapsed.before = Duration::from_nanos(state.nanos);
        elapsed.since = elapsed.since.map(|_| Instant::now());
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
        let bytes = ticks(self.elapsed().at(Instant::now())).to_le_bytes();
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
    fn it_stands_still_while_paused_and_goes_on_from_there() {
        let timer = PmTimer::new();
        thread::sleep(Duration::from_millis(2));
        timer.pause();
        let stood = read(&timer);
        assert!(stood >= 7_159);
        thread::sleep(Duration::from_millis(5));
        timer.pause();
        assert_eq!(read(&timer), stood, "a second pause is none");
        timer.resume();
        timer.resume();
        thread::sleep(Duration::from_millis(1));
        assert!(read(&timer) > stood);
    }

    #[test]
    fn it_is_carried_without_the_time_between() {
        let old = PmTimer::new();
        thread::sleep(Duration::from_millis(2));
        old.pause();
        let text = serde_json::to_string(&old.state()).unwrap();
        thread::sleep(Duration::from_millis(5));
        let new = PmTimer::new();
        new.pause();
        new.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!((new.state(), read(&new)), (old.state(), read(&old)));
        // A state that was tampered with is some time, and no panic.
        new.restore(&PmTimerState { nanos: u64::MAX }).unwrap();
        new.resume();
        assert!(new.state().nanos > 0);
        read(&new);
    }

    #[test]
    fn it_cannot_be_written_and_has_four_bytes() {
        let timer = PmTimer::new();
        timer.pause();
        let before = read(&timer);
        timer.write(0, &[0; 4]);
        assert_eq!(read(&timer), before);
        let mut data = [0xff; 8];
        timer.read(2, &mut data);
        assert_eq!((&data[..2], &data[2..]), (&before.to_le_bytes()[2..], &[0xff; 6][..]));
        for offset in [4, u64::MAX] {
            let mut data = [0xff; 4];
            timer.read(offset, &mut data);
            assert_eq!(data, [0xff; 4]);
        }
    }
}
