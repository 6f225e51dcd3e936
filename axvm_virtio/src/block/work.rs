//! What a disk's worker does in a turn: chains become transfers, neighbours become one, and an engine moves them.
//!
//! ```text
//!   ring --pop--> read, write: a slot ---begin---> sync:      a system call for each group, which waits
//!                 all others:  alone               io_uring:  one for all groups, which does not
//!                              '- after all that was taken before it has ended
//!   ended --answer--> used ring --> interrupt
//! ```
//!
//! What goes wrong with a group (an error, fewer bytes than it has) is done again, request by request, by the call that
//! waits: so each has an answer of its own, and the engines cannot differ in it.
//!
//! Between two turns requests may be in the host, if there is an io_uring; its completions end the worker's sleep, as
//! kicks do. A worker that ends waits for them: then nothing is in flight.
//!
//! Spec: virtio 1.2, 5.2.6 "Device Operation".

use axvm_memory::{Direction, FileRing, GuestRange, Transfer};
use rustix::event::PollFlags;

use super::disk_config::OnFull;
use super::error::is_full;
use super::executor::{PIECE, RequestExecutor, used_len};
use super::request::{status, status_byte};
use super::transfers::{Group, Most, Slot, State, Transfers};
use crate::live::LiveQueue;
use crate::queue::VirtQueue;
use crate::signals::whole;
use crate::worker::{BATCH, BatchEnd, Next, Poller, Ready, Serve, Sources, Work, WorkerStatus, batch, settle};

/// What is moved by one call: as many ranges as that takes without another one, and no more than a stop can wait for.
const MOST: Most = Most { bytes: 1 << 20, ranges: 64 };

/// The work of one queue.
pub(super) struct DiskWork {
    executor: RequestExecutor,
    transfers: Transfers,
    /// The asynchronous engine.
    ring: Option<FileRing>,
    /// The ranges of a group.
    ranges: Vec<GuestRange>,
    /// A write may be kept until the host has room.
    may_wait: bool,
    /// The host has no room for one that was begun: no other is.
    full: bool,
    poller: Option<Poller>,
}

impl DiskWork {
    pub(super) fn new(executor: RequestExecutor) -> DiskWork {
        let image = &executor.image;
        let (ring, may_wait) = (image.take_ring(), image.on_full() == OnFull::Pause);
        let (transfers, ranges) = Default::default();
        DiskWork { executor, transfers, ring, ranges, may_wait, full: false, poller: Some(Poller::new()) }
    }

    /// One batch: what ended is answered, what comes is begun.
    fn batch(&mut self, queue: &mut VirtQueue, worker: &WorkerStatus) -> Result<BatchEnd, String> {
        self.reap();
        if self.answer(queue) {
            return Ok(BatchEnd::Kept);
        }
        // Also what came before a fault of the driver is carried out.
        let end = self.take(queue, worker);
        self.begin();
        let kept = self.answer(queue);
        Ok(match end? {
            _ if kept => BatchEnd::Kept,
            BatchEnd::Empty if self.in_flight() > 0 => BatchEnd::Busy,
            end => end,
        })
    }

    /// Takes chains off the ring, and serves those that are no transfers.
    fn take(&mut self, queue: &mut VirtQueue, worker: &WorkerStatus) -> Result<BatchEnd, String> {
        // An engine that waits tells the driver of its work now and then.
        let (most, most_bytes) = if self.ring.is_some() { (usize::MAX, PIECE as u64) } else { (BATCH, MOST.bytes) };
        for _ in 0..most {
            if worker.stop_asked() {
                return Ok(BatchEnd::More);
            }
            if !self.transfers.has_room() || self.transfers.bytes() >= most_bytes {
                return Ok(if self.in_flight() > 0 { BatchEnd::Full } else { BatchEnd::More });
            }
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else { return Ok(BatchEnd::Empty) };
            worker.begin_request();
            let (head, room, mut ranges) = (chain.head, chain.writable_len, self.transfers.ranges());
            let Some((direction, extent)) = self.executor.as_transfer(&chain, &mut ranges) else {
                self.transfers.reuse(ranges);
                if !self.transfers.is_empty() {
                    // It waits for all before it, and then is taken again.
                    queue.put_back();
                    return Ok(if self.finish(queue) { BatchEnd::Kept } else { BatchEnd::More });
                }
                let served = self.executor.serve(&chain, worker)?;
                if let Some(end) = settle(queue, head, served) {
                    return Ok(end);
                }
                continue;
            };
            // A transfer has a status byte: its writable part is not empty.
            let Some(status) = status_byte(&chain) else {
                return Err("A block request has no room for its status".into());
            };
            if let Err(wait) = self.executor.image.limiter().take(extent.len) {
                self.transfers.reuse(ranges);
                queue.put_back();
                return Ok(BatchEnd::Later(wait));
            }
            self.transfers.add(Slot {
                head,
                status,
                direction,
                extent,
                ranges,
                room: room - 1,
                state: State::Waiting,
                began: 0,
            });
        }
        Ok(BatchEnd::More)
    }

    fn in_flight(&self) -> usize {
        self.ring.as_ref().map_or(0, FileRing::in_flight)
    }

