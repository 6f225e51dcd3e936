//! Whether a guest has halted for good: each vCPU is in HLT with interrupts off, or was never started.
//!
//! ```text
//!   exits come ----> nothing to do           silence: no vCPU came back from the guest
//!   2 s of silence ----> look --awake--> 8 s of silence ----> look --awake--> wait for the next exit
//!                          '--halted--> the caller gets to know, once
//! ```
//!
//! KVM handles HLT itself, so a halted vCPU makes no exit, as an idle one does not. To tell them apart each is kicked out
//! of the guest and held for a moment. An idle guest pays for that twice after each time that it did something, and ever
//! more rarely: each look that finds it awake doubles the silence before the next, up to half a minute. In between no
//! thread wakes: the first exit after the last look wakes the one that waits.
//!
//! Left out: a guest that halts long after its last exit, without one more, which is found at no look.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axvm_kvm::Rest;
use axvm_sync::{EventFd, lock};

use crate::Machine;

/// Silence before the first look.
const FIRST: Duration = Duration::from_secs(2);
/// Silence before a first look at a guest that was often found awake.
const LONGEST: Duration = Duration::from_secs(30);
/// The second look comes after so many times the silence before the first.
const SECOND: u32 = 4;
/// So many vCPUs are told with their places.
const TOLD: usize = 4;

/// The first exit after a silence, as something to wait for.
pub(crate) struct Activity {
    awaited: AtomicBool,
    fd: EventFd,
}

impl Activity {
    /// Not awaited.
    pub(crate) fn new() -> std::io::Result<Activity> {
        Ok(Activity { awaited: AtomicBool::new(false), fd: EventFd::new()? })
    }

    /// There was an exit.
    pub(crate) fn note(&self) {
        if self.awaited.load(Ordering::Relaxed) && self.awaited.swap(false, Ordering::Relaxed) {
            self.fd.signal();
        }
    }

    /// Readable at the first exit after a [`Activity::expect`].
    pub(crate) fn event_fd(&self) -> &EventFd {
        &self.fd
    }

    /// From now on the next exit counts. A vCPU that passes the gate after this sees it.
    fn expect(&self) {
        self.awaited.store(true, Ordering::Relaxed);
    }
}

/// When to look.
#[derive(Debug)]
pub(crate) struct Watch {
    /// All vCPUs together, when last counted.
    exits: u64,
    /// When that number last was another one.
    since: Instant,
    /// Silence before the first look.
    patience: Duration,
    /// Looks in this silence.
    looks: u32,
    /// None while the next exit is awaited.
    next: Option<Instant>,
    /// It was found halted, and there was no exit since.
    halted: bool,
}

impl Watch {
    /// Of a machine that is about to start.
    pub(crate) fn new(now: Instant) -> Watch {
        Watch { exits: 0, since: now, patience: FIRST, looks: 0, next: Some(now + FIRST), halted: false }
    }

    /// When there is something to do, without an exit.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Since when there was no exit, as far as is known, if there are `exits` of them now.
    fn quiet_since(&mut self, exits: u64, now: Instant) -> Instant {
        if exits != self.exits {
            (self.exits, self.since, self.looks, self.halted) = (exits, now, 0, false);
            self.next = Some(now + self.patience);
        }
        self.since
    }

    /// Whether to look now; then [`Watch::found_awake`] or [`Watch::found_halted`] follows.
    fn is_due(&mut self, exits: u64, now: Instant) -> bool {
        self.quiet_since(exits, now);
        self.next.is_some_and(|next| now >= next)
    }

    /// Whether the next look is the last of this silence.
    fn is_last(&self) -> bool {
        self.looks > 0
    }

    fn found_awake(&mut self) {
        self.next = (!self.is_last()).then_some(self.since + self.patience * SECOND);
        self.patience = (self.patience * 2).min(LONGEST);
        self.looks += 1;
    }

    fn found_halted(&mut self) {
        (self.next, self.halted) = (None, true);
    }

    /// An exit that was awaited, of `exits` now, or the machine was resumed: looks again, unless it is halted still.
    fn begin_again(&mut self, exits: u64, now: Instant) {
        self.quiet_since(exits, now);
        if !self.halted {
            (self.since, self.looks, self.next) = (now, 0, Some(now + self.patience));
        }
    }
}

