//! What the kernel is told: the zero page with its setup header, field by field; or PVH's and Multiboot's counterparts.
//!
//! ```text
//!   zero page in RAM --FIELDS--> offset, bytes, value, meaning     and, where they differ: what the kernel's file has
//! ```
//!
//! Spec: Linux Documentation/arch/x86/boot.rst (protocol 2.15) and zero-page.rst; Xen public header
//! arch-x86/hvm/start_info.h; GNU Multiboot Specification 0.6.96, 3.3; Multiboot2 Specification 2.0, 3.6.
//! Left out: fields of the zero page that AxVM leaves zero and that only firmware fills (APM, EDD, EFI, SpeedStep).

use axvm_arch::layout;
use axvm_boot::kernel::field::{self, FIELDS, Field};
use axvm_boot::kernel::{BzImage, KernelImage, Protocol, loadflags, xloadflags};
use axvm_boot::linux::Entry;

use super::{Facts, Row, Section, read, size};
use crate::text::clean;

const ABOUT: [&str; 3] = [
    "struct boot_params, as it lies in guest memory at 0x7000; the setup header begins at 0x1f1.",
    "PVH's start info, as it lies in guest memory at 0x6000: what others are told by the zero page.",
    "Multiboot information, as it lies in guest memory at 0x30000.",
];

pub(super) fn section(facts: &Facts) -> Section {
    let (about, rows) = match facts.start.entry {
        Entry::Bits32 | Entry::Bits64 => (ABOUT[0], zero_page(facts)),
        Entry::Pvh => (ABOUT[1], start_info(facts)),
        Entry::Multiboot => (ABOUT[2], multiboot(facts)),
    };
    Section { id: "boot_params", title: "Boot parameters", about: about.into(), rows: rows.unwrap_or_default() }
}

/// Little-endian.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// A field of something that begins at the first of `bytes`.
fn row(bytes: &[u8], name: &str, offset: usize, len: usize, means: &str, source: &str) -> Option<Row> {
    let bytes = bytes.get(offset..offset + len)?;
    let row = Row::new(name).at(offset as u64).len(len as u64).bytes(bytes).means(means).source(source);
    Some(if len <= 8 { row.value(number(bytes)) } else { row })
}

fn zero_page(facts: &Facts) -> Option<Vec<Row>> {
    let page = read(facts, layout::ZERO_PAGE.0, 0x1000)?;
    let image = match &facts.start.kernel {
        KernelImage::BzImage(image) => Some(image),
        KernelImage::Vmlinux(_) | KernelImage::Flat(_) => None,
    };
    let field = |name, offset, len, means| row(&page, name, offset, len, means, "zero-page.rst");
    let before = [
        field("screen_info", 0, 64, "the display: all zero, there is none"),
        field("acpi_rsdp_addr", 0x70, 8, "where ACPI's root pointer is; 0: the kernel looks for it"),
        field("ext_ramdisk_image", 0xc0, 4, "upper half of the initrd's address"),
        field("ext_ramdisk_size", 0xc4, 4, "upper half of its size"),
        field("ext_cmd_line_ptr", 0xc8, 4, "upper half of the command line's address"),
        field("e820_entries", 0x1e8, 1, "how many entries e820_table has"),
        field("sentinel", 0x1ef, 1, "zero: the loader cleared what it did not fill"),
    ];
    let version = field::VERSION.read(&page, 0).unwrap_or(0) as u16;
    let header =
        FIELDS.iter().filter(|field| field.since <= version.max(0x200)).filter_map(|field| setup(&page, *field, image));
    let count = page.get(0x1e8).copied().unwrap_or(0);
    let mut table = row(&page, "e820_table", 0x2d0, usize::from(count) * 20, "", "zero-page.rst")?;
    table.means = "the memory map, 20 bytes an entry: address, length, type".into();
    table.rows = (0..usize::from(count)).filter_map(|n| e820(&page, n)).collect();
    Some(before.into_iter().flatten().chain(header).chain([table]).collect())
}

