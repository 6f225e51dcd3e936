//! Tests of the worker: what ends its sleep, what a stop waits for, what a bug of ours costs.

use super::*;
use crate::queue::{Chain, QueueFeatures, VirtQueue};
use crate::signals::{DeviceSignals, Line, QueueIrq};
use crate::testing::{Buffer, FakeDriver};
use axvm_arch::Gpa;
use axvm_devices::Irq;
use axvm_memory::{GuestRam, RamConfig};
use axvm_sync::EventFd;
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
        let signals = DeviceSignals::new("test", Line::Edge(Irq::new().unwrap()), Default::default());
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
            let irq = QueueIrq::new(&self.signals, index as u16);
            LiveQueue { index: index as u16, queue, kick: Arc::new(EventFd::new().unwrap()), irq }
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
    let worker = Worker::spawn(bench.parts(), Serving::new(Broken)).unwrap();
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
    let worker = Worker::spawn(bench.parts(), Serving::new(Hanging(wait))).unwrap();
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
    source: Arc<EventFd>,
    seen: Sender<[bool; 3]>,
    limit: Option<Duration>,
}

impl Work for Watching {
    fn turn(&mut self, _: &mut [LiveQueue], ready: &Ready, _: &WorkerStatus) -> Result<Next, String> {
        if ready.source(0) {
            self.source.take();
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
    let (bench, source) = (Bench::new(2), Arc::new(EventFd::new().unwrap()));
    let (seen, turns) = channel();
    let work = Watching { source: Arc::clone(&source), seen, limit: None };
    let parts = bench.parts();
    let kicks = [0, 1].map(|n: usize| Arc::clone(&parts.queues[n].kick));
    let worker = Worker::spawn(parts, work).unwrap();
    let next = || turns.recv_timeout(PATIENCE).unwrap();
    assert_eq!(next(), [true; 3], "the first turn looks at everything");
    kicks[1].signal();
    assert_eq!(next(), [false, true, false]);
    source.signal();
    assert_eq!(next(), [false, false, true]);
    kicks[0].signal();
    assert_eq!(next(), [true, false, false]);
    assert!(turns.try_recv().is_err(), "nothing happened since");
    assert!(Worker::take(&mut Some(worker), None).unwrap().work.is_some());
    assert_eq!(next(), [false; 3], "drained");
}

#[test]
fn a_limit_ends_the_sleep() {
    let (bench, (seen, turns)) = (Bench::new(1), channel());
    let limit = Some(Duration::from_millis(30));
    let work = Watching { source: Arc::new(EventFd::new().unwrap()), seen, limit };
    let _worker = Worker::spawn(bench.parts(), work).unwrap();
    let start = Instant::now();
    (0..3).for_each(|_| _ = turns.recv_timeout(PATIENCE).unwrap());
    assert!(start.elapsed() >= Duration::from_millis(60));
}

/// Leaves its turn early when a stop is asked for; tells before, and goes on when it is allowed to.
struct Hasty {
    begun: Sender<()>,
    go: Receiver<()>,
    cut_short: Sender<bool>,
}

impl Work for Hasty {
    fn turn(&mut self, _: &mut [LiveQueue], _: &Ready, status: &WorkerStatus) -> Result<Next, String> {
        let _ = self.begun.send(());
        let _ = self.go.recv();
        let _ = self.cut_short.send(status.stop_asked());
        let _ = self.go.recv();
        Ok(Next::Sleep)
    }
}

#[test]
fn a_turn_that_a_stop_cut_short_is_done_again_when_the_stop_is_taken_back() {
    let (bench, (go, allowed), (cut_short, turns)) = (Bench::new(1), channel(), channel());
    let (begun, in_turn) = channel();
    let _worker = Worker::spawn(bench.parts(), Hasty { begun, go: allowed, cut_short }).unwrap();
    let next = || turns.recv_timeout(PATIENCE);
    // A stop that comes before the first turn ends the worker.
    in_turn.recv_timeout(PATIENCE).unwrap();
    bench.list.ask_stop();
    go.send(()).unwrap();
    assert_eq!(next(), Ok(true));
    assert!(bench.list.cancel_stop());
    go.send(()).unwrap();
    // The ring of the stop wakes it once; what it cut short wakes it in any case.
    for _ in 0..2 {
        go.send(()).unwrap();
        assert_eq!(next(), Ok(false));
        go.send(()).unwrap();
    }
    drop(go);
}

struct Quick;

impl Serve for Quick {
    fn serve(&mut self, _: &Chain<'_>, _: &WorkerStatus) -> Result<Served, &'static str> {
        Ok(Served::Used(1))
    }
}

/// Its queue is looked at before the worker sleeps.
struct Polling(Quick, Poller);

impl Work for Polling {
    fn turn(&mut self, queues: &mut [LiveQueue], _ready: &Ready, status: &WorkerStatus) -> Result<Next, String> {
        let Polling(serve, poller) = self;
        poller.wakes();
        batch(&mut queues[0], Some(poller), status, |queue| serve::pop_and_serve(queue, serve, status))
    }
}

/// A driver that waits for each of its requests: how many kicks are wanted for so many.
fn kicks_of(work: Polling, requests: usize) -> usize {
    let mut bench = Bench::new(1);
    let parts = bench.parts();
    let kick = Arc::clone(&parts.queues[0].kick);
    let worker = Worker::spawn(parts, work).unwrap();
    let mut kicks = 0;
    for _ in 0..requests {
        bench.drivers[0].add(&[Buffer::writable(Gpa(0x8000), 1)]);
        if bench.drivers[0].kick() {
            kicks += 1;
            kick.signal();
        }
        let start = Instant::now();
        while bench.drivers[0].take_used().is_none() {
            assert!(start.elapsed() < PATIENCE, "a request was not served");
            std::hint::spin_loop();
        }
    }
    let ended = Worker::take(&mut Some(worker), None).unwrap();
    assert_eq!(ended.queues, [QueueState { next_avail: requests as u16, next_used: requests as u16 }]);
    kicks
}

#[test]
fn a_driver_that_comes_back_soon_need_not_kick() {
    if std::thread::available_parallelism().unwrap().get() == 1 {
        return;
    }
    let requests = 5000;
    // On a busy host the driver may not come soon.
    assert!((0..20).any(|_| kicks_of(Polling(Quick, Poller::new()), requests) < requests / 2));
}
