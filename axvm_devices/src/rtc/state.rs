//! The clock's registers and its distance to the host's, as a value.
//!
//! ```text
//!   saved:    guest time = host's UTC then + offset         at 10:00 the guest shows 03:00
//!   restored: guest time = host's UTC now  + offset         at 12:00 it shows 05:00; an alarm at 04:00 rings at once
//! ```
//!
//! The time itself is not in it. A PC's clock has a battery: a guest that was away finds the right time there, as after a
//! night in suspend, and corrects its own.
//!
//! Spec: MC146818A datasheet, "Address map". Left out: the host's time zone, which no clock here knows.

use axvm_arch::HexBytes;
use serde::{Deserialize, Serialize};

use super::registers::{A, AF, B, C, FORMAT, FORMAT_MASK, IRQF, NANOS, Nanos, Registers, UF, UIP};
use crate::ChipStateError;
use crate::state::Check;

/// Number of bytes behind the data port.
const CMOS_LEN: usize = 128;
/// The most seconds between guest and host: years that registers can show, and some.
const MOST_SECONDS: i64 = 1_000_000_000_000;

/// All state of an [`Rtc`](super::Rtc).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RtcState {
    /// The byte that the data port shows, below 128.
    pub index: u8,
    /// The 128 bytes: alarm, registers A to C, RAM. Those of the time count only while the clock is stopped (SET).
    pub cmos: HexBytes,
    /// Guest time minus host time: whole seconds, rounded down.
    pub offset_seconds: i64,
    /// The rest of it, below 1_000_000_000.
    pub offset_nanos: u32,
    /// Guest time of the last update cycle, in seconds since 1970; alarms after it are still to come.
    pub updated_second: i64,
}

impl Registers {
    /// The registers as a value, for a data port that shows `index`.
    pub(super) fn state(&self, index: u8) -> RtcState {
        RtcState {
            index,
            cmos: HexBytes(self.ram.to_vec()),
            offset_seconds: self.offset.div_euclid(NANOS) as i64,
            offset_nanos: self.offset.rem_euclid(NANOS) as u32,
            updated_second: self.updated,
        }
    }