fn e820(page: &[u8], n: usize) -> Option<Row> {
    let offset = 0x2d0 + n * 20;
    let entry = page.get(offset..offset + 20)?;
    let (gpa, len, kind) = (number(&entry[..8]), number(&entry[8..16]), number(&entry[16..]));
    let name = match kind {
        1 => "RAM",
        2 => "reserved",
        3 => "ACPI data",
        4 => "ACPI NVS",
        _ => "unknown",
    };
    let words = format!("{gpa:#x}..{:#x}, {}", gpa.saturating_add(len), size(len));
    Some(Row::new(format!("{name} at {gpa:#x}")).at(offset as u64).len(20).bytes(entry).value(kind).means(words))
}

/// A field of the setup header, as the loader left it.
fn setup(page: &[u8], field: Field, image: Option<&BzImage>) -> Option<Row> {
    let since =
        if field.since <= 0x200 { "boot.rst".into() } else { format!("boot.rst, since {}", Protocol(field.since)) };
    let mut row = row(page, field.name, field.offset, field.size, field.meaning, &since)?;
    let value = field.read(page, 0)?;
    let words = reading(field, value, image);
    if !words.is_empty() {
        row.means = format!("{}: {}", row.means, clean(&words));
    }
    let in_file = image.map(|image| image.header.get(field));
    row.owner = match in_file {
        Some(wish) if wish != value => Some(format!("AxVM; {wish:#x} in the kernel's file")),
        Some(_) => Some("the kernel's file".into()),
        None => Some("AxVM".into()),
    };
    row.rows = match field {
        field::LOADFLAGS => flags(value, &LOADFLAGS),
        field::XLOADFLAGS => flags(value, &XLOADFLAGS),
        _ => Vec::new(),
    };
    Some(row)
}

/// What a value says of this kernel, beside what its field means of any.
fn reading(field: Field, value: u64, image: Option<&BzImage>) -> String {
    let of_image = |words: &dyn Fn(&BzImage) -> Option<String>| image.and_then(words).unwrap_or_default();
    match field {
        field::SETUP_SECTS => {
            of_image(&|image| Some(format!("the protected-mode code begins at offset {:#x}", image.header.setup_len())))
        }
        field::SYSSIZE => of_image(&|image| Some(size(image.header.protected_mode_len()))),
        field::HEADER => String::from_utf8_lossy(&(value as u32).to_le_bytes()).into_owned(),
        field::VERSION => Protocol(value as u16).to_string(),
        field::KERNEL_VERSION => of_image(&|image| image.release.clone()),
        field::PAYLOAD_OFFSET => of_image(&|image| Some(image.payload?.compression?.into())),
        field::RAMDISK_SIZE | field::PAYLOAD_LENGTH | field::INIT_SIZE | field::KERNEL_ALIGNMENT => size(value),
        field::MIN_ALIGNMENT => 1_u64.checked_shl(value as u32).map(size).unwrap_or_default(),
        field::RELOCATABLE_KERNEL => if value == 0 { "no" } else { "yes" }.into(),
        field::KERNEL_INFO_OFFSET => of_image(&|image| {
            Some(format!("the highest setup_data type it knows is {:#x}", image.kernel_info?.setup_type_max))
        }),
        _ => String::new(),
    }
}

/// A bit of flags: its name, and what it means when it is set.
type Flag = (u64, &'static str, &'static str);

const LOADFLAGS: [Flag; 4] = [
    (loadflags::LOADED_HIGH, "LOADED_HIGH", "the protected-mode code is at 1 MiB or above"),
    (1 << 1, "KASLR_FLAG", "the decompressor tells the kernel that it chose an address"),
    (1 << 5, "QUIET_FLAG", "the decompressor prints nothing"),
    (loadflags::CAN_USE_HEAP, "CAN_USE_HEAP", "heap_end_ptr is valid"),
];

const XLOADFLAGS: [Flag; 7] = [
    (xloadflags::KERNEL_64, "KERNEL_64", "there is a 64-bit entry, 0x200 behind the load address (--entry 64)"),
    (xloadflags::CAN_BE_LOADED_ABOVE_4G, "CAN_BE_LOADED_ABOVE_4G", "it and what it is given may lie above 4 GiB"),
    (1 << 2, "EFI_HANDOVER_32", "an EFI handover entry of 32 bits"),
    (1 << 3, "EFI_HANDOVER_64", "an EFI handover entry of 64 bits"),
    (1 << 4, "EFI_KEXEC", "kexec with EFI runtime services"),
    (1 << 5, "5LEVEL", "the kernel can do 5-level paging"),
    (1 << 6, "5LEVEL_ENABLED", "and it will, where the processor can"),
];

