//! The gate that all vCPU threads of a machine pass: run, pause or stop, and nobody is lost on the way.
//!
//! ```text
//!   control thread: order(Pause) --> kick all --> wait_until_still     order(Run) --> (they go on)
//!   vCPU thread:    KVM_RUN ... Interrupted --> pass(): waits here .................. --> KVM_RUN
//! ```
//!
//! A vCPU comes to the gate only after [`Exit::Interrupted`](axvm_kvm::Exit): then its last exit is answered and
//! completed, so whoever waits here has its whole state in KVM. The loop itself pays nothing for the gate.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

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
}

/// A thread's presence; it ends with the thread, however that ends.
pub struct Presence(Arc<Gate>);

impl Gate {
    /// A gate with this first order.
    pub fn new(order: Order) -> Gate {
        Gate { state: Mutex::new(State { order, running: 0 }), changed: Condvar::new() }
    }

    /// A vCPU thread is about to begin.
    pub fn enter(self: &Arc<Gate>) -> Presence {
        self.state().running += 1;
        Presence(Arc::clone(self))
    }

    /// A vCPU thread was interrupted: waits while the order is to pause.
    pub fn pass(&self) -> Passage {
        let mut state = self.state();
        let held = state.order == Order::Pause;
        if held {
            state.running -= 1;
            self.changed.notify_all();
            while state.order == Order::Pause {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.running += 1;
        }
        match (state.order, held) {
            (Order::Stop, _) => Passage::Closed,
            (_, true) => Passage::Reopened,
            _ => Passage::Open,
        }
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

    /// Waits until no vCPU thread runs, or the order to pause is no longer the current one.
    pub fn wait_until_still(&self) {
        let mut state = self.state();
        while state.running > 0 && state.order == Order::Pause {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
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
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;
    use std::{array, thread};

    #[test]
    fn paused_threads_stand_still_and_go_on() {
        let (gate, counts) =
            (Arc::new(Gate::new(Order::Run)), array::from_fn::<AtomicU64, 4, _>(|_| AtomicU64::new(0)));
        thread::scope(|scope| {
            for count in &counts {
                scope.spawn(|| {
                    let _presence = gate.enter();
                    while gate.pass() != Passage::Closed {
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
                gate.wait_until_still();
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
    fn a_thread_that_ends_is_not_waited_for() {
        let gate = Arc::new(Gate::new(Order::Run));
        thread::scope(|scope| {
            scope.spawn(|| drop(gate.enter()));
        });
        gate.order(Order::Pause);
        gate.wait_until_still();
    }

    #[test]
    fn nothing_follows_a_stop() {
        let gate = Arc::new(Gate::new(Order::Stop));
        gate.order(Order::Run);
        assert_eq!(gate.current(), Order::Stop);
        let _presence = gate.enter();
        assert_eq!(gate.pass(), Passage::Closed);
    }
}
