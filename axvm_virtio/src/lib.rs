//! Virtio: rings, devices, transports.
//!
//! ```text
//!   guest driver                                                            host
//!   registers --> mmio, pci --> core, status --DRIVER_OK--> device (block) --> image
//!   rings     <---------- queue <-- worker, a thread for one or more queues <-'
//!   interrupt <---------- signals <---'
//! ```
//!
//! A kick (`doorbell`) and an interrupt are eventfds, so all of this runs in plain tests, without KVM.
//!
//! Spec: virtio 1.2.
//! Left out: the legacy interfaces.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start threads of their own"))]

pub mod agent_port;
pub mod balloon;
pub mod block;
pub mod check;
mod claim;
pub mod console;
pub mod device;
#[cfg(test)]
mod hang;
pub mod limiter;
mod live;
pub mod mmio;
pub mod net;
mod notice;
pub mod pci;
pub mod queue;
pub mod rng;
mod signals;
pub mod state;
mod statistics;
mod status;
#[doc(hidden)]
pub mod testing;
mod transport;
mod vectors;
pub mod vsock;
mod worker;

pub use signals::{ConfigIrq, FaultReporter, QueueIrq};
pub use transport::{Glance, QueueGlance, QueueInterrupt, Transport};
pub use worker::{Busy, StillBusy};
