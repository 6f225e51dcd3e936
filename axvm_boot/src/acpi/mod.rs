//! The ACPI tables: how the guest learns what hardware it has.
//!
//! ```text
//!  layout::ACPI_TABLES                                          layout::FACS
//!   RSDP | DSDT | FADT | MADT | RSDT | XSDT | (room) | MP table  FACS
//!     |                          |       |
//!     +--> RSDT (4-byte pointers) --> FADT, MADT       FADT --> DSDT, FACS
//!     +--> XSDT (8-byte pointers) --> FADT, MADT
//!
//!   FADT  the power-management registers, how to reset, what a PC part is missing
//!   MADT  processors, IOAPIC, which interrupt line arrives where
//!   MCFG  where the configuration spaces of PCI are, on a machine with that bus
//!   DSDT  devices by name, in AML: processors, COM1, RTC, virtio-mmio or PCI's root, S5; with `cpus` only S5
//! ```
//!
//! [`build`] computes bytes and addresses; [`Tables::place`] copies them. A table names others by
//! address, so they are laid out from the leaves up; only the RSDP has a place of its own.
//!
//! This is a full ACPI machine, not a hardware-reduced one: the fixed registers exist
//! (`axvm_devices::AcpiPm`), and so do PIC, PIT and RTC.
//!
//! Spec: ACPI 6.5, 5.2 "ACPI System Description Tables". Left out: HPET (kvmclock, the TSC and
//! the PM timer tell time), GPEs, hotplug of processors and memory, NUMA (SRAT), sleep states
//! other than S5.

mod dsdt;
mod fadt;
mod hotplug;
mod madt;
mod mcfg;
mod objects;
mod root;

use axvm_arch::{Gpa, layout};
use axvm_memory::{AccessError, GuestRam};
use thiserror::Error;

use crate::plan::Plan;

pub use crate::acpi_extent::{Acpi, UnknownAcpi};

/// Names of the form `C000` to `CFFF` that the DSDT has for processors.
const NAMES: usize = 0x1000;
/// Every table starts on such a boundary. ACPI asks for it only of the RSDP.
const ALIGN: u64 = 16;

/// The tables cannot be built or placed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AcpiError {
    /// More processors than the DSDT has names for.
    #[error("Cannot name {0} processors in the ACPI namespace, only {NAMES}; ask for fewer")]
    Names(usize),
    /// APIC ids do not ascend, so that two processors could be one.
    #[error("Cannot list vCPU {vcpu} in the MADT: its APIC id {id} is not above that of the vCPU before it")]
    ApicId {
        /// Number of the vCPU.
        vcpu: usize,
        /// Its APIC id.
        id: u32,
    },
    /// The tables do not fit below the MP table.
    #[error("ACPI tables for {processors} vCPUs need {len:#x} bytes and have room for {room:#x}; use fewer vCPUs")]
    Room {
        /// Number of vCPUs asked for.
        processors: usize,
        /// Length of all tables in bytes.
        len: u64,
        /// Length of the room in bytes.
        room: u64,
    },
    /// Guest RAM ends before a table does.
    #[error("Cannot write the {name} into guest RAM")]
    Place {
        /// Signature of the table.
        name: &'static str,
        /// What RAM said.
        source: AccessError,
    },
}

/// One table: bytes with an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The name people use: RSDP, RSDT, XSDT, FADT, FACS, MADT, MCFG, DSDT.
    pub name: &'static str,
    /// Where it must lie, for other tables point there.
    pub gpa: Gpa,
    /// What it says.
    pub bytes: Vec<u8>,
}

/// All tables of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    tables: Vec<Table>,
}

/// Describes a machine with these processors and parts.
///
/// `apic_ids`: the local APIC id of each vCPU, ascending; a vCPU's ACPI `_UID` is its place there.
pub fn build(apic_ids: &[u32], plan: &Plan) -> Result<Tables, AcpiError> {
    check(apic_ids)?;
    let mut area = Area { end: layout::ACPI_TABLES, tables: Vec::new() };
    let rsdp = area.put("RSDP", vec![0; root::RSDP_LEN]);
    let dsdt = area.put("DSDT", dsdt::dsdt(apic_ids.len(), plan));
    let fadt = area.put("FADT", fadt::fadt(dsdt, layout::FACS, apic_ids.last().copied()));
    let madt = area.put("MADT", madt::madt(apic_ids));
    let mcfg = plan.has_pci().then(|| area.put("MCFG", mcfg::mcfg()));
    let all: Vec<_> = [fadt, madt].into_iter().chain(mcfg).collect();
    let rsdt = area.put("RSDT", root::rsdt(&all));
    let xsdt = area.put("XSDT", root::xsdt(&all));
    area.tables[0] = Table { name: "RSDP", gpa: rsdp, bytes: root::rsdp(rsdt, xsdt) };

    let (len, room) = (area.end.0 - rsdp.0, layout::MP_TABLE.0 - rsdp.0);
    if len > room {
        return Err(AcpiError::Room { processors: apic_ids.len(), len, room });
    }
    area.tables.push(Table { name: "FACS", gpa: layout::FACS, bytes: fadt::facs() });
    Ok(Tables { tables: area.tables })
}

impl Tables {
    /// The tables in the order of their addresses; the RSDP is the first.
    pub fn iter(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter()
    }

    /// Copies the tables into guest RAM. Returns the address of the RSDP, for the zero page.
    pub fn place(&self, ram: &GuestRam) -> Result<Gpa, AcpiError> {
        for Table { name, gpa, bytes } in &self.tables {
            ram.write(*gpa, bytes).map_err(|source| AcpiError::Place { name, source })?;
        }
        Ok(layout::ACPI_TABLES)
    }
}

/// Hands out addresses, one table behind the other.
struct Area {
    end: Gpa,
    tables: Vec<Table>,
}

impl Area {
    fn put(&mut self, name: &'static str, bytes: Vec<u8>) -> Gpa {
        let gpa = self.end;
        self.end = Gpa((gpa.0 + bytes.len() as u64).next_multiple_of(ALIGN));
        self.tables.push(Table { name, gpa, bytes });
        gpa
    }
}

fn check(apic_ids: &[u32]) -> Result<(), AcpiError> {
    if apic_ids.len() > NAMES {
        return Err(AcpiError::Names(apic_ids.len()));
    }
    match apic_ids.windows(2).position(|pair| pair[0] >= pair[1]) {
        Some(before) => Err(AcpiError::ApicId { vcpu: before + 1, id: apic_ids[before + 1] }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processors(apic_ids: Vec<u32>) -> Result<Tables, AcpiError> {
        build(&apic_ids, &Plan::new(&[], Acpi::Full).unwrap())
    }

    #[test]
    fn a_thousand_processors_fit_and_more_than_fit_are_refused_with_both_lengths() {
        processors((0..1024).collect()).unwrap();
        let error = processors((0..4096).collect()).unwrap_err();
        assert!(matches!(error, AcpiError::Room { processors: 4096, len, room: 0x1d000 } if len > 0x1d000), "{error}");
    }

    #[test]
    fn more_processors_than_names_are_refused() {
        assert_eq!(processors((0..4097).collect()).unwrap_err(), AcpiError::Names(4097));
    }

    #[test]
    fn apic_ids_must_ascend() {
        for ids in [vec![0, 0], vec![0, 2, 1]] {
            let (vcpu, id) = (ids.len() - 1, ids[ids.len() - 1]);
            assert_eq!(processors(ids).unwrap_err(), AcpiError::ApicId { vcpu, id });
        }
    }
}
