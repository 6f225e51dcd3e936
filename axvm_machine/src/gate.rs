//! The gate that all vCPU threads of a machine pass: run, pause or stop.
//!
//! ```text
//!   control thread: order(Pause) --> kick all --> wait_until_still   visit(n, act)      order(Run)
//!   vCPU thread n:  KVM_RUN ... Interrupted --> pass(): waits here --> act(vcpu) --> waits --> KVM_RUN
//! ```
//!
//! A vCPU comes to the gate only after [`Exit::Interrupted`](axvm_kvm::Exit): then its last exit is answered and
//! completed, so a vCPU that waits here has its whole state in KVM. A visit reads or changes that state from the vCPU's
//! own thread, which is the only one that may. The loop itself pays nothing for the gate.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axvm_kvm::Vcpu;

/// What the vCPUs are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Run the guest.
    Run,
    /// Wait at the gate.
    Pause,
    /// Leave the loop; the last order.
    Stop,
}

/// What a vCPU finds at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Go on.
    Open,
    /// Go on; time has passed since.
    Reopened,
    /// Leave the loop.
    Closed,
}

/// One gate for all vCPU threads.
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    order: Order,
    /// Threads that are in their loop and not waiting here.
    running: usize,
    /// Who waits here, each with the visits that it is to receive.
    waiting: BTreeMap<u32, Vec<Visit>>,
}

/// Something to do on a vCPU.
type Visit = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

/// A thread's presence; it ends with the thread, however that ends.
pub struct Presence(Arc<Gate>);

impl Gate {
    /// A gate with this first order.
    pub fn new(order: Order) -> Gate {
        Gate { state: Mutex::new(State { order, running: 0, waiting: BTreeMap::new() }), changed: Condvar::new() }
    }

    /// A vCPU thread is about to begin.
    pub fn enter(self: &Arc<Gate>) -> Presence {
        self.state().running += 1;
        Presence(Arc::clone(self))
    }

    /// The thread of vCPU number `index` was interrupted: waits while the order is to pause, and receives visits.
    pub fn pass(&self, index: u32, vcpu: &mut dyn Vcpu) -> Passage {
        let mut state = self.state();
        match state.order {
            Order::Run => return Passage::Open,
            Order::Stop => return Passage::Closed,
            Order::Pause => {}
        }
        state.running -= 1;
        state.waiting.insert(index, Vec::new());
        self.changed.notify_all();
        while state.order == Order::Pause {
            match state.waiting.get_mut(&index).and_then(Vec::pop) {
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(visit) => {
                    drop(state);
                    // One that panics fails its visitor, who gets no answer, and not this vCPU.
                    let _ = catch_unwind(AssertUnwindSafe(|| visit(vcpu)));
                    state = self.state();
                }
            }
        }
        state.waiting.remove(&index);
        state.running += 1;
        if state.order == Order::Stop { Passage::Closed } else { Passage::Reopened }
    }

