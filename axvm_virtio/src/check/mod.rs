//! Whether a guest's drivers keep to the virtio standard: `axvm run --virtio-check`.
//!
//! ```text
//!   vCPU, register access --> registers ---\
//!   status, features, claims: transport ----> rules --> axvm_events: told once each, counted
//!   worker, each chain -----> ring ---------/
//! ```
//!
//! Off, it is a branch where a register is accessed and one for each chain; nothing is kept.
//!
//! Spec: virtio 1.2. Left out: packed rings, which no device offers.

mod registers;
mod ring;
pub mod rules;

pub(crate) use registers::{PciField, mmio_read, mmio_write, pci_read, pci_write};
pub(crate) use ring::{RingCheck, rule_of};
