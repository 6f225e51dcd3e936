//! A vCPU's registers in the order in which gdb wants them: that of `target.xml`.
//!
//! ```text
//!   rax .. r15, rip, eflags | cs .. gs | st0 .. st7, fctrl .. fop | xmm0 .. xmm15, mxcsr | fs_base, gs_base | cr0 .. efer
//!   general                   segments   XSAVE area, bytes 0 to 416                        segments           control
//! ```
//!
//! Spec: GDB manual, "i386 Features"; Intel SDM volume 1, 10.5.1 "FXSAVE Area". Left out: AVX, which gdb shows from a
//! feature of its own; a debugger's changes to other registers than the general ones.

use axvm_arch::registers::CpuState;
use gdbstub::arch::{Arch, Registers};

/// How gdb sees the processor.
pub enum Amd64 {}

impl Arch for Amd64 {
    type Usize = u64;
    type Registers = GdbRegisters;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("target.xml"))
    }
}

/// Bytes of the area of x87 and SSE.
const AREA: usize = 416;

/// The registers of one vCPU.
#[derive(Clone, Debug, PartialEq)]
pub struct GdbRegisters {
    /// General, segment and control registers.
    pub cpu: CpuState,
    /// The last page fault's address.
    pub cr2: u64,
    /// The beginning of the XSAVE area.
    area: Vec<u8>,
}

impl Default for GdbRegisters {
    fn default() -> GdbRegisters {
        GdbRegisters { cpu: CpuState::default(), cr2: 0, area: vec![0; AREA] }
    }
}

impl GdbRegisters {
    /// Those of a vCPU, whose XSAVE area is `xsave`.
    pub fn new(cpu: CpuState, cr2: u64, xsave: &[u8]) -> GdbRegisters {
        let mut area = xsave.get(..AREA).unwrap_or(xsave).to_vec();
        area.resize(AREA, 0);
        GdbRegisters { cpu, cr2, area }
    }

    fn word(&self, at: usize) -> u16 {
        self.area.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_le_bytes)
    }

    /// What x87 says of itself, as eight words of 32 bits.
    fn x87(&self) -> [u32; 8] {
        // The area has a bit for each register that is in use; the tag word two bits, 11 for one that is not.
        let tags = (0..8).fold(0, |tags, n| tags | if self.word(4) >> n & 1 != 0 { 0 } else { 3 << (2 * n) });
        let long = |at| u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16;
        let short = |at| u32::from(self.word(at));
        [short(0), short(2), tags, short(12), long(8), short(20), long(16), short(6)]
    }
}

/// Bytes of general registers up to RIP, which a debugger may change.
const GENERAL: usize = 17 * 8;

impl Registers for GdbRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.cpu.linear_rip()
    }

    fn gdb_serialize(&self, mut write: impl FnMut(Option<u8>)) {
        let (r, s) = (&self.cpu.regs, &self.cpu.system);
        let mut put = |bytes: &[u8]| bytes.iter().for_each(|&byte| write(Some(byte)));
        let general = [
            r.rax,
            r.rbx,
            r.rcx,
            r.rdx,
            r.rsi,
            r.rdi,
            r.rbp,
            r.rsp,
            r.r8,
            r.r9,
            r.r10,
            r.r11,
            r.r12,
            r.r13,
            r.r14,
            r.r15,
            // gdb thinks in linear addresses.
            self.cpu.linear_rip(),
        ];
        general.iter().for_each(|value| put(&value.to_le_bytes()));
        put(&(r.rflags as u32).to_le_bytes());
        [s.cs, s.ss, s.ds, s.es, s.fs, s.gs].iter().for_each(|segment| put(&u32::from(segment.selector).to_le_bytes()));
        self.area[32..160].chunks(16).for_each(|register| put(&register[..10]));
        self.x87().iter().for_each(|word| put(&word.to_le_bytes()));
        put(&self.area[160..416]);
        put(&self.area[24..28]);
        for value in [s.fs.base, s.gs.base, s.cr0, self.cr2, s.cr3, s.cr4, s.efer] {
            put(&value.to_le_bytes());
        }
    }

    /// Takes the general registers, RIP and flags.
    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let mut all = Vec::new();
        self.gdb_serialize(|byte| all.extend(byte));
        if bytes.len() != all.len() {
            return Err(());
        }
        let long = |at: usize| bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let base = self.cpu.linear_rip().wrapping_sub(self.cpu.regs.rip);
        let r = &mut self.cpu.regs;
        let general = [
            &mut r.rax, &mut r.rbx, &mut r.rcx, &mut r.rdx, &mut r.rsi, &mut r.rdi, &mut r.rbp, &mut r.rsp, &mut r.r8,
            &mut r.r9, &mut r.r10, &mut r.r11, &mut r.r12, &mut r.r13, &mut r.r14, &mut r.r15,
        ];
        for (n, register) in general.into_iter().enumerate() {
            *register = long(8 * n).ok_or(())?;
        }
        r.rip = long(GENERAL - 8).ok_or(())?.wrapping_sub(base);
        let flags = bytes.get(GENERAL..GENERAL + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
        r.rflags = u64::from(flags.ok_or(())?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(registers: &GdbRegisters) -> Vec<u8> {
        let mut all = Vec::new();
        registers.gdb_serialize(|byte| all.extend(byte));
        all
    }

    /// Bits of all registers in the description, one after the other.
    fn described() -> Vec<(String, usize)> {
        let xml = Amd64::target_description_xml().unwrap();
        let attribute =
            |line: &str, name: &str| line.split(&format!("{name}=\"")).nth(1)?.split('"').next().map(str::to_owned);
        let register = |line: &str| Some((attribute(line, "name")?, attribute(line, "bitsize")?.parse().ok()?));
        xml.lines().filter(|line| line.starts_with("<reg ")).filter_map(register).collect()
    }

    #[test]
    fn registers_are_where_the_description_says() {
        let mut area = vec![0; 512];
        (area[24], area[160 + 16], area[32 + 16]) = (0x80, 0xab, 0xcd);
        let mut cpu = CpuState::default();
        (cpu.regs.rax, cpu.regs.rip, cpu.regs.rflags, cpu.system.cs.selector) = (1, 2, 3, 4);
        (cpu.system.gs.base, cpu.system.efer) = (5, 6);
        let all = bytes(&GdbRegisters::new(cpu, 7, &area));
        let described = described();
        assert_eq!(all.len() * 8, described.iter().map(|(_, bits)| bits).sum::<usize>());
        let value = |name: &str| {
            let before = described.iter().take_while(|(own, _)| own != name).map(|(_, bits)| bits / 8).sum::<usize>();
            all[before]
        };
        assert_eq!(["rax", "rip", "eflags", "cs", "gs_base", "efer", "cr2"].map(value), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(["mxcsr", "xmm1", "st1", "ftag"].map(value), [0x80, 0xab, 0xcd, 0xff]);
    }

    #[test]
    fn what_a_debugger_changes_comes_back() {
        let old = GdbRegisters::default();
        let mut cpu = CpuState::default();
        (cpu.regs.r15, cpu.regs.rip, cpu.regs.rflags) = (1, 2, 0x202);
        let mut read = old.clone();
        read.gdb_deserialize(&bytes(&GdbRegisters::new(cpu, 0, &[]))).unwrap();
        assert_eq!(read.cpu, cpu);
        assert!(read.gdb_deserialize(&[0; 9]).is_err());
    }
}
