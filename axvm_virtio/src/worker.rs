//! A thread that serves one queue: sleep until kicked, serve all there is, sleep again.
//!
//! ```text
//!   kick ---> disable kicks -> pop, serve, push -> publish -> (wanted?) interrupt
//!    ^                          '---- until empty ----'              |
//!    '--- sleep <- nothing new <- enable kicks <---------------------'
//! ```
//!
//! Serving is synchronous: a request that was popped is pushed before the next one, so whenever the
//! worker looks at its stop flag, nothing is in flight. A queue with another rhythm brings its own loop, as [`Work`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use axvm_sandbox::Role;
use vmm_sys_util::eventfd::EventFd;

use crate::device::LiveQueue;
use crate::queue::{Chain, QueueState, VirtQueue};
use crate::signals::{Fault, whole};

/// How many completions may wait for the driver to be told.
const BATCH: usize = 16;

/// Serves one chain: returns how many bytes it wrote to it, or which rule the driver broke.
pub(crate) trait Serve: Send + 'static {
    /// See the trait.
    fn serve(&mut self, chain: &Chain<'_>) -> Result<u32, &'static str>;
}

/// The whole work of a thread.
pub(crate) trait Work: Send + 'static {
    /// Works until `stop` is set, which also kicks the queue, and leaves nothing in flight. Or says which rule the
    /// driver broke.
    fn work(&mut self, live: &mut LiveQueue, stop: &Stop) -> Result<(), String>;
}

/// "Come to an end": set once, from outside the thread.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The owner's end of the thread. Dropping it stops the thread.
pub(crate) struct QueueWorker {
    stop: Stop,
    kick: EventFd,
    thread: Option<JoinHandle<QueueState>>,
}

impl QueueWorker {
    /// Starts serving `live`, in a thread called like `vda-q0`.
    pub(crate) fn spawn(name: &str, live: LiveQueue, fault: Fault, serve: impl Serve) -> io::Result<QueueWorker> {
        QueueWorker::spawn_work(name, live, fault, Serving(serve))
    }

    /// Starts working on `live`, in a thread called like `vda-q0`.
    pub(crate) fn spawn_work(name: &str, live: LiveQueue, fault: Fault, work: impl Work) -> io::Result<QueueWorker> {
        let stop = Stop::default();
        let kick = live.kick.try_clone()?;
        let name = format!("{name}-q{}", live.index);
        let mut inside = Inside { live, fault, work, stop: stop.clone() };
        let thread = Builder::new().name(name).spawn(move || {
            axvm_sandbox::enter(Role::Queue);
            inside.run()
        })?;
        Ok(QueueWorker { stop, kick, thread: Some(thread) })
    }

    /// Ends the thread after the request it is at, and says how far it came.
    pub(crate) fn stop(mut self) -> QueueState {
        self.join().unwrap_or_default()
    }

    fn join(&mut self) -> Option<QueueState> {
        let thread = self.thread.take()?;
        self.stop.0.store(true, Ordering::SeqCst);
        let _ = self.kick.write(1);
        // A panic in there is our bug: the guest was told, and the queue starts anew.
        thread.join().ok()
    }
}

impl Drop for QueueWorker {
    fn drop(&mut self) {
        self.join();
    }
}

/// What the thread owns.
struct Inside<W> {
    live: LiveQueue,
    fault: Fault,
    work: W,
    stop: Stop,
}

impl<W: Work> Inside<W> {
    fn run(&mut self) -> QueueState {
        if let Err(reason) = self.work.work(&mut self.live, &self.stop) {
            self.fault.report(reason);
        }
        self.live.queue.state()
    }
}

/// The usual work: see the module's head.
struct Serving<S>(S);

impl<S: Serve> Work for Serving<S> {
    fn work(&mut self, live: &mut LiveQueue, stop: &Stop) -> Result<(), String> {
        // The driver may have filled the ring before DRIVER_OK, so look before sleeping.
        while !stop.is_set() {
            self.drain(live, stop)?;
            // A signal may interrupt the sleep: one look too many.
            let _ = live.kick.read();
        }
        Ok(())
    }
}

impl<S: Serve> Serving<S> {
    /// Serves until the ring is empty.
    fn drain(&mut self, live: &mut LiveQueue, stop: &Stop) -> Result<(), String> {
        loop {
            live.queue.disable_kicks();
            let served = self.serve_batch(&mut live.queue, stop);
            if live.queue.publish() {
                live.irq.raise();
            }
            let done = served? < BATCH && !live.queue.enable_kicks();
            if done || stop.is_set() {
                return Ok(());
            }
        }
    }

    /// Serves up to [`BATCH`] chains; how many there were.
    fn serve_batch(&mut self, queue: &mut VirtQueue, stop: &Stop) -> Result<usize, String> {
        for count in 0..BATCH {
            if stop.is_set() {
                return Ok(count);
            }
            let Some(chain) = queue.pop().map_err(|error| whole(&error))? else { return Ok(count) };
            let head = chain.head;
            let written = self.0.serve(&chain)?;
            queue.push_used(head, written);
        }
        Ok(BATCH)
    }
}

impl<W> Drop for Inside<W> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fault.report("The worker of its queue failed: a bug of AxVM, please report it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::QueueFeatures;
    use crate::signals::{QueueIrq, Signals};
    use crate::testing::{Buffer, FakeDriver};
    use axvm_arch::Gpa;
    use axvm_devices::Irq;
    use axvm_memory::{GuestRam, RamConfig};
    use vmm_sys_util::eventfd::EFD_CLOEXEC;

    struct Broken;

    impl Serve for Broken {
        fn serve(&mut self, _: &Chain<'_>) -> Result<u32, &'static str> {
            panic!("a bug, on purpose");
        }
    }

    #[test]
    fn a_bug_of_ours_reaches_the_driver_as_a_reset_request() {
        let ram = GuestRam::allocate(&RamConfig::new(2 << 20)).unwrap();
        let mut driver = FakeDriver::new(&ram, Gpa(0x1000), 8, false);
        driver.add(&[Buffer::writable(Gpa(0x8000), 1)]);
        driver.kick();
        let (features, state) = (QueueFeatures::default(), QueueState::default());
        let queue = VirtQueue::new(&ram, &driver.layout(), features, state).unwrap();
        let signals = Signals::new("test", Irq::new().unwrap(), Default::default());
        let kick = EventFd::new(EFD_CLOEXEC).unwrap();
        let live = LiveQueue { index: 0, queue, kick, irq: QueueIrq::new(&signals) };
        let worker = QueueWorker::spawn("test", live, Fault::new(&signals), Broken).unwrap();
        let start = std::time::Instant::now();
        while !signals.needs_reset() {
            assert!(start.elapsed().as_secs() < 10, "the driver is told");
            std::thread::yield_now();
        }
        assert_eq!(worker.stop(), QueueState::default());
    }
}
