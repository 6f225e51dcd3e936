//! A vCPU's registers for a person: one screen, or each bit with its meaning; as JSON the same.
//!
//! ```text
//!   mode  long mode, 64 bits, 4-level paging, CPL 0
//!   RIP   0x0000000000100200   ...
//!   CR0   0x80000011 PE ET PG                  --meanings--> PE  protection enable: ...
//!   CS    0x10 base 0x0 limit 0xffffffff, 64-bit code, readable, DPL 0
//! ```
//!
//! Spec: Intel SDM volume 3, 2.1 to 2.5; the tables of `axvm_arch::control`. Left out: FPU and vector registers.

use std::fmt;

use axvm_arch::bits::Bits;
use axvm_arch::control::{cr0, cr3, cr4, dr6, dr7, efer, rflags};
use axvm_arch::mode::Mode;
use axvm_arch::msr;
use axvm_arch::registers::{DescriptorTable, Registers, Segment};
use serde::Serialize;

use crate::snapshot::Snapshot;
use crate::wrap::{TERMINAL, wrapped};

/// Columns of the text: two are left for what it is part of.
const WIDTH: usize = TERMINAL - 2;

/// All registers with their meaning. Its text is for a terminal of 80 columns.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    /// What follows from them.
    pub mode: Mode,
    /// General registers.
    pub general: Registers,
    /// Registers whose bits have names.
    pub control: Vec<Control>,
    /// Where the last page fault was.
    pub cr2: u64,
    /// Segments, TR and LDTR.
    pub segments: Vec<SegmentRegister>,
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
    /// MSRs that have a name and are not zero.
    pub msrs: Vec<NamedMsr>,
}

/// A register whose bits have names.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Control {
    /// As the manual calls it.
    pub name: &'static str,
    /// What it holds.
    pub bits: Bits,
}

/// A segment register and what kind of segment is in it.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentRegister {
    /// As the manual calls it.
    pub name: &'static str,
    /// What it holds.
    pub register: Segment,
    /// What that is.
    pub words: String,
}

/// An MSR with its name.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct NamedMsr {
    /// As the manual calls it.
    pub name: &'static str,
    /// Its number.
    pub index: u32,
    /// What it holds.
    pub value: u64,
}

impl Explained {
    /// The registers of `snapshot`.
    pub fn of(snapshot: &Snapshot) -> Explained {
        let (regs, system) = (snapshot.cpu.regs, &snapshot.cpu.system);
        let control = [
            ("FLAGS", rflags::bits(regs.rflags)),
            ("CR0", cr0::bits(system.cr0)),
            ("CR3", cr3::bits(system.cr3)),
            ("CR4", cr4::bits(system.cr4)),
            ("EFER", efer::bits(system.efer)),
            ("DR6", dr6::bits(snapshot.debug.dr6)),
            ("DR7", dr7::bits(snapshot.debug.dr7)),
        ];
        let segments = [
            ("CS", system.cs),
            ("SS", system.ss),
            ("DS", system.ds),
            ("ES", system.es),
            ("FS", system.fs),
            ("GS", system.gs),
            ("TR", system.tr),
            ("LDTR", snapshot.ldt),
        ];
        let named = |msr: &msr::Msr| {
            let name = msr::name(msr.index).filter(|_| msr.value != 0)?;
            Some(NamedMsr { name, index: msr.index, value: msr.value })
        };
        Explained {
            mode: snapshot.cpu.mode(),
            general: regs,
            control: control.map(|(name, bits)| Control { name, bits }).to_vec(),
            cr2: snapshot.cr2,
            segments: segments
                .map(|(name, register)| SegmentRegister { name, register, words: register.words() })
                .to_vec(),
            gdtr: system.gdt,
            idtr: system.idt,
            msrs: snapshot.msrs.iter().filter_map(named).collect(),
        }
    }

    /// What each bit that is set means, a line for each.
    pub fn meanings(&self) -> String {
        let mut text = String::new();
        for Control { name, bits } in &self.control {
            text += &format!("{name} {:#x}\n", bits.value);
            for bit in bits.set() {
                let lines = wrapped(bit.means, WIDTH - 15);
                text += &lines.iter().enumerate().fold(String::new(), |text, (n, line)| {
                    let head = if n == 0 { bit.name } else { "" };
                    text + &format!("  {head:<12} {line}\n")
                });
            }
        }
        text
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, "mode", &self.mode.to_string())?;
        let r = &self.general;
        let rows = [
            [("RIP", r.rip), ("RSP", r.rsp), ("RBP", r.rbp)],
            [("RAX", r.rax), ("RBX", r.rbx), ("RCX", r.rcx)],
            [("RDX", r.rdx), ("RSI", r.rsi), ("RDI", r.rdi)],
            [("R8", r.r8), ("R9", r.r9), ("R10", r.r10)],
            [("R11", r.r11), ("R12", r.r12), ("R13", r.r13)],
            [("R14", r.r14), ("R15", r.r15), ("CR2", self.cr2)],
        ];
        for row in rows {
            let cells = row.map(|(name, value)| format!("{name:<6}{value:#018x}"));
            writeln!(f, "{}", cells.join("  "))?;
        }
        for Control { name, bits } in &self.control {
            line(f, name, &bits.to_string())?;
        }
        for SegmentRegister { name, register, .. } in &self.segments {
            line(f, name, &register.to_string())?;
        }
        for (name, DescriptorTable { base, limit }) in [("GDTR", self.gdtr), ("IDTR", self.idtr)] {
            line(f, name, &format!("base {base:#x} limit {limit:#x}"))?;
        }
        Ok(())
    }
}

