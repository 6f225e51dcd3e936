//! What is wrong with a chip's saved state.
//!
//! ```text
//!   chip.state() --> plain value --(serde, a file, another host)--> fresh chip.restore(value)
//!                                    ^ may be damaged here          ^ refuses what the chip cannot hold
//! ```
//!
//! Each chip has its state beside it, and both calls are made while the machine is paused. An interrupt that a chip has
//! raised is KVM's; a restore raises none again, and only what is new since the save raises one.
//!
//! No specification: a state says what the registers of a chip's datasheet hold. Left out: chips without state (i8042,
//! pvpanic), which say so.

use std::fmt;

use thiserror::Error;

/// A saved state holds what the chip cannot.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("The saved state of {chip} cannot be restored: {field} is {found}, and must be {allowed}")]
pub struct ChipStateError {
    /// The chip, as its documentation calls it.
    pub chip: &'static str,
    /// Which field.
    pub field: &'static str,
    /// What it holds.
    pub found: String,
    /// What it may hold.
    pub allowed: String,
}

/// Checks the fields of one chip's state.
pub(crate) struct Check(pub(crate) &'static str);

impl Check {
    /// `value` has no bits beside those of `mask`.
    pub(crate) fn bits(&self, field: &'static str, value: impl Into<u32>, mask: u32) -> Result<(), ChipStateError> {
        let value = value.into();
        self.that(value & !mask == 0, field, format_args!("{value:#x}"), format_args!("within {mask:#x}"))
    }

    /// `holds` is true of a field that was `found`.
    pub(crate) fn that(
        &self,
        holds: bool,
        field: &'static str,
        found: impl fmt::Display,
        allowed: impl fmt::Display,
    ) -> Result<(), ChipStateError> {
        let (found, allowed) = (found.to_string(), allowed.to_string());
        if holds { Ok(()) } else { Err(ChipStateError { chip: self.0, field, found, allowed }) }
    }
}
