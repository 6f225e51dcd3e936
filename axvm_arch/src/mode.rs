//! Which mode a processor is in: what its registers mean by "address", "operand" and "instruction".
//!
//! ```text
//!             CR0.PE=0            real
//!   CR0.PE=1  RFLAGS.VM=1         virtual-8086
//!             EFER.LMA=0  CS.D    protected, 16 or 32 bits
//!             EFER.LMA=1  CS.L=0  compatibility, 16 or 32 bits by CS.D
//!                         CS.L=1  64 bits
//! ```
//!
//! Spec: Intel SDM volume 3, 2.2 "Modes of Operation"; AMD APM volume 2, 1.3 "Operating Modes".
//! Left out: system management mode, which no register of the processor shows.

use std::fmt;

use serde::Serialize;

use crate::control::rflags;
use crate::paging::Scheme;
use crate::registers::{CpuState, cr0, efer};

/// How code is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuMode {
    /// As an 8086, from a reset on.
    Real,
    /// An 8086 as a task of protected mode.
    Virtual8086,
    /// Segments with descriptors, 16 bits.
    Protected16,
    /// Segments with descriptors, 32 bits.
    Protected32,
    /// Long mode running code of 16 bits.
    Compatibility16,
    /// Long mode running code of 32 bits.
    Compatibility32,
    /// Long mode running code of 64 bits.
    Long,
}

impl CpuMode {
    /// Default width of operands and addresses, in bits: what a disassembler must know.
    pub const fn bits(self) -> u32 {
        match self {
            CpuMode::Real | CpuMode::Virtual8086 | CpuMode::Protected16 | CpuMode::Compatibility16 => 16,
            CpuMode::Protected32 | CpuMode::Compatibility32 => 32,
            CpuMode::Long => 64,
        }
    }

    /// Whether it is part of long mode: the IDT has gates of 16 bytes then, and there are no tasks.
    pub const fn is_long(self) -> bool {
        matches!(self, CpuMode::Long | CpuMode::Compatibility16 | CpuMode::Compatibility32)
    }
}

impl fmt::Display for CpuMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CpuMode::Real => "real mode",
            CpuMode::Virtual8086 => "virtual-8086 mode",
            CpuMode::Protected16 => "protected mode, 16 bits",
            CpuMode::Protected32 => "protected mode, 32 bits",
            CpuMode::Compatibility16 => "long mode, 16-bit code",
            CpuMode::Compatibility32 => "long mode, 32-bit code",
            CpuMode::Long => "long mode, 64 bits",
        })
    }
}

/// How code is read, how addresses are translated, and with which privilege.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mode {
    /// How code is read.
    pub cpu: CpuMode,
    /// Which page tables translate.
    pub paging: Scheme,
    /// Current privilege level: 0 is the kernel, 3 is a program.
    pub cpl: u8,
}

impl CpuState {
    /// The mode that follows from the registers. Those that no processor would hold together have one, too: the lint is
    /// who complains.
    pub fn mode(&self) -> Mode {
        let (system, flags) = (&self.system, self.regs.rflags);
        let cpu = match (system.efer & efer::LMA != 0, system.cs.long, system.cs.db) {
            _ if system.cr0 & cr0::PE == 0 => CpuMode::Real,
            (true, true, _) => CpuMode::Long,
            (true, false, true) => CpuMode::Compatibility32,
            (true, false, false) => CpuMode::Compatibility16,
            _ if flags & rflags::VM != 0 => CpuMode::Virtual8086,
            (false, _, true) => CpuMode::Protected32,
            (false, _, false) => CpuMode::Protected16,
        };
        let cpl = match cpu {
            CpuMode::Real => 0,
            CpuMode::Virtual8086 => 3,
            _ => system.ss.dpl,
        };
        Mode { cpu, paging: Scheme::of(system), cpl }
    }

    /// Where the next instruction is, as a linear address.
    pub fn linear_rip(&self) -> u64 {
        self.linear(self.system.cs.base, self.regs.rip)
    }

    /// The linear address of `offset` in a segment with this base.
    pub fn linear(&self, base: u64, offset: u64) -> u64 {
        match self.mode().cpu {
            CpuMode::Long => offset,
            _ => base.wrapping_add(offset) & 0xffff_ffff,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, CPL {}", self.cpu, self.paging, self.cpl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registers::{Registers, Segment, SystemRegisters, cr4};

    fn state(cr0: u64, efer: u64, cs: Segment, flags: u64) -> CpuState {
        CpuState {
            regs: Registers { rflags: flags, rip: 0xfff0, ..Registers::default() },
            system: SystemRegisters { cs, cr0, efer, cr4: cr4::PAE, ..SystemRegisters::default() },
        }
    }

    #[test]
    fn modes_follow_from_registers() {
        let (on, paged, long) = (cr0::PE, cr0::PE | cr0::PG, efer::LME | efer::LMA);
        let (code16, code32) = (Segment { db: false, ..Segment::code32(8) }, Segment::code32(8));
        for (cr0, efer, cs, flags, words) in [
            (0, 0, code16, 0, "real mode, paging off, CPL 0"),
            (on, 0, code16, 0, "protected mode, 16 bits, paging off, CPL 0"),
            (on, efer::LME, code32, 0, "protected mode, 32 bits, paging off, CPL 0"),
            (paged, 0, code32, 0, "protected mode, 32 bits, PAE paging, CPL 0"),
            (on, 0, code32, rflags::VM, "virtual-8086 mode, paging off, CPL 3"),
            (paged, long, code16, 0, "long mode, 16-bit code, 4-level paging, CPL 0"),
            (paged, long, code32, 0, "long mode, 32-bit code, 4-level paging, CPL 0"),
            (paged, long, Segment::code64(8), 0, "long mode, 64 bits, 4-level paging, CPL 0"),
        ] {
            assert_eq!(state(cr0, efer, cs, flags).mode().to_string(), words);
        }
    }

    #[test]
    fn a_reset_begins_below_4_gib() {
        let cs = Segment { base: 0xffff_0000, ..Segment::default() };
        assert_eq!(state(0, 0, cs, 2).linear_rip(), 0xffff_fff0);
        let cs = Segment { base: 0x1234, ..Segment::code64(8) };
        assert_eq!(state(cr0::PE | cr0::PG, efer::LMA, cs, 2).linear_rip(), 0xfff0, "long mode has no base of CS");
    }
}
