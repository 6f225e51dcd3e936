//! The check of what a driver does with status, features and queues: see [`crate::check`].
//!
//! ```text
//!   register decoder --> TransportCore: a look before the act --> rule
//! ```
//!
//! Each look returns at once where rules are not checked.
//!
//! Spec: virtio 1.2, 2.1.1, 2.2.1, 3.1.1 "Driver Requirements: Device Initialization".

use crate::check::rules;
use crate::device::{DeviceId, StartError, feature};
use crate::queue::rule_of;
use crate::signals::Line;
use crate::status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};

use super::TransportCore;

/// What the check keeps of a driver.
#[derive(Default)]
pub(super) struct DriverCheck {
    /// FEATURES_OK was written, and the status not read since.
    unread: bool,
    /// The device was reset, and the status not read since.
    reset_unread: bool,
    /// Queues were disabled or reset one by one: they may come back.
    reset_queues: bool,
}

/// The balloon's queue for statistics.
const STATISTICS: usize = 2;

/// The steps in their order.
const ORDER: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

impl TransportCore {
    /// The driver reads the status.
    pub(crate) fn read_status(&mut self) -> u32 {
        (self.check.unread, self.check.reset_unread) = (false, false);
        self.status()
    }

    /// The driver writes `value` to the status, which is `self.status()` yet.
    pub(super) fn check_status(&mut self, value: u32) {
        if !self.signals.events().checks_rules() {
            return;
        }
        let is_early = std::mem::take(&mut self.check.reset_unread) && matches!(self.signals.line(), Line::Msix(_));
        let (before, signals) = (self.status(), &self.signals);
        let seen = || format!("status {before:#x}, {value:#x} was written");
        if is_early {
            signals.broke(&rules::PCI_RESET_UNREAD, seen);
        }
        let kept = before & !(DEVICE_NEEDS_RESET | FAILED);
        if kept & !value != 0 {
            signals.broke(&rules::STATUS_CLEARED, seen);
        }
        let new = value & !before;
        // The device takes each step for which all before it are there: what it would not take is out of order.
        let missing = |at: usize| ORDER[..at].iter().any(|step| (before | value) & step == 0);
        if value & FAILED == 0 && (0..ORDER.len()).any(|at| new & ORDER[at] != 0 && missing(at)) {
            signals.broke(&rules::STATUS_ORDER, seen);
        }
        let refused = before & FEATURES_OK == 0 && new & DRIVER_OK != 0 && value & FEATURES_OK != 0;
        if new & DRIVER_OK != 0 && (self.check.unread || refused) {
            signals.broke(&rules::FEATURES_UNREAD, seen);
        }
        if new & FEATURES_OK != 0 {
            let (accepted, offered) = (self.status.accepted(), self.status.all_offered());
            if accepted & !offered != 0 {
                signals.broke(&rules::FEATURES_NOT_OFFERED, || format!("{:#x} of {accepted:#x}", accepted & !offered));
            }
            if accepted & feature::VERSION_1 == 0 {
                signals.broke(&rules::VERSION_1, || format!("the driver accepts {accepted:#x}"));
            }
        }
        if new & DRIVER_OK != 0 {
            self.check_kicks();
        }
        self.check.unread |= new & FEATURES_OK != 0;
    }

    /// DRIVER_OK is being written: were there kicks before?
    fn check_kicks(&self) {
        // Linux's balloon driver primes the statistics queue so.
        let primed = |queue| self.device.id() == DeviceId::Balloon && queue == STATISTICS;
        for (queue, kick) in self.kicks.iter().enumerate() {
            if kick.is_signalled() && !primed(queue) {
                self.signals.broke(&rules::KICK_EARLY, || format!("queue {queue} was kicked before DRIVER_OK"));
            }
        }
    }

    /// The device was reset: what the old driver did is no fault of the next one's.
    pub(super) fn check_anew(&mut self) {
        self.check = DriverCheck { reset_unread: true, ..DriverCheck::default() };
        if self.signals.events().checks_rules() {
            // No worker is there that waits for them.
            self.kicks.iter().filter(|kick| kick.is_signalled()).for_each(|kick| _ = kick.take());
        }
    }

    /// The driver writes half `select` of its features.
    pub(super) fn check_features(&self, select: u32, value: u32) {
        if self.status.has_agreed() {
            self.signals.broke(&rules::FEATURES_LATE, || format!("half {select} was written with {value:#x}"));
        }
    }

    /// The driver writes the configuration space.
    pub(super) fn check_config_write(&self, offset: u64, len: usize) {
        if !self.status.has_agreed() {
            let seen = || format!("{len} bytes at {offset:#x}, with status {:#x}", self.status());
            self.signals.broke(&rules::CONFIG_WRITE_EARLY, seen);
        }
    }

    /// The driver writes size or address of a queue.
    pub(super) fn check_claim(&self, queue: u32, what: &str) {
        let rule = match self.claim(queue) {
            None => &rules::QUEUE_MISSING,
            Some(claim) if claim.ready => &rules::QUEUE_LIVE,
            Some(_) => return,
        };
        self.signals.broke(rule, || format!("the {what} of queue {queue} was written"));
    }

    /// The driver chooses a size.
    pub(super) fn check_size(&self, queue: u32, size: u32) {
        self.check_claim(queue, "size");
        let max = self.queue_max(queue);
        if matches!(self.signals.line(), Line::Edge(_)) && max != 0 && size > max {
            self.signals.broke(&rules::MMIO_QUEUE_NUM, || format!("queue {queue} is to have {size} entries of {max}"));
        }
    }

    /// The driver enables or disables a queue.
    pub(super) fn check_ready(&mut self, queue: u32, ready: bool) {
        if !self.signals.events().checks_rules() {
            return;
        }
        if self.claim(queue).is_none() {
            let seen = || format!("queue {queue} was {}", if ready { "enabled" } else { "disabled" });
            return self.signals.broke(&rules::QUEUE_MISSING, seen);
        }
        if !ready {
            self.check.reset_queues = true;
        } else if self.status.is_live() && !self.check.reset_queues && !self.queue_ready(queue) {
            self.signals.broke(&rules::QUEUE_LATE, || format!("queue {queue} was enabled after DRIVER_OK"));
        }
    }

    /// A claim turned out to be no queue.
    pub(super) fn check_start(&self, error: &StartError) {
        let (index, rule, seen) = match error {
            StartError::Queue { index, source } => (index, rule_of(source), source.to_string()),
            StartError::QueueSize { .. } | StartError::Host { .. } => return,
        };
        rule.into_iter().for_each(|rule| self.signals.broke(rule, || format!("queue {index}: {seen}")));
    }
}
