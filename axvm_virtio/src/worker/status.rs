//! What can be seen of a worker, and said to it, while it works or hangs: no lock that it could hold.
//!
//! ```text
//!   worker --begin_request--> began: a clock stamp --> busy: "vda-q0 has had a request in the host for 12 s"
//!   owner  --ask_stop-------> order, and a ring of its kick
//!   WorkerList: the workers of one device; its lock is held for no longer than it takes to walk the list
//! ```
//!
//! The order is one byte. A stop can be taken back until the worker itself has turned it into an end:
//!
//! ```text
//!   Run --ask_stop--> Stop --end_if_asked--> Ended --join--> (gone)
//!    ^---cancel_stop---'
//! ```
//!
//! The stamp comes from the coarse clock, which the vDSO reads in some 5 ns; it is off by one timer tick at most.
//!
//! Source: clock_gettime(2), CLOCK_MONOTONIC_COARSE.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;

use axvm_sync::EventFd;

/// A worker with a request in the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Busy {
    /// Name of its thread, such as `vda-q0`.
    pub thread: String,
    /// Time since the request began, to some milliseconds.
    pub duration: Duration,
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has had a request in the host for {} s", self.thread, self.duration.as_secs())
    }
}

/// A worker did not end in time. It still will, after its request; stop or pause the device again to wait for it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "Cannot hold {thread} still: it has had a request in the host for {} s. Check the storage behind it, and try again",
    duration.as_secs()
)]
pub struct StillBusy {
    /// Name of its thread, such as `vda-q0`.
    pub thread: String,
    /// Time since its request began; zero if it is between two.
    pub duration: Duration,
}

/// Values of [`WorkerStatus::order`].
const RUN: u8 = 0;
const STOP: u8 = 1;
const ENDED: u8 = 2;

/// One worker, between its thread and the others.
pub(crate) struct WorkerStatus {
    name: String,
    /// See the module's head.
    order: AtomicU8,
    /// The worker has seen a stop in this turn, and may have left something undone. Its own, so Relaxed.
    seen: AtomicBool,
    /// When the present request began, in nanoseconds of the coarse clock; 0: there is none.
    began: AtomicU64,
    /// Ends the worker's sleep.
    kick: Arc<EventFd>,
}

impl WorkerStatus {
    pub(crate) fn new(name: &str, kick: Arc<EventFd>) -> Arc<WorkerStatus> {
        let (order, seen, began) = Default::default();
        Arc::new(WorkerStatus { name: name.to_owned(), order, seen, began, kick })
    }

    /// Asks the worker to come to an end.
    pub(crate) fn ask_stop(&self) {
        // Before the ring: a worker that wakes by it must see the order.
        self.change(RUN, STOP);
        self.kick.signal();
    }

    /// Takes a stop back. False if the worker has come to its end: it must be joined, and another one started.
    fn cancel_stop(&self) -> bool {
        self.change(STOP, RUN) || self.order.load(Ordering::Acquire) == RUN
    }

    /// The worker must come to an end, or has.
    fn is_stopping(&self) -> bool {
        self.order.load(Ordering::Acquire) != RUN
    }

    /// For the worker: whether it must come to an end. Looked at between requests, and between the pieces of a long one.
    pub(crate) fn stop_asked(&self) -> bool {
        let asked = self.is_stopping();
        if asked {
            self.seen.store(true, Ordering::Relaxed);
        }
        asked
    }

    /// For the worker: whether its turn may have been cut short by a stop.
    pub(super) fn was_cut_short(&self) -> bool {
        self.seen.swap(false, Ordering::Relaxed)
    }

    /// For the worker: comes to an end if it is asked to, and the stop is not taken back.
    pub(super) fn end_if_asked(&self) -> bool {
        self.change(STOP, ENDED)
    }

