//! The one thread behind all queues of a balloon.
//!
//! ```text
//!   turn: for each queue that is ready   pages     --> serve a batch        --Again, Sleep----------.
//!                                        statistics -> take, hold, give back --Again, SleepFor(rest)-+--> the soonest
//! ```
//!
//! Which queue is for reporting? The standard says 4. Linux numbers the queues that it uses without gaps and says 3,
//! or 2 without statistics. None of these has another meaning here, so all that come after are for reporting.
//!
//! Spec: virtio 1.2, 5.5.2 "Virtqueues".

use std::sync::Arc;

use super::pages::{Carries, PageQueue};
use super::reports::StatisticsQueue;
use super::target::BalloonNumbers;
use super::{DEFLATE, INFLATE, STATISTICS, feature};
use crate::device::{Activation, LiveQueue};
use crate::worker::{Next, Ready, Work, WorkerStatus, serve_batch};

/// What serves one queue.
enum Queue {
    Pages(PageQueue),
    Statistics(StatisticsQueue),
}

/// The work of a balloon: by position, what serves each queue.
pub(super) struct BalloonWork(Vec<Queue>);

impl BalloonWork {
    pub(super) fn new(live: &Activation, shared: &Arc<BalloonNumbers>) -> BalloonWork {
        let has_statistics = live.features & feature::STATS_VQ != 0;
        let pages = |carries| Queue::Pages(PageQueue::new(carries, &live.ram, shared, &live.fault));
        let queue = |queue: &LiveQueue| match queue.index {
            INFLATE => pages(Carries::Inflate),
            DEFLATE => pages(Carries::Deflate),
            STATISTICS if has_statistics => {
                Queue::Statistics(StatisticsQueue::new(&live.ram, &shared.reports, &queue.kick))
            }
            _ => pages(Carries::Reports),
        };
        BalloonWork(live.queues.iter().map(queue).collect())
    }
}

impl Work for BalloonWork {
    fn turn(&mut self, queues: &mut [LiveQueue], ready: &Ready, status: &WorkerStatus) -> Result<Next, String> {
        let mut soonest = Next::Sleep;
        for (position, (live, queue)) in queues.iter_mut().zip(&mut self.0).enumerate() {
            let next = match queue {
                Queue::Pages(pages) if ready.queue(position) => serve_batch(live, pages, status)?,
                Queue::Pages(_) => Next::Sleep,
                // Its time may have come without a kick.
                Queue::Statistics(statistics) => statistics.turn(live)?,
            };
            soonest = soonest.min(next);
        }
        Ok(soonest)
    }

    fn drain(&mut self, queues: &mut [LiveQueue]) {
        for (live, queue) in queues.iter_mut().zip(&mut self.0) {
            if let Queue::Statistics(statistics) = queue {
                statistics.drain(live);
            }
        }
    }
}
