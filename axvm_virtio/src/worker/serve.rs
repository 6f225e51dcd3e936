//! The usual work: a request for each chain, finished before the next one begins.
//!
//! ```text
//!   kick ---> disable kicks -> pop, serve, push -> publish -> (wanted?) interrupt
//!    ^                          '---- until empty ----'              |
//!    '--- sleep <- nothing new <- enable kicks <- (poller: soon?) <--'
//! ```
//!
//! Serving is synchronous: a request that was popped is pushed, or put back, before the next one. So whenever the
//! worker looks at its stop flag, nothing is in flight.
//!
//! Spec: virtio 1.2, 2.7.7 "Used Buffer Notification Suppression", 2.7.10 "Available Buffer Notification Suppression".

use std::time::Duration;

use super::{Next, Poller, Ready, Work, WorkerStatus};
use crate::live::LiveQueue;
use crate::queue::{Chain, VirtQueue};
use crate::signals::whole;

/// How many completions may wait for the driver to be told.
pub(crate) const BATCH: usize = 16;

/// The outcome of one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// The request is done, and wrote so many bytes to the chain.
    Used(u32),
    /// A stop came first: the chain goes back to the ring, and its request is carried out as a whole after it. Only for
    /// what may be done twice.
    PutBack,
    /// The host has no room for it: the chain goes back to the ring, and the queue rests until the worker is stopped, or
    /// woken to try again. Only for what may be done twice.
    Kept,
    /// A rate limit: the chain goes back to the ring, and the queue rests so long.
    Later(Duration),
}

/// What ended a batch.
pub(crate) enum BatchEnd {
    /// The ring was found empty.
    Empty,
    /// There may be more.
    More,
    /// The ring was found empty, and requests are in the host: the end of one ends the sleep too.
    Busy,
    /// There may be more, and no room for it until something ends that the sleep waits for.
    Full,
    /// The next chain must wait.
    Kept,
    /// The next chain must wait so long.
    Later(Duration),
}

/// Serves one chain, or says which rule the driver broke.
pub(crate) trait Serve: Send + 'static {
    /// See the trait. A long request looks at `status` on the way.
    fn serve(&mut self, chain: &Chain<'_>, status: &WorkerStatus) -> Result<Served, &'static str>;
}

/// Serves all queues of a worker alike.
pub(crate) struct Serving<S> {
    serve: S,
    /// A queue rests for a time: its end is no kick.
    resting: bool,
}

impl<S> Serving<S> {
    pub(crate) fn new(serve: S) -> Serving<S> {
        Serving { serve, resting: false }
    }
}

impl<S: Serve> Work for Serving<S> {
    fn turn(&mut self, queues: &mut [LiveQueue], ready: &Ready, status: &WorkerStatus) -> Result<Next, String> {
        let (mut next, rested) = (Next::Sleep, self.resting);
        for (position, live) in queues.iter_mut().enumerate() {
            if ready.queue(position) || rested {
                next = next.min(serve_batch(live, &mut self.serve, status)?);
            }
        }
        self.resting = matches!(next, Next::SleepFor(_));
        Ok(next)
    }
}

/// Serves up to [`BATCH`] chains of a queue and tells the driver. `Again` if there may be more; else the driver was
/// asked for a kick, or a chain is kept or must wait and no kick is wanted.
pub(crate) fn serve_batch(live: &mut LiveQueue, serve: &mut impl Serve, status: &WorkerStatus) -> Result<Next, String> {
    batch(live, None, status, |queue| pop_and_serve(queue, serve, status))
}

/// The same with all that is done to the ring: `work` takes chains and pushes them. With a poller, the ring is looked at
/// for a moment before the worker sleeps, for a driver that waits for each request.
pub(crate) fn batch(
    live: &mut LiveQueue,
    mut poller: Option<&mut Poller>,
    status: &WorkerStatus,
    work: impl FnOnce(&mut VirtQueue) -> Result<BatchEnd, String>,
) -> Result<Next, String> {
    live.queue.disable_kicks();
    let end = work(&mut live.queue);
    if live.queue.publish() {
        live.irq.raise();
    }
    Ok(match end? {
        BatchEnd::Empty if poller.as_mut().is_some_and(|poller| poller.finds(&live.queue, status)) => Next::Again,
        BatchEnd::Empty if !live.queue.enable_kicks() => {
            if let Some(poller) = poller {
                poller.sleeps();
            }
            Next::Sleep
        }
        BatchEnd::Busy if !live.queue.enable_kicks() => Next::Sleep,
        BatchEnd::Empty | BatchEnd::Busy | BatchEnd::More => Next::Again,
        BatchEnd::Full | BatchEnd::Kept => Next::Sleep,
        BatchEnd::Later(wait) => Next::SleepFor(wait),
    })
}

pub(super) fn pop_and_serve(
    queue: &mut VirtQueue,
    serve: &mut impl Serve,
    status: &WorkerStatus,
) -> Result<BatchEnd, String> {
    for _ in 0..BATCH {
        if status.stop_asked() {
            return Ok(BatchEnd::More);
        }
        let Some(chain) = queue.pop().map_err(|error| whole(&error))? else { return Ok(BatchEnd::Empty) };
        let head = chain.head;
        status.begin_request();
        let served = serve.serve(&chain, status)?;
        if let Some(end) = settle(queue, head, served) {
            return Ok(end);
        }
    }
    Ok(BatchEnd::More)
}

/// What becomes of the chain that was popped last, whose head is `head`; how the batch ends, if it does with this one.
pub(crate) fn settle(queue: &mut VirtQueue, head: u16, served: Served) -> Option<BatchEnd> {
    let end = match served {
        Served::Used(written) => {
            queue.push_used(head, written);
            return None;
        }
        Served::PutBack => None,
        Served::Kept => Some(BatchEnd::Kept),
        Served::Later(wait) => Some(BatchEnd::Later(wait)),
    };
    queue.put_back();
    end
}
