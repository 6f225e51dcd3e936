//! What can be seen of a worker, and said to it, while it works or hangs: no lock that it could hold.
//!
//! ```text
//!   worker --begin_request--> began: a clock stamp --> busy: "vda-q0 has had a request in the host for 12 s"
//!   owner  --ask_stop-------> stop flag, and a ring of its kick
//!   WorkerList: the workers of one device; its lock is held for no longer than it takes to walk the list
//! ```
//!
//! The stamp comes from the coarse clock, which the vDSO reads in some 5 ns; it is off by one timer tick at most.
//!
//! Source: clock_gettime(2), CLOCK_MONOTONIC_COARSE.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;

use crate::doorbell::Doorbell;

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

/// One worker, between its thread and the others.
pub(crate) struct WorkerStatus {
    name: String,
    /// Set once.
    stop: AtomicBool,
    /// When the present request began, in nanoseconds of the coarse clock; 0: there is none.
    began: AtomicU64,
    /// Ends the worker's sleep.
    kick: Arc<Doorbell>,
}

impl WorkerStatus {
    pub(crate) fn new(name: &str, kick: Arc<Doorbell>) -> Arc<WorkerStatus> {
        let (stop, began) = Default::default();
        Arc::new(WorkerStatus { name: name.to_owned(), stop, began, kick })
    }

    /// Asks the worker to come to an end.
    pub(crate) fn ask_stop(&self) {
        // Before the ring: who wakes by it must see the flag.
        self.stop.store(true, Ordering::Release);
        self.kick.ring();
    }

    /// Whether the worker must come to an end: looked at between requests, and between the pieces of a long one.
    pub(crate) fn stop_asked(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// A request begins. For display only, so no order with other memory is needed.
    pub(crate) fn begin_request(&self) {
        self.began.store(now().max(1), Ordering::Relaxed);
    }

    /// The request is over.
    pub(crate) fn end_request(&self) {
        self.began.store(0, Ordering::Relaxed);
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
pub(crate) struct WorkerList(Mutex<Vec<Arc<WorkerStatus>>>);

impl WorkerList {
    pub(super) fn add(&self, worker: &Arc<WorkerStatus>) {
        self.lock().push(Arc::clone(worker));
    }

    pub(super) fn remove(&self, worker: &Arc<WorkerStatus>) {
        self.lock().retain(|listed| !Arc::ptr_eq(listed, worker));
    }

    /// Asks all of them to come to an end, and waits for none.
    pub(crate) fn ask_stop(&self) {
        self.lock().iter().for_each(|worker| worker.ask_stop());
    }

    /// Whether one of them was asked to come to an end.
    pub(crate) fn stop_asked(&self) -> bool {
        self.lock().iter().any(|worker| worker.stop_asked())
    }

    /// Whether all are joined.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Those with a request in the host.
    pub(crate) fn busy(&self) -> Vec<Busy> {
        self.lock().iter().filter_map(|worker| worker.busy()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<WorkerStatus>>> {
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
        let status = WorkerStatus::new("vda-q0", Doorbell::new().unwrap());
        let list = WorkerList::default();
        list.add(&status);
        assert_eq!(list.busy(), []);
        status.begin_request();
        std::thread::sleep(Duration::from_millis(50));
        let busy = list.busy();
        assert_eq!(busy[0].thread, "vda-q0");
        assert!(busy[0].duration >= Duration::from_millis(30), "{busy:?}");
        assert!(status.still_busy().to_string().contains("vda-q0"));
        status.end_request();
        assert_eq!(list.busy(), []);
        list.remove(&status);
        list.ask_stop();
        assert!(!status.stop_asked(), "what is joined is not asked any more");
    }

    #[test]
    fn the_sentence_names_thread_and_time() {
        let busy = Busy { thread: "vda-q0".into(), duration: Duration::from_millis(12_345) };
        assert_eq!(busy.to_string(), "vda-q0 has had a request in the host for 12 s");
    }
}
