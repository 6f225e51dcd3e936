//! Where the kernel and the initrd go.
//!
//! ```text
//!   1 MiB       load                  load + init_size                 min(end of RAM, initrd_addr_max)
//!     |          |== file =|-- room to --|        free        |== initrd ==|
//!                          |   unpack    |                    ^ page-aligned, as high as it may be
//! ```
//!
//! Spec: Linux Documentation/arch/x86/boot.rst (protocol 2.15), pref_address, init_size, initrd_addr_max.
//! Pure arithmetic on untrusted numbers: all of it checked.

use std::fmt;

use axvm_arch::{Gpa, layout};

use super::BootError;
use crate::kernel::{BzImage, KernelImage, SetupHeader, Vmlinux};

const PAGE: u64 = 0x1000;

/// A piece of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub gpa: Gpa,
    /// Length in bytes.
    pub len: u64,
}

impl Span {
    /// First address behind it.
    pub fn end(&self) -> Gpa {
        Gpa(self.gpa.0 + self.len)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{} ({} KiB)", self.gpa, self.end(), self.len.div_ceil(1024))
    }
}

/// Where the kernel is loaded, and what it will use before it has read the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KernelPlace {
    /// The bytes of the file.
    pub(super) file: Span,
    /// File, unpacked kernel, bss and heap: nothing else may be here.
    pub(super) area: Span,
}

/// Finds the kernel's place in RAM that ends at `ram_end` (or at the hole).
pub(super) fn kernel(image: &KernelImage, ram_end: Gpa) -> Result<KernelPlace, BootError> {
    let place = match image {
        KernelImage::BzImage(image) => {
            let place = bzimage(image).filter(|place| place.area.end() <= layout::HOLE);
            place.ok_or(BootError::KernelAddress)?
        }
        KernelImage::Vmlinux(image) => vmlinux(image)?,
        KernelImage::Flat(_) => return Err(BootError::OnlyMultiboot),
    };
    if place.area.gpa < layout::HIGH_RAM {
        return Err(BootError::KernelTooLow(place.area.gpa));
    }
    if place.area.end() > ram_end {
        return Err(BootError::KernelTooLarge { area: place.area, ram_end });
    }
    Ok(place)
}

/// The preferred address if the kernel can be moved there, else 1 MiB; `None` where numbers overflow.
fn bzimage(image: &BzImage) -> Option<KernelPlace> {
    let header = &image.header;
    let preferred = header.pref_address();
    let (load, run) = if header.is_relocatable() {
        // Unpacked in place: no copy at start, and not below what the kernel was linked for.
        let wish = preferred.unwrap_or(layout::HIGH_RAM.0).max(layout::HIGH_RAM.0);
        let load = wish.checked_next_multiple_of(header.alignment())?;
        (load, load)
    } else {
        // It moves itself to its preferred address.
        (layout::HIGH_RAM.0, preferred.unwrap_or(layout::HIGH_RAM.0))
    };
    let len = image.code_len;
    let (start, end) = (load.min(run), load.checked_add(len)?.max(run.checked_add(header.init_size().max(len))?));
    let area = Span { gpa: Gpa(start), len: end - start };
    Some(KernelPlace { file: Span { gpa: Gpa(load), len }, area })
}

/// Where the program headers say.
fn vmlinux(image: &Vmlinux) -> Result<KernelPlace, BootError> {
    if let Some(segment) = image.segments.iter().find(|segment| segment.end() > layout::HOLE) {
        return Err(BootError::SegmentTooHigh { number: segment.number, gpa: segment.gpa });
    }
    let (start, end) = image.extent();
    let area = Span { gpa: start, len: end.0 - start.0 };
    Ok(KernelPlace { file: area, area })
}

/// Finds the lowest page-aligned place for a module of `len` bytes, right behind the kernel's `area`, as other loaders do:
/// a small kernel may have mapped no more than the first few MiB.
pub(super) fn module(len: u64, area: Span, ram_end: Gpa) -> Result<Span, BootError> {
    if len == 0 {
        return Err(BootError::InitrdEmpty);
    }
    let bottom = Gpa(area.end().0.next_multiple_of(PAGE));
    let room = ram_end.0.saturating_sub(bottom.0);
    if len > room {
        let remedy = if ram_end < layout::HOLE { "give the guest more memory (--memory) or use" } else { "use" };
        return Err(BootError::InitrdTooLarge { len, room, bottom, top: ram_end, remedy });
    }
    Ok(Span { gpa: bottom, len })
}

/// Finds the highest page-aligned place for `len` bytes of initrd, above the kernel's `area`.
pub(super) fn initrd(len: u64, header: &SetupHeader, area: Span, ram_end: Gpa) -> Result<Span, BootError> {
    if len == 0 {
        return Err(BootError::InitrdEmpty);
    }
    let top = ram_end.0.min(header.initrd_addr_max() + 1);
    let bottom = area.end().0.next_multiple_of(PAGE);
    let start = top.checked_sub(len).map(|start| start - start % PAGE).filter(|&start| start >= bottom);
    let more_memory_helps = top == ram_end.0 && ram_end < layout::HOLE;
    let remedy = if more_memory_helps { "give the guest more memory (--memory) or use" } else { "use" };
    let room = top.saturating_sub(bottom);
    let error = BootError::InitrdTooLarge { len, room, bottom: Gpa(bottom), top: Gpa(top), remedy };
    Ok(Span { gpa: Gpa(start.ok_or(error)?), len })
}
