//! The map of guest-physical memory: what e820 says of it, and who has what in there.
//!
//! ```text
//!   e820 entries, and the holes between them   --> bands, from 0 to the last address that is used
//!   GDT, zero page, kernel, tables, windows    --> each in the band that it begins in
//! ```
//!
//! Spec: ACPI 6.5, 15 "System Address Map Interfaces". Left out: MTRRs, whose default covers all.

use axvm_arch::layout;
use axvm_boot::e820::E820Kind;
use axvm_boot::linux::{Entry, LinuxStart};
use axvm_boot::plan::{Kind, Part, Place, Plan};

use super::{Facts, Row, Section, read};

pub(super) const ID: &str = "memory";

/// Owner of what was put into memory at power-on.
const AXVM: &str = "AxVM";

pub(super) fn section(facts: &Facts) -> Section {
    let items = items(facts);
    let last = items.iter().map(Row::end).max().unwrap_or(0);
    let bands = filled(bands(facts.start, last), items);
    let about = "Guest-physical addresses: what the kernel is told of them (e820; a hole is not in it), and who has what \
                 there. What lies in RAM the kernel may overwrite once it has read it.";
    Section { id: ID, title: "Memory", about: about.into(), rows: bands }
}

/// The same of a machine that runs: what its kernel has made of its RAM is not known.
pub(super) fn live(plan: &Plan, ram: &[(u64, u64)]) -> Section {
    let mut items: Vec<Row> = plan.parts().iter().flat_map(windows).collect();
    items.sort_by_key(|item| (item.at, std::cmp::Reverse(item.len)));
    let last = items.iter().map(Row::end).max().unwrap_or(0);
    let (mut bands, mut at) = (Vec::new(), 0);
    for &(start, len) in ram {
        bands.extend(hole(at, start));
        bands.push(Row::new("RAM").at(start).len(len).owner(AXVM).means("the guest's own"));
        at = start + len;
    }
    bands.extend(hole(at, last));
    let about = "Guest-physical addresses: where there is RAM, and who answers between.";
    Section { id: ID, title: "Memory", about: about.into(), rows: filled(bands, items) }
}

/// Each of `items`, which are in ascending order, in the band that it begins in.
fn filled(mut bands: Vec<Row>, items: Vec<Row>) -> Vec<Row> {
    for item in items {
        let at = item.at.unwrap_or(0);
        if let Some(band) = bands.iter_mut().find(|band| (band.at.unwrap_or(0)..band.end()).contains(&at)) {
            insert(&mut band.rows, item);
        }
    }
    bands
}

/// Puts `item` behind those before it, or into the one that it lies in.
fn insert(rows: &mut Vec<Row>, item: Row) {
    match rows.last_mut() {
        Some(last) if item.at.unwrap_or(0) < last.end() => insert(&mut last.rows, item),
        _ => rows.push(item),
    }
}

/// The entries of e820 and what is between them, up to `last`.
fn bands(start: &LinuxStart, last: u64) -> Vec<Row> {
    let mut bands = Vec::new();
    let mut at = 0;
    for entry in &start.e820 {
        bands.extend(hole(at, entry.gpa.0));
        let (name, means) = match entry.kind {
            E820Kind::Ram => ("RAM", "usable"),
            E820Kind::Reserved => ("reserved", "not for the kernel"),
            E820Kind::AcpiData => ("ACPI data", "RAM like any other once the kernel has read it"),
            E820Kind::AcpiNvs => ("ACPI NVS", "the kernel keeps it as it is"),
        };
        let row = Row::new(name).at(entry.gpa.0).len(entry.len).means(means);
        bands.push(row.owner(format!("e820 type {}", entry.kind as u32)));
        at = entry.end().0;
    }
    bands.extend(hole(at, last));
    bands
}

fn hole(at: u64, end: u64) -> Option<Row> {
    let len = end.checked_sub(at).filter(|&len| len > 0)?;
    let means = match at {
        0xa_0000 => "where a PC has video memory and ROMs",
        _ => "for registers of devices",
    };
    Some(Row::new("hole").at(at).len(len).means(means))
}

/// Everything with an address, in ascending order; what holds others comes before them.
fn items(facts: &Facts) -> Vec<Row> {
    let mut items = entry_state(facts);
    items.extend(kernel(facts.start));
    items.extend(facts.tables.iter().flat_map(|tables| tables.iter()).map(|table| {
        Row::new(table.name).at(table.gpa.0).len(table.bytes.len() as u64).owner(AXVM).means("an ACPI table")
    }));
    let mp = Row::new("MP table").at(layout::MP_TABLE.0).len(facts.mp.bytes().len() as u64).owner(AXVM);
    items.push(mp.means("processors and interrupt lines, for kernels that read no ACPI"));
    let reset = Row::new("reset vector").at(layout::RESET_VECTOR.0).len(0x10).owner(AXVM);
    items.push(reset.means("code that resets: old kernels reboot by a jump to here"));
    items.extend(facts.plan.parts().iter().flat_map(windows));
    let kvm = |name, at, len, means| Row::new(name).at(at).len(len).owner("KVM").means(means);
    let identity = "page tables for a guest in real mode, on processors that need some";
    items.push(kvm("KVM identity map", layout::KVM_IDENTITY_MAP.0, 0x1000, identity));
    items.push(kvm("KVM TSS", layout::KVM_TSS.0, 0x3000, "task state for the same"));
    items.sort_by_key(|item| (item.at, std::cmp::Reverse(item.len)));
    items
}

