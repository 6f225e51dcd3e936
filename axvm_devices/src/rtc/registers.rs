//! The 128 bytes behind the clock's data port, as a function of the time it is told.
//!
//! ```text
//!  00 sec  02 min  04 hour  06 weekday  07 day  08 month  09 year  32 century   <- the clock
//!  01 sec  03 min  05 hour                                                      <- the alarm
//!  0a UIP, divider, rate     0b SET PIE AIE UIE SQWE DM 24/12 DSE
//!  0c IRQF PF AF UF          0d VRT          the rest: RAM
//! ```
//!
//! No thread moves the clock: registers are computed when read. Update cycles (one a second) that
//! fell between two looks are made up for by [`Registers::update`].
//!
//! Spec: Motorola MC146818A datasheet (1988), "Address map" and "Registers". Left out: what `mod.rs` says.

use super::calendar::{Date, weekday};

/// A time or a duration in nanoseconds; wide enough for any year a guest can set.
pub(super) type Nanos = i128;
/// Nanoseconds in a second.
pub(super) const NANOS: Nanos = 1_000_000_000;

const SECOND: u8 = 0x00;
const SECOND_ALARM: u8 = 0x01;
const MINUTE: u8 = 0x02;
const MINUTE_ALARM: u8 = 0x03;
const HOUR: u8 = 0x04;
const HOUR_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
pub(super) const A: u8 = 0x0a;
pub(super) const B: u8 = 0x0b;
pub(super) const C: u8 = 0x0c;
const D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Register A: an update is about to happen; the clock is not to be read.
pub(super) const UIP: u8 = 0x80;
/// Register A at power-on: 32.768 kHz time base (DV 010), the rate a PC's firmware chooses.
const A_START: u8 = 0x26;
/// How long before the second changes UIP is up: 244 us of warning and 1984 us of updating.
const UIP_NANOS: Nanos = 2_228_000;

/// Register B: stop the updates, so that time can be written.
const SET: u8 = 0x80;
/// Register B: alarm and update-ended interrupt enable. They sit where AF and UF sit in C.
const AIE: u8 = 0x20;
const UIE: u8 = 0x10;
/// Register B: the read-only choice of BCD (DM is 0) and 24 hours.
pub(super) const FORMAT_MASK: u8 = 0x06;
pub(super) const FORMAT: u8 = 0x02;

/// Register C: an enabled flag is up.
pub(super) const IRQF: u8 = 0x80;
/// Register C: alarm flag, update-ended flag.
pub(super) const AF: u8 = 0x20;
pub(super) const UF: u8 = 0x10;

/// Register D: RAM and time are valid.
const VRT: u8 = 0x80;

/// The chip without its wires.
pub(super) struct Registers {
    pub(super) ram: [u8; 128],
    /// Guest time minus host time.
    pub(super) offset: Nanos,
    /// The guest second whose update cycle has run last.
    pub(super) updated: i64,
    /// An alarm interrupt has come due since [`Registers::take_alarm`].
    pub(super) alarm: bool,
}

impl Registers {
    /// A clock that shows the host's time.
    pub(super) fn new(now: Nanos) -> Registers {
        let mut ram = [0; 128];
        ram[usize::from(A)] = A_START;
        ram[usize::from(B)] = FORMAT;
        Registers { ram, offset: 0, updated: now.div_euclid(NANOS) as i64, alarm: false }
    }

    /// What the guest reads at `index` (below 128).
    pub(super) fn read(&mut self, index: u8, now: Nanos) -> u8 {
        match index {
            A => self.get(A) | if self.is_updating(now) { UIP } else { 0 },
            C => {
                self.update(now);
                std::mem::take(&mut self.ram[usize::from(C)])
            }
            D => VRT,
            _ => match TIME.iter().position(|&time| time == index) {
                Some(place) if !self.is_set() => self.clock(now)[place],
                _ => self.get(index),
            },
        }
    }

    /// The guest writes `value` at `index` (below 128). Returns whether the chip interrupts.
    pub(super) fn write(&mut self, index: u8, value: u8, now: Nanos) -> bool {
        let interrupts = self.update(now);
        match index {
            A => self.put(A, value & !UIP),
            B => self.write_b(value, now),
            C | D => {}
            _ if TIME.contains(&index) && !self.is_set() => {
                self.stop_clock(now);
                self.put(index, value);
                self.start_clock(now);
            }
            _ => self.put(index, value),
        }
        self.refresh_irqf() || interrupts
    }

