//! Rate limits in two forms: AxVM's text, and the bodies of Firecracker's API.
//!
//! ```text
//!   "10M/s:1000ops/s"  <-->  {"bandwidth": {"size": 10485760, "refill_time": 1000}, "ops": {"size": 1000, ..}}
//! ```
//!
//! Source: Firecracker 1.17, `firecracker.yaml`, "RateLimiter", "TokenBucket".

use axvm_api::types::{RateLimiter, TokenBucket};
use axvm_virtio::limiter::{Bucket, RateLimit};

/// `rate` after an update: it names the buckets that change, and one without a size limits nothing from then on.
pub fn updated(rate: RateLimit, update: &RateLimiter) -> RateLimit {
    let bucket = |bucket: TokenBucket| Bucket {
        size: bucket.size,
        one_time_burst: bucket.one_time_burst.unwrap_or(0),
        refill_ms: bucket.refill_time,
    };
    RateLimit { bytes: update.bandwidth.map(bucket).or(rate.bytes), ops: update.ops.map(bucket).or(rate.ops) }
}

/// The update that sets this rate, whatever there was.
pub fn update(rate: RateLimit) -> RateLimiter {
    let bucket = |bucket: Option<Bucket>| {
        let Bucket { size, one_time_burst, refill_ms } = bucket.unwrap_or_default();
        let one_time_burst = (one_time_burst > 0).then_some(one_time_burst);
        Some(TokenBucket { size, one_time_burst, refill_time: refill_ms })
    };
    RateLimiter { bandwidth: bucket(rate.bytes), ops: bucket(rate.ops) }
}

/// What is said of a rate; nothing if there is none.
pub fn told(rate: RateLimit) -> Option<String> {
    (!rate.is_none()).then(|| rate.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> RateLimit {
        text.parse().unwrap()
    }

    fn after(before: &str, update: &str) -> Option<String> {
        told(updated(rate(before), &serde_json::from_str(update).unwrap()))
    }

    #[test]
    fn an_update_changes_the_buckets_that_it_names() {
        let both = "1M/s:100ops/s";
        assert_eq!(after(both, "{}").as_deref(), Some(both));
        assert_eq!(
            after(both, r#"{"bandwidth": {"size": 4096, "one_time_burst": 7, "refill_time": 50}}"#).as_deref(),
            Some("4K/50ms+7:100ops/s")
        );
        assert_eq!(after(both, r#"{"bandwidth": {"size": 0, "refill_time": 0}}"#).as_deref(), Some("100ops/s"));
        let none = r#"{"ops": {"size": 5, "refill_time": 0}, "bandwidth": {"size": 0, "refill_time": 9}}"#;
        assert_eq!(after(both, none), None);
    }

    #[test]
    fn a_rate_that_is_set_is_what_there_is_then() {
        for text in ["none", "10M/s", "5ops/10s+9", "1M/100ms+64M:1000ops/s"] {
            for before in ["none", "1K/s:1ops/s"] {
                assert_eq!(updated(rate(before), &update(rate(text))).to_string(), text);
            }
        }
    }
}
