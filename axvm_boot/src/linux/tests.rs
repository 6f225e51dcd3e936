//! The power-on state, checked in RAM byte by byte.

use std::sync::Arc;

use super::*;
use crate::e820::E820Kind;
use crate::kernel::{KernelError, field};
use crate::synthetic::{CODE_LEN, ELF_GPA, ElfPart, bzimage, elf, pvh_note, start as prepare, vmlinux};
use axvm_arch::registers::{Segment, cr0, cr4, efer};
use axvm_memory::RamConfig;

const MIB: u64 = 1 << 20;

fn ram(mib: u64) -> Arc<GuestRam> {
    GuestRam::allocate(&RamConfig::new(mib * MIB)).unwrap()
}

fn config(entry: Entry) -> LinuxConfig {
    LinuxConfig { command_line: "console=ttyS0 quiet".into(), initrd_len: Some(5000), entry: Some(entry) }
}

fn bytes<const N: usize>(ram: &GuestRam, gpa: u64) -> [u8; N] {
    let mut data = [0; N];
    ram.read(Gpa(gpa), &mut data).unwrap();
    data
}

fn u32_in(ram: &GuestRam, gpa: u64) -> u32 {
    u32::from_le_bytes(bytes(ram, gpa))
}

fn u64_in(ram: &GuestRam, gpa: u64) -> u64 {
    u64::from_le_bytes(bytes(ram, gpa))
}

fn fails(mib: u64, kernel: &[u8], config: &LinuxConfig) -> BootError {
    prepare(&ram(mib), kernel, config, None).unwrap_err()
}

#[test]
fn entry_32_is_protected_mode_with_paging_off_and_flat_segments() {
    let ram = ram(128);
    let start = prepare(&ram, &bzimage(&[]), &config(Entry::Bits32), Some(Gpa(0xe_0000))).unwrap();
    let CpuState { regs, system } = start.state;
    assert_eq!((regs.rip, regs.rsi, regs.rflags), (16 * MIB, layout::ZERO_PAGE.0, 2));
    assert_eq!((regs.rbp, regs.rdi, regs.rbx), (0, 0, 0));
    assert_eq!((system.cr0, system.cr3, system.cr4, system.efer), (cr0::PE | cr0::ET, 0, 0, 0));
    assert_eq!(system.cs, Segment::code32(0x10));
    for segment in [system.ds, system.es, system.ss] {
        assert_eq!(segment, Segment::data(0x18));
    }
    assert_eq!(bytes::<4>(&ram, 16 * MIB), [0, 1, 2, 3]);
}

#[test]
fn entry_64_is_long_mode_with_the_first_4_gib_mapped() {
    let ram = ram(128);
    let start = prepare(&ram, &bzimage(&[]), &config(Entry::Bits64), None).unwrap();
    let CpuState { regs, system } = start.state;
    assert_eq!((regs.rip, regs.rsi), (16 * MIB + 0x200, layout::ZERO_PAGE.0));
    assert_eq!((system.cr0, system.cr4), (cr0::PE | cr0::ET | cr0::PG, cr4::PAE));
    assert_eq!((system.efer, system.cr3), (efer::LME | efer::LMA, layout::PAGE_TABLES.0));
    assert_eq!(system.cs, Segment::code64(0x10));
    for gpa in [0, 0x7000, 16 * MIB, 3 << 30, (4 << 30) - 1] {
        assert_eq!(walk(&ram, system.cr3, gpa), Some(gpa));
    }
    assert_eq!(walk(&ram, system.cr3, 4 << 30), None);
}

/// What the MMU does: three levels down to a 2 MiB page.
fn walk(ram: &GuestRam, cr3: u64, address: u64) -> Option<u64> {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let next = |table: u64, shift: u32| {
        let entry = u64_in(ram, table + (address >> shift & 511) * 8);
        (entry & 1 == 1).then_some(entry)
    };
    let pdpt = next(cr3, 39)? & ADDRESS;
    let directory = next(pdpt, 30)? & ADDRESS;
    let page = next(directory, 21)?;
    assert_eq!(page & 0x83, 0x83, "present, writable, 2 MiB");
    Some((page & ADDRESS & !0x1f_ffff) | (address & 0x1f_ffff))
}

