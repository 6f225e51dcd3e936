//! Starting a kernel, Linux above all: everything that must be in RAM and in registers before its first instruction.
//!
//! ```text
//!   1 parse the kernel        what does it ask for?
//!   2 choose the entry        32, 64, pvh, multiboot: can this kernel do it?
//!   3 place                   kernel, initrd
//!   4 write                   command line, zero page, start info or Multiboot information, GDT, page tables
//!   5 answer                  CpuState, and what to load where: pieces of the kernel file, the initrd
//! ```
//!
//! Neither file is copied here: its owner carries the pieces straight into guest RAM.
//!
//! Spec: Linux Documentation/arch/x86/boot.rst (protocol 2.15) and zero-page.rst; Xen "x86/HVM direct
//! boot ABI"; GNU Multiboot Specification 0.6.96; Multiboot2 Specification 2.0. Left out: real-mode entry, loading above 4 GiB, setup_data.

mod entry;
mod error;
mod handover;
pub mod initrd;
mod multiboot_info;
mod placement;
mod reset_vector;
mod start_info;
mod zero_page;

use std::fmt;
use std::str::FromStr;

use axvm_arch::registers::CpuState;
use axvm_arch::{Gpa, layout};
use axvm_memory::GuestRam;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::e820::{self, E820Entry};
use crate::kernel::{KernelImage, SetupHeader, xloadflags};
use crate::read_at::ReadAt;
use handover::Handover;

pub use error::BootError;
pub use placement::Span;

/// Which entry point of the kernel the BSP starts at. Its text is what command line, settings file and schema say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Entry {
    /// 32-bit protected mode, paging off: the guest switches to long mode itself (bzImage)
    #[default]
    #[serde(rename = "32")]
    Bits32,
    /// 64-bit long mode, page tables built by AxVM (bzImage, vmlinux)
    #[serde(rename = "64")]
    Bits64,
    /// PVH: 32-bit entry of an ELF vmlinux, with start info instead of a zero page
    #[serde(rename = "pvh")]
    Pvh,
    /// Multiboot 1 or 2: 32-bit entry of a kernel with such a header; no default command line
    #[serde(rename = "multiboot")]
    Multiboot,
}

impl Entry {
    /// Every entry.
    pub const ALL: [Entry; 4] = [Entry::Bits32, Entry::Bits64, Entry::Pvh, Entry::Multiboot];

    /// The usual one of this kernel: Multiboot only where it is the only way in.
    fn usual(image: &KernelImage) -> Entry {
        match image {
            KernelImage::BzImage(_) => Entry::Bits32,
            KernelImage::Vmlinux(image) if image.pvh_entry.is_none() && image.multiboot.is_some() => Entry::Multiboot,
            KernelImage::Vmlinux(_) => Entry::Pvh,
            KernelImage::Flat(_) => Entry::Multiboot,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Entry::Bits32 => "32",
            Entry::Bits64 => "64",
            Entry::Pvh => "pvh",
            Entry::Multiboot => "multiboot",
        })
    }
}

/// An entry that AxVM does not know.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("Unknown entry {0:?}: say 32, 64, pvh or multiboot")]
pub struct UnknownEntry(String);

impl FromStr for Entry {
    type Err = UnknownEntry;

    fn from_str(text: &str) -> Result<Entry, UnknownEntry> {
        let known = Entry::ALL.into_iter().find(|entry| entry.to_string() == text);
        known.ok_or_else(|| UnknownEntry(text.to_owned()))
    }
}

/// What to start besides the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinuxConfig {
    /// The kernel command line, complete.
    pub command_line: String,
    /// What a kernel gets instead that is no Linux and enters by Multiboot: the user's words alone.
    pub plain_command_line: String,
    /// Length of the initial ramdisk in bytes.
    pub initrd_len: Option<u64>,
    /// Which entry to use; without one, 32 for a bzImage, PVH for an ELF file that has it, else Multiboot.
    pub entry: Option<Entry>,
    /// Whether the machine has the ECAM of PCI, which no kernel may take for its own use.
    pub ecam: bool,
}

/// A piece of the kernel file, and where it goes. Pieces lie in guest RAM, and none over another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Where it goes.
    pub to: Span,
}

/// A Linux ready to start, once its kernel and its initrd are loaded: the first CPU's state, and what goes where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinuxStart {
    /// Registers of the first CPU.
    pub state: CpuState,
    /// The entry used.
    pub entry: Entry,
    /// What the kernel image says about itself.
    pub kernel: KernelImage,
    /// The kernel's bytes, to be loaded by the caller.
    pub pieces: Vec<Piece>,
    /// Where they lie.
    pub kernel_at: Span,
    /// All that the kernel uses before it has read the memory map.
    pub kernel_area: Span,
    /// Where the initrd's bytes are, to be loaded by the caller.
    pub initrd_at: Option<Span>,
    /// The command line the kernel gets.
    pub command_line: String,
    /// The memory map the kernel gets.
    pub e820: Vec<E820Entry>,
}

