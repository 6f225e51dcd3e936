//! The balloon's state as a value.
//!
//! ```text
//!   BalloonState   target, actual, poison: the configuration space; a change that the driver was not told of
//!    '- ReportsState   the interval, the last report, whether the buffer in the ring was read already
//! ```
//!
//! Spec: virtio 1.2, 5.5.4 "Device configuration layout".

use serde::{Deserialize, Serialize};

use super::statistics::Statistics;

/// What a balloon must know beside its rings to go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonState {
    /// Pages of 4 KiB that the user wants in the balloon (`num_pages`).
    pub target_pages: u32,
    /// Pages of 4 KiB that the driver says are in it (`actual`).
    pub actual_pages: u32,
    /// What free pages of the guest are filled with (`poison_val`).
    pub poison: u32,
    /// The target changed when there was no driver to tell.
    pub missed: bool,
    /// Statistics.
    pub reports: ReportsState,
}

/// What is known of the guest's statistics, and when the next are due. Times are milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportsState {
    /// Time between two reports; 0: the guest is not asked.
    pub interval_ms: u64,
    /// The last report.
    pub latest: Option<Statistics>,
    /// Its age.
    pub latest_age_ms: Option<u64>,
    /// Age of the buffer in the ring, if it was read already; `None`: what it says is news.
    pub known_age_ms: Option<u64>,
}