    /// Begins all that waits, in order.
    fn begin(&mut self) {
        let stamp = WorkerStatus::stamp();
        while !self.full {
            let Some(group) = self.transfers.begin(MOST, stamp) else { break };
            let Some(ring) = &mut self.ring else {
                self.move_group(group);
                continue;
            };
            self.transfers.collect(group, &mut self.ranges);
            let direction = self.transfers.slot(group.first).direction;
            let (ranges, offset, token) = (&self.ranges[..], group.extent.offset, group.first);
            let file = self.executor.image.place(ranges, offset);
            ring.queue(&self.executor.ram, Transfer { file, direction, ranges, offset, token });
        }
        if let Some(ring) = &mut self.ring {
            ring.submit();
            // What the page cache has is done by now.
            self.reap();
        }
    }

    /// Moves a group by a call that waits, and each of its requests by itself if that fails.
    fn move_group(&mut self, group: Group) {
        if group.count > 1 {
            self.transfers.collect(group, &mut self.ranges);
            let direction = self.transfers.slot(group.first).direction;
            if self.executor.transfer(direction, &self.ranges, group.extent.offset).is_ok() {
                return self.done(group);
            }
        }
        self.move_each(group);
    }

    fn move_each(&mut self, group: Group) {
        for number in group.first..group.first + group.count as u64 {
            let slot = self.transfers.slot(number);
            // It would fail as well, and goes back to the ring; reads before it do not.
            if self.full && slot.direction == Direction::Write {
                return;
            }
            let action = if slot.direction == Direction::Read { "read" } else { "write" };
            let result = self.executor.transfer(slot.direction, &slot.ranges, slot.extent.offset);
            slot.state = match result {
                Ok(()) => State::Done(status::OK),
                Err(error) if is_full(&error) && self.may_wait => {
                    self.full = true;
                    State::Full(error)
                }
                Err(error) => {
                    self.executor.warn(action, &error);
                    State::Done(status::IOERR)
                }
            };
        }
    }

    fn done(&mut self, group: Group) {
        for number in group.first..group.first + group.count as u64 {
            self.transfers.slot(number).state = State::Done(status::OK);
        }
    }

    /// Takes what the ring has completed.
    fn reap(&mut self) {
        while let Some((token, result)) = self.ring.as_mut().and_then(FileRing::completed) {
            let group = self.transfers.group(token);
            if result.is_ok_and(|moved| moved as u64 == group.extent.len) {
                self.done(group);
            } else {
                self.move_each(group);
            }
        }
    }

    /// Answers what may be answered. True if the host has no room for something: it is in its ring again, with all that
    /// was taken after it.
    fn answer(&mut self, queue: &mut VirtQueue) -> bool {
        self.push(queue);
        if !self.full {
            return false;
        }
        self.wait_for_all();
        self.push(queue);
        self.full = false;
        let limiter = self.executor.image.limiter();
        let error = self.transfers.take_back(|slot| {
            queue.put_back();
            limiter.give_back(slot.extent.len);
        });
        if let Some(error) = error {
            self.executor.kept = true;
            self.executor.link.keep(self.executor.queue, "write", &error);
        }
        true
    }

    fn push(&mut self, queue: &mut VirtQueue) {
        let executor = &mut self.executor;
        self.transfers.answer(self.may_wait, |slot, status| {
            if std::mem::take(&mut executor.kept) {
                executor.link.forget(executor.queue);
            }
            executor.ram.copy_to(&slot.status, &[status]);
            // The used length counts from the start without a gap: the status only counts if all before it does.
            let is_filled = slot.direction == Direction::Read && status == status::OK;
            let filled = if is_filled { slot.extent.len } else { 0 };
            queue.push_used(slot.head, used_len(filled, slot.room));
        });
    }

    fn wait_for_all(&mut self) {
        while self.in_flight() > 0 {
            self.ring.iter_mut().for_each(FileRing::wait);
            self.reap();
        }
    }

    /// Ends all that was taken; as [`DiskWork::answer`].
    fn finish(&mut self, queue: &mut VirtQueue) -> bool {
        self.begin();
        self.wait_for_all();
        self.answer(queue)
    }
}

impl Work for DiskWork {
    fn turn(&mut self, queues: &mut [LiveQueue], _ready: &Ready, status: &WorkerStatus) -> Result<Next, String> {
        let [live] = queues else { return Err("A disk's worker has one queue: a bug of AxVM".into()) };
        let mut poller = self.poller.take();
        poller.iter_mut().for_each(Poller::wakes);
        let next = batch(live, poller.as_mut(), status, |queue| self.batch(queue, status));
        self.poller = poller;
        next
    }

    fn sources<'a>(&'a self, sources: &mut Sources<'a>) {
        if let Some(ring) = self.ring.as_ref().filter(|ring| ring.in_flight() > 0) {
            sources.add(ring, PollFlags::IN);
        }
    }

    fn in_host_since(&self) -> Option<u64> {
        self.transfers.oldest()
    }

    fn drain(&mut self, queues: &mut [LiveQueue]) {
        for live in queues {
            self.finish(&mut live.queue);
            if live.queue.publish() {
                live.irq.raise();
            }
        }
        if let Some(ring) = self.ring.take() {
            self.executor.image.give_ring(ring);
        }
    }
}
