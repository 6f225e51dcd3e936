//! The machine of the moment: what keys, signals and the control socket act on while guests come and go.
//!
//! ```text
//!   main thread:  install(machine) ... remove()      around each start of the guest
//!   others:       machine(), request_stop(reason)  what comes between two starts waits for the next
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axvm_devices::StopReason;

use axvm_machine::Machine;

/// A place for one machine.
#[derive(Default)]
pub struct Current(Mutex<Slot>);

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
            machine.stop_switch().request(reason);
        }
        slot.machine = Some(machine);
    }

    /// There is no machine for a while.
    pub fn remove(&self) {
        self.slot().machine = None;
    }

    /// The machine, unless it is between two starts.
    pub fn machine(&self) -> Option<Arc<Machine>> {
        self.slot().machine.clone()
    }

    /// Asks for a stop. Of a machine that was just reset, the next one gets the request.
    pub fn request_stop(&self, reason: StopReason) {
        let mut slot = self.slot();
        let counts = slot.machine.as_ref().is_some_and(|machine| {
            machine.stop_switch().request(reason.clone());
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