impl Machine {
    /// How long no vCPU has come back from the guest, at least as far as is known.
    pub fn quiet(&self) -> Duration {
        let now = Instant::now();
        now.duration_since(lock(&self.watch).quiet_since(self.exit_count(), now))
    }

    /// Where each vCPU has halted, if it is time to look and all have.
    pub(crate) fn look_for_halt(&self, activity: bool) -> Option<String> {
        let (mut watch, now) = (lock(&self.watch), Instant::now());
        if activity {
            self.shared.activity.event_fd().take();
            watch.begin_again(self.exit_count(), now);
            if watch.next().is_none() {
                // A resume, of one that is halted still. An exit may have come before the next was awaited.
                self.shared.activity.expect();
                watch.begin_again(self.exit_count(), now);
            }
        }
        if self.is_held() || !watch.is_due(self.exit_count(), now) {
            return None;
        }
        // Before the look: the gate that all pass then makes it known to them.
        self.shared.activity.expect();
        let halted = self.holding_vcpus(|| self.halted()).flatten();
        match halted.is_some() {
            true => watch.found_halted(),
            false => watch.found_awake(),
        }
        halted
    }

    /// Of a machine whose vCPUs are held.
    fn halted(&self) -> Option<String> {
        let mut places = Vec::new();
        for vcpu in 0..self.vcpu_count() {
            match self.visit_held(vcpu, |vcpu| vcpu.rest())?.ok()? {
                Rest::Awake => return None,
                Rest::NotStarted => {}
                Rest::Halted { rip } => places.push(format!("vCPU {vcpu} at RIP {rip:#x}")),
            }
        }
        let more = match places.len().saturating_sub(TOLD) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        places.truncate(TOLD);
        (!places.is_empty()).then(|| format!("every vCPU is in HLT with interrupts off ({}{more})", places.join(", ")))
    }

    fn exit_count(&self) -> u64 {
        self.exits().iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_is_looked_into_twice_and_then_left_alone() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut watch = Watch::new(begin);
        assert!(!watch.is_due(0, at(1)) && watch.is_due(0, at(2)));
        watch.found_awake();
        assert!(!watch.is_due(0, at(7)) && watch.is_due(0, at(8)));
        watch.found_awake();
        assert_eq!((watch.next(), watch.is_due(0, at(10_000))), (None, false));
        assert_eq!(watch.quiet_since(0, at(10_000)), begin);
        // The next exit begins anew, and with more patience.
        watch.begin_again(1, at(10_000));
        assert!(!watch.is_due(1, at(10_000)) && !watch.is_due(1, at(10_007)) && watch.is_due(1, at(10_008)));
        for _ in 0..10 {
            watch.found_awake();
        }
        assert_eq!(watch.patience, LONGEST);
    }

    #[test]
    fn a_halt_is_told_once_until_the_guest_does_something() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut watch = Watch::new(begin);
        assert!(!watch.is_due(5, at(2)) && watch.is_due(5, at(4)));
        watch.found_halted();
        // A pause and a resume are none of the guest's.
        watch.begin_again(5, at(10));
        assert_eq!((watch.next(), watch.is_due(5, at(100))), (None, false));
        watch.begin_again(6, at(101));
        assert!(watch.is_due(6, at(103)));
    }

    #[test]
    fn a_guest_that_does_something_is_not_looked_at() {
        let begin = Instant::now();
        let mut watch = Watch::new(begin);
        for second in 1..100 {
            assert!(!watch.is_due(second, begin + Duration::from_secs(second)));
        }
        assert_eq!(watch.quiet_since(99, begin + Duration::from_secs(101)), begin + Duration::from_secs(99));
    }

    #[test]
    fn the_first_exit_that_is_awaited_is_told_once() {
        let activity = Activity::new().unwrap();
        activity.note();
        assert!(!activity.event_fd().is_signalled());
        activity.expect();
        activity.note();
        assert!(activity.event_fd().is_signalled());
        activity.event_fd().take();
        activity.note();
        assert!(!activity.event_fd().is_signalled());
    }
}