    /// For the worker: comes to an end by itself.
    pub(super) fn end(&self) {
        self.order.store(ENDED, Ordering::Release);
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.order.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// A request begins. For display only, so no order with other memory is needed.
    pub(crate) fn begin_request(&self) {
        self.set_began(Some(WorkerStatus::stamp()));
    }

    /// What a request that begins now is marked with.
    pub(crate) fn stamp() -> u64 {
        now().max(1)
    }

    /// The oldest request in the host began then; `None`: there is none.
    pub(crate) fn set_began(&self, stamp: Option<u64>) {
        self.began.store(stamp.unwrap_or(0), Ordering::Relaxed);
    }

    /// The present request, if there is one.
    fn busy(&self) -> Option<Busy> {
        let began = self.began.load(Ordering::Relaxed);
        let duration = Duration::from_nanos(now().saturating_sub(began));
        (began != 0).then(|| Busy { thread: self.name.clone(), duration })
    }

    pub(crate) fn still_busy(&self) -> StillBusy {
        let duration = self.busy().map_or(Duration::ZERO, |busy| busy.duration);
        StillBusy { thread: self.name.clone(), duration }
    }
}

/// The workers of one device that are not joined yet.
#[derive(Default)]
pub(crate) struct WorkerList(Mutex<Listed>);

#[derive(Default)]
struct Listed {
    workers: Vec<Arc<WorkerStatus>>,
    /// How many there were before the first of them was joined.
    started: usize,
}

impl WorkerList {
    pub(super) fn add(&self, worker: &Arc<WorkerStatus>) {
        let mut listed = self.lock();
        listed.workers.push(Arc::clone(worker));
        listed.started = listed.workers.len();
    }

    pub(super) fn remove(&self, worker: &Arc<WorkerStatus>) {
        self.lock().workers.retain(|listed| !Arc::ptr_eq(listed, worker));
    }

    /// Asks all of them to come to an end, and waits for none.
    pub(crate) fn ask_stop(&self) {
        self.lock().workers.iter().for_each(|worker| worker.ask_stop());
    }

    /// Takes the stop of all of them back. False if one has come to its end, or if there is none: then a new start is
    /// needed.
    pub(crate) fn cancel_stop(&self) -> bool {
        let listed = self.lock();
        let all = listed.started > 0 && listed.workers.len() == listed.started;
        all && listed.workers.iter().all(|worker| worker.cancel_stop())
    }

    /// Whether one of them must come to an end, or has.
    pub(crate) fn is_stopping(&self) -> bool {
        self.lock().workers.iter().any(|worker| worker.is_stopping())
    }

    /// Whether all are joined.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().workers.is_empty()
    }

    /// Those with a request in the host.
    pub(crate) fn busy(&self) -> Vec<Busy> {
        self.lock().workers.iter().filter_map(|worker| worker.busy()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Listed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The coarse clock, in nanoseconds.
fn now() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_seen_while_it_lasts() {
        let status = WorkerStatus::new("vda-q0", Arc::new(EventFd::new().unwrap()));
        let list = WorkerList::default();
        list.add(&status);
        assert_eq!(list.busy(), []);
        status.begin_request();
        std::thread::sleep(Duration::from_millis(50));
        let busy = list.busy();
        assert_eq!(busy[0].thread, "vda-q0");
        assert!(busy[0].duration >= Duration::from_millis(30), "{busy:?}");
        assert!(status.still_busy().to_string().contains("vda-q0"));
        status.set_began(None);
        assert_eq!(list.busy(), []);
        list.remove(&status);
        list.ask_stop();
        assert!(!status.is_stopping(), "what is joined is not asked any more");
    }

    #[test]
    fn a_stop_can_be_taken_back_until_the_worker_ends() {
        let [one, two] = ["vda-q0", "vda-q1"].map(|name| WorkerStatus::new(name, Arc::new(EventFd::new().unwrap())));
        let list = WorkerList::default();
        assert!(!list.cancel_stop(), "there is none");
        list.add(&one);
        list.add(&two);
        assert!(list.cancel_stop() && !one.end_if_asked(), "no stop was asked for");
        list.ask_stop();
        assert!(list.is_stopping() && one.stop_asked() && one.was_cut_short() && !one.was_cut_short());
        assert!(list.cancel_stop() && !list.is_stopping() && !one.end_if_asked());
        list.ask_stop();
        assert!(one.end_if_asked());
        assert!(!list.cancel_stop() && list.is_stopping());
        list.remove(&one);
        assert!(!list.cancel_stop(), "one is gone");
    }

    #[test]
    fn the_sentence_names_thread_and_time() {
        let busy = Busy { thread: "vda-q0".into(), duration: Duration::from_millis(12_345) };
        assert_eq!(busy.to_string(), "vda-q0 has had a request in the host for 12 s");
    }
}
