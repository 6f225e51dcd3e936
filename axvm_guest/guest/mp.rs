//! The MP table, found by scanning: where there are no ACPI tables, the other processors are in it.
//!
//! Spec: Intel MultiProcessor Specification 1.4, 4 "MP Configuration Table".

use crate::acpi::{self, sums_to_zero};
use crate::cpu::read;
use crate::report::{Line, Verdict};

const HEADER_LEN: u64 = 44;

fn is(address: u64, signature: &[u8; 4]) -> bool {
    read::<u32>(address) == u32::from_le_bytes(*signature)
}

/// The table, if its sums are right.
fn find() -> Option<u64> {
    let is_pointer = |&at: &u64| is(at, b"_MP_") && sums_to_zero(at, 16);
    let pointer = (0xf_0000..0x10_0000).step_by(16).find(is_pointer)?;
    let table: u64 = read::<u32>(pointer + 4).into();
    let len: u16 = read(table + 4);
    (is(table, b"PCMP") && sums_to_zero(table, len.into())).then_some(table)
}

/// Calls `see` for each entry: its type and address.
fn entries(mut see: impl FnMut(u8, u64)) {
    let Some(table) = find() else { return };
    let end = table + u64::from(read::<u16>(table + 4));
    let mut at = table + HEADER_LEN;
    while at + 8 <= end {
        let kind = read(at);
        see(kind, at);
        at += if kind == 0 { 20 } else { 8 };
    }
}

/// Calls `see` with the local APIC id of every processor.
pub fn processor_ids(mut see: impl FnMut(u8)) {
    entries(|kind, at| {
        if kind == 0 && read::<u8>(at + 3) & 1 != 0 {
            see(read(at + 1));
        }
    });
}

/// What it lists, as the MADT would.
pub fn listed() -> acpi::Madt {
    let mut listed = acpi::Madt { processors: 0, io_apics: 0, timer_gsi: 2 };
    processor_ids(|_| listed.processors += 1);
    entries(|kind, at| match kind {
        2 => listed.io_apics += 1,
        // Line 0 of the bus, as an ordinary interrupt.
        3 if read::<u8>(at + 1) == 0 && read::<u8>(at + 5) == 0 => listed.timer_gsi = read::<u8>(at + 7).into(),
        _ => {}
    });
    listed
}

/// The table is whole, and says what the MADT says, as far as it can.
pub fn walk(line: &mut Line) -> Verdict {
    if find().is_none() {
        return line.absent();
    }
    let (mp, madt) = (listed(), acpi::madt());
    line.text(" ").decimal(mp.processors.into()).text(" processors ").decimal(mp.io_apics.into());
    line.text(" IOAPIC, PIT on pin ").decimal(mp.timer_gsi.into());
    let alike = mp.processors == madt.processors.min(255) && mp.timer_gsi == madt.timer_gsi;
    line.check(alike && mp.processors > 0 && mp.io_apics > 0, "not what the MADT says")
}
