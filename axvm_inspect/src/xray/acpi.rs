//! The ACPI tables, read back from guest memory: headers, checksums worked out, fields, and AML as names.
//!
//! ```text
//!   RSDP --> XSDT --> FADT --> DSDT (AML), FACS
//!                 --> MADT, MCFG
//! ```
//!
//! Spec: ACPI 6.5, 5.2 "ACPI System Description Tables"; PCI Firmware 3.3, 4.1.2. Left out: fields that are zero in every
//! machine of AxVM.

use axvm_boot::acpi::Table;

use super::{Facts, Row, Section, aml, read};

/// Length of the header of all tables but RSDP and FACS.
const HEADER: usize = 36;

pub(super) fn section(facts: &Facts) -> Section {
    let tables = facts.tables.iter().flat_map(|tables| tables.iter());
    let rows: Vec<Row> = tables.filter_map(|table| self::table(facts, table)).collect();
    let about = match rows.is_empty() {
        true => {
            "There are none (--acpi off): the kernel finds processors by the MP table, devices by the command line."
        }
        false => "What the kernel learns its hardware from, read back from guest memory.",
    };
    Section { id: "acpi", title: "ACPI tables", about: about.into(), rows }
}

fn table(facts: &Facts, table: &Table) -> Option<Row> {
    let at = table.gpa.0;
    let bytes = read(facts, at, table.bytes.len())?;
    let (means, source, rows) = match table.name {
        "RSDP" => ("the root pointer: where it all begins", "ACPI 6.5, 5.2.5.3", rsdp(&bytes)),
        "RSDT" => ("addresses of the others, for 32 bits", "ACPI 6.5, 5.2.7", pointers(&bytes, 4)),
        "XSDT" => ("addresses of the others", "ACPI 6.5, 5.2.8", pointers(&bytes, 8)),
        "FADT" => ("registers of power management, what a PC's parts are", "ACPI 6.5, 5.2.9", fadt(&bytes)),
        "FACS" => ("what firmware and system share; nothing here", "ACPI 6.5, 5.2.10", facs(&bytes)),
        "MADT" => ("processors and interrupt controllers", "ACPI 6.5, 5.2.12", madt(&bytes)),
        "MCFG" => ("the configuration spaces of PCI", "PCI Firmware 3.3, 4.1.2", mcfg(&bytes)),
        "DSDT" => ("devices by name, in AML", "ACPI 6.5, 5.2.11.1", dsdt(&bytes, at)),
        _ => ("a table", "ACPI 6.5, 5.2", header(&bytes)),
    };
    Some(Row::new(table.name).at(at).len(bytes.len() as u64).means(means).source(source).rows(rows))
}

/// A field of a table: its offset, its bytes, its number.
fn field(bytes: &[u8], name: &str, offset: usize, len: usize, means: impl AsRef<str>) -> Option<Row> {
    let field = bytes.get(offset..offset + len)?;
    let row = Row::new(name).at(offset as u64).len(len as u64).bytes(field).means(means);
    Some(row.value(number(bytes, offset, len)?))
}

fn words(bytes: &[u8], name: &str, offset: usize, len: usize) -> Option<Row> {
    let field = bytes.get(offset..offset + len)?;
    let text = String::from_utf8_lossy(field);
    Some(Row::new(name).at(offset as u64).len(len as u64).text(text.trim_end_matches([' ', '\0'])))
}