/// A name and what belongs to it, in lines of a terminal.
fn line(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    for (n, line) in wrapped(text, WIDTH - 6).iter().enumerate() {
        writeln!(f, "{:<6}{line}", if n == 0 { name } else { "" })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_arch::msr::Msr;
    use axvm_arch::registers::{CpuState, SystemRegisters, cr0, efer};

    fn snapshot() -> Snapshot {
        let data = Segment::data(0x18);
        let system = SystemRegisters {
            cs: Segment::code64(0x10),
            ss: data,
            ds: data,
            es: data,
            fs: Segment::default(),
            gs: data,
            tr: Segment::tss(0x20, 0),
            gdt: DescriptorTable { base: 0x500, limit: 0x2f },
            idt: DescriptorTable::default(),
            cr0: cr0::PE | cr0::ET | cr0::PG,
            cr3: 0x9018,
            cr4: 0x0037_06f0,
            efer: efer::LME | efer::LMA,
        };
        let regs = Registers { rip: 0x10_0200, rsi: 0x7000, rflags: 0x202, ..Registers::default() };
        let msrs = vec![Msr { index: msr::EFER, value: 0x500 }, Msr { index: msr::LSTAR, value: 0 }];
        Snapshot { msrs, ..Snapshot::from(CpuState { regs, system }) }
    }

    #[test]
    fn registers_fit_a_terminal() {
        let text = Explained::of(&snapshot()).to_string();
        assert_eq!(
            text,
            "mode  long mode, 64 bits, 4-level paging, CPL 0\n\
             RIP   0x0000000000100200  RSP   0x0000000000000000  RBP   0x0000000000000000\n\
             RAX   0x0000000000000000  RBX   0x0000000000000000  RCX   0x0000000000000000\n\
             RDX   0x0000000000000000  RSI   0x0000000000007000  RDI   0x0000000000000000\n\
             R8    0x0000000000000000  R9    0x0000000000000000  R10   0x0000000000000000\n\
             R11   0x0000000000000000  R12   0x0000000000000000  R13   0x0000000000000000\n\
             R14   0x0000000000000000  R15   0x0000000000000000  CR2   0x0000000000000000\n\
             FLAGS 0x202 IF\n\
             CR0   0x80000011 PE ET PG\n\
             CR3   0x9018 PWT PCD\n\
             CR4   0x3706f0 PSE PAE MCE PGE OSFXSR OSXMMEXCPT FSGSBASE PCIDE OSXSAVE SMEP\n\
             \x20     SMAP\n\
             EFER  0x500 LME LMA\n\
             DR6   0xffff0ff0 BLD RTM\n\
             DR7   0x400 FIXED\n\
             CS    0x10 base 0x0 limit 0xffffffff, 64-bit code, readable, DPL 0\n\
             SS    0x18 base 0x0 limit 0xffffffff, 32-bit data, writable, DPL 0\n\
             DS    0x18 base 0x0 limit 0xffffffff, 32-bit data, writable, DPL 0\n\
             ES    0x18 base 0x0 limit 0xffffffff, 32-bit data, writable, DPL 0\n\
             FS    0x0 base 0x0 limit 0x0, not usable\n\
             GS    0x18 base 0x0 limit 0xffffffff, 32-bit data, writable, DPL 0\n\
             TR    0x20 base 0x0 limit 0x67, TSS (busy), DPL 0\n\
             LDTR  0x0 base 0x0 limit 0xffff, LDT, DPL 0\n\
             GDTR  base 0x500 limit 0x2f\n\
             IDTR  base 0x0 limit 0x0\n"
        );
    }

    #[test]
    fn each_bit_says_what_it_means() {
        let text = Explained::of(&snapshot()).meanings();
        assert!(text.contains("CR0 0x80000011\n  PE           protection enable: segments"), "{text}");
        assert!(text.lines().all(|line| line.len() <= TERMINAL), "{text}");
    }

    #[test]
    fn programs_read_the_same_as_json() {
        let json = serde_json::to_value(Explained::of(&snapshot())).unwrap();
        assert_eq!(json["mode"]["paging"], "four-level");
        assert_eq!(json["control"][1]["bits"]["set"][2], "PG");
        assert_eq!(json["segments"][0]["words"], "64-bit code, readable, DPL 0");
        assert_eq!(json["msrs"].as_array().unwrap().len(), 1, "those that are zero are left out");
    }
}
