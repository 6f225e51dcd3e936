//! Recording what a machine does: from its start (`--trace FILE`), for a while (`axvm ctl NAME trace start FILE`), or the
//! last moments whenever they are wanted (`--flight-recorder`, `axvm ctl NAME trace dump FILE`).
//!
//! ```text
//!               vCPUs, queues: tapes             events
//!                       |                          |
//!                  Recording: tapes, notes <-------'        kept while it is on; off, neither is there
//!                       |
//!   start, dump --> thread `trace` --> FILE                 one at a time
//! ```
//!
//! Recording changes while the machine stands still: each vCPU takes up the loop that records, or the one that does not,
//! when it goes on ([`Panel`](crate::panel::Panel) pauses and resumes for that).

mod output;
mod writer;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result};
use axvm_events::tape::Tapes;
use axvm_events::{Event, Events, Sink};
use axvm_kvm::tsc;
use axvm_sandbox::Role;
use axvm_sync::lock;

use crate::settings::Settings;
use crate::speech;

pub use output::Output;
use writer::{Until, Writer};

/// Events that wait for the thread, or are kept.
const EVENTS: usize = 1024;

/// What is recorded, before and while it is written.
struct Recording {
    tapes: Arc<Tapes>,
    noted: Mutex<Noted>,
    /// Whether events are noted.
    notes: Arc<AtomicBool>,
    /// The last moments are on offer at any time.
    keeps: bool,
}

/// Events, with the time at which they came: the last ones.
#[derive(Clone, Default)]
struct Noted {
    events: VecDeque<(u64, Event)>,
    lost: u64,
}

impl Recording {
    /// On or off, for threads that ask from now on; one that keeps the last moments stays on.
    fn switch(&self, on: bool) {
        if !self.keeps {
            self.tapes.switch(on);
            self.notes.store(on, Ordering::Relaxed);
        }
    }

    /// The events: for the one file that they go to, or for each that will be asked for.
    fn notes(&self) -> Noted {
        let mut noted = lock(&self.noted);
        if self.keeps { noted.clone() } else { std::mem::take(&mut *noted) }
    }
}

impl Sink for Recording {
    fn event(&self, event: &Event) {
        let at = tsc();
        let mut noted = lock(&self.noted);
        if noted.events.len() == EVENTS {
            noted.events.pop_front();
            noted.lost += 1;
        }
        noted.events.push_back((at, event.clone()));
    }
}

/// When times begin, on both clocks.
#[derive(Clone, Copy)]
struct Start {
    tsc: u64,
    since: Instant,
}

impl Start {
    fn now() -> Start {
        Start { tsc: tsc(), since: Instant::now() }
    }
}

/// The recorder of a process.
pub struct Recorder {
    recording: Arc<Recording>,
    start: Start,
    writing: Mutex<Option<Writing>>,
    /// Why the last file has no end.
    failed: Arc<Mutex<Option<String>>>,
}

/// A file that is being written.
struct Writing {
    path: String,
    until: Until,
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Recorder {
    /// On from the start, if the user wants that.
    pub fn new(settings: &Settings) -> Recorder {
        let keeps = settings.flight_recorder();
        let tapes = Arc::new(if keeps { Tapes::keeping(tsc) } else { Tapes::new(tsc) });
        let is_on = keeps || settings.trace.is_some();
        tapes.switch(is_on);
        let notes = Arc::new(AtomicBool::new(is_on));
        let recording = Arc::new(Recording { tapes, noted: Mutex::default(), notes, keeps });
        Recorder { recording, start: Start::now(), writing: Mutex::default(), failed: Arc::default() }
    }

    /// The stream whose events and records come here.
    pub fn events(&self) -> Events {
        let sink: Arc<dyn Sink> = Arc::clone(&self.recording) as _;
        Events::at_times_to(sink, Arc::clone(&self.recording.notes)).with_tapes(Arc::clone(&self.recording.tapes))
    }

    /// Whether the last moments are on offer.
    pub fn keeps(&self) -> bool {
        self.recording.keeps
    }

    /// Switches recording on or off, for threads that ask from now on; one that keeps the last moments stays on.
    pub fn switch(&self, on: bool) {
        self.recording.switch(on);
    }

    /// What is being written now, if something is.
    pub fn path(&self) -> Option<String> {
        let writing = lock(&self.writing);
        writing.as_ref().filter(|writing| !writing.thread.is_finished()).map(|writing| writing.path.clone())
    }

    /// Why the last file could not be written to its end.
    pub fn failure(&self) -> Option<String> {
        lock(&self.failed).clone()
    }

    /// Writes a file from the machine's start on: the first.
    pub fn begin(&self, output: Output) -> Result<()> {
        self.write(output, self.start, Until::Stopped)
    }

    /// Writes a file from now on; one that keeps the last moments begins with these.
    pub fn start(&self, output: Output) -> Result<()> {
        let start = if self.keeps() { self.start } else { Start::now() };
        self.write(output, start, Until::Stopped)
    }

    /// Writes the last moments.
    pub fn dump(&self, output: Output) -> Result<()> {
        self.write(output, self.start, Until::Now)
    }

    fn write(&self, output: Output, start: Start, until: Until) -> Result<()> {
        let (over, path) = (Arc::<AtomicBool>::default(), output.path.display().to_string());
        let (is_over, failed, name) = (Arc::clone(&over), Arc::clone(&self.failed), path.clone());
        *lock(&self.failed) = None;
        let recording = Arc::clone(&self.recording);
        let writer = Writer { recording: Arc::clone(&recording), output, start, until };
        let thread = axvm_sandbox::spawn(Role::Console, "trace", move || {
            if let Err(error) = writer.write(&is_over) {
                let why = format!("Cannot write the trace {name}: {error}; it ends there, the machine runs on");
                speech::try_tell(&why);
                *lock(&failed) = Some(why);
                // No file is there for what comes. Who records already goes on until the next pause.
                recording.switch(false);
            }
        });
        let thread = thread.inspect_err(|_| self.recording.switch(false));
        let thread = thread.context("Cannot start a thread for the trace (see ulimit -u)")?;
        *lock(&self.writing) = Some(Writing { path, until, over, thread });
        Ok(())
    }

    /// Has the file that is being written come to its end, which [`Recorder::path`] tells; false if there is none.
    pub fn finish(&self) -> bool {
        let writing = lock(&self.writing);
        let running =
            writing.as_ref().filter(|writing| writing.until == Until::Stopped && !writing.thread.is_finished());
        running.is_some_and(|writing| {
            // Release: the thread sees what was recorded before.
            writing.over.store(true, Ordering::Release);
            writing.thread.thread().unpark();
            true
        })
    }
}

impl Drop for Recorder {
    /// The file is complete then.
    fn drop(&mut self) {
        self.finish();
        if let Some(writing) = lock(&self.writing).take() {
            let _ = writing.thread.join();
        }
    }
}
