//! What a guest says about its memory, asked for by giving its buffer back.
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
//! Spec: virtio 1.2, 5.5.6.3 "Memory Statistics", 5.5.6.4 "Memory Statistics Tags"; tags 10 to 15: Linux 6.12,
//! `include/uapi/linux/virtio_balloon.h`.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axvm_memory::GuestRam;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::poll::PollContext;

use crate::device::LiveQueue;
use crate::queue::Chain;
use crate::signals::whole;
use crate::worker::{Stop, Work};

/// One statistic: a tag in two bytes, a value in eight.
const ENTRY: usize = 10;
/// Most entries that are read; there are 16 tags.
const MAX_ENTRIES: usize = 64;
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
/// Longest sleep, so that any interval fits the clock.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// The guest's numbers; each is there if the guest's driver knows it. Amounts are bytes, the others count events
/// since the guest started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Memory read back from swap, in bytes.
    pub swap_in: Option<u64>,
    /// Memory written to swap, in bytes.
    pub swap_out: Option<u64>,
    /// Page faults that needed a disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Memory used for nothing, in bytes.
    pub free_memory: Option<u64>,
    /// All memory, in bytes; the balloon's part is not counted.
    pub total_memory: Option<u64>,
    /// Memory that programs could get without swapping, in bytes.
    pub available_memory: Option<u64>,
    /// Memory that could be got from file caches, in bytes.
    pub disk_caches: Option<u64>,
    /// Huge pages handed out.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be.
    pub hugetlb_failures: Option<u64>,
    /// Programs killed for want of memory.
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait.
    pub alloc_stall: Option<u64>,
    /// Pages looked at by the background reclaimer.
    pub async_scan: Option<u64>,
    /// Pages looked at by those who wanted memory.
    pub direct_scan: Option<u64>,
    /// Pages won by the background reclaimer.
    pub async_reclaim: Option<u64>,
    /// Pages won by those who wanted memory.
    pub direct_reclaim: Option<u64>,
}

impl Statistics {
    /// Reads entries; unknown tags and what is cut off are skipped. `None` if nothing is left.
    fn parse(bytes: &[u8]) -> Option<Statistics> {
        let mut statistics = Statistics::default();
        let (entries, _) = bytes.as_chunks::<ENTRY>();
        for &[tag_low, tag_high, ref value @ ..] in entries {
            if let Some(place) = statistics.place(u16::from_le_bytes([tag_low, tag_high])) {
                *place = Some(u64::from_le_bytes(*value));
            }
        }
        (statistics != Statistics::default()).then_some(statistics)
    }

    fn place(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_memory,
            5 => &mut self.total_memory,
            6 => &mut self.available_memory,
            7 => &mut self.disk_caches,
            8 => &mut self.hugetlb_allocations,
            9 => &mut self.hugetlb_failures,
            10 => &mut self.oom_kill,
            11 => &mut self.alloc_stall,
            12 => &mut self.async_scan,
            13 => &mut self.direct_scan,
            14 => &mut self.async_reclaim,
            15 => &mut self.direct_reclaim,
            _ => return None,
        })
    }
}

/// Statistics, and how long ago the guest sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The numbers.
    pub statistics: Statistics,
    /// Time since they arrived.
    pub age: Duration,
}

/// The last report, and when the next is due: between the user and the worker.
#[derive(Default)]
pub(super) struct Reports(Mutex<Desk>);

#[derive(Default)]
struct Desk {
    interval: Duration,
    latest: Option<(Statistics, Instant)>,
    /// When the buffer in the ring was read, if the worker stopped while it held it.
    known: Option<Instant>,
    /// Wakes the worker, if there is one.
    wake: Option<EventFd>,
}

impl Reports {
    pub(super) fn set_interval(&self, interval: Duration) {
        let mut desk = self.desk();
        desk.interval = if interval.is_zero() { interval } else { interval.max(SHORTEST_INTERVAL) };
        if let Some(wake) = &desk.wake {
            let _ = wake.write(1);
        }
    }

    pub(super) fn interval(&self) -> Duration {
        self.desk().interval
    }

    pub(super) fn latest(&self) -> Option<Report> {
        self.desk().latest.map(|(statistics, at)| Report { statistics, age: at.elapsed() })
    }

