//! The machine of the moment: what keys, signals and the control socket act on while guests come and go.
//!
//! ```text
//!   main thread:  install(machine) ... remove()      around each start of the guest
//!   others:       machine()                          the one of now, if any
//!                 wait_for_machine(limit)            the next one, where there is none
//!                 wait_for_next(machine, limit)      the one after it
//!                 request_stop(reason)               what comes between two starts waits for the next
//! ```
//!
//! No specification: this is AxVM's own.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axvm_devices::StopReason;
use axvm_machine::Machine;
use axvm_sync::lock;

/// A place for one machine.
#[derive(Default)]
pub struct Current {
    slot: Mutex<Slot>,
    installed: Condvar,
}

#[derive(Default)]
struct Slot {
    machine: Option<Arc<Machine>>,
    /// Requested while there was no machine.
    requested: Option<StopReason>,
}

impl Current {
    /// This machine is the one from now on.
    pub fn install(&self, machine: Arc<Machine>) {
        let mut slot = self.slot();
        if let Some(reason) = slot.requested.take() {
            machine.stop_switch().insist(reason);
        }
        slot.machine = Some(machine);
        self.installed.notify_all();
    }

    /// There is no machine for a while. Gives the last word about why it was stopped: what is requested from now on is
    /// for the next one.
    pub fn remove(&self) -> Option<StopReason> {
        self.slot().machine.take().and_then(|machine| machine.stop_switch().reason())
    }

    /// The machine, unless it is between two starts.
    pub fn machine(&self) -> Option<Arc<Machine>> {
        self.slot().machine.clone()
    }

    /// The machine, or the next one: the guest may run, and speak, a moment before it is installed, and a reset takes some
    /// milliseconds. `None` if there is none within `limit`.
    pub fn wait_for_machine(&self, limit: Duration) -> Option<Arc<Machine>> {
        let waited = self.installed.wait_timeout_while(self.slot(), limit, |slot| slot.machine.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.machine.clone()
    }

    /// The machine that comes after `old`; `None` if there is none within `limit`.
    pub fn wait_for_next(&self, old: &Arc<Machine>, limit: Duration) -> Option<Arc<Machine>> {
        let is_next = |slot: &Slot| slot.machine.as_ref().is_some_and(|machine| !Arc::ptr_eq(machine, old));
        let waited = self.installed.wait_timeout_while(self.slot(), limit, |slot| !is_next(slot));
        waited.unwrap_or_else(PoisonError::into_inner).0.machine.clone().filter(|machine| !Arc::ptr_eq(machine, old))
    }

    /// Asks for a stop. Of a machine that was just reset, the next one gets the request.
    pub fn request_stop(&self, reason: StopReason) {
        let mut slot = self.slot();
        let counts = slot.machine.as_ref().is_some_and(|machine| {
            machine.stop_switch().insist(reason.clone());
            machine.stop_switch().reason().as_ref() == Some(&reason)
        });
        if !counts {
            slot.requested = Some(reason);
        }
    }

    /// Presses the power button, if there is a machine to hear it.
    pub fn press_power_button(&self) {
        if let Some(machine) = self.machine() {
            machine.press_power_button();
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        lock(&self.slot)
    }
}
