//! Virtio: rings, devices, transports.
//!
//! Spec: virtio 1.2.
#![forbid(unsafe_code)]

pub mod block;
mod control;
pub mod device;
pub mod mmio;
pub mod queue;
mod signals;
mod status;
#[doc(hidden)]
pub mod testing;
mod worker;

pub use signals::{Fault, QueueIrq};