    /// Runs the update cycles that are due at host time `now`. Returns whether the chip interrupts.
    pub(super) fn update(&mut self, now: Nanos) -> bool {
        if self.is_set() {
            return false;
        }
        let second = self.second(now);
        // More than a day would only meet the same alarms again. Empty, if the host's clock went back.
        for at in self.updated.max(second - 86_400) + 1..=second {
            let flags = UF | if self.is_alarm(at) { AF } else { 0 };
            self.put(C, self.get(C) | flags);
            self.alarm |= flags & self.get(B) & AIE != 0;
        }
        self.updated = second;
        self.refresh_irqf()
    }

    /// Whether an alarm interrupt has come due since the last call, even while the interrupt line was still up.
    pub(super) fn take_alarm(&mut self) -> bool {
        std::mem::take(&mut self.alarm)
    }

    /// Host time of the next update cycle that could interrupt.
    pub(super) fn next_update(&self, now: Nanos) -> Option<Nanos> {
        let enabled = !self.is_set() && self.get(B) & (AIE | UIE) != 0;
        enabled.then(|| Nanos::from(self.second(now) + 1) * NANOS - self.offset)
    }

    fn write_b(&mut self, value: u8, now: Nanos) {
        match (self.is_set(), value & SET != 0) {
            (false, true) => self.stop_clock(now),
            (true, false) => self.start_clock(now),
            _ => {}
        }
        // SET takes UIE down.
        let value = if value & SET != 0 { value & !UIE } else { value };
        // An alarm that was noted interrupts when it is enabled.
        self.alarm |= value & !self.get(B) & self.get(C) & AIE != 0;
        self.put(B, value & !FORMAT_MASK | FORMAT);
    }

    /// Copies the time into the RAM behind the clock's registers, where the guest may change it.
    fn stop_clock(&mut self, now: Nanos) {
        for (&index, value) in TIME.iter().zip(self.clock(now)) {
            self.put(index, value);
        }
    }

    /// Goes on from the time that is in the registers. A date that does not exist is forgotten.
    fn start_clock(&mut self, now: Nanos) {
        let field = |index| from_bcd(self.get(index));
        let date = Date {
            year: field(CENTURY) * 100 + field(YEAR),
            month: field(MONTH),
            day: field(DAY),
            hour: field(HOUR),
            minute: field(MINUTE),
            second: field(SECOND),
        };
        if let Some(seconds) = date.to_seconds() {
            // The first update comes half a second after the divider is let go.
            self.offset = Nanos::from(seconds) * NANOS + NANOS / 2 - now;
        }
        self.updated = self.second(now);
    }

    /// The time registers, in the order of [`TIME`].
    fn clock(&self, now: Nanos) -> [u8; TIME.len()] {
        let seconds = self.second(now);
        let date = Date::from_seconds(seconds);
        let (century, year) = (date.year / 100, date.year % 100);
        [date.second, date.minute, date.hour, weekday(seconds), date.day, date.month, year, century].map(to_bcd)
    }

    fn is_alarm(&self, second: i64) -> bool {
        let date = Date::from_seconds(second);
        [(SECOND_ALARM, date.second), (MINUTE_ALARM, date.minute), (HOUR_ALARM, date.hour)]
            .into_iter()
            // 0xc0 to 0xff: any value will do.
            .all(|(index, value)| self.get(index) & 0xc0 == 0xc0 || self.get(index) == to_bcd(value))
    }

    /// Brings IRQF up to date. Returns whether it went up.
    fn refresh_irqf(&mut self) -> bool {
        let (before, enabled) = (self.get(C), self.get(B) & (AIE | UIE));
        let flag = if before & enabled != 0 { IRQF } else { 0 };
        self.put(C, before & !IRQF | flag);
        flag & !before != 0
    }

    fn is_set(&self) -> bool {
        self.get(B) & SET != 0
    }

    fn is_updating(&self, now: Nanos) -> bool {
        !self.is_set() && (now + self.offset).rem_euclid(NANOS) >= NANOS - UIP_NANOS
    }

    /// Guest seconds since 1970.
    fn second(&self, now: Nanos) -> i64 {
        (now + self.offset).div_euclid(NANOS) as i64
    }

    fn get(&self, index: u8) -> u8 {
        self.ram[usize::from(index)]
    }

    fn put(&mut self, index: u8, value: u8) {
        self.ram[usize::from(index)] = value;
    }
}

