//! The core's part of a saved state: queue claims and status, out of a paused device and into a fresh one.
//!
//! ```text
//!   TransportState --check: status, features, queues in flight--> claims --prove, if live--> device --> signals, kicks
//!                     '--------------- any refusal: all as before ---------------'
//! ```
//!
//! Spec: virtio 1.2, 2.1 "Device Status Field", 2.7 "Split Virtqueues".

use std::sync::Arc;

use super::TransportCore;
use crate::claim::QueueClaim;
use crate::device::StartError;
use crate::queue::QueueState;
use crate::signals::INTERRUPTS;
use crate::state::{QueueSnapshot, StateError, TransportState};
use crate::status::{DEVICE_NEEDS_RESET, DriverStatus};
use axvm_sync::EventFd;

impl TransportCore {
    /// All queues. Their indices are current while the device does not have them.
    pub(crate) fn snapshots(&self) -> Vec<QueueSnapshot> {
        let snapshot = |(claim, kick): (&QueueClaim, &Arc<EventFd>)| {
            let (layout, ready, indices) = (claim.layout, claim.ready, claim.state);
            QueueSnapshot { layout, ready, indices, kicked: kick.is_signalled() }
        };
        self.queues.iter().zip(&*self.kicks).map(snapshot).collect()
    }

    /// Puts a saved state into a paused device that no driver has touched. An error changes nothing.
    pub(crate) fn restore(&mut self, state: &TransportState) -> Result<(), StateError> {
        if !self.is_paused() || self.status.bits() != 0 || self.queues.iter().any(|claim| claim.ready) {
            return Err(StateError::NotFresh);
        }
        let result = self.restore_claims(state).and_then(|()| self.device.restore(&state.device));
        if let Err(error) = result {
            self.status.write(0);
            self.queues.iter_mut().for_each(|claim| *claim = QueueClaim::new(claim.max));
            return Err(error);
        }
        let needs_reset = state.status & DEVICE_NEEDS_RESET != 0;
        let (interrupt, generation) = (state.interrupt_status, state.config_generation);
        self.signals.restore(interrupt, needs_reset, generation, state.vectors.as_ref());
        let kicked = state.queues.iter().zip(&*self.kicks).filter(|(queue, _)| queue.kicked);
        kicked.for_each(|(_, kick)| kick.signal());
        self.restored = true;
        Ok(())
    }

    /// Takes the driver's part of a saved state. If the device is to run, its queues must be queues.
    fn restore_claims(&mut self, state: &TransportState) -> Result<(), StateError> {
        let (saved, here) = (state.queues.len() as u64, self.queues.len() as u64);
        if saved != here {
            return Err(StateError::Differs { what: "number of queues", saved, here });
        }
        if state.interrupt_status & !INTERRUPTS != 0 {
            return Err(StateError::Value { what: "interrupt status", value: state.interrupt_status.into() });
        }
        self.signals.check_vectors(state.vectors.as_ref())?;
        let needs_reset = state.status & DEVICE_NEEDS_RESET != 0;
        let bits = state.status & !DEVICE_NEEDS_RESET;
        self.status = DriverStatus::restore(self.status.all_offered(), bits, state.driver_features)?;
        for (claim, saved) in self.queues.iter_mut().zip(&state.queues) {
            (claim.layout, claim.ready, claim.state) = (saved.layout, saved.ready, saved.indices);
        }
        for (number, saved) in state.queues.iter().enumerate().filter(|_| !needs_reset) {
            let (index, QueueState { next_avail, next_used }) = (number as u16, saved.indices);
            let in_flight = next_avail.wrapping_sub(next_used);
            if in_flight != 0 {
                return Err(StateError::InFlight { index, in_flight });
            }
            if saved.ready && self.status.is_live() {
                self.check_saved(number)?;
            }
        }
        Ok(())
    }

    /// Whether a saved claim is a queue.
    fn check_saved(&self, number: usize) -> Result<(), StateError> {
        match self.prove(number) {
            Err(StartError::QueueSize { index, size, max }) => Err(StateError::QueueSize { index, size, max }),
            Err(StartError::Queue { index, source }) => Err(StateError::Queue { index, source }),
            // A proof asks nothing of the host.
            Ok(_) | Err(StartError::Host { .. }) => Ok(()),
        }
    }
}
