//! What lies where a processor of a PC begins after a reset: a reset.
//!
//! ```text
//!   guest: ljmp $0xffff, $0  -->  0xffff0: mov $0xcf9, %dx; mov $6, %al; out %al, (%dx)  -->  a new machine
//! ```
//!
//! Old ways to reboot jump there in real mode (Linux: `reboot=b`), where a PC has its firmware. The page belongs to no
//! part of the guest: it is reserved in the memory map, with the FACS or without ACPI.
//!
//! Spec: Intel SDM volume 3, 10.1.4 "First Instruction Executed". Left out: the same at 0xfffffff0, which only a processor
//! that was reset by itself would reach.

use axvm_arch::layout::port::{RESET, RESET_VALUE};

/// The code, in 16-bit real mode.
pub(super) const CODE: [u8; 9] = [
    0xba,
    RESET as u8,
    (RESET >> 8) as u8, // mov $RESET, %dx
    0xb0,
    RESET_VALUE, // mov $RESET_VALUE, %al
    0xee,        // out %al, (%dx)
    0xf4,        // 1: hlt
    0xeb,
    0xfd, // jmp 1b
];