/// The registers that hold the time.
const TIME: [u8; 8] = [SECOND, MINUTE, HOUR, WEEKDAY, DAY, MONTH, YEAR, CENTURY];

fn to_bcd(value: u32) -> u8 {
    (value / 10 % 10 * 16 + value % 10) as u8
}

fn from_bcd(value: u8) -> u32 {
    u32::from(value >> 4) * 10 + u32::from(value & 0xf)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-24 (a Tuesday) 12:34:56 UTC.
    const NOW: Nanos = 1_795_523_696 * NANOS;

    fn date(chip: &mut Registers, now: Nanos) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, HOUR, MINUTE, SECOND, WEEKDAY].map(|index| chip.read(index, now))
    }

    #[test]
    fn time_is_bcd_and_follows_the_host() {
        let mut chip = Registers::new(NOW);
        assert_eq!(date(&mut chip, NOW), [0x20, 0x26, 0x11, 0x24, 0x12, 0x34, 0x56, 3]);
        let later = NOW + (11 * 3600 + 25 * 60 + 4) * NANOS;
        assert_eq!(date(&mut chip, later), [0x20, 0x26, 0x11, 0x25, 0x00, 0x00, 0x00, 4]);
    }

    #[test]
    fn status_registers_say_24_hours_bcd_valid() {
        let mut chip = Registers::new(NOW);
        chip.write(B, 0x04, NOW);
        chip.write(D, 0x00, NOW);
        assert_eq!([A, B, D].map(|index| chip.read(index, NOW)), [0x26, 0x02, 0x80]);
    }

    #[test]
    fn update_in_progress_precedes_the_change_of_the_second() {
        let mut chip = Registers::new(NOW);
        for (fraction, uip) in [(0, 0), (NANOS - UIP_NANOS - 1, 0), (NANOS - UIP_NANOS, UIP), (NANOS - 1, UIP)] {
            assert_eq!(chip.read(A, NOW + fraction) & UIP, uip, "{fraction}");
        }
        chip.write(B, SET, NOW);
        assert_eq!(chip.read(A, NOW + NANOS - 1) & UIP, 0);
    }

    #[test]
    fn setting_the_clock_keeps_a_distance_to_the_host() {
        let mut chip = Registers::new(NOW);
        chip.write(B, SET | FORMAT, NOW);
        for (index, value) in [(CENTURY, 0x19), (YEAR, 0x99), (MONTH, 0x12), (DAY, 0x31), (HOUR, 0x23)] {
            chip.write(index, value, NOW);
        }
        chip.write(MINUTE, 0x59, NOW + 5 * NANOS);
        chip.write(SECOND, 0x59, NOW + 5 * NANOS);
        assert_eq!(chip.read(SECOND, NOW + 9 * NANOS), 0x59, "stopped while set");
        chip.write(B, FORMAT, NOW + 10 * NANOS);
        assert_eq!(date(&mut chip, NOW + 10 * NANOS), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59, 6]);
        let half = NOW + 10 * NANOS + NANOS / 2;
        assert_eq!(date(&mut chip, half), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00, 7]);
    }

    #[test]
    fn one_field_can_be_written_while_the_clock_runs() {
        let mut chip = Registers::new(NOW);
        chip.write(HOUR, 0x07, NOW);
        assert_eq!(date(&mut chip, NOW), [0x20, 0x26, 0x11, 0x24, 0x07, 0x34, 0x56, 3]);
    }

    #[test]
    fn a_date_that_does_not_exist_leaves_the_clock_alone() {
        let mut chip = Registers::new(NOW);
        for (index, value) in [(MONTH, 0x00), (DAY, 0x31), (HOUR, 0xff), (SECOND, 0x99)] {
            chip.write(index, value, NOW);
            assert_eq!(date(&mut chip, NOW)[..7], [0x20, 0x26, 0x11, 0x24, 0x12, 0x34, 0x56]);
        }
    }

    #[test]
    fn the_alarm_interrupts_once_at_its_second() {
        let mut chip = Registers::new(NOW);
        for (index, value) in [(HOUR_ALARM, 0x12), (MINUTE_ALARM, 0x35), (SECOND_ALARM, 0x01)] {
            chip.write(index, value, NOW);
        }
        chip.write(B, AIE | FORMAT, NOW);
        assert_eq!(chip.next_update(NOW + 1), Some(NOW + NANOS));
        assert!(!chip.update(NOW + 4 * NANOS));
        assert!(chip.update(NOW + 5 * NANOS));
        assert!(!chip.update(NOW + 6 * NANOS), "one edge until C is read");
        assert_eq!(chip.read(C, NOW + 6 * NANOS), IRQF | AF | UF);
        assert_eq!(chip.read(C, NOW + 6 * NANOS), 0);
        assert!(!chip.update(NOW + 7 * NANOS));
    }

    #[test]
    fn alarm_registers_may_say_any() {
        let mut chip = Registers::new(NOW);
        for (index, value) in [(HOUR_ALARM, 0xff), (MINUTE_ALARM, 0xc0), (SECOND_ALARM, 0x58)] {
            chip.write(index, value, NOW);
        }
        chip.write(B, AIE, NOW);
        assert!(!chip.update(NOW + NANOS));
        assert!(chip.update(NOW + 2 * NANOS));
        chip.read(C, NOW + 2 * NANOS);
        assert!(chip.update(NOW + 62 * NANOS));
    }

    #[test]
    fn update_ended_interrupts_every_second() {
        let mut chip = Registers::new(NOW);
        assert_eq!(chip.next_update(NOW), None);
        chip.write(B, UIE, NOW);
        for n in 1..4 {
            assert!(chip.update(NOW + n * NANOS));
            assert_eq!(chip.read(C, NOW + n * NANOS), IRQF | UF);
        }
        chip.write(B, UIE | SET, NOW + 4 * NANOS);
        assert_eq!(chip.read(B, NOW) & UIE, 0);
        assert_eq!(chip.next_update(NOW + 5 * NANOS), None);
    }

    #[test]
    fn a_pending_flag_interrupts_when_it_is_enabled() {
        let mut chip = Registers::new(NOW);
        assert!(!chip.update(NOW + NANOS));
        assert!(chip.write(B, UIE, NOW + NANOS));
    }

    #[test]
    fn each_alarm_is_told_once_and_only_while_its_interrupt_is_enabled() {
        let mut chip = Registers::new(NOW);
        for index in [HOUR_ALARM, MINUTE_ALARM, SECOND_ALARM] {
            chip.write(index, 0xff, NOW);
        }
        chip.update(NOW + NANOS);
        assert!(!chip.take_alarm(), "not enabled");
        chip.write(B, AIE, NOW + NANOS);
        assert!(chip.take_alarm() && !chip.take_alarm(), "pending when enabled, and told once");
        // The guest sleeps and does not read register C: the line stays up, and the next alarm counts all the same.
        assert!(!chip.update(NOW + 2 * NANOS));
        assert!(chip.take_alarm());
        chip.read(C, NOW + 3 * NANOS);
        assert!(chip.take_alarm(), "one that the guest's own look finds");
        chip.write(B, UIE, NOW + 3 * NANOS);
        assert!(chip.update(NOW + 4 * NANOS) && !chip.take_alarm(), "an update is no alarm");
    }

    #[test]
    fn a_host_clock_that_jumps_does_no_harm() {
        let mut chip = Registers::new(NOW);
        chip.write(B, UIE | AIE, NOW);
        assert!(!chip.update(NOW - 1_000_000 * NANOS));
        // So far that it would take hours to run every update on the way.
        let far = NOW + 1_000_000_000_000 * NANOS;
        assert!(chip.update(far));
        assert_eq!(chip.read(C, far), IRQF | AF | UF, "midnight was one of the seconds");
    }

    #[test]
    fn setting_the_clock_skips_the_alarms_on_the_way() {
        let mut chip = Registers::new(NOW);
        for (index, value) in [(HOUR_ALARM, 0x13), (MINUTE_ALARM, 0x00), (SECOND_ALARM, 0x00)] {
            chip.write(index, value, NOW);
        }
        chip.write(HOUR, 0x14, NOW);
        assert_eq!(chip.read(C, NOW), 0);
        assert_eq!(chip.read(C, NOW + NANOS), UF);
    }

    #[test]
    fn the_guest_cannot_fake_an_update_in_progress() {
        let mut chip = Registers::new(NOW);
        chip.write(A, 0xff, NOW);
        assert_eq!(chip.read(A, NOW), 0x7f);
    }

    #[test]
    fn the_rest_is_memory() {
        let mut chip = Registers::new(NOW);
        for index in (0x0e..0x80).filter(|&index| index != CENTURY) {
            chip.write(index, !index, NOW);
        }
        for index in (0x0e..0x80).filter(|&index| index != CENTURY) {
            assert_eq!(chip.read(index, NOW), !index);
        }
    }
}