/// What the entry's protocol wants to be there.
fn entry_state(facts: &Facts) -> Vec<Row> {
    let start = facts.start;
    let item = |name: &str, at, len, means: &str| Row::new(name).at(at).len(len).owner(AXVM).means(means);
    let gdt = start.state.system.gdt;
    let mut items =
        vec![item("GDT", gdt.base, u64::from(gdt.limit) + 1, "descriptors of the segments that the entry loads")];
    let text = start.command_line.len() as u64 + 1;
    items.push(item("command line", layout::COMMAND_LINE.0, text, "the kernel's arguments, and a NUL"));
    match start.entry {
        Entry::Bits32 | Entry::Bits64 => {
            items.push(item("zero page", layout::ZERO_PAGE.0, 0x1000, "struct boot_params: what the kernel is told"));
        }
        Entry::Pvh => {
            items.push(item("start info", layout::PVH_START_INFO.0, 0x1000, "the same as a zero page, for PVH"))
        }
        Entry::Multiboot => {
            // Version 2 begins with its length.
            let len = read(facts, layout::MULTIBOOT_INFO.0, 4).and_then(|len| len.try_into().ok());
            let is_2 = start.state.regs.rax == super::boot_params::MAGIC_2;
            let len = len.map(u32::from_le_bytes).filter(|_| is_2).map_or(0x1000, u64::from);
            items.push(item("Multiboot information", layout::MULTIBOOT_INFO.0, len, "what the kernel is told"));
            items.push(item("BIOS data area", layout::BIOS_DATA.0, 0x100, "what small kernels read of a PC's BIOS"));
        }
    }
    if start.entry == Entry::Bits64 {
        let stack = layout::BOOT_STACK.0;
        items.push(item("boot stack", stack & !0xfff, stack & 0xfff, "grows down from its end"));
        let tables = "map the first 4 GiB as they are, in pages of 2 MiB";
        items.push(item("page tables", layout::PAGE_TABLES.0, 0x6000, tables));
    }
    items
}

/// The kernel with all that it needs before it reads the map, and the initrd.
fn kernel(start: &LinuxStart) -> Vec<Row> {
    let (area, file) = (start.kernel_area, start.kernel_at);
    let mut kernel = Row::new("kernel").at(area.gpa.0).len(area.len).owner("--kernel");
    kernel = kernel.means("its bytes, and what it uses before it has read the map");
    let pieces = start.pieces.iter().map(|piece| {
        let row = Row::new("from the file").at(piece.to.gpa.0).len(piece.to.len);
        row.means(format!("its bytes from offset {:#x} on", piece.offset))
    });
    kernel.rows = pieces.collect();
    kernel.rows.sort_by_key(|row| row.at);
    if let Some(len) = area.end().0.checked_sub(file.end().0).filter(|&len| len > 0) {
        let room = Row::new("room").at(file.end().0).len(len);
        kernel
            .rows
            .push(room.means("for the unpacked kernel, its bss and its heap: init_size, from its runtime start on"));
    }
    let initrd = start.initrd_at.map(|span| {
        let row = Row::new("initrd").at(span.gpa.0).len(span.len).owner("--initrd");
        row.means("as high as the kernel allows, where its unpacking is not in the way")
    });
    std::iter::once(kernel).chain(initrd).collect()
}

/// Registers of a part in memory.
fn windows(part: &Part) -> Vec<Row> {
    let owner = if part.kind.is_in_kvm() { "KVM" } else { AXVM };
    let window = |place: &Place| match *place {
        Place::Mmio { base, len } => {
            let means = match part.kind {
                Kind::PciWindow => "where registers of PCI functions may be",
                Kind::PciEcam => "configuration spaces of PCI, 4 KiB for each function",
                _ => "registers",
            };
            Some(Row::new(&*part.name).at(base.0).len(len).owner(owner).means(means))
        }
        Place::Pci { bar, .. } => {
            let row = Row::new(format!("{} BAR 0", part.name)).at(bar.0).owner(owner);
            Some(row.means("registers at power-on; the kernel may move them"))
        }
        Place::Ports { .. } => None,
    };
    part.places.iter().filter_map(window).collect()
}
