//! A queue in use: the proven ring, and both ways of ringing about it.
//!
//! ```text
//!   driver --kick--> EventFd --> worker
//!   driver <--irq--- QueueIrq <-- worker
//! ```
//!
//! Spec: virtio 1.2, 2.7 "Split Virtqueues".

use std::sync::Arc;

use crate::queue::VirtQueue;
use crate::signals::QueueIrq;
use axvm_sync::EventFd;

/// A queue in use.
pub struct LiveQueue {
    /// Its number, from 0.
    pub index: u16,
    /// The proven ring.
    pub queue: VirtQueue,
    /// Rings when the driver has kicked.
    pub kick: Arc<EventFd>,
    /// To tell the driver of used buffers.
    pub irq: QueueIrq,
}
