//! Kernel images: what kind of file this is, and what it asks of its loader.
//!
//! ```text
//!   bytes --parse--> Bzimage: HdrS at 0x202     packed, unpacks itself, 32- and 64-bit entry
//!                    Vmlinux: 7f E L F          unpacked, 64-bit and PVH entry
//!                    error:   names what it is instead, and says what to do
//! ```
//!
//! Spec: Linux Documentation/arch/x86/boot.rst (protocol 2.15); System V ABI (ELF-64).
//! Image bytes are untrusted: a malformed one is an error, never a panic.

pub mod field;

mod bzimage;
mod elf;
mod foreign;
mod header;

use std::fmt;

use thiserror::Error;

pub use bzimage::{BzImage, KernelInfo};
pub use elf::{ElfSegment, Vmlinux};
pub use header::{SetupHeader, loadflags, xloadflags};

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
    /// The boot flag is wrong.
    #[error("The kernel image is damaged: it has HdrS, but its boot flag is {0:#06x} and not 0xaa55; fetch it again")]
    BootFlag(u16),
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
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
    /// How it is compressed, if we know the format.
    pub compression: Option<&'static str>,
}

/// A checked kernel image. Holds offsets into the file, not its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelImage {
    /// Packed, with a setup header.
    BzImage(BzImage),
    /// ELF64.
    Vmlinux(Vmlinux),
}

impl KernelImage {
    /// Finds out what `image` is and checks its headers.
    pub fn parse(image: &[u8]) -> Result<KernelImage, KernelError> {
        if image.is_empty() {
            return Err(KernelError::Empty);
        }
        if image.starts_with(b"\x7fELF") {
            return elf::Vmlinux::parse(image).map(KernelImage::Vmlinux);
        }
        if field::HEADER.read(image, 0) == Some(header::MAGIC) {
            return bzimage::BzImage::parse(image).map(KernelImage::BzImage);
        }
        Err(foreign::explain(image))
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
                write!(f, "ELF vmlinux, {} PVH entry", if image.pvh_entry.is_some() { "with" } else { "without" })
            }
        }
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
