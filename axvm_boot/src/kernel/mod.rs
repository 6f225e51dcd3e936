//! Kernel images: what kind of file this is, and what it asks of its loader.
//!
//! ```text
//!   bytes --parse--> Bzimage: HdrS at 0x202     packed, unpacks itself, 32- and 64-bit entry
//!                    Vmlinux: 7f E L F          unpacked, 64-bit and PVH entry; of 32 bits, PVH only
//!                    error:   names what it is instead, and says what to do
//! ```
//!
//! Spec: Linux Documentation/arch/x86/boot.rst (protocol 2.15); System V ABI (ELF-32, ELF-64).
//! Image bytes are untrusted: a malformed one is an error, never a panic. Only headers are read, and of those a bounded
//! number of bytes.

pub mod field;

mod bzimage;
mod elf;
mod foreign;
mod header;
mod multiboot;

use std::{fmt, io};

use axvm_arch::Gpa;
use thiserror::Error;

use crate::read_at::ReadAt;

pub use bzimage::{BzImage, KernelInfo};
pub use elf::{ElfSegment, Vmlinux};
pub(crate) use foreign::{compression, explain};
pub use header::{SetupHeader, loadflags, xloadflags};
pub use multiboot::{MultibootHeader, MultibootVersion};

/// The file is no kernel that can be started.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KernelError {
    /// No bytes.
    #[error("The kernel image is empty; give a bzImage or a vmlinux")]
    Empty,
    /// The file ends before what its headers promise.
    #[error("The kernel image is truncated: it has {have} bytes, its headers promise at least {need}; fetch it again")]
    Truncated {
        /// Bytes needed.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// The host does not give the bytes.
    #[error("The kernel image cannot be read at byte {offset}: {why}; try again, or fetch it again")]
    Unreadable {
        /// Offset in bytes.
        offset: u64,
        /// What the host said.
        why: String,
    },
    /// Another kind of file.
    #[error("The kernel image is {found}, neither a bzImage nor an x86-64 vmlinux: {remedy}")]
    Foreign {
        /// What it is.
        found: String,
        /// What to do about it.
        remedy: String,
    },
    /// An ELF file for another machine.
    #[error("The kernel image is an ELF file for {0}; a kernel for x86-64 is needed")]
    OtherMachine(String),
    /// An ELF file that contradicts itself.
    #[error("The ELF kernel image is damaged: {0}; fetch or build it again")]
    Elf(&'static str),
    /// A part of an ELF file that cannot be loaded.
    #[error("The ELF kernel image is damaged: program header {number} (at {gpa}) {why}; fetch or build it again")]
    Segment {
        /// Which one, from 0 on.
        number: u64,
        /// Its physical address.
        gpa: Gpa,
        /// What is wrong.
        why: String,
    },
    /// A 32-bit ELF file that can be entered nowhere.
    #[error(
        "The kernel image is an ELF file for 32-bit x86 (i386) without a PVH entry point \
         (ELF note XEN_ELFNOTE_PHYS32_ENTRY) and without a Multiboot header; \
         a kernel for x86-64 is needed, or one with such an entry"
    )]
    NoPvhNote,
    /// Multiboot for a kernel that knows nothing of it.
    #[error("--entry multiboot needs a kernel with a Multiboot header, and this one is {0}")]
    NoMultiboot(&'static str),
    /// A Multiboot header that cannot be obeyed.
    #[error("The kernel's Multiboot {number} header cannot be obeyed: {why}")]
    Multiboot {
        /// 1 or 2.
        number: u8,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The boot flag is wrong.
    #[error("The kernel image is damaged: it has HdrS, but its boot flag is {0:#06x} and not 0xaa55; fetch it again")]
    BootFlag(u16),
    /// Nothing but real-mode code.
    #[error(
        "This kernel has only a real-mode entry (code32_start is 0), from which it calls a BIOS, and this machine has none: \
         programs such as iPXE's ipxe.lkrn and memdisk need a PC with firmware; give AxVM the kernel that they would load"
    )]
    NeedsBios,
    /// Protocol too old.
    #[error("The kernel speaks boot protocol {}, at least 2.06 (Linux 2.6.22) is needed; use a newer kernel", Protocol(*.version))]
    OldProtocol {
        /// Its version.
        version: u16,
    },
    /// The header ends before the fields of its version.
    #[error("The kernel image is damaged: its setup header has {len} bytes, too few for boot protocol {}; fetch it again", Protocol(*.version))]
    ShortHeader {
        /// Its version.
        version: u16,
        /// Length of the header in bytes.
        len: usize,
    },
    /// A zImage.
    #[error("The kernel is a zImage (LOADED_HIGH is not set in loadflags); build it with make bzImage")]
    LoadedLow,
}

impl KernelError {
    fn firmware() -> KernelError {
        let remedy = "this machine needs no firmware; give the kernel that it would start".into();
        KernelError::Foreign { found: "a firmware image (such as SeaBIOS or u-boot.rom)".into(), remedy }
    }

    fn foreign(found: &str) -> KernelError {
        let remedy = "the kernel is usually called bzImage, vmlinuz or vmlinux".into();
        KernelError::Foreign { found: found.into(), remedy }
    }
}

/// A boot protocol version in the usual notation: 2.15, 2.06.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol(pub u16);

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 >> 8, self.0 & 0xff)
    }
}

