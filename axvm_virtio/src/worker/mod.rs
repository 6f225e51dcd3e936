//! The one kind of thread behind a virtio device: it serves any number of queues and other descriptors until stopped.
//!
//! ```text
//!   start --> turn(ready) --Again--> stop? --no--> turn(everything) ..
//!                         --Sleep--> stop? --no--> wait { kicks, sources, timeout } --> turn(what is ready) ..
//!                         --error--> DEVICE_NEEDS_RESET -.
//!                                    stop? --yes---------+--> drain --> queues and work go back to the device
//! ```
//!
//! What a turn does is the device's [`Work`]; [`Serving`] is the usual one, a request for each chain.
//! A stop is two steps, so that many workers can end at the same time: [`WorkerStatus::ask_stop`], then
//! [`Worker::join`], which can give up: a request that hangs in the host holds up its own thread, nothing else.
//!
//! With one queue and no more to wait for, the sleep is one blocking read(2) of the kick; else it is one poll(2).
//!
//! Source: eventfd(2), poll(2).
//! Left out: several threads for one queue.

mod group;
mod poll;
mod serve;
mod status;
mod wait;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axvm_sandbox::Role;

use crate::live::LiveQueue;
use crate::queue::QueueState;
use crate::signals::FaultReporter;

pub(crate) use group::WorkerGroup;
pub(crate) use poll::Poller;
pub(crate) use serve::{BATCH, BatchEnd, Serve, Served, Serving, batch, serve_batch, settle};
pub use status::{Busy, StillBusy};
pub(crate) use status::{WorkerList, WorkerStatus};
pub(crate) use wait::{Ready, Sources};

/// How long a worker that is dropped may still need; after that its thread is left to itself.
const DROP_PATIENCE: Duration = Duration::from_secs(2);

/// What a worker does after a turn; the soonest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Next {
    /// The next turn, unless a stop is asked for.
    Again,
    /// Sleep until a kick or a source is ready, at most so long.
    SleepFor(Duration),
    /// Sleep until a kick or a source is ready.
    Sleep,
}

/// What a device does in its thread.
pub(crate) trait Work: Send + 'static {
    /// Serves what is ready, or says which rule the driver broke; then no other turn follows. It looks at `status`
    /// between two requests, and leaves in the ring what it does not begin.
    fn turn(&mut self, queues: &mut [LiveQueue], ready: &Ready, status: &WorkerStatus) -> Result<Next, String>;

    /// Names the descriptors that may end the next sleep, beside the kicks of the queues.
    fn sources<'a>(&'a self, _sources: &mut Sources<'a>) {}

    /// When the first of the requests began that a turn left with the host, as [`WorkerStatus::stamp`] said then.
    fn in_host_since(&self) -> Option<u64> {
        None
    }

    /// The worker ends: chains that are held go back to their rings, so that nothing is in flight.
    fn drain(&mut self, _queues: &mut [LiveQueue]) {}
}

/// What a thread that ended leaves.
pub(crate) struct Ended<W> {
    /// Where the queues stand, in the order they were given.
    pub(crate) queues: Vec<QueueState>,
    /// The work; `None` after a bug of ours in it.
    pub(crate) work: Option<W>,
}

/// The owner's end of the thread. Dropping it stops the thread.
pub(crate) struct Worker<W> {
    status: Arc<WorkerStatus>,
    list: Arc<WorkerList>,
    queue_count: usize,
    ended: Receiver<(Vec<QueueState>, W)>,
    thread: Option<JoinHandle<()>>,
}

/// What a worker is started with.
pub(crate) struct WorkerParts {
    /// Name of the thread, such as `vda-q0`.
    pub(crate) name: String,
    /// Its queues, at least one.
    pub(crate) queues: Vec<LiveQueue>,
    /// Where it reports what the driver did wrong.
    pub(crate) fault: FaultReporter,
    /// Where it is listed.
    pub(crate) list: Arc<WorkerList>,
}

