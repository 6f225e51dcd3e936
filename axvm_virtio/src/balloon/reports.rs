//! Asking a guest for statistics, by giving its buffer back.
//!
//! ```text
//!   driver: buffer with numbers --queue 2--> read, then held ... interval over: back to the driver = "tell again"
//!      ^                                                                |
//!      '----------------------------- new numbers <---------------------'
//! ```
//!
//! A buffer that is held when the worker stops (pause, reset) goes back into the ring unread: so a stopped queue has
//! nothing in flight. The next worker finds it there and holds it again; what it says is then not news.
//!
//! Spec: virtio 1.2, 5.5.6.3 "Memory Statistics".

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axvm_memory::GuestRam;

use crate::device::LiveQueue;
use crate::queue::Chain;
use crate::signals::whole;
use crate::state::{ReportsState, SavedReport};
use crate::statistics::{ENTRY, Statistics, StatisticsReport};
use crate::worker::Next;
use axvm_sync::EventFd;

/// Most entries that are read; there are 16 tags.
const MAX_ENTRIES: usize = 64;
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// The last report, and when the next is due: between the user and the worker.
#[derive(Default)]
pub(super) struct Reports(Mutex<Schedule>);

#[derive(Default)]
struct Schedule {
    interval: Duration,
    latest: Option<(Statistics, Instant)>,
    /// When the buffer in the ring was read, if the worker stopped while it held it.
    known: Option<Instant>,
    /// Wakes the worker, if there is one.
    wake: Option<Arc<EventFd>>,
}

impl Reports {
    pub(super) fn set_interval(&self, interval: Duration) {
        let mut schedule = self.lock();
        schedule.interval = if interval.is_zero() { interval } else { interval.max(SHORTEST_INTERVAL) };
        if let Some(wake) = &schedule.wake {
            wake.signal();
        }
    }

    pub(super) fn interval(&self) -> Duration {
        self.lock().interval
    }

    pub(super) fn latest(&self) -> Option<StatisticsReport> {
        self.lock().latest.map(|(statistics, at)| StatisticsReport { statistics, age: at.elapsed() })
    }

    /// A new driver, with a new ring.
    pub(super) fn forget(&self) {
        let mut schedule = self.lock();
        (schedule.latest, schedule.known) = (None, None);
    }

    /// All of it, for a device that is held still.
    pub(super) fn state(&self) -> ReportsState {
        let schedule = self.lock();
        let age = |at: Instant| at.elapsed().as_millis() as u64;
        ReportsState {
            interval_ms: schedule.interval.as_millis() as u64,
            latest: schedule.latest.map(|(statistics, at)| SavedReport { statistics, age_ms: age(at) }),
            known_age_ms: schedule.known.map(age),
        }
    }

    pub(super) fn restore(&self, state: &ReportsState) {
        self.set_interval(Duration::from_millis(state.interval_ms));
        let mut schedule = self.lock();
        schedule.latest = state.latest.map(|report| (report.statistics, ago(report.age_ms)));
        schedule.known = state.known_age_ms.map(ago);
    }

    fn lock(&self) -> MutexGuard<'_, Schedule> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So many milliseconds ago, as far as the host's clock goes back.
fn ago(ms: u64) -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_millis(ms)).unwrap_or(now)
}

/// The statistics queue.
pub(super) struct StatisticsQueue {
    ram: Arc<GuestRam>,
    reports: Arc<Reports>,
    held: Option<HeldBuffer>,
}

/// The driver's buffer, while the device keeps it.
struct HeldBuffer {
    head: u16,
    since: Instant,
}

impl StatisticsQueue {
    /// `kick` wakes the worker, as a driver does; here a new interval rings it.
    pub(super) fn new(ram: &Arc<GuestRam>, reports: &Arc<Reports>, kick: &Arc<EventFd>) -> StatisticsQueue {
        reports.lock().wake = Some(Arc::clone(kick));
        StatisticsQueue { ram: Arc::clone(ram), reports: Arc::clone(reports), held: None }
    }

    /// Takes the buffer if it is there, and gives it back when it is time.
    pub(super) fn turn(&mut self, live: &mut LiveQueue) -> Result<Next, String> {
        if self.held.is_none() {
            self.held = self.take(live)?;
        }
        let rest = self.held.as_ref().and_then(|held| self.rest(held));
        match self.held.take_if(|_| rest == Some(Duration::ZERO)) {
            Some(HeldBuffer { head, .. }) => {
                live.queue.push_used(head, 0);
                if live.queue.publish() {
                    live.irq.raise();
                }
                Ok(Next::Again)
            }
            None => Ok(rest.map_or(Next::Sleep, Next::SleepFor)),
        }
    }

    /// Puts the buffer back into the ring, and notes that it was read.
    pub(super) fn drain(&mut self, live: &mut LiveQueue) {
        if let Some(HeldBuffer { since, .. }) = self.held.take() {
            live.queue.put_back();
            self.reports.lock().known = Some(since);
        }
    }

    /// Takes the driver's buffer, if it is there, and reads it.
    fn take(&self, live: &mut LiveQueue) -> Result<Option<HeldBuffer>, String> {
        loop {
            if let Some(chain) = live.queue.pop().map_err(|error| whole(&error))? {
                return Ok(Some(HeldBuffer { head: chain.head, since: self.read(&chain) }));
            }
            if !live.queue.enable_kicks() {
                return Ok(None);
            }
        }
    }

    /// Reads a buffer, if it is new; when it came.
    fn read(&self, chain: &Chain<'_>) -> Instant {
        let mut bytes = [0; ENTRY * MAX_ENTRIES];
        let done = chain.readable.iter().fold(0, |done, range| done + self.ram.copy_from(range, &mut bytes[done..]));
        let mut schedule = self.reports.lock();
        if let Some(since) = schedule.known.take() {
            return since;
        }
        let now = Instant::now();
        if let Some(statistics) = Statistics::parse(&bytes[..done]) {
            schedule.latest = Some((statistics, now));
        }
        now
    }

    /// How long to hold the buffer still; `None`: no end in sight.
    fn rest(&self, held: &HeldBuffer) -> Option<Duration> {
        let interval = self.reports.interval();
        (!interval.is_zero()).then(|| interval.saturating_sub(held.since.elapsed()))
    }
}

impl Drop for StatisticsQueue {
    fn drop(&mut self) {
        self.reports.lock().wake = None;
    }
}
