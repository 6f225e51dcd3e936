//! Looking at a ring for a moment before the worker sleeps: a driver that comes back soon needs no kick, and the worker
//! no wake-up.
//!
//! ```text
//!   ring empty --look again for `span`--> a chain: served        no exit of the vCPU, no system call
//!                                    '--> nothing: ask for a kick, sleep
//!
//!   after a sleep:   a short one --> span doubles, from 8 us up to 64 us
//!                    a long one  --> span is 0: a disk that is used now and then is not looked at
//!   64 us in vain    ------------->  span is 0, and the next 4 short sleeps do not count; then 8, 16, ... 1024
//! ```
//!
//! So an idle guest costs one span at most, and a driver that always takes somewhat longer (it sleeps until the
//! interrupt) a small part of one for each request; a look that finds something makes up for all that were in vain. A host
//! with one processor for us never looks: the driver could not come.
//!
//! Spec: virtio 1.2, 2.7.10 "Available Buffer Notification Suppression".

use std::hint::spin_loop;
use std::time::{Duration, Instant};

use super::WorkerStatus;
use crate::queue::VirtQueue;

/// The first span, and the longest.
const SPANS: (Duration, Duration) = (Duration::from_micros(8), Duration::from_micros(64));
/// A sleep after which looking would have paid: the longest span, and the way of a kick.
const SHORT_SLEEP: Duration = Duration::from_micros(128);
/// Looks between two looks at the clock.
const LOOKS: usize = 32;

/// Short sleeps that do not count, after the first look in vain and at most.
const PENALTIES: (u32, u32) = (4, 1024);

/// What a worker has learned about the driver of its queue.
#[derive(Default)]
pub(crate) struct Poller {
    is_possible: bool,
    span: Duration,
    slept_at: Option<Instant>,
    /// Short sleeps that do not count after the last look in vain.
    penalty: u32,
    /// Those of them that are still to come.
    discounted: u32,
}

impl Poller {
    pub(crate) fn new() -> Poller {
        let processors = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
        Poller { is_possible: processors > 1, ..Poller::default() }
    }

    /// The worker goes to sleep.
    pub(super) fn sleeps(&mut self) {
        self.slept_at = self.is_possible.then(Instant::now);
    }

    /// The worker has a turn.
    pub(crate) fn wakes(&mut self) {
        if let Some(at) = self.slept_at.take() {
            self.learn(at.elapsed());
        }
    }

    fn learn(&mut self, slept: Duration) {
        let longer = (self.span * 2).clamp(SPANS.0, SPANS.1);
        self.span = match slept <= SHORT_SLEEP {
            true if self.discounted > 0 => {
                self.discounted -= 1;
                Duration::ZERO
            }
            true => longer,
            false => Duration::ZERO,
        };
    }

    /// Looks whether the driver offers a chain, for as long as that is likely to pay.
    pub(super) fn finds(&mut self, queue: &VirtQueue, status: &WorkerStatus) -> bool {
        if self.span.is_zero() {
            return false;
        }
        let start = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if queue.is_offered() {
                    self.penalty = 0;
                    return true;
                }
                spin_loop();
            }
            if status.stop_asked() {
                return true;
            }
            if start.elapsed() >= self.span {
                self.failed();
                return false;
            }
        }
    }

    fn failed(&mut self) {
        if self.span == SPANS.1 {
            self.span = Duration::ZERO;
            self.penalty = (self.penalty * 2).clamp(PENALTIES.0, PENALTIES.1);
            self.discounted = self.penalty;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(slept: &[u64]) -> u128 {
        let mut poller = Poller::default();
        slept.iter().for_each(|&micros| poller.learn(Duration::from_micros(micros)));
        poller.span.as_micros()
    }

    #[test]
    fn only_short_sleeps_are_worth_a_look() {
        assert_eq!([&[][..], &[20], &[20; 2], &[20; 3], &[20; 4], &[20; 9]].map(after), [0, 8, 16, 32, 64, 64]);
        assert_eq!([&[20, 20, 1000][..], &[1000, 20]].map(after), [0, 8]);
    }

    #[test]
    fn the_longest_span_in_vain_is_the_last() {
        let mut poller = Poller { span: SPANS.0, ..Poller::default() };
        poller.failed();
        assert_eq!(poller.span, SPANS.0);
        poller.span = SPANS.1;
        poller.failed();
        assert!(poller.span.is_zero());
    }

    /// A driver that sleeps until the interrupt is back after 100 us each time: a look never pays.
    #[test]
    fn a_driver_that_always_takes_too_long_is_looked_at_ever_more_rarely() {
        let mut poller = Poller::default();
        let looks_of = |poller: &mut Poller, requests| {
            let look = |_| {
                poller.learn(Duration::from_micros(100));
                let span = poller.span;
                poller.failed();
                span.as_micros()
            };
            (0..requests).map(look).sum::<u128>() / requests
        };
        assert!(looks_of(&mut poller, 100) < 10, "us for each of the first requests");
        looks_of(&mut poller, 3000);
        assert_eq!(looks_of(&mut poller, 3000), 0, "us for each later one");
        poller.penalty = 0;
        poller.discounted = 0;
        assert!((0..4).any(|_| looks_of(&mut poller, 1) == 64), "and again when looks have paid");
    }
}