impl<W: Work> Worker<W> {
    /// Starts the thread. Its first turn comes at once, since the driver may have filled a ring before DRIVER_OK.
    pub(crate) fn spawn(parts: WorkerParts, work: W) -> io::Result<Worker<W>> {
        let WorkerParts { name, queues, fault, list } = parts;
        let kick = Arc::clone(&queues.first().ok_or(io::ErrorKind::InvalidInput)?.kick);
        let status = WorkerStatus::new(&name, kick);
        let (queue_count, (sender, ended)) = (queues.len(), sync_channel(1));
        let inside = Inside { queues, work, fault, status: Arc::clone(&status) };
        let thread = axvm_sandbox::spawn(Role::Queue, name, move || inside.run(&sender))?;
        list.add(&status);
        Ok(Worker { status, list, queue_count, ended, thread: Some(thread) })
    }

    /// Stops the worker in `slot`, if there is one, waits for it until `deadline` (`None`: for ever), and empties the
    /// slot. A worker that is still busy then stays there, and can be waited for again.
    pub(crate) fn take(slot: &mut Option<Worker<W>>, deadline: Option<Instant>) -> Result<Ended<W>, StillBusy> {
        let ended = match slot {
            Some(worker) => worker.join(deadline)?,
            None => Ended { queues: Vec::new(), work: None },
        };
        *slot = None;
        Ok(ended)
    }
}

impl<W> Worker<W> {
    fn join(&mut self, deadline: Option<Instant>) -> Result<Ended<W>, StillBusy> {
        self.status.ask_stop();
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        let ended = match self.ended.recv_timeout(left) {
            Ok((queues, work)) => Ended { queues, work: Some(work) },
            Err(RecvTimeoutError::Timeout) => return Err(self.status.still_busy()),
            // It panicked, a bug of ours: the driver was told, and the queues start anew.
            Err(RecvTimeoutError::Disconnected) => {
                Ended { queues: vec![QueueState::default(); self.queue_count], work: None }
            }
        };
        self.list.remove(&self.status);
        if let Some(thread) = self.thread.take() {
            // It is past its work, so this does not wait. What a panic said was reported.
            let _ = thread.join();
        }
        Ok(ended)
    }
}

impl<W> Drop for Worker<W> {
    /// A thread that the host does not let go is left behind: it owns all that it uses, and ends after its request.
    fn drop(&mut self) {
        if self.thread.is_some() {
            let _ = self.join(Some(Instant::now() + DROP_PATIENCE));
            self.list.remove(&self.status);
        }
    }
}

/// What the thread owns.
struct Inside<W> {
    queues: Vec<LiveQueue>,
    work: W,
    fault: FaultReporter,
    status: Arc<WorkerStatus>,
}

impl<W: Work> Inside<W> {
    fn run(mut self, ended: &SyncSender<(Vec<QueueState>, W)>) {
        let _guard = PanicGuard { fault: self.fault.clone(), status: Arc::clone(&self.status) };
        if let Err(reason) = self.work_until_stopped() {
            self.status.end();
            self.fault.report(reason);
        }
        self.work.drain(&mut self.queues);
        self.status.set_began(None);
        let states = self.queues.iter().map(|live| live.queue.state()).collect();
        // Refused if the owner gave up, and does not want it any more.
        let _ = ended.send((states, self.work));
    }

    fn work_until_stopped(&mut self) -> Result<(), String> {
        let mut ready = Ready::everything();
        while !self.status.end_if_asked() {
            self.status.begin_request();
            let next = self.work.turn(&mut self.queues, &ready, &self.status);
            self.status.set_began(self.work.in_host_since());
            match next? {
                // A stop that is taken back after it cut a turn short leaves work to do.
                _ if self.status.was_cut_short() => ready.set_everything(),
                Next::Again => ready.set_everything(),
                Next::Sleep => wait::sleep(&mut self.queues, &self.work, None, &mut ready),
                Next::SleepFor(limit) => wait::sleep(&mut self.queues, &self.work, Some(limit), &mut ready),
            }
        }
        Ok(())
    }
}

/// Tells the driver when the thread panics: a bug of ours costs the guest a reset of the device, no more.
struct PanicGuard {
    fault: FaultReporter,
    status: Arc<WorkerStatus>,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.status.end();
            self.fault.report("The worker of its queues failed: a bug of AxVM, please report it");
        }
    }
}

#[cfg(test)]
mod tests;