#[test]
fn the_gdt_in_memory_matches_the_loaded_segments() {
    for (entry, kernel) in [(Entry::Bits32, bzimage(&[])), (Entry::Bits64, bzimage(&[])), (Entry::Pvh, vmlinux())] {
        let ram = ram(128);
        let system = prepare(&ram, &kernel, &config(entry), None).unwrap().state.system;
        for segment in [system.cs, system.ds, system.tr] {
            let at = u64::from(segment.selector);
            assert!(at + 7 <= system.gdt.limit.into());
            assert_eq!(u64_in(&ram, system.gdt.base + at), segment.descriptor(), "{entry} {at:#x}");
        }
        assert_eq!(u64_in(&ram, system.gdt.base), 0);
    }
}

#[test]
fn the_zero_page_answers_the_header() {
    let ram = ram(128);
    let start = prepare(&ram, &bzimage(&[]), &config(Entry::Bits32), Some(Gpa(0xe_0000))).unwrap();
    let zero_page = layout::ZERO_PAGE.0;
    let page: [u8; 4096] = bytes(&ram, zero_page);
    let get = |field: field::Field| field.read(&page, 0).unwrap();
    assert_eq!((get(field::HEADER), get(field::VERSION), get(field::BOOT_FLAG)), (0x5372_6448, 0x20f, 0xaa55));
    assert_eq!((get(field::TYPE_OF_LOADER), get(field::LOADFLAGS)), (0xff, 0x81));
    assert_eq!(get(field::CODE32_START), 16 * MIB);
    assert_eq!(get(field::CMD_LINE_PTR), layout::COMMAND_LINE.0);
    let initrd = start.initrd_at.unwrap();
    assert_eq!((get(field::RAMDISK_IMAGE), get(field::RAMDISK_SIZE)), (initrd.gpa.0, 5000));
    assert_eq!(get(field::INIT_SIZE), 16 << 20, "the rest is as the kernel wrote it");
    assert_eq!(u64_in(&ram, zero_page + 0x70), 0xe_0000);
    assert_eq!(page[0x1ef], 0, "sentinel");
    assert_eq!(page[..0x70], [0; 0x70], "no display");
    assert_eq!(page[0x26c..0x2d0], [0; 0x64], "nothing behind the header");
    assert_eq!(bytes(&ram, layout::COMMAND_LINE.0), *b"console=ttyS0 quiet\0");
}

#[test]
fn the_zero_page_and_start_info_carry_the_same_memory_map() {
    let read = |kernel: &[u8], entry, table: u64, stride: u64| {
        let ram = ram(6 * 1024);
        let start = prepare(&ram, kernel, &config(entry), Some(Gpa(0xe_0000))).unwrap();
        let entry = |n: u64| table + n * stride;
        let rows: Vec<_> = (0..start.e820.len() as u64)
            .map(|n| (u64_in(&ram, entry(n)), u64_in(&ram, entry(n) + 8), u32_in(&ram, entry(n) + 16)))
            .collect();
        let expected: Vec<_> = start.e820.iter().map(|e| (e.gpa.0, e.len, e.kind as u32)).collect();
        assert_eq!(rows, expected);
        assert_eq!(start.e820.last().unwrap().kind, E820Kind::Ram);
        rows
    };
    let zero_page = read(&bzimage(&[]), Entry::Bits32, layout::ZERO_PAGE.0 + 0x2d0, 20);
    let start_info = read(&vmlinux(), Entry::Pvh, layout::PVH_START_INFO.0 + 0x58, 24);
    assert_eq!(zero_page, start_info);
}