fn flags(value: u64, names: &[Flag]) -> Vec<Row> {
    names.iter().filter(|(bit, ..)| value & bit != 0).map(|(_, name, means)| Row::new(*name).means(*means)).collect()
}

fn start_info(facts: &Facts) -> Option<Vec<Row>> {
    let info = read(facts, layout::PVH_START_INFO.0, 0x1000)?;
    let field = |name, offset, len, means| row(&info, name, offset, len, means, "start_info.h");
    let mut rows: Vec<Row> = [
        field("magic", 0, 4, "xEn3"),
        field("version", 4, 4, "1: with a memory map"),
        field("flags", 8, 4, "0: no privileged domain"),
        field("nr_modules", 12, 4, "how many modules; the first is the initrd"),
        field("modlist_paddr", 16, 8, "where they are listed"),
        field("cmdline_paddr", 24, 8, "where the command line is"),
        field("rsdp_paddr", 32, 8, "where ACPI's root pointer is"),
        field("memmap_paddr", 40, 8, "where the memory map is"),
        field("memmap_entries", 48, 4, "how many entries it has"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if facts.start.initrd_at.is_some() {
        rows.extend(field("module 0", 0x38, 32, "the initrd: address, length, no command line"));
    }
    rows.extend((0..facts.start.e820.len()).filter_map(|n| {
        let offset = 0x58 + n * 24;
        let entry = info.get(offset..offset + 24)?;
        let (gpa, len) = (number(&entry[..8]), number(&entry[8..16]));
        let words = format!("{gpa:#x}..{:#x}, {}, type {}", gpa.saturating_add(len), size(len), number(&entry[16..20]));
        row(&info, &format!("memory at {gpa:#x}"), offset, 24, &words, "start_info.h")
    }));
    Some(rows)
}

fn multiboot(facts: &Facts) -> Option<Vec<Row>> {
    let info = read(facts, layout::MULTIBOOT_INFO.0, 0x1000)?;
    if facts.start.state.regs.rax == MAGIC_2 {
        return Some(tags(&info));
    }
    let field = |name, offset, len, means| row(&info, name, offset, len, means, "Multiboot 0.6.96, 3.3");
    let rows = [
        field("flags", 0, 4, "which of the fields are valid, a bit for each"),
        field("mem_lower", 4, 4, "KiB of RAM from address 0 on"),
        field("mem_upper", 8, 4, "KiB of RAM from 1 MiB on"),
        field("cmdline", 16, 4, "where the command line is"),
        field("mods_count", 20, 4, "how many modules; the first is the initrd"),
        field("mods_addr", 24, 4, "where they are listed"),
        field("mmap_length", 44, 4, "length of the memory map in bytes"),
        field("mmap_addr", 48, 4, "where the memory map is"),
        field("boot_loader_name", 64, 4, "where the loader's name is"),
    ];
    Some(rows.into_iter().flatten().collect())
}

/// What EAX holds for version 2.
pub(super) const MAGIC_2: u64 = 0x36d7_6289;

/// The tags of version 2.
fn tags(info: &[u8]) -> Vec<Row> {
    let mut rows: Vec<Row> = row(info, "total_size", 0, 4, "length of all", SOURCE_2).into_iter().collect();
    let mut offset = 8;
    while let Some(head) = info.get(offset..offset + 8) {
        let (kind, len) = (number(&head[..4]), number(&head[4..]) as usize);
        let name = match kind {
            0 => "end",
            1 => "command line",
            2 => "loader's name",
            3 => "module",
            4 => "basic memory",
            6 => "memory map",
            14 => "ACPI 1.0 RSDP",
            15 => "ACPI 2.0 RSDP",
            _ => "tag",
        };
        if len < 8 {
            break;
        }
        rows.extend(row(info, name, offset, len, &format!("a tag of type {kind}"), SOURCE_2));
        if kind == 0 {
            break;
        }
        offset = offset.saturating_add(len.next_multiple_of(8));
    }
    rows
}

const SOURCE_2: &str = "Multiboot2 2.0, 3.6";