    /// A new driver, with a new ring.
    pub(super) fn forget(&self) {
        let mut desk = self.desk();
        (desk.latest, desk.known) = (None, None);
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The work of the statistics queue.
pub(super) struct Asker {
    ram: Arc<GuestRam>,
    reports: Arc<Reports>,
    /// Waits for the queue's kick, or for an interval.
    clock: PollContext<u32>,
}

/// The driver's buffer in our hands.
struct Held {
    head: u16,
    since: Instant,
}

impl Asker {
    pub(super) fn new(ram: &Arc<GuestRam>, reports: &Arc<Reports>, kick: &EventFd) -> io::Result<Asker> {
        let clock = PollContext::new()?;
        clock.add(kick, 0)?;
        reports.desk().wake = Some(kick.try_clone()?);
        Ok(Asker { ram: Arc::clone(ram), reports: Arc::clone(reports), clock })
    }

    /// Takes the driver's buffer, if it is there, and reads it.
    fn take(&self, live: &mut LiveQueue) -> Result<Option<Held>, String> {
        loop {
            if let Some(chain) = live.queue.pop().map_err(|error| whole(&error))? {
                return Ok(Some(Held { head: chain.head, since: self.read(&chain) }));
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
        let mut desk = self.reports.desk();
        if let Some(since) = desk.known.take() {
            return since;
        }
        let now = Instant::now();
        if let Some(statistics) = Statistics::parse(&bytes[..done]) {
            desk.latest = Some((statistics, now));
        }
        now
    }

    /// How long to hold the buffer still; `None`: no end in sight.
    fn rest(&self, held: &Held) -> Option<Duration> {
        let interval = self.reports.interval();
        (!interval.is_zero()).then(|| interval.saturating_sub(held.since.elapsed()))
    }

    /// Sleeps until a kick, a wake-up, or the end of `rest`.
    fn sleep(&self, live: &LiveQueue, rest: Option<Duration>) {
        // The clock ticks in milliseconds, and must not go off too early.
        let rest = rest.map_or(LONGEST_SLEEP, |rest| rest.min(LONGEST_SLEEP) + Duration::from_millis(1));
        // An error is one look too many.
        let kicked = self.clock.wait_timeout(rest).is_ok_and(|events| events.iter_readable().next().is_some());
        if kicked {
            let _ = live.kick.read();
        }
    }
}

impl Work for Asker {
    fn work(&mut self, live: &mut LiveQueue, stop: &Stop) -> Result<(), String> {
        let mut held = None;
        while !stop.is_set() {
            if held.is_none() {
                held = self.take(live)?;
            }
            let rest = held.as_ref().and_then(|held| self.rest(held));
            match held.take_if(|_| rest == Some(Duration::ZERO)) {
                Some(Held { head, .. }) => {
                    live.queue.push_used(head, 0);
                    if live.queue.publish() {
                        live.irq.raise();
                    }
                }
                None => self.sleep(live, rest),
            }
        }
        if let Some(Held { since, .. }) = held {
            live.queue.put_back();
            self.reports.desk().known = Some(since);
        }
        Ok(())
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.reports.desk().wake = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    #[test]
    fn every_tag_has_its_place() {
        let bytes = (0..16).flat_map(|tag| entry(tag, 100 + u64::from(tag))).collect::<Vec<_>>();
        let s = Statistics::parse(&bytes).unwrap();
        let swap_and_faults = [s.swap_in, s.swap_out, s.major_faults, s.minor_faults];
        let memory = [s.free_memory, s.total_memory, s.available_memory, s.disk_caches];
        let huge = [s.hugetlb_allocations, s.hugetlb_failures, s.oom_kill, s.alloc_stall];
        let reclaim = [s.async_scan, s.direct_scan, s.async_reclaim, s.direct_reclaim];
        let all = [swap_and_faults, memory, huge, reclaim].concat();
        assert_eq!(all, (100..116).map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn unknown_tags_and_cut_entries_are_skipped_and_the_last_of_a_tag_counts() {
        let bytes = [entry(16, 1), entry(0xffff, 2), entry(4, 3), entry(4, u64::MAX), vec![5, 0, 9, 9]].concat();
        let only_free = Statistics { free_memory: Some(u64::MAX), ..Statistics::default() };
        assert_eq!(Statistics::parse(&bytes), Some(only_free));
        assert_eq!(Statistics::parse(&bytes[..20]), None);
        assert_eq!(Statistics::parse(&[]), None);
    }
}
