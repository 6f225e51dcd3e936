//! The MP table, found by scanning: where there are no ACPI tables, the other processors are in it.
//!
//! Spec: Intel MultiProcessor Specification 1.4, 4 "MP Configuration Table".

use crate::cpu::read;

/// What tables list, as far as the proofs need it.
#[derive(Clone, Copy)]
pub struct Listed {
    pub processors: u32,
    pub io_apics: u32,
    /// The GSI on which ISA line 0, the PIT, arrives.
    pub timer_gsi: u32,
}

const HEADER_LEN: u64 = 44;

/// The rule of ACPI tables and of these.
pub fn sums_to_zero(address: u64, len: u64) -> bool {
    (0..len).fold(0_u8, |sum, at| sum.wrapping_add(read(address + at))) == 0
}

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

/// Whether there is a table, and its sums are right.
pub fn is_there() -> bool {
    find().is_some()
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
pub fn listed() -> Listed {
    let mut listed = Listed { processors: 0, io_apics: 0, timer_gsi: 2 };
    processor_ids(|_| listed.processors += 1);
    entries(|kind, at| match kind {
        2 => listed.io_apics += 1,
        // Line 0 of the bus, as an ordinary interrupt.
        3 if read::<u8>(at + 1) == 0 && read::<u8>(at + 5) == 0 => listed.timer_gsi = read::<u8>(at + 7).into(),
        _ => {}
    });
    listed
}