#[test]
fn pvh_gets_start_info_in_ebx() {
    let ram = ram(128);
    let start = prepare(&ram, &vmlinux(), &config(Entry::Pvh), Some(Gpa(0xe_0000))).unwrap();
    let regs = start.state.regs;
    let info = layout::PVH_START_INFO.0;
    assert_eq!((regs.rip, regs.rbx), (ELF_GPA + 0x20, info));
    assert_eq!((u32_in(&ram, info), u32_in(&ram, info + 4), u32_in(&ram, info + 12)), (0x336e_c578, 1, 1));
    assert_eq!(u64_in(&ram, info + 24), layout::COMMAND_LINE.0);
    assert_eq!(u64_in(&ram, info + 32), 0xe_0000);
    assert_eq!(u64_in(&ram, info + 40), info + 0x58);
    assert_eq!(u32_in(&ram, info + 48) as usize, start.e820.len());
    let module = u64_in(&ram, info + 16);
    assert_eq!((u64_in(&ram, module), u64_in(&ram, module + 8)), (start.initrd_at.unwrap().gpa.0, 5000));
}

#[test]
fn without_an_initrd_there_is_no_module() {
    let ram = ram(128);
    let config = LinuxConfig { initrd_len: None, ..config(Entry::Pvh) };
    prepare(&ram, &vmlinux(), &config, None).unwrap();
    let info = layout::PVH_START_INFO.0;
    assert_eq!((u32_in(&ram, info + 12), u64_in(&ram, info + 16)), (0, 0));
}

#[test]
fn a_vmlinux_enters_in_64_bit_with_a_zero_page_of_defaults() {
    let ram = ram(128);
    let start = prepare(&ram, &vmlinux(), &config(Entry::Bits64), None).unwrap();
    assert_eq!((start.state.regs.rip, start.state.regs.rsi), (ELF_GPA + 0x10, layout::ZERO_PAGE.0));
    let page: [u8; 4096] = bytes(&ram, layout::ZERO_PAGE.0);
    let get = |field: field::Field| field.read(&page, 0).unwrap();
    assert_eq!((get(field::HEADER), get(field::VERSION), get(field::BOOT_FLAG)), (0x5372_6448, 0x20f, 0xaa55));
    assert_eq!((get(field::TYPE_OF_LOADER), get(field::LOADFLAGS)), (0xff, 0x81));
    assert_eq!(bytes::<2>(&ram, ELF_GPA), [0x40, 0x41]);
}

#[test]
fn the_kernel_goes_where_it_likes_to_be() {
    let place = |changes: &[(field::Field, u64)]| {
        let start = prepare(&ram(128), &bzimage(changes), &config(Entry::Bits32), None).unwrap();
        assert_eq!(start.kernel_at.len, CODE_LEN as u64);
        (start.kernel_at.gpa.0 / MIB, start.kernel_area.gpa.0 / MIB, start.kernel_area.end().0 / MIB)
    };
    assert_eq!(place(&[]), (16, 16, 32));
    assert_eq!(place(&[(field::PREF_ADDRESS, 17 << 20)]), (18, 18, 34), "aligned to 2 MiB");
    assert_eq!(place(&[(field::PREF_ADDRESS, 0)]), (2, 2, 18));
    assert_eq!(place(&[(field::RELOCATABLE_KERNEL, 0)]), (1, 1, 32), "it moves itself to 16 MiB");
    assert_eq!(place(&[(field::VERSION, 0x209)]), (2, 2, 2), "before init_size: the file's length");
}

#[test]
fn the_initrd_goes_as_high_as_ram_and_header_allow() {
    let place = |mib: u64, max: u64| {
        let ram = ram(mib);
        let kernel = bzimage(&[(field::INITRD_ADDR_MAX, max)]);
        let span = prepare(&ram, &kernel, &config(Entry::Bits32), None).unwrap().initrd_at.unwrap();
        assert_eq!(bytes::<1>(&ram, span.end().0 - 1), [0xab]);
        span.gpa.0
    };
    assert_eq!(place(128, 0x7fff_ffff), 128 * MIB - 0x2000);
    assert_eq!(place(6 * 1024, 0x7fff_ffff), 0x8000_0000 - 0x2000);
    assert_eq!(place(6 * 1024, 0xffff_ffff), 0xc000_0000 - 0x2000, "below the hole");
    assert_eq!(place(128, 0x3ff_ffff), 0x400_0000 - 0x2000);
}