/// Writes what tells Linux about its machine into `ram`, which must be zero, and says what else to load and how to start.
pub fn prepare(
    ram: &GuestRam,
    kernel: &dyn ReadAt,
    config: &LinuxConfig,
    acpi_rsdp: Option<Gpa>,
) -> Result<LinuxStart, BootError> {
    let kernel = KernelImage::parse(kernel)?;
    let entry = config.entry.unwrap_or(Entry::usual(&kernel));
    // What is loaded, and the version of Multiboot if that is the way in.
    let (image, multiboot) = match entry {
        Entry::Multiboot => {
            kernel.as_multiboot().map(|(image, version)| (KernelImage::Vmlinux(image), Some(version)))?
        }
        Entry::Bits32 | Entry::Bits64 | Entry::Pvh => (kernel.clone(), None),
    };
    let header = match &image {
        KernelImage::BzImage(image) => image.header.clone(),
        KernelImage::Vmlinux(_) | KernelImage::Flat(_) => SetupHeader::for_vmlinux(),
    };
    let ram_end = Gpa(ram.size().min(layout::HOLE.0));
    let place = placement::kernel(&image, ram_end)?;
    let rip = entry_point(&image, entry, place.file.gpa)?;
    let command_line = if multiboot.is_some() { &config.plain_command_line } else { &config.command_line };
    check_command_line(command_line, &header)?;
    let place_initrd = |len| match multiboot {
        Some(_) => placement::module(len, place.area, ram_end),
        None => placement::initrd(len, &header, place.area, ram_end),
    };
    let initrd_at = config.initrd_len.map(place_initrd).transpose()?;
    let e820 = e820::map(ram.size(), acpi_rsdp.is_some(), config.ecam);

    write(ram, "the command line", layout::COMMAND_LINE, command_line.as_bytes())?;
    let handover = Handover { command_line: layout::COMMAND_LINE, initrd: initrd_at, rsdp: acpi_rsdp, e820: &e820 };
    let mut state = entry::state(entry, rip);
    match (entry, multiboot) {
        (Entry::Multiboot, Some(version)) => {
            let rsdp = acpi_rsdp.map(|at| read_rsdp(ram, at)).transpose()?;
            let info = multiboot_info::build(version, &handover, command_line, rsdp);
            write(ram, "the Multiboot information", layout::MULTIBOOT_INFO, &info)?;
            write(ram, "the BIOS data area", layout::BIOS_DATA, &multiboot_info::bios_data())?;
            state.regs.rax = version.loader_magic().into();
        }
        (Entry::Pvh, _) => write(ram, "PVH start info", layout::PVH_START_INFO, &start_info::build(&handover))?,
        _ => write(ram, "the zero page", layout::ZERO_PAGE, &zero_page::build(&header, place.file.gpa, &handover))?,
    }
    write(ram, "the reset vector", layout::RESET_VECTOR, &reset_vector::CODE)?;
    write(ram, "the GDT", layout::GDT, &entry::gdt(entry))?;
    if entry == Entry::Bits64 {
        write(ram, "the page tables", layout::PAGE_TABLES, &entry::page_tables())?;
    }

    Ok(LinuxStart {
        state,
        entry,
        pieces: pieces(&image, place.file),
        kernel,
        kernel_at: place.file,
        kernel_area: place.area,
        initrd_at,
        command_line: command_line.clone(),
        e820,
    })
}

/// The first instruction, if this kernel has that entry.
fn entry_point(image: &KernelImage, entry: Entry, load: Gpa) -> Result<Gpa, BootError> {
    match (image, entry) {
        (KernelImage::BzImage(_), Entry::Bits32) => Ok(load),
        (KernelImage::BzImage(image), Entry::Bits64) => {
            let has_entry = image.header.has_xloadflag(xloadflags::KERNEL_64) && image.code_len > 0x200;
            has_entry.then_some(Gpa(load.0 + 0x200)).ok_or(BootError::No64BitEntry)
        }
        (KernelImage::BzImage(_), Entry::Pvh | Entry::Multiboot) => Err(BootError::PvhNeedsVmlinux),
        (KernelImage::Flat(_), _) => Err(BootError::OnlyMultiboot),
        (KernelImage::Vmlinux(_), Entry::Bits32) => Err(BootError::Bits32NeedsBzImage),
        (KernelImage::Vmlinux(image), Entry::Bits64) if image.bits == 32 => Err(BootError::Bits64NeedsBits64),
        (KernelImage::Vmlinux(image), Entry::Bits64 | Entry::Pvh | Entry::Multiboot) => {
            let wanted = if entry == Entry::Pvh { image.pvh_entry.ok_or(BootError::NoPvhEntry)? } else { image.entry };
            image.covers(wanted).then_some(wanted).ok_or(BootError::EntryOutside { entry, at: wanted })
        }
    }
}

fn check_command_line(text: &str, header: &SetupHeader) -> Result<(), BootError> {
    let limit = header.cmdline_size().min(layout::COMMAND_LINE_ROOM - 1);
    if text.len() as u64 > limit {
        return Err(BootError::CommandLineTooLong { len: text.len(), limit });
    }
    text.find('\0').map_or(Ok(()), |at| Err(BootError::CommandLineNul { at }))
}

/// Which bytes of the kernel go where.
fn pieces(image: &KernelImage, place: Span) -> Vec<Piece> {
    match image {
        KernelImage::BzImage(image) => vec![Piece { offset: image.code_offset, to: place }],
        // Memory is zero already: what a part has beyond its file bytes needs no loading.
        KernelImage::Vmlinux(image) => {
            let with_bytes = image.segments.iter().filter(|segment| segment.file_len > 0);
            with_bytes
                .map(|segment| Piece { offset: segment.offset, to: Span { gpa: segment.gpa, len: segment.file_len } })
                .collect()
        }
        KernelImage::Flat(_) => Vec::new(),
    }
}

/// ACPI's root pointer, for a kernel that gets a copy.
fn read_rsdp(ram: &GuestRam, at: Gpa) -> Result<[u8; 36], BootError> {
    let mut rsdp = [0; 36];
    ram.read(at, &mut rsdp).map_err(|source| BootError::Write { what: "a copy of the RSDP", source })?;
    Ok(rsdp)
}

fn write(ram: &GuestRam, what: &'static str, gpa: Gpa, bytes: &[u8]) -> Result<(), BootError> {
    ram.write(gpa, bytes).map_err(|source| BootError::Write { what, source })
}

#[cfg(test)]
mod tests;
