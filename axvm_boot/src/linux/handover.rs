//! What every entry tells the kernel, whatever the format: one value, an encoding for each kind of kernel.

use axvm_arch::Gpa;

use super::Span;
use crate::e820::E820Entry;

/// The loader's answers, for the zero page, PVH start info or Multiboot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handover<'a> {
    /// NUL-terminated command line.
    pub(super) command_line: Gpa,
    /// Initial ramdisk.
    pub(super) initrd: Option<Span>,
    /// ACPI root pointer.
    pub(super) rsdp: Option<Gpa>,
    /// Memory map.
    pub(super) e820: &'a [E820Entry],
}
