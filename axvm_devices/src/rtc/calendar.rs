//! Seconds since 1970 and the civil date they stand for.
//!
//! ```text
//!  shifted year: | Mar | Apr | ... | Jan | Feb(29) |    the leap day comes last, so the
//!  400 years = 146097 days; then it all repeats         days before a month never depend on it
//! ```
//!
//! Spec: ISO 8601:2004, 3.2.1 "The Gregorian calendar". Left out: leap seconds, years before 1.

/// A point in time, to the second, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: u32,
    /// 1 to 12.
    pub(super) month: u32,
    /// 1 to 31.
    pub(super) day: u32,
    pub(super) hour: u32,
    pub(super) minute: u32,
    pub(super) second: u32,
}

const DAY: i64 = 86_400;
/// Days in a year without a leap day.
const YEAR: i64 = 365;
/// Days in 4 years of which the last is no leap year: one day short of 4 years with their leap day, so that dividing by it
/// counts a leap day on that day.
const FOUR_YEARS: i64 = 4 * YEAR;
/// Days in 100 years, the last of which is no leap year.
const CENTURY: i64 = 25 * (FOUR_YEARS + 1) - 1;
/// Days in 400 years, the last of which is a leap year after all.
const ERA: i64 = 4 * CENTURY + 1;
/// Days in March to July, and in August to December: the lengths 31 30 31 30 31 repeat. So month n starts on day
/// (153 n + 2) / 5, rounded down, where the 2 puts the long months first.
const FIVE_MONTHS: i64 = 31 + 30 + 31 + 30 + 31;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: i64 = 719_468;

impl Date {
    /// The date `seconds` after 1970-01-01 00:00:00.
    pub(super) fn from_seconds(seconds: i64) -> Date {
        let days = seconds.div_euclid(DAY) + EPOCH;
        let clock = seconds.rem_euclid(DAY) as u32;
        let (era, day_of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
        // Take the leap days out, and what is left are years of 365 days.
        let leap_days = day_of_era / FOUR_YEARS - day_of_era / CENTURY + day_of_era / (ERA - 1);
        let year_of_era = (day_of_era - leap_days) / YEAR;
        let day_of_year = day_of_era - days_before_year(year_of_era);
        let month = (5 * day_of_year + 2) / FIVE_MONTHS; // 0 is March
        Date {
            year: (era * 400 + year_of_era + i64::from(month >= 10)) as u32,
            month: ((month + 2) % 12 + 1) as u32,
            day: (day_of_year - days_before_month(month) + 1) as u32,
            hour: clock / 3600,
            minute: clock / 60 % 60,
            second: clock % 60,
        }
    }

    /// Seconds since 1970, or `None` if there is no such date.
    pub(super) fn to_seconds(self) -> Option<i64> {
        // March is 0; January and February belong to the year before.
        let month = (i64::from(self.month) + 9) % 12;
        let year = i64::from(self.year) - i64::from(month >= 10);
        let day_of_year = days_before_month(month) + i64::from(self.day) - 1;
        let day_of_era = days_before_year(year.rem_euclid(400)) + day_of_year;
        let days = year.div_euclid(400) * ERA + day_of_era - EPOCH;
        let clock = self.hour * 3600 + self.minute * 60 + self.second;
        let seconds = days * DAY + i64::from(clock);
        // A field that is out of range comes back as another date.
        (Date::from_seconds(seconds) == self).then_some(seconds)
    }
}

/// Day of the week, 1 is Sunday.
pub(super) fn weekday(seconds: i64) -> u32 {
    // 1970-01-01 was a Thursday.
    ((seconds.div_euclid(DAY) + 4).rem_euclid(7) + 1) as u32
}

/// Days from the start of the era to the start of its (shifted) year `year`.
fn days_before_year(year: i64) -> i64 {
    YEAR * year + year / 4 - year / 100
}

/// Days from 1 March to the start of `month`, counted from March as 0.
fn days_before_month(month: i64) -> i64 {
    (FIVE_MONTHS * month + 2) / 5
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(year: u32, month: u32, day: u32) -> Date {
        Date { year, month, day, hour: 0, minute: 0, second: 0 }
    }

    #[test]
    fn known_dates() {
        for (seconds, expected) in [
            (0, date(1970, 1, 1)),
            (951_782_400, date(2000, 2, 29)),
            (1_709_164_800, date(2024, 2, 29)),
            (4_107_542_400, date(2100, 3, 1)),
            (-DAY, date(1969, 12, 31)),
        ] {
            assert_eq!(Date::from_seconds(seconds), expected);
            assert_eq!(expected.to_seconds(), Some(seconds));
        }
        let last = Date { hour: 23, minute: 59, second: 59, ..date(2037, 12, 31) };
        assert_eq!(last.to_seconds(), Some(2_145_916_799));
    }

    #[test]
    fn four_centuries_day_by_day() {
        let lengths = |year: u32| {
            let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
            [31, 28 + u32::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
        };
        let mut seconds = 0;
        for year in 1970..2371 {
            for (month, len) in (1..).zip(lengths(year)) {
                for day in 1..=len {
                    assert_eq!(Date::from_seconds(seconds), date(year, month, day));
                    assert_eq!(date(year, month, day).to_seconds(), Some(seconds));
                    seconds += DAY;
                }
            }
        }
    }

    #[test]
    fn dates_that_do_not_exist_are_refused() {
        for wrong in [date(2023, 2, 29), date(2024, 0, 1), date(2024, 13, 1), date(2024, 1, 0), date(2024, 4, 31)] {
            assert_eq!(wrong.to_seconds(), None, "{wrong:?}");
        }
        assert_eq!(Date { hour: 24, ..date(2024, 1, 1) }.to_seconds(), None);
        assert_eq!(Date { second: 60, ..date(2024, 1, 1) }.to_seconds(), None);
    }

    #[test]
    fn weekdays() {
        assert_eq!(weekday(0), 5); // Thursday
        assert_eq!(weekday(951_782_400), 3); // 2000-02-29, Tuesday
        assert_eq!(weekday(-DAY), 4);
    }
}