    /// Has the thread of vCPU number `index` call `act`, and waits for the answer. `None` if it does not wait here: call
    /// it between a [`Gate::wait_until_still`] and the next order.
    pub fn visit<T: Send + 'static>(
        &self,
        index: u32,
        act: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
    ) -> Option<T> {
        // Without an answer if the visit panics, or the vCPU leaves before it comes: the sender is dropped.
        self.begin_visit(index, act)?.recv().ok()
    }

    /// The same with an act that may take long: after `limit`, `late` is called once.
    pub fn visit_within<T: Send + 'static>(
        &self,
        index: u32,
        limit: Duration,
        late: impl FnOnce(),
        act: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
    ) -> Option<T> {
        let answered = self.begin_visit(index, act)?;
        match answered.recv_timeout(limit) {
            Err(RecvTimeoutError::Timeout) => {
                late();
                answered.recv().ok()
            }
            answer => answer.ok(),
        }
    }

    fn begin_visit<T: Send + 'static>(
        &self,
        index: u32,
        act: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
    ) -> Option<Receiver<T>> {
        let (answer, answered) = sync_channel(1);
        let mut state = self.state();
        let visit: Visit = Box::new(move |vcpu| _ = answer.send(act(vcpu)));
        state.waiting.get_mut(&index)?.push(visit);
        drop(state);
        self.changed.notify_all();
        Some(answered)
    }

    /// Gives an order. After [`Order::Pause`] and [`Order::Stop`] the vCPUs must be kicked. Nothing follows a stop.
    pub fn order(&self, order: Order) {
        let mut state = self.state();
        if state.order != Order::Stop {
            state.order = order;
        }
        self.changed.notify_all();
    }

    /// The order that holds.
    pub fn current(&self) -> Order {
        self.state().order
    }

    /// Waits until every vCPU thread waits here or has ended, or the order to pause is no longer the current one.
    /// Whether that came before `deadline`.
    pub fn wait_until_still(&self, deadline: Instant) -> bool {
        self.wait_while(deadline, |state| state.running > 0 && state.order == Order::Pause)
    }

    /// Waits until every vCPU thread has ended; whether that came before `deadline`.
    pub fn wait_until_empty(&self, deadline: Instant) -> bool {
        self.wait_while(deadline, |state| state.running + state.waiting.len() > 0)
    }

    fn wait_while(&self, deadline: Instant, condition: impl Fn(&State) -> bool) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.state(), left, |state| condition(state));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.state().running -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_kvm::Exit;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::{array, io, thread};

    /// A vCPU that nothing is asked of.
    struct Idle(u32);

    impl Vcpu for Idle {
        fn run(&mut self) -> io::Result<Exit<'_>> {
            self.0 += 1;
            Ok(Exit::Halted)
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// Waits until the gate has a waiting thread for each of these vCPUs.
    fn hold(gate: &Gate, count: usize) {
        gate.order(Order::Pause);
        while gate.state().waiting.len() < count {
            thread::yield_now();
        }
    }

    #[test]
    fn paused_threads_stand_still_and_go_on() {
        let (gate, counts) =
            (Arc::new(Gate::new(Order::Run)), array::from_fn::<AtomicU64, 4, _>(|_| AtomicU64::new(0)));
        thread::scope(|scope| {
            for (index, count) in (0..).zip(&counts) {
                let gate = &gate;
                scope.spawn(move || {
                    let _presence = gate.enter();
                    while gate.pass(index, &mut Idle(0)) != Passage::Closed {
                        count.fetch_add(1, Ordering::Relaxed);
                        thread::yield_now();
                    }
                });
            }
            let total = || counts.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u64>();
            let advance = |from: u64| {
                while total() == from {
                    thread::yield_now();
                }
            };
            for _ in 0..50 {
                advance(total());
                gate.order(Order::Pause);
                assert!(gate.wait_until_still(soon()));
                let still = total();
                thread::sleep(Duration::from_millis(1));
                assert_eq!(total(), still);
                gate.order(Order::Run);
            }
            gate.order(Order::Pause);
            gate.order(Order::Stop);
        });
    }

    #[test]
    fn a_visit_acts_on_the_vcpu_from_its_own_thread() {
        let gate = Arc::new(Gate::new(Order::Pause));
        thread::scope(|scope| {
            for index in 0..3 {
                let gate = &gate;
                scope.spawn(move || {
                    let _presence = gate.enter();
                    let mut vcpu = Idle(index);
                    assert_eq!(gate.pass(index, &mut vcpu), Passage::Closed);
                    assert_eq!(vcpu.0, index + 2, "both visits came");
                });
            }
            hold(&gate, 3);
            for index in [2, 0, 1, 1, 2, 0] {
                let visited = gate.visit(index, |vcpu| (vcpu.run().is_ok(), thread::current().id()));
                assert!(visited.is_some_and(|(ran, thread)| ran && thread != thread::current().id()));
            }
            gate.order(Order::Stop);
        });
    }

    #[test]
    fn a_visit_without_a_vcpu_or_with_a_bug_has_no_answer() {
        let gate = Arc::new(Gate::new(Order::Pause));
        assert_eq!(gate.visit(0, |_| ()), None, "no thread waits");
        thread::scope(|scope| {
            scope.spawn(|| {
                let _presence = gate.enter();
                gate.pass(0, &mut Idle(0))
            });
            hold(&gate, 1);
            assert_eq!(gate.visit(7, |_| ()), None, "another vCPU waits");
            assert_eq!(gate.visit(0, |_| panic!("a bug, on purpose")), None::<()>);
            assert_eq!(gate.visit(0, |_| 5), Some(5), "the vCPU still waits");
            gate.order(Order::Stop);
        });
    }

    #[test]
    fn a_thread_that_ends_is_not_waited_for() {
        let gate = Arc::new(Gate::new(Order::Run));
        thread::scope(|scope| {
            scope.spawn(|| drop(gate.enter()));
        });
        gate.order(Order::Pause);
        assert!(gate.wait_until_still(soon()) && gate.wait_until_empty(soon()));
    }

    #[test]
    fn a_thread_that_does_not_come_is_waited_for_until_the_deadline() {
        let gate = Arc::new(Gate::new(Order::Pause));
        let _elsewhere = gate.enter();
        let begin = Instant::now();
        assert!(!gate.wait_until_still(begin + Duration::from_millis(20)));
        assert!(!gate.wait_until_empty(begin) && begin.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn nothing_follows_a_stop() {
        let gate = Arc::new(Gate::new(Order::Stop));
        gate.order(Order::Run);
        assert_eq!(gate.current(), Order::Stop);
        let _presence = gate.enter();
        assert_eq!(gate.pass(0, &mut Idle(0)), Passage::Closed);
    }
}
