//! How a worker sleeps, and what it knows when it wakes.
//!
//! ```text
//!   one queue, no source, no limit:   read(kick)            one system call, and none before it
//!   anything else:                    poll { kick 0, kick 1, .. | source 0, source 1, .. | limit }
//!                                       '--> kicks that are ready are read; sources are the work's to read
//! ```
//!
//! The set of sources is named anew before each sleep, so that connections may come and go, and a device without a
//! buffer to fill does not wait for input. Readiness is level-triggered: a source that is not read ends the next sleep.
//!
//! Source: poll(2), eventfd(2).

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Work;
use crate::live::LiveQueue;

/// Descriptors beside the kicks that may end a sleep.
#[derive(Default)]
pub(crate) struct Sources<'a>(Vec<PollFd<'a>>);

impl<'a> Sources<'a> {
    /// Adds one: `flags` says for what it is waited (IN, OUT). The number of calls before it is its position.
    pub(crate) fn add(&mut self, source: &'a impl AsFd, flags: PollFlags) {
        self.0.push(PollFd::new(source, flags));
    }
}

/// What ended a sleep. A hint: whatever is said to be ready may turn out not to be.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    /// Nothing is known, so all may be.
    everything: bool,
    queues: Vec<bool>,
    sources: Vec<bool>,
}

impl Ready {
    pub(super) fn everything() -> Ready {
        Ready { everything: true, ..Ready::default() }
    }

    pub(super) fn set_everything(&mut self) {
        self.everything = true;
    }

    /// Whether the driver kicked the queue at `position` of the worker's queues.
    pub(crate) fn queue(&self, position: usize) -> bool {
        self.everything || self.queues.get(position).is_some_and(|ready| *ready)
    }

    /// Whether source `position` is ready, or in error.
    pub(crate) fn source(&self, position: usize) -> bool {
        self.everything || self.sources.get(position).is_some_and(|ready| *ready)
    }
}

/// Sleeps until a kick, a source, or the end of `limit`; says in `ready` which.
pub(super) fn sleep(queues: &mut [LiveQueue], work: &impl Work, limit: Option<Duration>, ready: &mut Ready) {
    let mut sources = Sources::default();
    work.sources(&mut sources);
    match queues {
        [live] if sources.0.is_empty() && limit.is_none() => {
            // A signal may interrupt the sleep: one look too many.
            live.kick.wait();
            live.queue.was_kicked();
            ready.set_everything();
        }
        queues => poll_all(queues, sources, limit, ready),
    }
}

fn poll_all(queues: &mut [LiveQueue], sources: Sources<'_>, limit: Option<Duration>, ready: &mut Ready) {
    let kicks = queues.iter().map(|live| PollFd::new(&*live.kick, PollFlags::IN));
    let mut all: Vec<_> = kicks.chain(sources.0).collect();
    // A limit that no clock can express is none.
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    // An error (a signal came) leaves nothing ready: one look too many.
    let awake = poll(&mut all, limit.as_ref()).is_ok();
    let mut happened = all.iter().map(|entry| awake && !entry.revents().is_empty());
    ready.everything = false;
    ready.queues.clear();
    ready.queues.extend(happened.by_ref().take(queues.len()));
    ready.sources.clear();
    ready.sources.extend(happened);
    for (live, _) in queues.iter_mut().zip(&ready.queues).filter(|(_, ready)| **ready) {
        // It is readable and we are its only reader: this does not wait.
        live.kick.wait();
        live.queue.was_kicked();
    }
}
