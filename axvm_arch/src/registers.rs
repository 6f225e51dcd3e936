//! The registers of one CPU, as a value: what `axvm_boot` computes, `axvm_kvm` loads, and every
//! explanation prints.
//!
//! ```text
//!   CpuState  regs    RAX .. R15, RIP, RFLAGS
//!             system  CS DS ES FS GS SS TR    selector | what the CPU cached of the descriptor
//!                     GDTR IDTR               base | limit
//!                     CR0 CR3 CR4 EFER
//! ```
//!
//! Spec: Intel SDM volume 3, chapter 2 "System Architecture Overview", 3.4.5 "Segment Descriptors".
//! Left out: what an entry state leaves as a reset does (LDTR, CR2, CR8, APIC base); `axvm_kvm` has them in its state.

use std::fmt;

use serde::{Deserialize, Serialize};

pub use crate::control::{cr0, cr4, efer};

/// RFLAGS with only the always-one bit: interrupts off.
pub const RFLAGS_RESERVED: u64 = 1 << 1;

/// General registers, instruction pointer and flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part: selector, and the descriptor the CPU cached.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Last valid offset, in bytes (already scaled by the granularity bit).
    pub limit: u32,
    /// Index into the GDT, table bit and RPL.
    pub selector: u16,
    /// Type field, 4 bits (0xb: code, read, accessed; 0x3: data, write, accessed; 0xb for TR: busy TSS).
    pub kind: u8,
    /// P: present.
    pub present: bool,
    /// DPL: privilege level, 0 to 3.
    pub dpl: u8,
    /// D/B: 32-bit default operand size.
    pub db: bool,
    /// S: code or data (true), system (false).
    pub code_or_data: bool,
    /// L: 64-bit code.
    pub long: bool,
    /// G: limit counts 4 KiB pages.
    pub granularity: bool,
    /// AVL: the bit that is the system software's own.
    pub available: bool,
}

impl fmt::Debug for Segment {
    /// `0x10: base 0x0, limit 0xffffffff, type 0xb, dpl 0, P S DB G`: the flags that are set, by their names in a descriptor.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Segment { base, limit, selector, kind, dpl, .. } = *self;
        write!(f, "{selector:#x}: base {base:#x}, limit {limit:#x}, type {kind:#x}, dpl {dpl},")?;
        let flags = [
            (self.present, "P"),
            (self.code_or_data, "S"),
            (self.db, "DB"),
            (self.long, "L"),
            (self.granularity, "G"),
            (self.available, "AVL"),
        ];
        flags.iter().filter(|(is, _)| *is).try_for_each(|(_, name)| write!(f, " {name}"))
    }
}

impl Segment {
    /// A flat 4 GiB segment (base 0), as the boot protocol asks for.
    const fn flat(selector: u16, kind: u8, db: bool, long: bool) -> Segment {
        Segment {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            kind,
            present: true,
            dpl: 0,
            db,
            code_or_data: true,
            long,
            granularity: true,
            available: false,
        }
    }

    /// Flat 32-bit code, execute/read.
    pub const fn code32(selector: u16) -> Segment {
        Segment::flat(selector, 0xb, true, false)
    }

    /// Flat 64-bit code, execute/read.
    pub const fn code64(selector: u16) -> Segment {
        Segment::flat(selector, 0xb, false, true)
    }

    /// Flat data, read/write.
    pub const fn data(selector: u16) -> Segment {
        Segment::flat(selector, 0x3, true, false)
    }

    /// A busy 32/64-bit TSS of the smallest size, at `base`.
    pub const fn tss(selector: u16, base: u64) -> Segment {
        Segment {
            base,
            limit: 0x67,
            selector,
            kind: 0xb,
            present: true,
            dpl: 0,
            db: false,
            code_or_data: false,
            long: false,
            granularity: false,
            available: false,
        }
    }

    /// The 8-byte GDT entry this segment is loaded from (SDM 3, figure 3-8).
    pub const fn descriptor(&self) -> u64 {
        let limit = if self.granularity { self.limit >> 12 } else { self.limit } as u64;
        let base = self.base;
        (limit & 0xffff)
            | (base & 0xff_ffff) << 16
            | (self.kind as u64 & 0xf) << 40
            | (self.code_or_data as u64) << 44
            | (self.dpl as u64 & 3) << 45
            | (self.present as u64) << 47
            | (limit >> 16 & 0xf) << 48
            | (self.available as u64) << 52
            | (self.long as u64) << 53
            | (self.db as u64) << 54
            | (self.granularity as u64) << 55
            | (base >> 24 & 0xff) << 56
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescriptorTable {
    /// Linear address of entry 0.
    pub base: u64,
    /// Size in bytes, minus one.
    pub limit: u16,
}

/// Segments, descriptor tables and control registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct SystemRegisters {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

impl SystemRegisters {
    /// Whether this vCPU is a host itself: VMX needs CR4.VMXE and SVM needs EFER.SVME as long as they are in use, and the
    /// registers of a guest's guest have them as well.
    pub fn virtualizes(&self) -> bool {
        self.cr4 & cr4::VMXE != 0 || self.efer & efer::SVME != 0
    }
}

/// Everything a CPU needs to take its first instruction: the entry state of the BSP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuState {
    /// General registers.
    pub regs: Registers,
    /// Segments, tables and control registers.
    pub system: SystemRegisters,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_match_the_classic_encodings() {
        assert_eq!(Segment::code32(0x10).descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(Segment::code64(0x10).descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(Segment::data(0x18).descriptor(), 0x00cf_9300_0000_ffff);
        assert_eq!(Segment::tss(0x20, 0).descriptor(), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn a_segment_is_one_line() {
        let text = format!("{:?}", Segment::code32(0x10));
        assert_eq!(text, "0x10: base 0x0, limit 0xffffffff, type 0xb, dpl 0, P S DB G");
    }

    #[test]
    fn a_base_address_is_split_over_the_descriptor() {
        let tss = Segment::tss(0x20, 0x1234_5678);
        assert_eq!(tss.descriptor(), 0x1200_8b34_5678_0067);
    }
}