fn number(bytes: &[u8], offset: usize, len: usize) -> Option<u64> {
    let field = bytes.get(offset..offset + len)?;
    Some(field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

/// A checksum at `offset` of `bytes`, all of which must add up to zero.
fn checksum(bytes: &[u8], name: &str, offset: usize) -> Option<Row> {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let len = bytes.len();
    let means = match sum {
        0 => format!("right: all {len} bytes add up to 0"),
        sum => format!("WRONG: all {len} bytes add up to {sum:#x}, not 0"),
    };
    field(bytes, name, offset, 1, means)
}

/// 5.2.6 "System Description Table Header".
fn header(bytes: &[u8]) -> Vec<Row> {
    let fields = [
        words(bytes, "signature", 0, 4),
        field(bytes, "length", 4, 4, "of all, in bytes"),
        field(bytes, "revision", 8, 1, ""),
        checksum(bytes, "checksum", 9),
        words(bytes, "OEM id", 10, 6),
        words(bytes, "OEM table id", 16, 8),
    ];
    fields.into_iter().flatten().collect()
}

fn rsdp(bytes: &[u8]) -> Vec<Row> {
    let fields = [
        words(bytes, "signature", 0, 8),
        checksum(bytes.get(..20).unwrap_or_default(), "checksum", 8),
        words(bytes, "OEM id", 9, 6),
        field(bytes, "revision", 15, 1, "2: ACPI 2.0 and later, with an XSDT"),
        field(bytes, "RSDT", 16, 4, "its address"),
        field(bytes, "length", 20, 4, "of all, in bytes"),
        field(bytes, "XSDT", 24, 8, "its address"),
        checksum(bytes, "extended checksum", 32),
    ];
    fields.into_iter().flatten().collect()
}

fn pointers(bytes: &[u8], len: usize) -> Vec<Row> {
    let places = (HEADER..bytes.len()).step_by(len);
    let entries = places.filter_map(|offset| field(bytes, "table", offset, len, "address of a table"));
    header(bytes).into_iter().chain(entries).collect()
}

fn fadt(bytes: &[u8]) -> Vec<Row> {
    let fields = [
        field(bytes, "FIRMWARE_CTRL", 36, 4, "address of the FACS"),
        field(bytes, "DSDT", 40, 4, "its address"),
        field(bytes, "SCI_INT", 46, 2, "the interrupt line of all that ACPI tells"),
        field(bytes, "SMI_CMD", 48, 4, "0: the machine is always in ACPI mode"),
        field(bytes, "PM1a_EVT_BLK", 56, 4, "port: power button, alarm of the RTC"),
        field(bytes, "PM1a_CNT_BLK", 64, 4, "port: power off"),
        field(bytes, "PM_TMR_BLK", 76, 4, "port: a timer of 3.579545 MHz"),
        field(bytes, "P_LVL2_LAT", 96, 2, "above 100: no C2"),
        field(bytes, "P_LVL3_LAT", 98, 2, "above 1000: no C3"),
        field(bytes, "CENTURY", 108, 1, "byte of the CMOS RAM that holds it"),
        field(bytes, "IAPC_BOOT_ARCH", 109, 2, "bit 0: devices of ISA; 2: no VGA; 1 is clear: no keyboard"),
        field(bytes, "Flags", 112, 4, "what the fixed hardware is"),
        field(bytes, "RESET_REG", 120, 8, "port of the reset register"),
        field(bytes, "RESET_VALUE", 128, 1, "what to write there to reset"),
        field(bytes, "X_DSDT", 140, 8, "its address, in 64 bits"),
        words(bytes, "Hypervisor vendor", 268, 8),
    ];
    let fields = fields.into_iter().flatten().map(|row| match &*row.name {
        "Flags" => row.rows(flags(number(bytes, 112, 4).unwrap_or(0))),
        _ => row,
    });
    header(bytes).into_iter().chain(fields).collect()
}

/// Flags of the FADT, as far as AxVM sets them (table 5.10).
fn flags(value: u64) -> Vec<Row> {
    let names = [
        (0, "WBINVD", "WBINVD works"),
        (2, "PROC_C1", "HLT is C1"),
        (4, "PWR_BUTTON", "the power button is a device of the DSDT"),
        (5, "SLP_BUTTON", "there is no sleep button among the fixed hardware"),
        (8, "TMR_VAL_EXT", "the timer has 32 bits"),
        (10, "RESET_REG_SUP", "RESET_REG resets"),
        (19, "FORCE_APIC_PHYSICAL_DESTINATION_MODE", "interrupts go to ids, not to sets of them"),
        (20, "HW_REDUCED_ACPI", "there is no fixed hardware"),
    ];
    let set = names.iter().filter(|(bit, ..)| value >> bit & 1 != 0);
    set.map(|(bit, name, means)| Row::new(*name).means(format!("bit {bit}: {means}"))).collect()
}

fn facs(bytes: &[u8]) -> Vec<Row> {
    let fields = [
        words(bytes, "signature", 0, 4),
        field(bytes, "length", 4, 4, "of all, in bytes; it has no checksum"),
        field(bytes, "version", 32, 1, ""),
    ];
    fields.into_iter().flatten().collect()
}

/// 5.2.12.1 ff.: the interrupt controllers.
fn madt(bytes: &[u8]) -> Vec<Row> {
    let fields = [
        field(bytes, "local APICs", 36, 4, "where each processor finds its own"),
        field(bytes, "flags", 40, 4, "bit 0: there are two 8259s, too"),
    ];
    let mut rows: Vec<Row> = header(bytes).into_iter().chain(fields.into_iter().flatten()).collect();
    let mut offset = 44;
    while let (Some(kind), Some(len @ 2..)) = (number(bytes, offset, 1), number(bytes, offset + 1, 1)) {
        let len = len as usize;
        let Some(entry) = bytes.get(offset..offset + len) else { break };
        let (name, means) = interrupt_controller(kind, entry);
        rows.push(Row::new(name).at(offset as u64).len(len as u64).bytes(entry).means(means));
        offset += len;
    }
    rows
}

fn interrupt_controller(kind: u64, entry: &[u8]) -> (&'static str, String) {
    let at = |offset, len| number(entry, offset, len).unwrap_or(0);
    let line = |flags: u64| if flags & 0xc == 0xc { "level, active high" } else { "as the bus does" };
    match kind {
        0 => ("processor", format!("UID {}, APIC id {}", at(2, 1), at(3, 1))),
        1 => ("IOAPIC", format!("id {}, at {:#x}, from GSI {} on", at(2, 1), at(4, 4), at(8, 4))),
        2 => ("override", format!("ISA IRQ {} is GSI {}, {}", at(3, 1), at(4, 4), line(at(8, 2)))),
        4 => ("NMI", format!("at LINT{} of all processors", at(5, 1))),
        9 => ("processor", format!("UID {}, x2APIC id {}", at(12, 4), at(4, 4))),
        10 => ("NMI", format!("at LINT{} of all processors with x2APIC ids", at(8, 1))),
        _ => ("entry", format!("of type {kind}")),
    }
}

fn mcfg(bytes: &[u8]) -> Vec<Row> {
    let fields = [
        field(bytes, "base", 44, 8, "configuration space of the first function"),
        field(bytes, "segment", 52, 2, ""),
        field(bytes, "first bus", 54, 1, ""),
        field(bytes, "last bus", 55, 1, ""),
    ];
    header(bytes).into_iter().chain(fields.into_iter().flatten()).collect()
}

fn dsdt(bytes: &[u8], at: u64) -> Vec<Row> {
    let objects = aml::objects(bytes.get(HEADER..).unwrap_or_default(), at + HEADER as u64);
    header(bytes).into_iter().chain(objects).collect()
}
