//! Multiboot information: the same answers as the zero page, in the two formats of Multiboot.
//!
//! ```text
//!   1   0x00 flags, then fields by number     0x78 one module, 16 bytes   0x88 memory map, 24 bytes each, texts
//!   2   0x00 total size, 0                    0x08 tags: type, size, content, padded to 8 ... type 0 ends
//! ```
//!
//! Spec: GNU Multiboot Specification 0.6.96, 3.3 "Boot information format"; Multiboot2 Specification 2.0, 3.6 "Boot
//! information format". Left out: symbols, drives, APM, video, EFI; a boot device, for a kernel is no part of a disk here.

use axvm_arch::{Gpa, layout};

use super::handover::Handover;
use crate::e820::{E820Entry, E820Kind};
use crate::kernel::MultibootVersion;

/// What the kernel is told about its loader.
const LOADER: &[u8] = b"AxVM\0";
/// The module's text: a kernel may look for it by name.
const MODULE: &[u8] = b"initrd\0";

/// The bytes for [`layout::MULTIBOOT_INFO`]; `rsdp` is a copy of ACPI's root pointer.
pub(super) fn build(version: MultibootVersion, handover: &Handover, text: &str, rsdp: Option<[u8; 36]>) -> Vec<u8> {
    match version {
        MultibootVersion::One => version_1(handover),
        MultibootVersion::Two => version_2(handover, text, rsdp),
    }
}

/// RAM below 640 KiB and from 1 MiB on up to its first end, in KiB.
fn lower_and_upper(e820: &[E820Entry]) -> [u32; 2] {
    [Gpa(0), layout::HIGH_RAM].map(|start| {
        let ram = e820.iter().find(|entry| entry.kind == E820Kind::Ram && entry.gpa == start);
        ram.map_or(0, |entry| (entry.len >> 10) as u32)
    })
}

/// Fields of version 1, by their offset.
mod field {
    pub const FLAGS: usize = 0;
    pub const LOWER: usize = 4;
    pub const UPPER: usize = 8;
    pub const COMMAND_LINE: usize = 16;
    pub const MODULE_COUNT: usize = 20;
    pub const MODULES: usize = 24;
    pub const MAP_LEN: usize = 44;
    pub const MAP: usize = 48;
    pub const LOADER: usize = 64;
    /// Length of all fields.
    pub const END: usize = 0x78;
}
/// Version 1: memory sizes, command line, modules, memory map, name of the loader.
const FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
const MODULE_LEN: usize = 16;
/// Of a range in the map of version 1, without the word that says so.
const RANGE_LEN: u32 = 20;

fn version_1(handover: &Handover) -> Vec<u8> {
    let base = layout::MULTIBOOT_INFO.0 as u32;
    let map_at = field::END + MODULE_LEN;
    let map_len = handover.e820.len() * (RANGE_LEN as usize + 4);
    let loader_at = map_at + map_len;
    let module_text_at = loader_at + LOADER.len();
    let at = |offset: usize| base + offset as u32;

    let mut info = vec![0; map_at];
    let mut set = |offset: usize, value: u32| info[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    let [lower, upper] = lower_and_upper(handover.e820);
    set(field::FLAGS, FLAGS);
    set(field::LOWER, lower);
    set(field::UPPER, upper);
    set(field::COMMAND_LINE, handover.command_line.0 as u32);
    set(field::MAP_LEN, map_len as u32);
    set(field::MAP, at(map_at));
    set(field::LOADER, at(loader_at));
    if let Some(module) = handover.initrd {
        set(field::MODULE_COUNT, 1);
        set(field::MODULES, at(field::END));
        set(field::END, module.gpa.0 as u32);
        set(field::END + 4, module.end().0 as u32);
        set(field::END + 8, at(module_text_at));
    }
    for entry in handover.e820 {
        push(&mut info, &RANGE_LEN.to_le_bytes());
        push(&mut info, &entry.gpa.0.to_le_bytes());
        push(&mut info, &entry.len.to_le_bytes());
        push(&mut info, &(entry.kind as u32).to_le_bytes());
    }
    [&info, LOADER, MODULE].concat()
}

/// Tags of version 2.
mod tag {
    pub const END: u32 = 0;
    pub const COMMAND_LINE: u32 = 1;
    pub const LOADER: u32 = 2;
    pub const MODULE: u32 = 3;
    pub const MEMORY: u32 = 4;
    pub const MAP: u32 = 6;
    pub const RSDP_1: u32 = 14;
    pub const RSDP_2: u32 = 15;
}
/// Of ACPI's root pointer in version 1.0 of ACPI.
const RSDP_1_LEN: usize = 20;

fn version_2(handover: &Handover, text: &str, rsdp: Option<[u8; 36]>) -> Vec<u8> {
    let mut info = vec![0; 8];
    let mut tag = |kind: u32, parts: &[&[u8]]| {
        info.resize(info.len().next_multiple_of(8), 0);
        let content = parts.concat();
        push(&mut info, &kind.to_le_bytes());
        push(&mut info, &(content.len() as u32 + 8).to_le_bytes());
        push(&mut info, &content);
    };
    tag(tag::COMMAND_LINE, &[text.as_bytes(), b"\0"]);
    tag(tag::LOADER, &[LOADER]);
    if let Some(module) = handover.initrd {
        let [start, end] = [module.gpa, module.end()].map(|gpa| (gpa.0 as u32).to_le_bytes());
        tag(tag::MODULE, &[&start, &end, MODULE]);
    }
    let [lower, upper] = lower_and_upper(handover.e820).map(u32::to_le_bytes);
    tag(tag::MEMORY, &[&lower, &upper]);
    let mut map = [24_u32, 0].map(u32::to_le_bytes).concat();
    for entry in handover.e820 {
        push(&mut map, &entry.gpa.0.to_le_bytes());
        push(&mut map, &entry.len.to_le_bytes());
        push(&mut map, &(entry.kind as u32).to_le_bytes());
        push(&mut map, &[0; 4]);
    }
    tag(tag::MAP, &[&map]);
    if let Some(rsdp) = rsdp {
        tag(tag::RSDP_1, &[&rsdp[..RSDP_1_LEN]]);
        tag(tag::RSDP_2, &[&rsdp]);
    }
    tag(tag::END, &[]);
    let len = info.len() as u32;
    info[..4].copy_from_slice(&len.to_le_bytes());
    info
}

/// The bytes for [`layout::BIOS_DATA`]: kernels that know loaders of a PC look there for the first serial port and for the
/// end of low RAM, in KiB and as the segment of what follows.
pub(super) fn bios_data() -> [u8; 0x15] {
    let mut area = [0; 0x15];
    let end = layout::LOW_RAM_END.0;
    area[..2].copy_from_slice(&layout::port::COM1.to_le_bytes());
    area[0x0e..0x10].copy_from_slice(&((end >> 4) as u16).to_le_bytes());
    area[0x13..].copy_from_slice(&((end >> 10) as u16).to_le_bytes());
    area
}

fn push(bytes: &mut Vec<u8>, more: &[u8]) {
    bytes.extend_from_slice(more);
}