#[test]
fn an_initrd_fits_exactly_or_not_at_all() {
    let config = |len| LinuxConfig { initrd_len: Some(len), ..config(Entry::Bits32) };
    let room = 4 << 20;
    let start = prepare(&ram(36), &bzimage(&[]), &config(room), None).unwrap();
    assert_eq!(start.initrd_at.unwrap().gpa, start.kernel_area.end());
    let text = fails(36, &bzimage(&[]), &config(room + 1)).to_string();
    assert!(text.contains("4194305 bytes") && text.contains("room for 4194304"), "{text}");
    assert!(text.contains("give the guest more memory"), "{text}");
    for (mib, max) in [(4096, 0xffff_ffff), (128, 0x3ff_ffff)] {
        let text = fails(mib, &bzimage(&[(field::INITRD_ADDR_MAX, max)]), &config(4 << 30)).to_string();
        assert!(text.ends_with(": use a smaller initrd"), "memory does not help: {text}");
    }
    assert_eq!(fails(36, &bzimage(&[]), &config(0)), BootError::InitrdEmpty);
    assert!(matches!(fails(36, &bzimage(&[]), &config(u64::MAX)), BootError::InitrdTooLarge { len: u64::MAX, .. }));
}

#[test]
fn without_a_wish_the_format_chooses_the_entry() {
    let entry = |kernel: &[u8]| prepare(&ram(64), kernel, &LinuxConfig::default(), None).unwrap().entry;
    assert_eq!((entry(&bzimage(&[])), entry(&vmlinux())), (Entry::Bits32, Entry::Pvh));
}

const AT: u64 = 2 << 20;
const HIGH: u64 = 0xffff_ffff_8000_0000;

#[test]
fn a_32_bit_kernel_with_a_pvh_note_starts_there_and_only_there() {
    let kernel = elf(32, AT, &[(1, &[0x90; 64], AT, AT, 0x1000, 4), (4, &pvh_note(AT as u32 + 8, 4), 0, 0, 0, 4)]);
    let ram = ram(64);
    let start = prepare(&ram, &kernel, &LinuxConfig::default(), None).unwrap();
    assert_eq!((start.entry, start.state.regs.rip), (Entry::Pvh, AT + 8));
    assert_eq!(start.kernel.to_string(), "ELF vmlinux, 32-bit, with PVH entry");
    assert_eq!(bytes::<2>(&ram, AT + 62), [0x90, 0x90]);
    assert_eq!(fails(64, &kernel, &config(Entry::Bits64)), BootError::Bits64NeedsBits64);
    let without = elf(32, AT, &[(1, &[0x90; 64], AT, AT, 0x1000, 4)]);
    assert_eq!(fails(64, &without, &LinuxConfig::default()), BootError::Kernel(KernelError::NoPvhNote));
}

#[test]
fn a_virtual_entry_point_is_translated_through_its_segment() {
    let rip = |entry, parts: &[ElfPart]| {
        prepare(&ram(64), &elf(64, entry, parts), &config(Entry::Bits64), None).map(|start| start.state.regs.rip)
    };
    let upper = [(1, &[0x90; 64][..], HIGH, AT, 0x1000, 4), (1, &[0x90; 64], HIGH + 0x1000, 4 * AT, 0x1000, 4)];
    assert_eq!(rip(HIGH + 0x20, &upper), Ok(AT + 0x20));
    assert_eq!(rip(HIGH + 0x1020, &upper), Ok(4 * AT + 0x20), "in the second");
    assert_eq!(rip(AT + 0x20, &upper), Ok(AT + 0x20), "physical already");
    let outside = BootError::EntryOutside { entry: Entry::Bits64, at: Gpa(HIGH + 0x2000) };
    assert_eq!(rip(HIGH + 0x2000, &upper), Err(outside));
    let note = pvh_note(0xc000_0010, 4);
    let kernel = elf(32, 0, &[(1, &[0x90; 64], 0xc000_0000, AT, 0x1000, 4), (4, &note, 0, 0, 0, 4)]);
    let start = prepare(&ram(64), &kernel, &LinuxConfig::default(), None).unwrap();
    assert_eq!(start.state.regs.rip, AT + 0x10, "in a note");
}

