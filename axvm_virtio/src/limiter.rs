//! Rate limiters: token buckets for bytes and for operations.
//!
//! ```text
//!   "10M/s"           bytes: at most 10 MiB at once, and 10 MiB a second
//!   "1M/100ms+64M"    the same rate in smaller bursts, and 64 MiB more once, at the start
//!   "1000ops/s"       operations: requests of a disk, frames of a card
//!   "10M/s:1000ops/s" both; "100Mbit/s" is what networks say: 12500000 bytes
//!
//!   refill: size tokens in each refill time ---> | bucket: up to size tokens | --take--> request passes
//!                          one-time burst  ---> first of all                      '---> or is told how long to wait
//! ```
//!
//! A request that is larger than the bucket passes when it is full, and leaves a debt; so the rate holds, and nothing
//! waits for ever. Who must wait sleeps until then (a worker's timeout), at least a millisecond: what comes in meanwhile
//! is kept by the bucket. Without a limit, a request costs one load.
//!
//! Source: the bodies of Firecracker's API, "RateLimiter", "TokenBucket".

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axvm_sync::lock;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::state::{BucketState, LimiterState, StateError};

/// Shortest sleep of a queue that has no token left.
const LEAST_WAIT: Duration = Duration::from_millis(1);
/// Longest refill time, some 35 years; so that products fit into 128 bits.
const LONGEST_REFILL_MS: u64 = 1 << 40;
/// Most tokens that one operation costs.
const LARGEST_DEBT: i64 = 1 << 30;
const NANOSECONDS: i128 = 1_000_000;

/// A bucket of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Most tokens that it holds; and so many come in each refill time.
    pub size: u64,
    /// More tokens, once, which are used first.
    pub one_time_burst: u64,
    /// Milliseconds in which it fills.
    pub refill_ms: u64,
}

impl Bucket {
    /// Whether it limits something: one without a size or a refill time does not.
    pub fn limits(&self) -> bool {
        self.size > 0 && self.refill_ms > 0
    }
}

/// What may pass in a time; nothing is limited without a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
#[schemars(with = "String")]
pub struct RateLimit {
    /// Tokens are bytes.
    pub bytes: Option<Bucket>,
    /// Tokens are operations.
    pub ops: Option<Bucket>,
}

impl RateLimit {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        !self.bytes.is_some_and(|bucket| bucket.limits()) && !self.ops.is_some_and(|bucket| bucket.limits())
    }
}

/// A text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RateError {
    /// It has another form.
    #[error(
        "{0:?} is no rate; write bytes or operations in a time, such as 10M/s, 100Mbit/s, 1000ops/s, 10M/s:1000ops/s or \
         1M/100ms+64M (64 MiB more at the start), or none"
    )]
    Form(String),
    /// One of the two is said twice.
    #[error("{0:?} limits bytes or operations twice; leave one out")]
    Twice(String),
    /// Nothing would ever pass.
    #[error("{0:?} lets nothing pass; write none for no limit")]
    Nothing(String),
}

/// The units of bytes, and the power of two of each.
const UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];

/// Whole numbers with a unit of 1024.
fn bytes(text: &str) -> Option<u64> {
    let upper = text.to_ascii_uppercase();
    let unit = UNITS.iter().find_map(|(unit, shift)| Some((upper.strip_suffix(unit)?, *shift)));
    let (number, shift) = unit.unwrap_or((&upper, 0));
    digits(number)?.checked_mul(1 << shift)
}

