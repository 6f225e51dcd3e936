//! A queue in use: the proven ring, and both ways of ringing about it.
//!
//! ```text
//!   driver --kick--> Doorbell --> worker
//!   driver <--irq--- QueueIrq <-- worker
//! ```
//!
//! Spec: virtio 1.2, 2.7 "Split Virtqueues".

use std::sync::Arc;

use crate::doorbell::Doorbell;
use crate::queue::VirtQueue;
use crate::signals::QueueIrq;

/// A queue in use.
pub struct LiveQueue {
    /// Its number, from 0.
    pub index: u16,
    /// The proven ring.
    pub queue: VirtQueue,
    /// Rings when the driver has kicked.
    pub kick: Arc<Doorbell>,
    /// To tell the driver of used buffers.
    pub irq: QueueIrq,
}
