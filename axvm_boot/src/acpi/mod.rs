//! The ACPI tables: how the guest learns what hardware it has.
//!
//! ```text
//!  layout::ACPI_TABLES                                          layout::FACS
//!   RSDP | DSDT | FADT | MADT | RSDT | XSDT | (room)             FACS
//!     |                          |       |
//!     +--> RSDT (4-byte pointers) --> FADT, MADT       FADT --> DSDT, FACS
//!     +--> XSDT (8-byte pointers) --> FADT, MADT
//!
//!   FADT  the power-management registers, how to reset, what a PC part is missing
//!   MADT  processors, IOAPIC, which interrupt line arrives where
//!   DSDT  devices by name, in AML: processors, COM1, RTC, virtio-mmio, S5
//! ```
//!
//! [`build`] computes bytes and addresses; [`Tables::place`] copies them. A table names others by
//! address, so they are laid out from the leaves up; only the RSDP has a place of its own.
//!
//! This is a full ACPI machine, not a hardware-reduced one: the fixed registers exist
//! (`axvm_devices::AcpiPm`), and so do PIC, PIT and RTC.
//!
//! Spec: ACPI 6.5, 5.2 "ACPI System Description Tables". Left out: PM timer and HPET (kvmclock and
//! the TSC tell time), GPEs and hotplug, PCI (no MCFG, no root bridge), NUMA (SRAT), sleep states
//! other than S5.

mod dsdt;
mod fadt;
mod madt;
mod root;

use axvm_arch::{Gpa, layout};
use axvm_memory::{AccessError, GuestRam};
use thiserror::Error;

/// Names of the form `C000` to `CFFF` that the DSDT has for processors, and as many for windows.
const NAMES: usize = 0x1000;
/// Every table starts on such a boundary. ACPI asks for it only of the RSDP.
const ALIGN: u64 = 16;

/// What the tables describe beyond the parts that every machine here has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// Local APIC id of each vCPU, in ascending order; a vCPU's ACPI `_UID` is its place here.
    pub apic_ids: Vec<u32>,
    /// The virtio-mmio devices; a window's `_UID` is its place here.
    pub virtio: Vec<VirtioWindow>,
}

/// The registers of one virtio-mmio device, and its interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioWindow {
    /// First register.
    pub base: Gpa,
    /// Length in bytes.
    pub len: u64,
    /// Global system interrupt; edge-triggered, active high.
    pub gsi: u32,
}

/// The tables can not be built or placed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AcpiError {
    /// More things of a kind than the DSDT has names for.
    #[error("Cannot name {count} {what} in the ACPI namespace, only {NAMES}; ask for fewer")]
    Names {
        /// "processors" or "virtio devices".
        what: &'static str,
        /// How many there are.
        count: usize,
    },
    /// APIC ids do not ascend, so that two processors could be one.
    #[error("Cannot list vCPU {vcpu} in the MADT: its APIC id {id} is not above that of the vCPU before it")]
    ApicId {
        /// Number of the vCPU.
        vcpu: usize,
        /// Its APIC id.
        id: u32,
    },
    /// A virtio window that a 32-bit memory descriptor or the IOAPIC can not express.
    #[error("Cannot describe a virtio window of {len:#x} bytes at {base} on GSI {gsi}: it must lie below 4 GiB, on a GSI below {pins}", pins = layout::gsi::COUNT)]
    Window {
        /// First register.
        base: Gpa,
        /// Length in bytes.
        len: u64,
        /// Global system interrupt.
        gsi: u32,
    },
    /// The tables do not fit below the FACS.
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
    /// The name people use: RSDP, RSDT, XSDT, FADT, FACS, MADT, DSDT.
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

