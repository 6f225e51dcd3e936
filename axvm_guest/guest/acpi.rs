//! ACPI: the tables from the RSDP down, and S5.
//!
//! ```text
//!   RSDP --> XSDT --+--> FADT --> DSDT, PM1a control block
//!                   +--> MADT --> processors, IOAPIC, overrides
//! ```
//!
//! Spec: ACPI 6.5, 5.2.5 "RSDP", 5.2.8 "XSDT", 5.2.9 "FADT", 5.2.12 "MADT", 7.4.2 "\_Sx (System States)".

use crate::apic;
use crate::clock;
use crate::cpu::{input, output, read};
use crate::mp::{self, Listed, sums_to_zero};
use crate::report::{Line, Verdict};
use crate::start_info;

const SLEEP_ENABLE: u16 = 1 << 13;
/// The reset control register of PCs, and what resets.
const RESET: u16 = 0xcf9;
const RESET_VALUE: u8 = 6;
const LENGTH: u64 = 4;
const HEADER_LEN: u64 = 36;

fn table_is_whole(address: u64) -> bool {
    let len: u32 = read(address + LENGTH);
    len as u64 >= HEADER_LEN && len < 1 << 20 && sums_to_zero(address, len.into())
}

/// The table with this signature among those of the XSDT.
pub fn find(signature: &[u8; 4]) -> Option<u64> {
    let rsdp = start_info::rsdp();
    let xsdt: u64 = if rsdp == 0 { 0 } else { read(rsdp + 24) };
    let len: u32 = if xsdt == 0 { 0 } else { read(xsdt + LENGTH) };
    let tables = (HEADER_LEN..u64::from(len)).step_by(8).map(|at| read::<u64>(xsdt + at));
    tables.into_iter().find(|&table| read::<u32>(table) == u32::from_le_bytes(*signature))
}

/// Calls `see` for each entry of the MADT: its type and address.
fn madt_entries(mut see: impl FnMut(u8, u64)) {
    let Some(madt) = find(b"APIC") else { return };
    let end = madt + u64::from(read::<u32>(madt + LENGTH));
    let mut at = madt + 44;
    while at + 2 <= end {
        see(read(at), at);
        at += u64::from(read::<u8>(at + 1).max(2));
    }
}

/// The MADT, or the MP table where there is none.
pub fn madt() -> Listed {
    if start_info::rsdp() == 0 {
        return mp::listed();
    }
    let mut madt = Listed { processors: 0, io_apics: 0, timer_gsi: 0 };
    madt_entries(|kind, at| match kind {
        0 if read::<u8>(at + 4) & 1 != 0 => madt.processors += 1,
        9 if read::<u8>(at + 8) & 1 != 0 => madt.processors += 1,
        1 => madt.io_apics += 1,
        2 if read::<u8>(at + 3) == 0 => madt.timer_gsi = read(at + 4),
        _ => {}
    });
    madt
}

/// Calls `see` with the local APIC id of every processor that has a short one.
pub fn processor_ids(mut see: impl FnMut(u8)) {
    if start_info::rsdp() == 0 {
        return mp::processor_ids(see);
    }
    madt_entries(|kind, at| {
        if kind == 0 && read::<u8>(at + 4) & 1 != 0 {
            see(read(at + 3));
        }
    });
}

/// Every table is whole, and the MADT names processors and one IOAPIC.
pub fn walk(line: &mut Line) -> Verdict {
    let rsdp = start_info::rsdp();
    if rsdp == 0 {
        return line.absent();
    }
    line.check(read::<u64>(rsdp) == u64::from_le_bytes(*b"RSD PTR "), "no RSDP where the loader says")?;
    line.check(sums_to_zero(rsdp, 20) && sums_to_zero(rsdp, 36), "RSDP checksum")?;
    line.check(table_is_whole(read(rsdp + 24)), "XSDT checksum")?;
    for signature in [b"FACP", b"APIC"] {
        line.check(find(signature).is_some_and(table_is_whole), "FADT or MADT missing, or its checksum")?;
    }
    line.check(table_is_whole(dsdt()), "DSDT checksum")?;
    let madt = madt();
    line.text(" ").decimal(madt.processors.into()).text(" processors ").decimal(madt.io_apics.into());
    line.text(" IOAPIC, PIT on GSI ").decimal(madt.timer_gsi.into());
    line.check(madt.processors > 0 && madt.io_apics > 0, "processors or IOAPIC missing in the MADT")
}

