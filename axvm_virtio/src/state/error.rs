//! Why a saved state is not one of this device: the file is damaged, or the machine is another one.
//!
//! ```text
//!   RestoreError: "Cannot restore vda from its saved state"
//!     '- StateError: what does not fit, the saved value and the value here
//!          '- QueueError: the rule that a ring breaks
//! ```
//!
//! Spec: virtio 1.2, 2.1 "Device Status Field", 2.7 "Split Virtqueues".

use std::sync::Arc;

use thiserror::Error;

use crate::queue::QueueError;

/// A device refused a state.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("Cannot restore {device} from its saved state")]
pub struct RestoreError {
    /// Name of the device.
    pub device: Arc<str>,
    /// What does not fit.
    pub source: StateError,
}

/// What does not fit.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StateError {
    /// The device is in use.
    #[error("The device is in use; restore into a new one that is paused and that no driver has touched")]
    NotFresh,
    /// Another kind of device.
    #[error(
        "The saved state is of another kind of device ({saved}) than this one ({here}); give the machine the devices that it had"
    )]
    Kind {
        /// What was saved.
        saved: &'static str,
        /// What is here.
        here: &'static str,
    },
    /// Another bus.
    #[error("The saved device was on {saved}, and this one is on {here}; start the machine with the --bus that it had")]
    Bus {
        /// What was saved.
        saved: &'static str,
        /// What is here.
        here: &'static str,
    },
    /// A fixed property is another one.
    #[error("The {what} is {here} here, but was {saved}; give the machine the devices that it had")]
    Differs {
        /// Which property.
        what: &'static str,
        /// Its value when it was saved.
        saved: u64,
        /// Its value here.
        here: u64,
    },
    /// A value that no device reaches.
    #[error("The {what} of {value:#x} is not possible; the saved state is damaged")]
    Value {
        /// Which value.
        what: &'static str,
        /// What it says.
        value: u64,
    },
    /// The driver uses what this device does not offer.
    #[error(
        "The driver uses feature bits {0:#x}, which this device does not offer; give the machine the devices that it had"
    )]
    Features(u64),
    /// A queue with requests in flight, of a device that is not waiting for a reset.
    #[error(
        "Queue {index} has {in_flight} requests in flight, though the device was paused; the saved state is damaged"
    )]
    InFlight {
        /// Number of the queue.
        index: u16,
        /// Chains taken and not returned.
        in_flight: u16,
    },
    /// A queue that a running device cannot have.
    #[error("Queue {index} is not usable; the saved state is damaged, or the machine has another memory")]
    Queue {
        /// Number of the queue.
        index: u16,
        /// Which rule it breaks.
        source: QueueError,
    },
    /// A queue larger than there is.
    #[error("Queue {index} has {size} entries, at most {max} are possible; the saved state is damaged")]
    QueueSize {
        /// Number of the queue.
        index: u16,
        /// Entries of the saved queue.
        size: u16,
        /// Entries that the device allows.
        max: u16,
    },
}