/// Describes `platform`.
pub fn build(platform: &Platform) -> Result<Tables, AcpiError> {
    check(platform)?;
    let mut shelf = Shelf { end: layout::ACPI_TABLES, tables: Vec::new() };
    let rsdp = shelf.put("RSDP", vec![0; root::RSDP_LEN]);
    let dsdt = shelf.put("DSDT", dsdt::dsdt(platform));
    let fadt = shelf.put("FADT", fadt::fadt(dsdt, layout::FACS, platform.apic_ids.last().copied()));
    let madt = shelf.put("MADT", madt::madt(&platform.apic_ids));
    let rsdt = shelf.put("RSDT", root::rsdt(&[fadt, madt]));
    let xsdt = shelf.put("XSDT", root::xsdt(&[fadt, madt]));
    shelf.tables[0] = Table { name: "RSDP", gpa: rsdp, bytes: root::rsdp(rsdt, xsdt) };

    let (len, room) = (shelf.end.0 - rsdp.0, layout::FACS.0 - rsdp.0);
    if len > room {
        return Err(AcpiError::Room { processors: platform.apic_ids.len(), len, room });
    }
    shelf.tables.push(Table { name: "FACS", gpa: layout::FACS, bytes: fadt::facs() });
    Ok(Tables { tables: shelf.tables })
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
struct Shelf {
    end: Gpa,
    tables: Vec<Table>,
}

impl Shelf {
    fn put(&mut self, name: &'static str, bytes: Vec<u8>) -> Gpa {
        let gpa = self.end;
        self.end = Gpa((gpa.0 + bytes.len() as u64).next_multiple_of(ALIGN));
        self.tables.push(Table { name, gpa, bytes });
        gpa
    }
}

fn check(platform: &Platform) -> Result<(), AcpiError> {
    let Platform { apic_ids, virtio } = platform;
    for (what, count) in [("processors", apic_ids.len()), ("virtio devices", virtio.len())] {
        if count > NAMES {
            return Err(AcpiError::Names { what, count });
        }
    }
    if let Some(before) = apic_ids.windows(2).position(|pair| pair[0] >= pair[1]) {
        return Err(AcpiError::ApicId { vcpu: before + 1, id: apic_ids[before + 1] });
    }
    for &VirtioWindow { base, len, gsi } in virtio {
        let fits = base.checked_add(len).is_some_and(|end| end.0 < 1 << 32);
        if !fits || gsi >= layout::gsi::COUNT {
            return Err(AcpiError::Window { base, len, gsi });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processors(apic_ids: Vec<u32>) -> Platform {
        Platform { apic_ids, virtio: Vec::new() }
    }

    #[test]
    fn a_thousand_processors_fit_and_more_than_fit_are_refused_with_both_lengths() {
        build(&processors((0..1024).collect())).unwrap();
        let error = build(&processors((0..4096).collect())).unwrap_err();
        assert!(matches!(error, AcpiError::Room { processors: 4096, len, room: 0x1f000 } if len > 0x1f000), "{error}");
    }

    #[test]
    fn more_things_than_names_are_refused() {
        let error = build(&processors((0..4097).collect())).unwrap_err();
        assert_eq!(error, AcpiError::Names { what: "processors", count: 4097 });
        let window = VirtioWindow { base: layout::VIRTIO_MMIO, len: 0x200, gsi: 5 };
        let error = build(&Platform { apic_ids: vec![0], virtio: vec![window; 4097] }).unwrap_err();
        assert_eq!(error, AcpiError::Names { what: "virtio devices", count: 4097 });
    }

    #[test]
    fn apic_ids_must_ascend() {
        for ids in [vec![0, 0], vec![0, 2, 1]] {
            let (vcpu, id) = (ids.len() - 1, ids[ids.len() - 1]);
            assert_eq!(build(&processors(ids)).unwrap_err(), AcpiError::ApicId { vcpu, id });
        }
    }

    #[test]
    fn windows_the_tables_can_not_express_are_refused() {
        for (base, len, gsi) in [(0xffff_f000, 0x1000, 5), (u64::MAX, 2, 5), (0xd000_0000, 0x200, 24)] {
            let base = Gpa(base);
            let platform = Platform { apic_ids: vec![0], virtio: vec![VirtioWindow { base, len, gsi }] };
            assert_eq!(build(&platform).unwrap_err(), AcpiError::Window { base, len, gsi });
        }
    }
}
