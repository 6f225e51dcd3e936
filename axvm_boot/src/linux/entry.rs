//! The state of the first CPU at the kernel's first instruction.
//!
//! ```text
//!             mode                      paging            tells the kernel          enters at
//!   32        protected, flat 4 GiB     off               esi = zero page           load address
//!   64        long                      identity, 4 GiB   rsi = zero page           load address + 0x200, ELF entry
//!   pvh       protected, flat 4 GiB     off               ebx = hvm_start_info      note PHYS32_ENTRY
//!   multiboot protected, flat 4 GiB     off               ebx = information, eax    entry of header or ELF file
//! ```
//!
//! Spec: Linux Documentation/arch/x86/boot.rst (protocol 2.15), "32-bit Boot Protocol", "64-bit Boot
//! Protocol"; Xen "x86/HVM direct boot ABI"; GNU Multiboot Specification
//! 0.6.96, 3.2 "Machine state"; Intel SDM volume 3, 4.5 "4-Level Paging".

use axvm_arch::registers::{
    CpuState, DescriptorTable, RFLAGS_RESERVED, Registers, Segment, SystemRegisters, cr0, cr4, efer,
};
use axvm_arch::{Gpa, layout};

use super::Entry;

/// `__BOOT_CS` of the boot protocol.
const CODE: u16 = 0x10;
/// `__BOOT_DS` of the boot protocol.
const DATA: u16 = 0x18;
/// Ours: VMX wants a task register with a busy TSS, though no guest switches tasks.
const TASK: u16 = 0x20;
/// Two unused entries, code, data, and a TSS descriptor, which takes two entries in long mode.
const GDT_LEN: usize = 6;

/// Page table bits (SDM 3, table 4-15 ff.).
const PRESENT_WRITABLE: u64 = 0b11;
const PAGE_SIZE_2M: u64 = 1 << 7;
/// Mapped by identity: 4 GiB, as one page directory per GiB.
const DIRECTORIES: u64 = 4;

/// Registers for `entry` at `rip`.
pub(super) fn state(entry: Entry, rip: Gpa) -> CpuState {
    let mut regs = Registers { rip: rip.0, rflags: RFLAGS_RESERVED, ..Registers::default() };
    match entry {
        Entry::Bits32 => regs.rsi = layout::ZERO_PAGE.0,
        Entry::Bits64 => (regs.rsi, regs.rsp) = (layout::ZERO_PAGE.0, layout::BOOT_STACK.0),
        Entry::Pvh => regs.rbx = layout::PVH_START_INFO.0,
        // EAX says which information; the caller knows.
        Entry::Multiboot => regs.rbx = layout::MULTIBOOT_INFO.0,
    }
    let data = Segment::data(DATA);
    let mut system = SystemRegisters {
        cs: code(entry),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment::tss(TASK, 0),
        gdt: DescriptorTable { base: layout::GDT.0, limit: (GDT_LEN * 8 - 1) as u16 },
        idt: DescriptorTable::default(),
        cr0: cr0::PE | cr0::ET,
        ..SystemRegisters::default()
    };
    if entry == Entry::Bits64 {
        system.cr0 |= cr0::PG;
        system.cr3 = layout::PAGE_TABLES.0;
        system.cr4 = cr4::PAE;
        system.efer = efer::LME | efer::LMA;
    }
    CpuState { regs, system }
}

fn code(entry: Entry) -> Segment {
    match entry {
        Entry::Bits64 => Segment::code64(CODE),
        Entry::Bits32 | Entry::Pvh | Entry::Multiboot => Segment::code32(CODE),
    }
}

/// The descriptors behind the selectors of [`state`], for [`layout::GDT`].
pub(super) fn gdt(entry: Entry) -> Vec<u8> {
    let mut table = [0; GDT_LEN];
    for segment in [code(entry), Segment::data(DATA), Segment::tss(TASK, 0)] {
        table[usize::from(segment.selector / 8)] = segment.descriptor();
    }
    table.iter().flat_map(|descriptor| descriptor.to_le_bytes()).collect()
}

/// PML4, PDPT and page directories of 2 MiB pages, for [`layout::PAGE_TABLES`].
pub(super) fn page_tables() -> Vec<u8> {
    const ENTRIES: u64 = 512;
    let table = |number: u64| (layout::PAGE_TABLES.0 + number * 0x1000) | PRESENT_WRITABLE;
    let pad = |used: u64| std::iter::repeat_n(0, (ENTRIES - used) as usize);
    let pml4 = std::iter::once(table(1)).chain(pad(1));
    let pdpt = (0..DIRECTORIES).map(|number| table(2 + number)).chain(pad(DIRECTORIES));
    let pages = (0..DIRECTORIES * ENTRIES).map(|number| number << 21 | PAGE_SIZE_2M | PRESENT_WRITABLE);
    pml4.chain(pdpt).chain(pages).flat_map(u64::to_le_bytes).collect()
}
