//! The workers of a device with several: each has queues of its own, and all are stopped as one.
//!
//! ```text
//!   start --add--> q0: queue 0    q1: queue 1    q2: queue 2
//!   stop  <-- states of all, by number of queue        one is still busy: the others' are kept until it is not
//! ```
//!
//! No specification.

use std::time::Instant;

use super::{StillBusy, Work, Worker};
use crate::queue::QueueState;

/// Workers, and the numbers of their queues.
pub(crate) struct WorkerGroup<W> {
    workers: Vec<(Vec<u16>, Option<Worker<W>>)>,
    /// Queues whose worker has ended, while another one is still busy.
    ended: Vec<(u16, QueueState)>,
}

impl<W> Default for WorkerGroup<W> {
    fn default() -> WorkerGroup<W> {
        WorkerGroup { workers: Vec::new(), ended: Vec::new() }
    }
}

impl<W: Work> WorkerGroup<W> {
    /// One more, which serves the queues with these numbers.
    pub(crate) fn add(&mut self, indices: Vec<u16>, worker: Option<Worker<W>>) {
        self.workers.push((indices, worker));
    }

    /// Stops all, as [`Worker::take`] does with one: where the queues stand, by ascending number.
    pub(crate) fn take(&mut self, deadline: Option<Instant>) -> Result<Vec<QueueState>, StillBusy> {
        while let Some((indices, worker)) = self.workers.last_mut() {
            let queues = Worker::take(worker, deadline)?.queues;
            self.ended.extend(indices.drain(..).zip(queues));
            self.workers.pop();
        }
        self.ended.sort_by_key(|(index, _)| *index);
        Ok(self.ended.drain(..).map(|(_, state)| state).collect())
    }
}
