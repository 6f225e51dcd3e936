//! The user's handle on a balloon, and the numbers that it shares with the device.
//!
//! ```text
//!   set_mib --> num_pages --config interrupt--> driver ... actual --> actual_pages
//!   set_statistics_interval --> the queue's worker --> latest report --> statistics
//! ```
//!
//! Spec: virtio 1.2, 5.5.4 "Device configuration layout".

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use thiserror::Error;

use super::reports::Reports;
use crate::notice::ConfigNotice;
use crate::signals::ConfigIrq;
use crate::state::{BalloonState, StateError};
use crate::statistics::StatisticsReport;

const PAGES_PER_MIB: u32 = 256;

/// A wish that a balloon cannot fulfil.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BalloonError {
    /// More than there is.
    #[error("Cannot ask the guest for {mib} MiB: it has {ram_mib} MiB. Choose a smaller balloon")]
    TooLarge {
        /// The wanted size.
        mib: u32,
        /// The guest's RAM.
        ram_mib: u64,
    },
}

/// The numbers in the configuration space, and the ways to reach the driver and the worker.
///
/// Each number stands alone, so its accesses are Relaxed: a driver that is told of a change sees it by the order of the
/// configuration generation, a worker that serves a later request by that of the ring.
#[derive(Default)]
pub(super) struct BalloonNumbers {
    /// The guest's RAM.
    ram_mib: AtomicU64,
    /// Pages that the user wants in the balloon.
    num_pages: AtomicU32,
    /// Pages that the driver says are in it.
    actual: AtomicU32,
    /// What free pages of the guest are filled with.
    poison: AtomicU32,
    notice: ConfigNotice,
    pub(super) reports: Arc<Reports>,
}

impl BalloonNumbers {
    pub(super) fn set_ram(&self, bytes: u64) {
        self.ram_mib.store(bytes >> 20, Ordering::Relaxed);
    }

    /// A new driver: what the last one said is forgotten.
    pub(super) fn forget(&self) {
        self.set_actual(0);
        self.set_poison(0);
        self.reports.forget();
    }

    /// All of it, for a device that is held still.
    pub(super) fn state(&self) -> BalloonState {
        let [target_pages, actual_pages, poison] =
            [&self.num_pages, &self.actual, &self.poison].map(|field| field.load(Ordering::Relaxed));
        let (missed, reports) = (self.notice.missed(), self.reports.state());
        BalloonState { target_pages, actual_pages, poison, missed, reports }
    }

    /// Takes such a state, into a device that no driver uses.
    pub(super) fn restore(&self, state: &BalloonState) -> Result<(), StateError> {
        let pages = self.ram_mib.load(Ordering::Relaxed) * u64::from(PAGES_PER_MIB);
        if u64::from(state.target_pages) > pages {
            return Err(StateError::Value { what: "balloon's target in pages", value: state.target_pages.into() });
        }
        self.num_pages.store(state.target_pages, Ordering::Relaxed);
        self.set_actual(state.actual_pages);
        self.set_poison(state.poison);
        self.notice.set_missed(state.missed);
        self.reports.restore(&state.reports);
        Ok(())
    }

    /// The whole configuration space.
    pub(super) fn config(&self) -> [[u8; 4]; 4] {
        let hint = AtomicU32::new(0);
        [&self.num_pages, &self.actual, &hint, &self.poison].map(|field| field.load(Ordering::Relaxed).to_le_bytes())
    }

    pub(super) fn set_actual(&self, pages: u32) {
        self.actual.store(pages, Ordering::Relaxed);
    }

    pub(super) fn poison(&self) -> u32 {
        self.poison.load(Ordering::Relaxed)
    }

    pub(super) fn set_poison(&self, value: u32) {
        self.poison.store(value, Ordering::Relaxed);
    }

    /// The driver is there, and is told of what it missed.
    pub(super) fn connect(&self, irq: ConfigIrq) {
        self.notice.connect(irq);
    }

    /// The driver is gone, or held still.
    pub(super) fn disconnect(&self) {
        self.notice.disconnect();
    }
}

/// The user's handle on a balloon, good for as long as there is a machine.
#[derive(Clone)]
pub struct Target(pub(super) Arc<BalloonNumbers>);

impl Target {
    /// Asks the guest to bring the balloon to `mib` MiB. It may take its time, or not do it.
    pub fn set_mib(&self, mib: u32) -> Result<(), BalloonError> {
        let ram_mib = self.0.ram_mib.load(Ordering::Relaxed);
        if u64::from(mib) > ram_mib {
            return Err(BalloonError::TooLarge { mib, ram_mib });
        }
        self.0.num_pages.store(mib.saturating_mul(PAGES_PER_MIB), Ordering::Relaxed);
        self.0.notice.changed();
        Ok(())
    }

    /// The wanted size.
    pub fn mib(&self) -> u32 {
        self.pages() / PAGES_PER_MIB
    }

    /// The wanted size in pages of 4 KiB.
    pub fn pages(&self) -> u32 {
        self.0.num_pages.load(Ordering::Relaxed)
    }

    /// The size that the guest claims, rounded down.
    pub fn actual_mib(&self) -> u32 {
        self.actual_pages() / PAGES_PER_MIB
    }

    /// The size that the guest claims, in pages of 4 KiB.
    pub fn actual_pages(&self) -> u32 {
        self.0.actual.load(Ordering::Relaxed)
    }

    /// Asks the guest for statistics every `interval`, at most a hundred times a second; never if it is zero. The
    /// next question is put when the last report is that old.
    pub fn set_statistics_interval(&self, interval: Duration) {
        self.0.reports.set_interval(interval);
    }

    /// The time between two reports; zero if the guest is not asked.
    pub fn statistics_interval(&self) -> Duration {
        self.0.reports.interval()
    }

    /// What the guest said last; `None` if it said nothing yet. A driver reports once by itself, when it starts.
    pub fn statistics(&self) -> Option<StatisticsReport> {
        self.0.reports.latest()
    }
}
