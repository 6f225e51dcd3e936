//! The zero page, `struct boot_params`: the loader's answers, for the 32- and 64-bit entry.
//!
//! ```text
//!   0x000 screen_info (zero: no display)   0x070 acpi_rsdp_addr   0x1e8 e820_entries
//!   0x1f1 setup header: copied from the kernel, then answered     0x2d0 e820_table, 20 bytes each
//! ```
//!
//! Spec: Linux Documentation/arch/x86/zero-page.rst; boot.rst (protocol 2.15), "32-bit Boot Protocol".
//! Left out: the upper halves ext_ramdisk_* and ext_cmd_line_ptr stay zero, all we load is below 4 GiB.

use axvm_arch::Gpa;

use super::handover::Handover;
use crate::kernel::field::{self, Field};
use crate::kernel::{SetupHeader, loadflags};

const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_LEN: usize = 20;
/// The table's room in the page.
const E820_MAX: usize = 128;

/// We have no assigned loader number.
const LOADER_UNDEFINED: u64 = 0xff;
const VIDEO_MODE_NORMAL: u64 = 0xffff;
/// End of the real-mode heap of boot.rst's sample loader. No real-mode code runs, but the field is obligatory.
const HEAP_END: u64 = 0xe000 - 0x200;

/// Fills the page for a kernel loaded at `load`.
pub(super) fn build(header: &SetupHeader, load: Gpa, handover: &Handover) -> Vec<u8> {
    let mut page = vec![0; 4096];
    let copy = header.bytes();
    let start = field::SETUP_SECTS.offset;
    page[start..start + copy.len()].copy_from_slice(copy);

    let mut set = |field: Field, value| field.write(&mut page, 0, value);
    set(field::VID_MODE, VIDEO_MODE_NORMAL);
    set(field::TYPE_OF_LOADER, LOADER_UNDEFINED);
    set(field::LOADFLAGS, header.get(field::LOADFLAGS) | loadflags::CAN_USE_HEAP);
    set(field::HEAP_END_PTR, HEAP_END);
    set(field::CODE32_START, load.0);
    set(field::CMD_LINE_PTR, handover.command_line.0);
    set(field::RAMDISK_IMAGE, handover.initrd.map_or(0, |initrd| initrd.gpa.0));
    set(field::RAMDISK_SIZE, handover.initrd.map_or(0, |initrd| initrd.len));

    let rsdp = handover.rsdp.unwrap_or_default();
    page[ACPI_RSDP_ADDR..ACPI_RSDP_ADDR + 8].copy_from_slice(&rsdp.0.to_le_bytes());
    let entries = handover.e820.iter().take(E820_MAX);
    page[E820_ENTRIES] = entries.len() as u8;
    for (entry, place) in entries.zip(page[E820_TABLE..].chunks_exact_mut(E820_ENTRY_LEN)) {
        place[..8].copy_from_slice(&entry.gpa.0.to_le_bytes());
        place[8..16].copy_from_slice(&entry.len.to_le_bytes());
        place[16..].copy_from_slice(&(entry.kind as u32).to_le_bytes());
    }
    page
}
