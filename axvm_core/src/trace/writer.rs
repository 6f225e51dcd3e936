//! The thread `trace`: what the others recorded, written down.
//!
//! ```text
//!   vcpu0, vda-q0 ...: tapes --+                    every 10 ms, or once (a dump)
//!   events: steps, power ...  -+--> thread `trace` ------------> FILE, as `axvm_inspect::timeline` says it
//! ```
//!
//! No thread waits for this one: what is not read in time is overwritten, and the file says so.
//!
//! Clock: the processor's time stamp counter, measured against CLOCK_MONOTONIC; the file has pairs of both, so that what
//! other programs recorded can be laid beside it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axvm_events::Event;
use axvm_events::tape::{Capacity, Kind, TapeReader};
use axvm_inspect::timeline::chrome::{Chrome, PROGRAM, Scale};
use axvm_kvm::tsc;
use rustix::process::setpriority_process;
use rustix::time::{ClockId, clock_gettime};

use super::{Noted, Output, Recording, Start};

/// Between two looks at the tapes.
const PAUSE: Duration = Duration::from_millis(10);
/// How long the clock is measured before the first record is written.
const MEASURED: Duration = Duration::from_millis(30);
/// Between two pairs of clocks.
const SYNC: Duration = Duration::from_secs(1);
/// Text that may wait to be written.
const TEXT: usize = 256 << 10;
/// The writer's place in the host's order of threads: where all processors are busy, it takes a tenth of one from a vCPU or
/// a worker, and what it does not come to read is lost and counted. Not the last place: someone may wait for the end.
const BEHIND: i32 = 10;
/// Records that are read at once.
const BATCH: usize = 1024;

/// How long a trace goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Until it is stopped.
    Stopped,
    /// Until what is there now is written.
    Now,
}

/// Writes one file.
pub(super) struct Writer {
    pub(super) recording: Arc<Recording>,
    pub(super) output: Output,
    pub(super) start: Start,
    pub(super) until: Until,
}

impl Writer {
    /// Writes to the end. Where records are kept, their readers are given back.
    pub(super) fn write(mut self, over: &AtomicBool) -> io::Result<()> {
        if self.until == Until::Stopped {
            // Where that is not allowed it has the place of all threads.
            let _ = setpriority_process(None, BEHIND);
        }
        let mut readers = Vec::new();
        let written = self.write_on(over, &mut readers);
        if self.recording.keeps {
            self.recording.tapes.give_back(readers);
        }
        written
    }

    fn write_on(&mut self, over: &AtomicBool, readers: &mut Vec<TapeReader>) -> io::Result<()> {
        if let Some(left) = MEASURED.checked_sub(self.start.since.elapsed()) {
            thread::park_timeout(left);
        }
        let Start { tsc: start, since } = self.start;
        let ticks = tsc().saturating_sub(start).max(1);
        let tick = since.elapsed().as_nanos() as f64 / ticks as f64;
        let mut chrome = Chrome::new(Scale { start, tick }, self.output.limit);
        let mut sync: Option<Instant> = None;
        loop {
            // Before the look: what was recorded before the end is written.
            let last = self.until == Until::Now || over.load(Ordering::Acquire);
            if sync.is_none_or(|sync| sync.elapsed() > SYNC) {
                sync = Some(Instant::now());
                chrome.clock(tsc(), monotonic());
            }
            self.note(&mut chrome);
            let first_new = readers.len();
            readers.extend(self.recording.tapes.take_new());
            // What was overwritten before this file began is none of its losses.
            readers[first_new..].iter_mut().filter(|_| self.recording.keeps).for_each(TapeReader::rewind);
            // All lanes first: an exit of a vCPU's names the queue that it kicks.
            for reader in &readers[first_new..] {
                chrome.lane(reader.name());
            }
            let names = self.recording.tapes.names();
            let name = |kind, address| names.as_ref()?(kind, address);
            for reader in readers.iter_mut() {
                self.copy(reader, &mut chrome, &name)?;
            }
            if !self.recording.keeps {
                readers.retain(|reader| !reader.is_over());
            }
            if last {
                chrome.end(tsc());
                return chrome.write_to(&mut self.output.file);
            }
            chrome.write_to(&mut self.output.file)?;
            thread::park_timeout(PAUSE);
        }
    }

    /// Writes what is on a tape now.
    fn copy(
        &mut self,
        reader: &mut TapeReader,
        chrome: &mut Chrome,
        name: &dyn Fn(Kind, u64) -> Option<String>,
    ) -> io::Result<()> {
        let lane = chrome.lane(reader.name());
        // As many as a tape holds: one that fills faster than this does not keep the others waiting.
        for _ in 0..Capacity::Thread as usize / BATCH {
            let mut count = 0;
            let missed = reader.read(BATCH, |record| {
                count += 1;
                chrome.record(lane, &record, name);
            });
            chrome.missed(lane, tsc(), missed);
            if chrome.waiting() > TEXT {
                chrome.write_to(&mut self.output.file)?;
            }
            if count < BATCH {
                break;
            }
        }
        Ok(())
    }

    /// Takes the events.
    fn note(&self, chrome: &mut Chrome) {
        let Noted { events, lost } = self.recording.notes();
        for (at, event) in events {
            match event {
                Event::BootStep { what, detail, took } => chrome.step(at, took, what, &detail),
                event => chrome.instant(PROGRAM, at, event.kind(), &event.to_string()),
            }
        }
        if !self.recording.keeps {
            chrome.missed(PROGRAM, tsc(), lost);
        }
    }
}

fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}
