//! Virtio: rings, devices, transports.
//!
//! Spec: virtio 1.2.
#![forbid(unsafe_code)]

pub mod queue;
#[doc(hidden)]
pub mod testing;