/// The compressed kernel inside a bzImage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Offset from the start of the protected-mode code.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// How it is compressed, if we know the format.
    pub compression: Option<&'static str>,
}

/// A checked kernel image. Holds offsets into the file, not its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelImage {
    /// Packed, with a setup header.
    BzImage(BzImage),
    /// ELF.
    Vmlinux(Vmlinux),
    /// Of any other format, with a Multiboot header that says how to load it.
    Flat(MultibootHeader),
}

/// What is read of any image: as much as is needed to tell what it is, down to the label of an ISO 9660 image.
const HEAD_LEN: u64 = 0x9000;

impl KernelImage {
    /// Finds out what the file is and checks its headers.
    pub fn parse(file: &dyn ReadAt) -> Result<KernelImage, KernelError> {
        let head = bytes_at(file, 0, file.len().min(HEAD_LEN))?;
        if head.is_empty() {
            return Err(KernelError::Empty);
        }
        if head.starts_with(b"\x7fELF") {
            return elf::Vmlinux::parse(file, &head).map(KernelImage::Vmlinux);
        }
        if field::HEADER.read(&head, 0) == Some(header::MAGIC) {
            return bzimage::BzImage::parse(file, &head).map(KernelImage::BzImage);
        }
        if let Some(header) = multiboot::find(&head, file.len()) {
            return Ok(KernelImage::Flat(header));
        }
        Err(if is_firmware(file)? { KernelError::firmware() } else { explain(&head) })
    }

    /// The same as a Multiboot loader sees it: what to load, and where to begin; and the header's version.
    pub fn as_multiboot(&self) -> Result<(Vmlinux, MultibootVersion), KernelError> {
        let (header, elf) = match self {
            KernelImage::BzImage(_) => return Err(KernelError::NoMultiboot("a bzImage: use --entry 32 or --entry 64")),
            KernelImage::Vmlinux(image) => (image.multiboot.as_ref(), Some(image)),
            KernelImage::Flat(header) => (Some(header), None),
        };
        let header =
            header.ok_or(KernelError::NoMultiboot("an ELF file without one: use --entry pvh or --entry 64"))?;
        let error = |why: &str| KernelError::Multiboot { number: header.version.number(), why: why.into() };
        if let Some(fault) = &header.fault {
            return Err(error(fault));
        }
        let lacks = "it gives no addresses, and the file is not ELF: link it as an ELF file, or add them";
        let of_elf = || elf.map(|elf| elf.segments.clone());
        let segments = header.load.map(|load| vec![load]).or_else(of_elf).ok_or_else(|| error(lacks))?;
        let entry = header.entry.or(elf.map(|elf| elf.entry)).ok_or_else(|| error(lacks))?;
        let bits = elf.map_or(32, |elf| elf.bits);
        Ok((Vmlinux { bits, segments, entry, pvh_entry: None, multiboot: None }, header.version))
    }
}

impl fmt::Display for KernelImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KernelImage::BzImage(image) => {
                write!(f, "bzImage, boot protocol {}", Protocol(image.header.version()))?;
                if let Some(compression) = image.payload.and_then(|payload| payload.compression) {
                    write!(f, ", {compression}")?;
                }
                image.release.iter().try_for_each(|release| write!(f, ", Linux {release}"))
            }
            KernelImage::Vmlinux(image) => {
                let bits = if image.bits == 32 { ", 32-bit" } else { "" };
                let pvh = if image.pvh_entry.is_some() { "with" } else { "without" };
                write!(f, "ELF vmlinux{bits}, {pvh} PVH entry")?;
                image.multiboot.iter().try_for_each(|header| write!(f, ", Multiboot {}", header.version.number()))
            }
            KernelImage::Flat(header) => write!(f, "flat kernel, Multiboot {}", header.version.number()),
        }
    }
}

/// Whether it is what a PC has in its ROM: whole pieces of 64 KiB, and 16 bytes before the end the first instruction, a jump.
fn is_firmware(file: &dyn ReadAt) -> Result<bool, KernelError> {
    const PIECE: u64 = 64 << 10;
    if !file.len().is_multiple_of(PIECE) {
        return Ok(false);
    }
    let reset = bytes_at(file, file.len() - 16, 16)?;
    // CLI, CLD and NOP may come before it.
    let first = reset.iter().find(|byte| !matches!(byte, 0xfa | 0xfc | 0x90));
    Ok(first.is_some_and(|byte| matches!(byte, 0xe9..=0xeb)))
}

/// `len` bytes at `offset`, of a file that had them when its length was asked for.
fn bytes_at(file: &dyn ReadAt, offset: u64, len: u64) -> Result<Vec<u8>, KernelError> {
    let mut bytes = vec![0; len as usize];
    match file.read_at(offset, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(KernelError::Truncated { need: offset.saturating_add(len), have: file.len() })
        }
        Err(error) => Err(KernelError::Unreadable { offset, why: error.to_string() }),
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The NUL-terminated printable string at `offset`, of at most 256 bytes.
fn str_at(bytes: &[u8], offset: usize) -> Option<String> {
    let text = bytes.get(offset..)?;
    let text = &text[..text.iter().take(256).position(|&byte| byte == 0)?];
    text.iter().all(|byte| matches!(byte, b' '..=b'~')).then(|| String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests;