    /// The registers that `state` describes, at host time `now`.
    pub(super) fn from_state(state: &RtcState, now: Nanos) -> Result<Registers, ChipStateError> {
        let check = Check("the RTC");
        check.bits("index", state.index, 0x7f)?;
        let (len, seconds) = (state.cmos.0.len(), state.offset_seconds);
        let ram: Option<[u8; CMOS_LEN]> = state.cmos.0.as_slice().try_into().ok();
        check.that(ram.is_some(), "the length of cmos", len, CMOS_LEN)?;
        let ram = ram.unwrap_or([0; CMOS_LEN]);
        check.bits("register A", ram[usize::from(A)], (!UIP).into())?;
        let format = ram[usize::from(B)] & FORMAT_MASK;
        check.that(format == FORMAT, "the format in register B", format, "2 (BCD, 24 hours)")?;
        check.bits("register C", ram[usize::from(C)], (IRQF | AF | UF).into())?;
        let in_reach = seconds.unsigned_abs() <= MOST_SECONDS.unsigned_abs();
        check.that(in_reach, "offset_seconds", seconds, format_args!("between -{MOST_SECONDS} and {MOST_SECONDS}"))?;
        check.that(Nanos::from(state.offset_nanos) < NANOS, "offset_nanos", state.offset_nanos, "below 1000000000")?;

        let offset = Nanos::from(seconds) * NANOS + Nanos::from(state.offset_nanos);
        // A host whose clock is behind the one that saved must not wait until it has caught up.
        let second = (now + offset).div_euclid(NANOS) as i64;
        Ok(Registers { ram, offset, updated: state.updated_second.min(second), alarm: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2026-11-24 12:34:56 UTC.
    const NOW: Nanos = 1_795_523_696 * NANOS;

    fn carried(registers: &Registers, now: Nanos) -> Registers {
        let text = serde_json::to_string(&registers.state(0)).unwrap();
        Registers::from_state(&serde_json::from_str(&text).unwrap(), now).unwrap()
    }

    /// A guest and a second's part that passes before it acts.
    fn acts() -> impl Strategy<Value = Vec<(u8, Option<u8>, i64)>> {
        let index = prop_oneof![0..0x0e_u8, Just(0x32), 0..0x80_u8];
        proptest::collection::vec((index, proptest::option::of(any::<u8>()), -2_000_000_000..5_000_000_000_i64), 1..60)
    }

    proptest! {
        /// A clock that was carried to another place goes on as the one that stayed.
        #[test]
        fn a_carried_clock_behaves_as_the_one_that_stayed(before in acts(), after in acts()) {
            let mut now = NOW;
            let mut stayed = Registers::new(now);
            let mut act = |clocks: &mut [&mut Registers], (index, value, passed): (u8, Option<u8>, i64)| {
                now += Nanos::from(passed);
                let mut answer = |clock: &mut &mut Registers| match value {
                    Some(value) => (0, clock.write(index, value, now), clock.next_update(now)),
                    None => (clock.read(index, now), clock.update(now), clock.next_update(now)),
                };
                let answers: Vec<_> = clocks.iter_mut().map(&mut answer).collect();
                (answers.windows(2).all(|two| two[0] == two[1]), now)
            };
            let mut at = NOW;
            for step in before {
                (_, at) = act(&mut [&mut stayed], step);
            }
            let mut carried = carried(&stayed, at);
            for step in after {
                let (same, _) = act(&mut [&mut stayed, &mut carried], step);
                prop_assert!(same, "{:?}", step);
            }
        }

        /// Whatever a state says, it is refused or leads to a clock that works.
        #[test]
        fn no_state_breaks_the_clock(
            cmos in proptest::collection::vec(any::<u8>(), 128),
            offset_seconds in prop_oneof![any::<i64>(), -MOST_SECONDS..=MOST_SECONDS],
            offset_nanos: u32,
            updated_second: i64,
        ) {
            let mut cmos = cmos;
            (cmos[0x0a], cmos[0x0b], cmos[0x0c]) = (cmos[0x0a] & 0x7f, cmos[0x0b] & !6 | 2, cmos[0x0c] & 0xb0);
            let state = RtcState { index: 0, cmos: HexBytes(cmos), offset_seconds, offset_nanos, updated_second };
            if let Ok(mut clock) = Registers::from_state(&state, NOW) {
                for index in 0..128 {
                    clock.read(index, NOW);
                    clock.write(index, 0x11, NOW + NANOS);
                }
                clock.next_update(NOW);
            }
        }
    }

    #[test]
    fn an_alarm_that_came_due_while_away_rings_at_once_and_only_then() {
        let mut clock = Registers::new(NOW);
        for (index, value) in [(0x05, 0x12), (0x03, 0x35), (0x01, 0x00), (0x0b, 0x22)] {
            clock.write(index, value, NOW);
        }
        assert!(!carried(&clock, NOW + NANOS).update(NOW + NANOS));
        let later = NOW + 3600 * NANOS;
        let mut other = carried(&clock, later);
        assert!(other.update(later));
        assert_eq!(other.read(0x0c, later), 0xb0);
        // What had rung before does not ring again.
        clock.update(later);
        assert!(!carried(&clock, later).update(later));
    }

    #[test]
    fn the_guest_finds_its_own_time_at_the_same_distance() {
        let mut clock = Registers::new(NOW);
        clock.write(0x04, 0x03, NOW);
        let later = NOW + 2 * 3600 * NANOS;
        assert_eq!((clock.read(0x04, NOW), carried(&clock, later).read(0x04, later)), (0x03, 0x05));
    }

    #[test]
    fn a_damaged_state_is_refused_by_its_field() {
        let good = Registers::new(NOW).state(0x0a);
        let with = |damage: &dyn Fn(&mut RtcState)| {
            let mut state = good.clone();
            damage(&mut state);
            Registers::from_state(&state, NOW).map(|_| ()).unwrap_err().to_string()
        };
        assert!(with(&|state| state.index = 0x80).contains("index is 0x80"));
        assert!(with(&|state| state.cmos.0.push(0)).contains("the length of cmos is 129, and must be 128"));
        assert!(with(&|state| state.cmos.0[0x0a] = 0x80).contains("register A is 0x80"));
        assert!(with(&|state| state.cmos.0[0x0b] = 4).contains("register B is 4"));
        assert!(with(&|state| state.cmos.0[0x0c] = 1).contains("register C is 0x1"));
        assert!(with(&|state| state.offset_seconds = i64::MIN).contains("offset_seconds"));
        assert!(with(&|state| state.offset_nanos = 1_000_000_000).contains("offset_nanos"));
    }
}