#[test]
fn a_load_address_that_is_virtual_is_called_so() {
    for gpa in [HIGH + AT, 0xc010_0000, 0xc000_0000 - 0x100] {
        let kernel = elf(64, gpa, &[(4, &[], 0, 0, 0, 4), (1, &[0x90; 64], gpa, gpa, 0x1000, 4)]);
        let text = fails(64, &kernel, &config(Entry::Bits64)).to_string();
        assert!(
            text.starts_with(&format!("Program header 1 of the kernel wants to be at physical address {}", Gpa(gpa)))
        );
        assert!(text.contains("virtual address") && text.contains("p_paddr"), "{text}");
    }
}

#[test]
fn a_kernel_larger_than_ram_is_refused_with_both_sizes() {
    let text = fails(31, &bzimage(&[]), &config(Entry::Bits32)).to_string();
    assert!(text.contains("16 MiB of RAM at 0x1000000") && text.contains("ends at 31 MiB"), "{text}");
    assert!(text.contains("at least 32 MiB"), "{text}");
    for (field, value) in
        [(field::PREF_ADDRESS, u64::MAX - 5), (field::PREF_ADDRESS, 1 << 40), (field::INIT_SIZE, 3 << 30)]
    {
        let damaged = fails(128, &bzimage(&[(field, value)]), &config(Entry::Bits32));
        assert_eq!(damaged, BootError::KernelAddress, "no amount of memory helps");
    }
    let low = [(field::PREF_ADDRESS, 0x8000), (field::RELOCATABLE_KERNEL, 0)];
    assert_eq!(fails(128, &bzimage(&low), &config(Entry::Bits32)), BootError::KernelTooLow(Gpa(0x8000)));
}

#[test]
fn command_lines_have_a_longest_length() {
    let config = |len: usize| LinuxConfig { command_line: "x".repeat(len), ..config(Entry::Bits32) };
    assert!(prepare(&ram(64), &bzimage(&[]), &config(2047), None).is_ok());
    let error = fails(64, &bzimage(&[]), &config(2048));
    assert_eq!(error, BootError::CommandLineTooLong { len: 2048, limit: 2047 });
    let roomy = bzimage(&[(field::CMDLINE_SIZE, u32::MAX.into())]);
    assert!(prepare(&ram(64), &roomy, &config(0xffff), None).is_ok());
    assert_eq!(fails(64, &roomy, &config(0x1_0000)), BootError::CommandLineTooLong { len: 0x1_0000, limit: 0xffff });
    let nul = LinuxConfig { command_line: "a\0b".into(), ..LinuxConfig::default() };
    assert_eq!(fails(64, &bzimage(&[]), &nul), BootError::CommandLineNul { at: 1 });
}

#[test]
fn an_entry_that_the_kernel_lacks_is_an_error_that_names_others() {
    let error = |kernel: &[u8], entry| fails(128, kernel, &config(entry));
    assert_eq!(error(&bzimage(&[]), Entry::Pvh), BootError::PvhNeedsVmlinux);
    assert_eq!(error(&bzimage(&[(field::XLOADFLAGS, 0)]), Entry::Bits64), BootError::No64BitEntry);
    assert_eq!(error(&vmlinux(), Entry::Bits32), BootError::Bits32NeedsBzImage);
    let mut without_note = vmlinux();
    without_note[0xb0 + 8] = 17;
    assert_eq!(error(&without_note, Entry::Pvh), BootError::NoPvhEntry);
    let mut outside = vmlinux();
    outside[24 + 4] = 1;
    let at = Gpa((1 << 32) + ELF_GPA + 0x10);
    assert_eq!(error(&outside, Entry::Bits64), BootError::EntryOutside { entry: Entry::Bits64, at });
}

#[test]
fn an_entry_is_the_same_word_everywhere() {
    for entry in Entry::ALL {
        let word = entry.to_string();
        assert_eq!(word.parse(), Ok(entry));
        assert_eq!(serde_json::to_value(entry).unwrap(), word);
        assert!(schemars::schema_for!(Entry).as_value().to_string().contains(&format!("\"const\":\"{word}\"")));
    }
    assert_eq!("16".parse::<Entry>().unwrap_err().to_string(), "Unknown entry \"16\": say 32, 64 or pvh");
}