/// Whole numbers with a unit of 1000.
fn thousands(text: &str) -> Option<u64> {
    let upper = text.to_ascii_uppercase();
    let units = [("G", 1_000_000_000), ("M", 1_000_000), ("K", 1000)];
    let unit = units.iter().find_map(|(unit, factor)| Some((upper.strip_suffix(unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((&upper, 1));
    digits(number)?.checked_mul(factor)
}

/// Not the sign that the standard library takes.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Milliseconds.
fn time(text: &str) -> Option<u64> {
    let (number, factor) =
        text.strip_suffix("ms").map(|number| (number, 1)).or(text.strip_suffix('s').map(|n| (n, 1000)))?;
    if number.is_empty() { Some(factor) } else { digits(number)?.checked_mul(factor) }
}

/// One part, and whether it is about operations.
fn bucket(text: &str) -> Option<(Bucket, bool)> {
    let (amount, time_and_burst) = text.split_once('/')?;
    let (refill, burst) =
        time_and_burst.split_once('+').map_or((time_and_burst, None), |(time, burst)| (time, Some(burst)));
    let of_ops = amount.strip_suffix("ops");
    let size = match (of_ops, amount.strip_suffix("bit")) {
        (Some(number), _) => thousands(number)?,
        (_, Some(number)) => thousands(number)? / 8,
        _ => bytes(amount)?,
    };
    let number: fn(&str) -> Option<u64> = if of_ops.is_some() { thousands } else { bytes };
    let one_time_burst = burst.map_or(Some(0), |burst| number(burst.strip_suffix("ops").unwrap_or(burst)))?;
    Some((Bucket { size, one_time_burst, refill_ms: time(refill)? }, of_ops.is_some()))
}

impl FromStr for RateLimit {
    type Err = RateError;

    fn from_str(text: &str) -> Result<RateLimit, RateError> {
        let mut limit = RateLimit::default();
        if text == "none" {
            return Ok(limit);
        }
        for part in text.split(':') {
            let (bucket, of_ops) = bucket(part).ok_or_else(|| RateError::Form(text.to_owned()))?;
            if !bucket.limits() {
                return Err(RateError::Nothing(text.to_owned()));
            }
            let place = if of_ops { &mut limit.ops } else { &mut limit.bytes };
            if place.replace(bucket).is_some() {
                return Err(RateError::Twice(text.to_owned()));
            }
        }
        Ok(limit)
    }
}

impl TryFrom<String> for RateLimit {
    type Error = RateError;

    fn try_from(text: String) -> Result<RateLimit, RateError> {
        text.parse()
    }
}

impl From<RateLimit> for String {
    fn from(limit: RateLimit) -> String {
        limit.to_string()
    }
}

/// As it can be read again.
impl fmt::Display for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes.filter(Bucket::limits).map(|bucket| (bucket, ""));
        let ops = self.ops.filter(Bucket::limits).map(|bucket| (bucket, "ops"));
        let mut between = "";
        for (bucket, unit) in bytes.into_iter().chain(ops) {
            let number =
                |tokens: u64| match UNITS.iter().find(|(_, shift)| tokens > 0 && tokens.is_multiple_of(1 << shift)) {
                    Some((name, shift)) if unit.is_empty() => format!("{}{name}", tokens >> shift),
                    _ => tokens.to_string(),
                };
            let time = match bucket.refill_ms {
                1000 => "s".to_owned(),
                ms if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
                ms => format!("{ms}ms"),
            };
            write!(f, "{between}{}{unit}/{time}", number(bucket.size))?;
            if bucket.one_time_burst > 0 {
                write!(f, "+{}", number(bucket.one_time_burst))?;
            }
            between = ":";
        }
        if between.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// A limit at work, of one or more queues. The caller that changes it wakes those that may wait.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    limited: AtomicBool,
    levels: Mutex<Levels>,
}

impl Limiter {
    /// With full buckets.
    pub(crate) fn new(limit: RateLimit) -> Limiter {
        let limiter = Limiter::default();
        limiter.set(limit);
        limiter
    }

    pub(crate) fn limit(&self) -> RateLimit {
        let levels = lock(&self.levels);
        let [bytes, ops] = [&levels.bytes, &levels.ops].map(|level| level.map(|level| level.bucket));
        RateLimit { bytes, ops }
    }

    /// From now on, with full buckets. A bucket that does not limit is none.
    pub(crate) fn set(&self, limit: RateLimit) {
        let now = Instant::now();
        let level = |bucket: Option<Bucket>| bucket.filter(Bucket::limits).map(|bucket| Level::full(bucket, now));
        self.replace(Levels { bytes: level(limit.bytes), ops: level(limit.ops) });
    }

    /// Has an operation of so many bytes pass, or says how long it must wait.
    #[inline]
    pub(crate) fn take(&self, bytes: u64) -> Result<(), Duration> {
        // Relaxed: a change is seen at some later request, or after a wake.
        if !self.limited.load(Ordering::Relaxed) {
            return Ok(());
        }
        debug_assert!(bytes <= LARGEST_DEBT as u64, "one operation");
        lock(&self.levels).take(bytes, Instant::now()).map_err(|wait| wait.max(LEAST_WAIT))
    }

    /// The operation that passed last did not happen.
    pub(crate) fn give_back(&self, bytes: u64) {
        if self.limited.load(Ordering::Relaxed) {
            lock(&self.levels).give_back(bytes);
        }
    }

    /// The device comes to rest: what the time has brought so far is reckoned.
    pub(crate) fn rest(&self) {
        let (mut levels, now) = (lock(&self.levels), Instant::now());
        let Levels { bytes, ops } = &mut *levels;
        [bytes, ops].into_iter().flatten().for_each(|level| level.refresh(now));
    }

    /// As it was when the device came to rest.
    pub(crate) fn state(&self) -> LimiterState {
        let levels = lock(&self.levels);
        let [bytes, ops] = [levels.bytes, levels.ops].map(|level| level.map(Level::state));
        LimiterState { bytes, ops }
    }

    /// Goes on from a saved state. An error changes nothing.
    pub(crate) fn restore(&self, state: &LimiterState) -> Result<(), StateError> {
        let now = Instant::now();
        let level = |state: Option<BucketState>| state.map(|state| Level::restored(state, now)).transpose();
        self.replace(Levels { bytes: level(state.bytes)?, ops: level(state.ops)? });
        Ok(())
    }

    fn replace(&self, levels: Levels) {
        let mut place = lock(&self.levels);
        self.limited.store(levels.bytes.is_some() || levels.ops.is_some(), Ordering::Relaxed);
        *place = levels;
    }
}

/// Whether a saved state is one.
pub(crate) fn check(state: &LimiterState) -> Result<(), StateError> {
    Limiter::default().restore(state)
}

#[derive(Debug, Default)]
struct Levels {
    bytes: Option<Level>,
    ops: Option<Level>,
}

impl Levels {
    /// From both buckets, or from none.
    fn take(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let costs = [(&mut self.bytes, bytes), (&mut self.ops, 1)];
        let mut levels = costs.map(|(level, cost)| level.as_mut().map(|level| (level, cost)));
        let waits = levels.iter_mut().flatten().filter_map(|(level, cost)| level.wait(*cost, now));
        if let Some(longest) = waits.max() {
            return Err(longest);
        }
        levels.into_iter().flatten().for_each(|(level, cost)| level.take(cost));
        Ok(())
    }

    fn give_back(&mut self, bytes: u64) {
        for (level, cost) in [(&mut self.bytes, bytes), (&mut self.ops, 1)] {
            if let Some(level) = level {
                level.tokens = level.tokens.saturating_add(level.scaled(cost));
            }
        }
    }
}

/// A bucket at work.
#[derive(Clone, Copy, Debug)]
struct Level {
    bucket: Bucket,
    /// What is left of the burst.
    burst: u64,
    /// Tokens times nanoseconds of the refill time: so a nanosecond brings `size` of these. Below zero: a debt.
    tokens: i128,
    /// When it was reckoned last.
    at: Instant,
}

impl Level {
    fn full(bucket: Bucket, now: Instant) -> Level {
        let bucket = Bucket { refill_ms: bucket.refill_ms.min(LONGEST_REFILL_MS), ..bucket };
        let level = Level { bucket, burst: bucket.one_time_burst, tokens: 0, at: now };
        Level { tokens: level.scaled(bucket.size), ..level }
    }

    fn restored(state: BucketState, now: Instant) -> Result<Level, StateError> {
        let BucketState { size, refill_ms, one_time_burst, burst, tokens } = state;
        let bucket = Bucket { size, one_time_burst, refill_ms };
        let value = |what, value| Err(StateError::Value { what, value });
        if !bucket.limits() || bucket.refill_ms > LONGEST_REFILL_MS {
            return value("refill time of a rate limit", bucket.refill_ms);
        }
        let possible = -LARGEST_DEBT <= tokens && i128::from(tokens) <= i128::from(bucket.size);
        if burst > bucket.one_time_burst || !possible {
            return value("number of tokens of a rate limit", burst.max(tokens.unsigned_abs()));
        }
        let level = Level::full(bucket, now);
        Ok(Level { burst, tokens: i128::from(tokens) * level.refill(), ..level })
    }

    fn state(self) -> BucketState {
        let tokens = self.tokens.div_euclid(self.refill()).clamp(i64::MIN.into(), i64::MAX.into());
        let Bucket { size, one_time_burst, refill_ms } = self.bucket;
        BucketState { size, refill_ms, one_time_burst, burst: self.burst, tokens: tokens as i64 }
    }

    /// The refill time in nanoseconds: under 2^60.
    fn refill(&self) -> i128 {
        i128::from(self.bucket.refill_ms) * NANOSECONDS
    }

    /// Under 2^124.
    fn scaled(&self, tokens: u64) -> i128 {
        i128::from(tokens) * self.refill()
    }

    fn refresh(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_nanos().min(self.refill() as u128) as i128;
        // A debt may be older than one refill time.
        let come = if self.tokens < 0 {
            now.saturating_duration_since(self.at).as_nanos().min(1 << 62) as i128
        } else {
            passed
        };
        let full = self.scaled(self.bucket.size);
        self.tokens = self.tokens.saturating_add(come.saturating_mul(self.bucket.size.into())).min(full);
        self.at = now;
    }

    /// How long until so many tokens can be taken; `None`: now.
    fn wait(&mut self, cost: u64, now: Instant) -> Option<Duration> {
        self.refresh(now);
        let needed = self.scaled(cost.saturating_sub(self.burst).min(self.bucket.size));
        let missing = needed - self.tokens;
        let size = i128::from(self.bucket.size);
        let nanoseconds = (missing + size - 1) / size;
        (missing > 0).then(|| Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }

    fn take(&mut self, cost: u64) {
        let from_burst = cost.min(self.burst);
        self.burst -= from_burst;
        self.tokens = self.tokens.saturating_sub(self.scaled(cost - from_burst));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(text: &str) -> RateLimit {
        text.parse().unwrap()
    }

    /// Levels of a limit, full at `now`.
    fn levels(text: &str, now: Instant) -> Levels {
        let RateLimit { bytes, ops } = limit(text);
        Levels { bytes: bytes.map(|bucket| Level::full(bucket, now)), ops: ops.map(|bucket| Level::full(bucket, now)) }
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_rate_is_a_word() {
        let bucket = |size, one_time_burst, refill_ms| Some(Bucket { size, one_time_burst, refill_ms });
        for (text, bytes, ops, shown) in [
            ("10M/s", bucket(10 << 20, 0, 1000), None, "10M/s"),
            ("1m/100ms+64M", bucket(1 << 20, 64 << 20, 100), None, "1M/100ms+64M"),
            ("1000/2s", bucket(1000, 0, 2000), None, "1000/2s"),
            ("100Mbit/s", bucket(12_500_000, 0, 1000), None, "12500000/s"),
            ("1000ops/s", None, bucket(1000, 0, 1000), "1000ops/s"),
            ("2Kops/s+5Kops", None, bucket(2000, 5000, 1000), "2000ops/s+5000"),
            ("5ops/ms:1K/ms", bucket(1024, 0, 1), bucket(5, 0, 1), "1K/1ms:5ops/1ms"),
            ("none", None, None, "none"),
        ] {
            let limit = limit(text);
            assert_eq!((limit.bytes, limit.ops, limit.to_string()), (bytes, ops, shown.to_owned()), "{text}");
            assert_eq!(shown.parse(), Ok(limit));
            assert_eq!(serde_json::to_value(limit).unwrap(), shown);
            assert_eq!(serde_json::from_value::<RateLimit>(text.into()).unwrap(), limit);
        }
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in [
            "",
            "10M",
            "10M/",
            "/s",
            "10M/h",
            "x/s",
            "-1/s",
            "+1/s",
            "1.5M/s",
            "10M/s+",
            "10M/s+x",
            "1/s:",
            "16777216T/s",
        ] {
            assert_eq!(text.parse::<RateLimit>(), Err(RateError::Form(text.into())), "{text}");
        }
        assert_eq!("1/s:2/s".parse::<RateLimit>(), Err(RateError::Twice("1/s:2/s".into())));
        for text in ["0/s", "5M/0s", "0ops/s", "4bit/s"] {
            assert_eq!(text.parse::<RateLimit>(), Err(RateError::Nothing(text.into())));
        }
        // Accepted where numbers are given: they limit nothing.
        let nothing = Some(Bucket { size: 0, one_time_burst: 5, refill_ms: 100 });
        let limiter = Limiter::new(RateLimit { bytes: nothing, ops: nothing });
        assert!(limiter.limit() == RateLimit::default() && limiter.take(1 << 30).is_ok());
    }

    #[test]
    fn tokens_come_back_in_time_and_no_more_than_fit() {
        let start = Instant::now();
        let mut levels = levels("1000/s", start);
        assert_eq!(levels.take(1000, start), Ok(()));
        assert_eq!(levels.take(1, start), Err(MS));
        assert_eq!(levels.take(300, start + 100 * MS), Err(200 * MS));
        assert_eq!(levels.take(300, start + 300 * MS), Ok(()));
        let later = start + 3600 * 1000 * MS;
        assert_eq!(levels.take(1000, later), Ok(()), "full");
        assert_eq!(levels.take(1, later), Err(MS), "not more than full");
        levels.give_back(1);
        assert_eq!(levels.take(1, later), Ok(()));
    }

    #[test]
    fn a_large_request_passes_a_full_bucket_and_leaves_a_debt() {
        let start = Instant::now();
        let mut levels = levels("100/100ms", start);
        assert_eq!(levels.take(1100, start), Ok(()));
        assert_eq!(levels.take(1, start), Err(1001 * MS));
        assert_eq!(levels.take(1100, start + 1000 * MS), Err(100 * MS));
        assert_eq!(levels.take(1100, start + 1100 * MS), Ok(()));
    }

    #[test]
    fn a_burst_is_used_first_and_once() {
        let start = Instant::now();
        let mut levels = levels("10/s+50", start);
        assert_eq!(levels.take(50, start), Ok(()));
        assert_eq!(levels.take(10, start), Ok(()));
        assert_eq!(levels.take(10, start), Err(1000 * MS));
        assert_eq!(levels.take(10, start + 1000 * MS), Ok(()));
        assert_eq!(levels.take(10, start + 1999 * MS), Err(MS));
    }

    #[test]
    fn both_limits_hold_and_what_one_refuses_costs_the_other_nothing() {
        let start = Instant::now();
        let mut levels = levels("1000/s:2ops/s", start);
        assert_eq!((levels.take(100, start), levels.take(100, start)), (Ok(()), Ok(())));
        assert_eq!(levels.take(100, start), Err(500 * MS));
        assert_eq!(levels.take(1000, start + 500 * MS), Ok(()), "full again");
        assert_eq!(levels.take(500, start + 1000 * MS), Ok(()));
    }

    #[test]
    fn the_largest_numbers_there_are_overflow_nothing() {
        let start = Instant::now();
        let huge = Bucket { size: u64::MAX, one_time_burst: u64::MAX, refill_ms: u64::MAX };
        let mut level = Level::full(huge, start);
        for step in 0..4 {
            let now = start + Duration::from_secs(step << 32);
            while level.wait(u64::MAX, now).is_none() {
                level.take(u64::MAX);
            }
        }
        assert!(level.wait(u64::MAX, start).is_some());
        let one = Bucket { size: 1, one_time_burst: 0, refill_ms: u64::MAX };
        let mut level = Level::full(one, start);
        level.take(u64::MAX);
        assert_eq!(level.wait(1, start), Some(Duration::from_nanos(u64::MAX)));
        level.refresh(start + Duration::from_secs(1 << 40));
        level.state();
    }

    #[test]
    fn a_saved_level_goes_on_and_a_damaged_one_is_refused() {
        let limiter = Limiter::new(limit("1000/h".replace('h', "3600s").as_str()));
        limiter.take(1500).unwrap();
        let state = limiter.state();
        assert_eq!(state.bytes.unwrap().tokens, -500);
        let other = Limiter::default();
        other.restore(&state).unwrap();
        assert!(other.limit() == limiter.limit() && other.take(1).is_err());
        let bucket = state.bytes.unwrap();
        for damaged in [
            BucketState { tokens: 1001, ..bucket },
            BucketState { tokens: -(1 << 30) - 1, ..bucket },
            BucketState { burst: 1, ..bucket },
            BucketState { size: 0, ..bucket },
            BucketState { refill_ms: 0, ..bucket },
            BucketState { refill_ms: u64::MAX, ..bucket },
        ] {
            let state = LimiterState { ops: Some(damaged), ..LimiterState::default() };
            assert!(other.restore(&state).is_err(), "{damaged:?}");
            assert_eq!(other.limit(), limiter.limit(), "nothing has changed");
        }
    }
}
