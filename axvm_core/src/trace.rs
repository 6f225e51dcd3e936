//! `axvm run --trace FILE`: what all threads record, written down by one of its own.
//!
//! ```text
//!   vcpu0, vda-q0 ...: tapes --+                    every 10 ms
//!   events: steps, power ...  -+--> thread `trace` ------------> FILE, as `axvm_inspect::timeline` says it
//! ```
//!
//! No thread waits for this one: what is not read in time is overwritten, and the file says so. The file is open before
//! the sandbox closes.
//!
//! Clock: the processor's time stamp counter, measured against CLOCK_MONOTONIC; the file has pairs of both, so that what
//! other programs recorded can be laid beside it.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axvm_events::tape::{Capacity, Kind, TapeReader, Tapes};
use axvm_events::{Event, Events, Sink};
use axvm_inspect::timeline::chrome::{BEGIN, Chrome, PROGRAM, Scale};
use axvm_kvm::tsc;
use axvm_sandbox::Role;
use axvm_sync::lock;
use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::settings::TraceTo;
use crate::speech;

/// Between two looks at the tapes.
const PAUSE: Duration = Duration::from_millis(10);
/// How long the clock is measured before the first record is written.
const MEASURED: Duration = Duration::from_millis(30);
/// Between two pairs of clocks.
const SYNC: Duration = Duration::from_secs(1);
/// Text that may wait to be written.
const TEXT: usize = 256 << 10;
/// Records that are read at once.
const BATCH: usize = 1024;
/// Events that wait for the thread.
const EVENTS: usize = 1024;

/// What is recorded, before and while it is written.
pub struct Recorder {
    tapes: Arc<Tapes>,
    notes: Arc<Notes>,
    start: (u64, Instant),
    file: File,
    path: PathBuf,
    limit: u64,
}

/// Events, with the time at which they came.
#[derive(Default)]
struct Notes(Mutex<Noted>);

#[derive(Default)]
struct Noted {
    events: Vec<(u64, Event)>,
    lost: u64,
}

impl Sink for Notes {
    fn event(&self, event: &Event) {
        let at = tsc();
        let mut noted = lock(&self.0);
        match noted.events.len() {
            0..EVENTS => noted.events.push((at, event.clone())),
            _ => noted.lost += 1,
        }
    }
}

impl Recorder {
    /// Makes the file.
    pub fn open(to: &TraceTo) -> Result<Recorder> {
        let path = to.path.clone();
        let file = new_file(&path)?;
        let start = (tsc(), Instant::now());
        Ok(Recorder { tapes: Arc::new(Tapes::new(tsc)), notes: Arc::default(), start, file, path, limit: to.bytes() })
    }

    /// The stream that ends in the file.
    pub fn events(&self) -> Events {
        Events::to(self.notes.clone()).with_tapes(Arc::clone(&self.tapes))
    }

    /// Starts to write.
    pub fn start(self) -> Result<Writing> {
        let over = Arc::<AtomicBool>::default();
        let is_over = Arc::clone(&over);
        let thread = axvm_sandbox::spawn(Role::Console, "trace", move || {
            let path = self.path.clone();
            if let Err(error) = self.write_until(&is_over) {
                let path = path.display();
                speech::try_tell(format_args!(
                    "Cannot write the trace {path}: {error}; it ends there, the machine runs on"
                ));
            }
        })
        .context("Cannot start a thread for the trace (see ulimit -u)")?;
        Ok(Writing { over, thread: Some(thread) })
    }

    fn write_until(mut self, over: &AtomicBool) -> io::Result<()> {
        thread::park_timeout(MEASURED);
        let (start, since) = self.start;
        let ticks = tsc().saturating_sub(start).max(1);
        let tick = since.elapsed().as_nanos() as f64 / ticks as f64;
        let mut chrome = Chrome::new(Scale { start, tick }, self.limit);
        let mut readers: Vec<TapeReader> = Vec::new();
        let mut sync: Option<Instant> = None;
        loop {
            // Before the look: what was recorded before the end is written.
            let last = over.load(Ordering::Acquire);
            if sync.is_none_or(|sync| sync.elapsed() > SYNC) {
                sync = Some(Instant::now());
                chrome.clock(tsc(), monotonic());
            }
            self.note(&mut chrome);
            readers.extend(self.tapes.take_new());
            let names = self.tapes.names();
            let name = |kind, address| names.as_ref()?(kind, address);
            for reader in &mut readers {
                self.copy(reader, &mut chrome, &name)?;
            }
            readers.retain(|reader| !reader.is_over());
            if last {
                chrome.end(tsc());
                return self.file.write_all(&chrome.take());
            }
            self.file.write_all(&chrome.take())?;
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
                self.file.write_all(&chrome.take())?;
            }
            if count < BATCH {
                break;
            }
        }
        Ok(())
    }

    /// Takes the events.
    fn note(&self, chrome: &mut Chrome) {
        let Noted { events, lost } = std::mem::take(&mut *lock(&self.notes.0));
        for (at, event) in events {
            match event {
                Event::BootStep { what, detail, took } => chrome.step(at, took, what, &detail),
                event => chrome.instant(PROGRAM, at, event.kind(), &event.to_string()),
            }
        }
        chrome.missed(PROGRAM, tsc(), lost);
    }
}

/// An empty file. One that is there is overwritten if it is a trace: `--trace disk.img` shall cost no disk.
fn new_file(path: &Path) -> Result<File> {
    let shown = path.display();
    let cannot = || format!("Cannot make the trace {shown}; name a file in a directory that you may write to");
    let mut options = File::options();
    // A pipe without a reader is an error, and no wait.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
    let mut file = options.open(path).with_context(cannot)?;
    let mut head = Vec::new();
    (&mut file).take(BEGIN.len() as u64).read_to_end(&mut head).with_context(cannot)?;
    ensure!(head.is_empty() || head == BEGIN, "{shown} is there and is no trace; name another file for --trace");
    file.set_len(0).and_then(|()| file.rewind()).with_context(cannot)?;
    Ok(file)
}

fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

/// A trace that is being written. Dropped, it is complete.
pub struct Writing {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writing {
    fn drop(&mut self) {
        // Release: the thread sees what was recorded before.
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
