//! What devices in the namespace are described with: names, registers and interrupt lines of a part.
//!
//! Spec: ACPI 6.5, 6.4 "Resource Data Types for ACPI".

use acpi_tables::Aml;
use acpi_tables::aml::{Device, IO, Interrupt, Memory32Fixed, Name, ResourceTemplate};

use crate::plan::{Part, Place};

/// Registers and interrupt line of a part.
pub(super) fn resources(part: &Part) -> Name {
    template(places(part).chain(part_line(part)))
}

/// Its registers.
pub(super) fn places(part: &Part) -> impl Iterator<Item = Box<dyn Aml>> {
    part.places.iter().filter_map(|place| -> Option<Box<dyn Aml>> {
        match *place {
            Place::Ports { first, count } => Some(Box::new(IO::new(first, first, 1, count as u8))),
            // The plan keeps these windows below 4 GiB.
            Place::Mmio { base, len } => Some(Box::new(Memory32Fixed::new(true, base.0 as u32, len as u32))),
            // A function of PCI says itself where it is.
            Place::Pci { .. } => None,
        }
    })
}

/// Its interrupt line.
pub(super) fn part_line(part: &Part) -> impl Iterator<Item = Box<dyn Aml>> {
    part.line.into_iter().map(|gsi| -> Box<dyn Aml> { Box::new(line(gsi)) })
}

/// What a device has of these.
pub(super) fn template(descriptors: impl Iterator<Item = Box<dyn Aml>>) -> Name {
    let descriptors: Vec<_> = descriptors.collect();
    name("_CRS", &ResourceTemplate::new(descriptors.iter().map(|descriptor| &**descriptor).collect()))
}

/// An interrupt of one device alone: edge-triggered, active high, not shared.
fn line(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// `Name (name, value)`.
pub(super) fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(name.into(), value)
}

/// `Device (name) { objects }`.
pub(super) fn device(aml: &mut Vec<u8>, name: &str, objects: &[&dyn Aml]) {
    Device::new(name.into(), objects.to_vec()).to_aml_bytes(aml);
}
