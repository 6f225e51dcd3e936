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
//! Left out: several threads for one queue.

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

pub(crate) use serve::{Serve, Served, Serving, serve_batch};
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
        let _guard = PanicGuard(self.fault.clone());
        if let Err(reason) = self.work_until_stopped() {
            self.fault.report(reason);
        }
        self.work.drain(&mut self.queues);
        let states = self.queues.iter().map(|live| live.queue.state()).collect();
        // Refused if the owner gave up, and does not want it any more.
        let _ = ended.send((states, self.work));
    }

    fn work_until_stopped(&mut self) -> Result<(), String> {
        let mut ready = Ready::everything();
        while !self.status.stop_asked() {
            self.status.begin_request();
            let next = self.work.turn(&mut self.queues, &ready, &self.status);
            self.status.end_request();
            match next? {
                Next::Again => ready.set_everything(),
                Next::Sleep => wait::sleep(&self.queues, &self.work, None, &mut ready),
                Next::SleepFor(limit) => wait::sleep(&self.queues, &self.work, Some(limit), &mut ready),
            }
        }
        Ok(())
    }
}

/// Tells the driver when the thread panics: a bug of ours costs the guest a reset of the device, no more.
struct PanicGuard(FaultReporter);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.report("The worker of its queues failed: a bug of AxVM, please report it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doorbell::Doorbell;
    use crate::queue::{Chain, QueueFeatures, VirtQueue};
    use crate::signals::{DeviceSignals, QueueIrq};
    use crate::testing::{Buffer, FakeDriver};
    use axvm_arch::Gpa;
    use axvm_devices::Irq;
    use axvm_memory::{GuestRam, RamConfig};
    use rustix::event::PollFlags;
    use std::sync::mpsc::{Sender, channel};

    /// Queues of 8 that a driver fills, and what a worker needs.
    struct Bench {
        ram: Arc<GuestRam>,
        signals: Arc<DeviceSignals>,
        list: Arc<WorkerList>,
        drivers: Vec<FakeDriver>,
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    impl Bench {
        fn new(queue_count: u64) -> Bench {
            let ram = GuestRam::allocate(&RamConfig::new(2 << 20)).unwrap();
            let signals = DeviceSignals::new("test", Irq::new().unwrap(), Default::default());
            let drivers = (0..queue_count).map(|n| FakeDriver::new(&ram, Gpa(0x1000 * (n + 1)), 8, false)).collect();
            Bench { ram, signals, list: Arc::default(), drivers }
        }

        fn offer(&mut self, queue: usize) {
            self.drivers[queue].add(&[Buffer::writable(Gpa(0x8000), 1)]);
            self.drivers[queue].kick();
        }

        fn parts(&self) -> WorkerParts {
            let live = |(index, driver): (usize, &FakeDriver)| {
                let (features, state) = (QueueFeatures::default(), QueueState::default());
                let queue = VirtQueue::new(&self.ram, &driver.layout(), features, state).unwrap();
                let irq = QueueIrq::new(&self.signals);
                LiveQueue { index: index as u16, queue, kick: Doorbell::new().unwrap(), irq }
            };
            let queues = self.drivers.iter().enumerate().map(live).collect();
            let (fault, list) = (FaultReporter::new(&self.signals), Arc::clone(&self.list));
            WorkerParts { name: "test-q0".into(), queues, fault, list }
        }
    }

    fn wait_until(mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "it takes too long");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    struct Broken;

    impl Serve for Broken {
        fn serve(&mut self, _: &Chain<'_>, _: &WorkerStatus) -> Result<Served, &'static str> {
            panic!("a bug, on purpose");
        }
    }

    #[test]
    fn a_bug_of_ours_reaches_the_driver_as_a_reset_request() {
        let mut bench = Bench::new(1);
        bench.offer(0);
        let worker = Worker::spawn(bench.parts(), Serving(Broken)).unwrap();
        wait_until(|| bench.signals.needs_reset());
        let ended = Worker::take(&mut Some(worker), None).unwrap();
        assert_eq!((ended.queues, ended.work.is_none()), (vec![QueueState::default()], true));
        assert!(bench.list.is_empty());
    }

    /// Serves a chain when it is allowed to: a host that hangs.
    struct Hanging(Receiver<()>);

    impl Serve for Hanging {
        fn serve(&mut self, _: &Chain<'_>, _: &WorkerStatus) -> Result<Served, &'static str> {
            let _ = self.0.recv();
            Ok(Served::Used(1))
        }
    }

    fn hanging() -> (Bench, Option<Worker<Serving<Hanging>>>, Sender<()>) {
        let mut bench = Bench::new(1);
        bench.offer(0);
        let (go, wait) = channel();
        let worker = Worker::spawn(bench.parts(), Serving(Hanging(wait))).unwrap();
        wait_until(|| bench.list.busy().iter().any(|busy| busy.duration > Duration::from_millis(20)));
        (bench, Some(worker), go)
    }

    #[test]
    fn waiting_for_a_request_that_hangs_can_be_given_up_and_taken_up_again() {
        let (mut bench, mut slot, go) = hanging();
        for _ in 0..2 {
            let soon = Instant::now() + Duration::from_millis(10);
            let busy = Worker::take(&mut slot, Some(soon)).err().expect("it hangs");
            assert_eq!(busy.thread, "test-q0");
            assert!(busy.duration >= Duration::from_millis(20));
        }
        go.send(()).unwrap();
        let ended = Worker::take(&mut slot, Some(Instant::now() + PATIENCE)).unwrap();
        assert_eq!(ended.queues, [QueueState { next_avail: 1, next_used: 1 }]);
        assert_eq!(bench.drivers[0].take_used().map(|(_, written)| written), Some(1), "the request was answered");
        assert!(slot.is_none() && bench.list.is_empty());
    }

    #[test]
    fn dropping_a_worker_that_hangs_leaves_its_thread_behind() {
        let (bench, slot, go) = hanging();
        let start = Instant::now();
        drop(slot);
        assert!(start.elapsed() >= DROP_PATIENCE && start.elapsed() < PATIENCE);
        assert!(bench.list.is_empty());
        // The thread still holds its parts of RAM, and ends when the host lets it go.
        let before = Arc::strong_count(&bench.ram);
        go.send(()).unwrap();
        wait_until(|| Arc::strong_count(&bench.ram) < before);
    }

    /// Tells what each turn finds ready, and waits for a source, or a while.
    struct Watching {
        source: Arc<Doorbell>,
        seen: Sender<[bool; 3]>,
        limit: Option<Duration>,
    }

    impl Work for Watching {
        fn turn(&mut self, _: &mut [LiveQueue], ready: &Ready, _: &WorkerStatus) -> Result<Next, String> {
            if ready.source(0) {
                let _ = self.source.answer();
            }
            let _ = self.seen.send([ready.queue(0), ready.queue(1), ready.source(0)]);
            Ok(self.limit.map_or(Next::Sleep, Next::SleepFor))
        }

        fn sources<'a>(&'a self, sources: &mut Sources<'a>) {
            sources.add(&*self.source, PollFlags::IN);
        }

        fn drain(&mut self, _: &mut [LiveQueue]) {
            let _ = self.seen.send([false; 3]);
        }
    }

    #[test]
    fn a_turn_knows_what_ended_the_sleep_and_a_stop_drains() {
        let (bench, source) = (Bench::new(2), Doorbell::nonblocking().unwrap());
        let (seen, turns) = channel();
        let work = Watching { source: Arc::clone(&source), seen, limit: None };
        let parts = bench.parts();
        let kicks = [0, 1].map(|n: usize| Arc::clone(&parts.queues[n].kick));
        let worker = Worker::spawn(parts, work).unwrap();
        let next = || turns.recv_timeout(PATIENCE).unwrap();
        assert_eq!(next(), [true; 3], "the first turn looks at everything");
        kicks[1].ring();
        assert_eq!(next(), [false, true, false]);
        source.ring();
        assert_eq!(next(), [false, false, true]);
        kicks[0].ring();
        assert_eq!(next(), [true, false, false]);
        assert!(turns.try_recv().is_err(), "nothing happened since");
        assert!(Worker::take(&mut Some(worker), None).unwrap().work.is_some());
        assert_eq!(next(), [false; 3], "drained");
    }

    #[test]
    fn a_limit_ends_the_sleep() {
        let (bench, (seen, turns)) = (Bench::new(1), channel());
        let limit = Some(Duration::from_millis(30));
        let work = Watching { source: Doorbell::nonblocking().unwrap(), seen, limit };
        let _worker = Worker::spawn(bench.parts(), work).unwrap();
        let start = Instant::now();
        (0..3).for_each(|_| _ = turns.recv_timeout(PATIENCE).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(60));
    }
}
