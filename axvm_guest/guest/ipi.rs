//! Interrupts from this processor to the others.

use crate::acpi;
use crate::apic::{self, FIXED};

/// What wakes a processor.
pub const IPI_VECTOR: u8 = 32;

/// Interrupts every other processor.
pub fn call_others() {
    acpi::processor_ids(|id| {
        if id != apic::id() {
            apic::send(id, FIXED | u32::from(IPI_VECTOR));
        }
    });
}
