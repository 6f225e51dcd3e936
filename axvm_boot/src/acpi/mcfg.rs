//! MCFG: where the ECAM of PCI is.
//!
//! ```text
//!   8 reserved bytes | base, 64 bits | segment, 16 | first bus, last bus, 8 each | 4 reserved bytes
//! ```
//!
//! Linux believes it only if the range is reserved: in the memory map (e820), and by a device in the DSDT.
//!
//! Spec: PCI Firmware 3.3, 4.1.2 "MCFG Table Description".

use acpi_tables::AmlSink;
use axvm_arch::layout;

use super::root::table;

const REVISION: u8 = 1;

/// The MCFG of a machine with one bus.
pub(super) fn mcfg() -> Vec<u8> {
    let mut body = Vec::new();
    body.qword(0);
    body.qword(layout::PCI_ECAM.0);
    body.word(0); // segment
    body.vec(&[0, 0]); // first and last bus
    body.dword(0);
    table(*b"MCFG", REVISION, &body)
}
