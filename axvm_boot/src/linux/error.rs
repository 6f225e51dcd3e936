//! Why Linux cannot be started, and what to do about it.

use axvm_arch::Gpa;
use axvm_memory::AccessError;
use thiserror::Error;

use super::{Entry, Span};
use crate::kernel::KernelError;

/// Linux cannot be started as asked.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BootError {
    /// The image is no usable kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// PVH with a bzImage.
    #[error(
        "--entry pvh needs an uncompressed vmlinux, and this kernel is a bzImage: unpack it with the kernel's \
         scripts/extract-vmlinux (extract-vmlinux bzImage > vmlinux), or use --entry 32 or --entry 64"
    )]
    PvhNeedsVmlinux,
    /// 32-bit entry with a vmlinux.
    #[error("--entry 32 needs a bzImage, and this kernel is an ELF vmlinux: use --entry pvh or --entry 64")]
    Bits32NeedsBzImage,
    /// A bzImage without a 64-bit entry.
    #[error("The kernel has no 64-bit entry point (XLF_KERNEL_64 is not set in xloadflags): use --entry 32")]
    No64BitEntry,
    /// A vmlinux without the note.
    #[error(
        "The kernel has no PVH entry point (ELF note XEN_ELFNOTE_PHYS32_ENTRY): build it with CONFIG_PVH=y, or use --entry 64 \
         (--entry multiboot, if it has such a header)"
    )]
    NoPvhEntry,
    /// Another entry for a kernel that has no other.
    #[error("This kernel has no entry but that of its Multiboot header: use --entry multiboot, or none")]
    OnlyMultiboot,
    /// 64-bit entry of a 32-bit kernel.
    #[error("--entry 64 needs a 64-bit kernel, and this one is a 32-bit ELF file: leave --entry out")]
    Bits64NeedsBits64,
    /// An entry point outside of what is loaded.
    #[error("The kernel's entry point for --entry {entry}, {at}, is outside of its own code: fetch or build it again")]
    EntryOutside {
        /// The entry asked for.
        entry: Entry,
        /// Where it would be.
        at: Gpa,
    },
    /// Addresses in the header that no computer has.
    #[error("The kernel asks for an impossible load address or size: its header is damaged, fetch or build it again")]
    KernelAddress,
    /// A part of an ELF file where no RAM can be.
    #[error(
        "Program header {number} of the kernel wants to be at physical address {gpa}, but kernels are loaded below 3 GiB: \
         if that is a virtual address, link it so that p_paddr is physical (AT in the linker script)"
    )]
    SegmentTooHigh {
        /// Which one, from 0 on.
        number: u64,
        /// Where it wants to be.
        gpa: Gpa,
    },
    /// A kernel that wants to be in low RAM.
    #[error("The kernel wants to be at {0}, but kernels are loaded at 1 MiB or above: it is not made for a PC")]
    KernelTooLow(Gpa),
    /// Not enough RAM for the kernel.
    #[error(
        "The kernel needs {} MiB of RAM at {}, but RAM ends at {} MiB: give the guest at least {} MiB (--memory)",
        mib(.area.len), .area.gpa, .ram_end.0 >> 20, mib(.area.end().0)
    )]
    KernelTooLarge {
        /// What it needs.
        area: Span,
        /// Where RAM ends below the hole.
        ram_end: Gpa,
    },
    /// Nothing in the initrd.
    #[error("The initrd is empty: give a cpio archive, or no initrd")]
    InitrdEmpty,
    /// Not enough room for the initrd.
    #[error(
        "The initrd has {len} bytes, but there is room for {room} between the kernel's end at {bottom} and {top}: \
         {remedy} a smaller initrd"
    )]
    InitrdTooLarge {
        /// Its length in bytes.
        len: u64,
        /// The room in bytes.
        room: u64,
        /// Where the room starts.
        bottom: Gpa,
        /// Where the room ends.
        top: Gpa,
        /// What helps besides a smaller one: memory, unless the kernel or the PC sets the end.
        remedy: &'static str,
    },
    /// Command line too long.
    #[error("The command line has {len} bytes, but this kernel takes at most {limit}: shorten it")]
    CommandLineTooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        limit: u64,
    },
    /// A NUL would end the command line early.
    #[error("The command line has a NUL at byte {at}, where the kernel would stop reading: remove it")]
    CommandLineNul {
        /// Offset in bytes.
        at: usize,
    },
    /// RAM too small or full of holes.
    #[error("Cannot write {what} into guest RAM")]
    Write {
        /// What was to be written.
        what: &'static str,
        /// Why not.
        source: AccessError,
    },
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