/// The MP table is whole, and says what the MADT says, as far as it can.
pub fn walk_mp(line: &mut Line) -> Verdict {
    if !mp::is_there() {
        return line.absent();
    }
    let (mp, madt) = (mp::listed(), madt());
    line.text(" ").decimal(mp.processors.into()).text(" processors ").decimal(mp.io_apics.into());
    line.text(" IOAPIC, PIT on pin ").decimal(mp.timer_gsi.into());
    let alike = mp.processors == madt.processors.min(255) && mp.timer_gsi == madt.timer_gsi;
    line.check(alike && mp.processors > 0 && mp.io_apics > 0, "not what the MADT says")
}

fn dsdt() -> u64 {
    find(b"FACP").map_or(0, |fadt| match read(fadt + 140) {
        0 => read::<u32>(fadt + 40).into(),
        wide => wide,
    })
}

/// SLP_TYP of S5: the first byte in the package named `_S5_` in the DSDT.
fn sleep_type() -> Option<u8> {
    let dsdt = dsdt();
    let len = if dsdt == 0 { 0 } else { u64::from(read::<u32>(dsdt + LENGTH)) };
    // From the end: AxVM and others put it last. Name, PackageOp, length, count, then the value, maybe with a prefix.
    let at = (dsdt..dsdt + len).rev().find(|&at| read::<u32>(at) == u32::from_le_bytes(*b"_S5_"))?;
    let value: u8 = read(at + 7);
    Some(if value == 0x0a { read(at + 8) } else { value })
}

/// Writes S5 to PM1a control and gives the machine a second to end. Without tables, resets it.
pub fn power_off() {
    if let (Some(fadt), Some(kind)) = (find(b"FACP"), sleep_type()) {
        let control: u32 = read(fadt + 64);
        output(control as u16, u16::from(kind & 7) << 10 | SLEEP_ENABLE);
    } else {
        return reset();
    }
    clock::sleep(1_000_000);
}

/// Resets the machine.
pub fn reset() {
    output(RESET, RESET_VALUE);
    clock::sleep(1_000_000);
}

/// The PM timer's port; `None` without tables, or where they name none.
pub fn timer_port() -> Option<u16> {
    let fadt = find(b"FACP")?;
    let (port, len): (u32, u8) = (read(fadt + 76), read(fadt + 91));
    (len == 4).then_some(port as u16)
}

/// A fixed event: PM1a status and enable, and the SCI.
pub struct FixedEvent {
    status: u16,
    line: u8,
    bit: u16,
}

impl FixedEvent {
    pub const POWER_BUTTON: u16 = 1 << 8;
    pub const ALARM: u16 = 1 << 10;
    const SCI_VECTOR: u8 = 37;

    /// Has it interrupt. `None` without tables.
    pub fn arm(bit: u16) -> Option<FixedEvent> {
        let fadt = find(b"FACP")?;
        let (status, len): (u32, u8) = (read(fadt + 56), read(fadt + 88));
        let line = read::<u8>(fadt + 46);
        apic::route(line.into(), FixedEvent::SCI_VECTOR);
        output(status as u16 + u16::from(len / 2), bit);
        Some(FixedEvent { status: status as u16, line, bit })
    }

    /// The ISA line that it interrupts on.
    pub fn line(&self) -> u8 {
        self.line
    }

    /// Whether it happened since the last look.
    pub fn has_happened(&self) -> bool {
        let happened = input::<u16>(self.status) & self.bit != 0;
        // One that comes between look and clearing would be lost.
        if happened {
            output(self.status, self.bit);
        }
        happened
    }
}
