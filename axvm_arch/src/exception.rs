//! Exceptions: vectors 0 to 31, and what their error codes say.
//!
//! ```text
//!   #PF   ... | SGX | ... | HLAT SS PK | ID RSVD US WR P       a sentence: "a write at CPL 0 to a page that is not present"
//!   #GP   ... | index of a descriptor | TI IDT EXT             "GDT entry 3 (selector 0x18)"
//! ```
//!
//! Spec: Intel SDM volume 3, 6.3 "Sources of Interrupts", 6.13 "Error Code", 4.7 "Page-Fault Exceptions"; AMD APM volume
//! 2, 8.2 "Vectors". Left out: interrupts from 32 on, whose meaning is the guest's own.

use std::fmt;

use serde::Serialize;

use crate::control::page_fault;

/// What a vector below 32 is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Exception {
    /// `#PF`.
    pub mnemonic: &'static str,
    /// "page fault".
    pub name: &'static str,
    /// The processor pushes an error code.
    pub has_error_code: bool,
}

const fn plain(mnemonic: &'static str, name: &'static str) -> Option<Exception> {
    Some(Exception { mnemonic, name, has_error_code: false })
}

const fn coded(mnemonic: &'static str, name: &'static str) -> Option<Exception> {
    Some(Exception { mnemonic, name, has_error_code: true })
}

const EXCEPTIONS: [Option<Exception>; 32] = [
    plain("#DE", "divide error"),
    plain("#DB", "debug exception"),
    plain("NMI", "non-maskable interrupt"),
    plain("#BP", "breakpoint"),
    plain("#OF", "overflow"),
    plain("#BR", "bound range exceeded"),
    plain("#UD", "invalid opcode"),
    plain("#NM", "device not available"),
    coded("#DF", "double fault"),
    plain("#MP", "coprocessor segment overrun"),
    coded("#TS", "invalid TSS"),
    coded("#NP", "segment not present"),
    coded("#SS", "stack fault"),
    coded("#GP", "general protection"),
    coded("#PF", "page fault"),
    None,
    plain("#MF", "x87 floating-point error"),
    coded("#AC", "alignment check"),
    plain("#MC", "machine check"),
    plain("#XM", "SIMD floating-point error"),
    plain("#VE", "virtualization exception"),
    coded("#CP", "control protection"),
    None,
    None,
    None,
    None,
    None,
    None,
    plain("#HV", "hypervisor injection"),
    coded("#VC", "VMM communication"),
    coded("#SX", "security exception"),
    None,
];

/// The vector of `#DF`.
pub const DOUBLE_FAULT: u8 = 8;
/// The vector of `#GP`.
pub const GENERAL_PROTECTION: u8 = 13;
/// The vector of `#PF`.
pub const PAGE_FAULT: u8 = 14;

/// A vector of the IDT. Shown as `#PF (14, page fault)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Vector(pub u8);

impl Vector {
    /// What it is for, if it is an exception.
    pub fn exception(self) -> Option<Exception> {
        EXCEPTIONS.get(usize::from(self.0)).copied().flatten()
    }
}

impl fmt::Display for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exception() {
            Some(Exception { mnemonic, name, .. }) => write!(f, "{mnemonic} ({}, {name})", self.0),
            None if self.0 < 32 => write!(f, "vector {} (reserved)", self.0),
            None => write!(f, "vector {:#x} (an interrupt)", self.0),
        }
    }
}

/// An exception's error code, told as this vector's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorCode {
    /// Whose.
    pub vector: Vector,
    /// The code.
    pub code: u32,
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vector.0 {
            PAGE_FAULT => page_fault_words(self.code.into(), f),
            10..=13 => selector_words(self.code, f),
            _ => write!(f, "error code {:#x}", self.code),
        }
    }
}

fn page_fault_words(code: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let is = |bit| code & bit != 0;
    let act = match code {
        _ if is(page_fault::ID) => "an instruction fetch",
        _ if is(page_fault::WR) => "a write",
        _ => "a read",
    };
    let by = if is(page_fault::US) { "at CPL 3" } else { "by the kernel" };
    let why = match code {
        _ if is(page_fault::RSVD) => "through an entry with reserved bits set",
        _ if is(page_fault::PK) => "that a protection key forbids",
        _ if is(page_fault::SS) => "of a shadow stack, against the page's rights",
        _ if is(page_fault::SGX) => "against the rules of SGX",
        _ if is(page_fault::P) => "against the page's rights",
        _ => "to a page that is not present",
    };
    write!(f, "{act} {by} {why}")
}

fn selector_words(code: u32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (external, index, selector) = (code & 1 != 0, code >> 3 & 0x1fff, code & 0xfff8);
    match code & 0b110 {
        _ if code & !1 == 0 => write!(f, "no selector is to blame")?,
        0b000 => write!(f, "GDT entry {index} (selector {selector:#x})")?,
        0b100 => write!(f, "LDT entry {index} (selector {:#x})", selector | 4)?,
        _ => write!(f, "the IDT's gate of {}", Vector(index as u8))?,
    }
    if external { write!(f, ", while an event from outside was delivered") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_have_names() {
        assert_eq!(Vector(14).to_string(), "#PF (14, page fault)");
        assert_eq!(Vector(15).to_string(), "vector 15 (reserved)");
        assert_eq!(Vector(0x20).to_string(), "vector 0x20 (an interrupt)");
        let coded: Vec<u8> =
            (0..=255).filter(|&n| Vector(n).exception().is_some_and(|exception| exception.has_error_code)).collect();
        assert_eq!(coded, [8, 10, 11, 12, 13, 14, 17, 21, 29, 30]);
    }

    #[test]
    fn error_codes_are_sentences() {
        let said = |vector, code| ErrorCode { vector: Vector(vector), code }.to_string();
        assert_eq!(said(14, 0), "a read by the kernel to a page that is not present");
        assert_eq!(said(14, 0b111), "a write at CPL 3 against the page's rights");
        assert_eq!(said(14, 0b1_1001), "an instruction fetch by the kernel through an entry with reserved bits set");
        assert_eq!(said(13, 0), "no selector is to blame");
        assert_eq!(said(13, 0x18), "GDT entry 3 (selector 0x18)");
        assert_eq!(said(11, 0x1c), "LDT entry 3 (selector 0x1c)");
        assert_eq!(
            said(13, 6 << 3 | 0b011),
            "the IDT's gate of #UD (6, invalid opcode), while an event from outside was delivered"
        );
        assert_eq!(said(8, 0), "error code 0x0");
    }
}
