//! Which of a function's MSI-X vectors an interrupt of the device takes: the driver says it, queue by queue.
//!
//! ```text
//!   driver: msix_config, queue_msix_vector --> VectorMap <-- cause: queue 3 -- worker
//!                                                  '--> vector 4 --> Msix
//! ```
//!
//! Spec: virtio 1.2, 4.1.5.1.2 "MSI-X Vector Configuration".

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use axvm_devices::pci::{Msix, MsixRoute};

use crate::state::{StateError, VectorsState};

/// VIRTIO_MSI_NO_VECTOR: no interrupt for this.
const NO_VECTOR: u16 = 0xffff;

/// What an interrupt is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cause {
    /// This queue's used ring.
    Queue(u16),
    /// The configuration, or the device status.
    Config,
}

/// The vectors of a device. A worker reads them without a lock.
pub(crate) struct VectorMap {
    msix: Arc<Msix>,
    config: AtomicU16,
    queues: Box<[AtomicU16]>,
}

impl VectorMap {
    /// No vectors yet, for so many queues.
    pub(crate) fn new(queues: usize, msix: Arc<Msix>) -> VectorMap {
        let none = || AtomicU16::new(NO_VECTOR);
        VectorMap { msix, config: none(), queues: (0..queues).map(|_| none()).collect() }
    }

    /// Interrupts, if there is a vector for it. False without MSI-X.
    pub(crate) fn raise(&self, cause: Cause) -> bool {
        let is_on = self.msix.is_on();
        if is_on {
            // No vector is no entry of the table.
            self.msix.raise(self.get(cause));
        }
        is_on
    }

    /// Interrupts again for every queue that has a vector.
    pub(crate) fn raise_all(&self) {
        (0..self.queues.len() as u16).for_each(|queue| _ = self.raise(Cause::Queue(queue)));
    }

    /// Where the interrupts of a queue lead; `None` if its driver chose no vector.
    pub(crate) fn route(&self, queue: u16) -> Option<(u16, MsixRoute)> {
        let vector = self.get(Cause::Queue(queue));
        self.msix.route(vector).map(|route| (vector, route))
    }

    /// What the driver reads back.
    pub(crate) fn get(&self, cause: Cause) -> u16 {
        self.slot(cause).map_or(NO_VECTOR, |slot| slot.load(Ordering::Relaxed))
    }

    /// The driver chooses; for a vector that there is not it gets none.
    pub(crate) fn set(&self, cause: Cause, vector: u16) {
        let vector = if vector < self.msix.len() { vector } else { NO_VECTOR };
        self.slot(cause).inspect(|slot| slot.store(vector, Ordering::Relaxed));
    }

    /// A queue was reset.
    pub(crate) fn forget(&self, queue: u16) {
        self.set(Cause::Queue(queue), NO_VECTOR);
    }

    /// The device was reset.
    pub(crate) fn reset(&self) {
        let slots = self.queues.iter().chain([&self.config]);
        slots.for_each(|slot| slot.store(NO_VECTOR, Ordering::Relaxed));
    }

    fn slot(&self, cause: Cause) -> Option<&AtomicU16> {
        match cause {
            Cause::Queue(queue) => self.queues.get(usize::from(queue)),
            Cause::Config => Some(&self.config),
        }
    }

    /// What the driver said.
    pub(crate) fn state(&self) -> VectorsState {
        let queues = self.queues.iter().map(|slot| slot.load(Ordering::Relaxed)).collect();
        VectorsState { config: self.get(Cause::Config), queues }
    }

    /// Whether this is a state of such a device.
    pub(crate) fn check(&self, state: &VectorsState) -> Result<(), StateError> {
        let (saved, here) = (state.queues.len() as u64, self.queues.len() as u64);
        if saved != here {
            return Err(StateError::Differs { what: "number of vectors", saved, here });
        }
        let beyond = |&&vector: &&u16| vector != NO_VECTOR && vector >= self.msix.len();
        match state.queues.iter().chain([&state.config]).find(beyond) {
            Some(&vector) => Err(StateError::Value { what: "MSI-X vector", value: vector.into() }),
            None => Ok(()),
        }
    }

    /// Takes a state that was checked.
    pub(crate) fn restore(&self, state: &VectorsState) {
        self.set(Cause::Config, state.config);
        (0..).zip(&state.queues).for_each(|(queue, &vector)| self.set(Cause::Queue(queue), vector));
    }
}
