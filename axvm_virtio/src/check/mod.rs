//! Whether a guest's drivers keep to the virtio standard: `axvm run --virtio-check`.
//!
//! ```text
//!   vCPU, register access --> registers ---\
//!   status, features, claims: transport ----> rules --> axvm_events: told once each, counted
//!   worker, each chain -----> queue, frames /
//!   devices' own refusals ------------------'
//! ```
//!
//! Off, it is a branch where a register is accessed; a chain costs none, for a queue asks once whether anything looks at
//! it: this, or a recorder. Nothing is kept.
//!
//! Spec: virtio 1.2. Left out: packed rings, which no device offers.

mod registers;
pub mod rules;

pub(crate) use registers::{PciField, mmio, mmio_ack, mmio_config, pci_read, pci_write};

use std::sync::Arc;

use axvm_events::Events;
use axvm_events::rules::Rule;

/// Whom the check tells of the driver of a device.
pub(crate) struct Findings<'a> {
    pub(crate) events: &'a Events,
    pub(crate) device: &'a Arc<str>,
}

impl Findings<'_> {
    /// The driver broke a rule.
    pub(crate) fn broke(&self, rule: &'static Rule, seen: impl FnOnce() -> String) {
        self.events.broke(rule, self.device, seen);
    }
}

/// How a driver may access a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// R.
    Read,
    /// W.
    Write,
    /// RW.
    Both,
}
