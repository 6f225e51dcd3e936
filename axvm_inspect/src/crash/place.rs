//! Where the guest was: its memory by linear address, the instruction at RIP and what that touches.
//!
//! ```text
//!   linear --walk--> physical --read--> bytes --decode--> "mov rax,[rbx+8]" --registers--> operands' addresses
//! ```
//!
//! Spec: Intel SDM volume 2. Left out: what an instruction does to memory beyond its operands and the stack; strings after
//! the first element.

use axvm_arch::Gpa;
use axvm_arch::paging::{Paging, ReadPhysical, Walk};
use axvm_arch::registers::Segment;
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, Mnemonic, OpKind, Register};
use serde::Serialize;

use crate::snapshot::Snapshot;

/// The longest instruction there is, in bytes.
const LONGEST: usize = 15;

/// Memory as the vCPU sees it.
#[derive(Clone, Copy)]
pub(super) struct Linear<'a> {
    pub paging: Paging,
    pub read: ReadPhysical<'a>,
}

impl Linear<'_> {
    pub fn walk(&self, address: u64) -> Walk {
        self.paging.walk(address, self.read)
    }

    /// As many of `len` bytes at `address` as are mapped, in RAM, and in a row.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let byte = |n: u64| {
            let page = self.walk(address.wrapping_add(n)).end.ok()?;
            let mut byte = [0];
            (self.read)(page.gpa, &mut byte).then_some(byte[0])
        };
        (0..len as u64).map_while(byte).collect()
    }

    /// 8 bytes as a number.
    pub fn word(&self, address: u64) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(address, 8).try_into().ok()?))
    }

    /// Whether there is RAM at the physical address.
    pub fn is_ram(&self, gpa: Gpa) -> bool {
        (self.read)(gpa, &mut [0])
    }
}

/// The instruction at which a vCPU stands.
#[derive(Clone, Debug, Serialize)]
pub struct Code {
    /// Its linear address.
    pub address: u64,
    /// Its bytes, and no others.
    pub bytes: Vec<u8>,
    /// As an assembler would write it; `None` if these bytes are no instruction.
    pub text: Option<String>,
    /// Linear addresses that it reads or writes, but for the stack's.
    pub operands: Vec<u64>,
    #[serde(skip)]
    pub(super) decoded: Instruction,
}

impl Code {
    /// Decodes `bytes`, which are at `snapshot`'s RIP. None, if there are no bytes.
    pub(super) fn decode(snapshot: &Snapshot, bytes: &[u8]) -> Option<Code> {
        let bytes = &bytes[..bytes.len().min(LONGEST)];
        if bytes.is_empty() {
            return None;
        }
        let bits = snapshot.cpu.mode().cpu.bits();
        let mut decoder = Decoder::with_ip(bits, bytes, snapshot.cpu.regs.rip, DecoderOptions::NONE);
        let decoded = decoder.decode();
        let valid = !decoded.is_invalid();
        let len = if valid { decoded.len() } else { bytes.len() };
        Some(Code {
            address: snapshot.cpu.linear_rip(),
            bytes: bytes[..len].to_vec(),
            text: valid.then(|| assembly(&decoded)),
            operands: if valid { operands(snapshot, &decoded) } else { Vec::new() },
            decoded,
        })
    }

    /// Whether it pushes or pops.
    pub(super) fn uses_stack(&self) -> bool {
        use Mnemonic::{
            Call, Enter, Iret, Iretd, Iretq, Pop, Popf, Popfd, Popfq, Push, Pushf, Pushfd, Pushfq, Ret, Retf,
        };
        let uses = [Call, Enter, Iret, Iretd, Iretq, Pop, Popf, Popfd, Popfq, Push, Pushf, Pushfd, Pushfq, Ret, Retf];
        self.text.is_some() && uses.contains(&self.decoded.mnemonic())
    }
}

/// An instruction as an assembler would write it.
pub(crate) fn assembly(instruction: &Instruction) -> String {
    let (mut formatter, mut text) = (IntelFormatter::new(), String::new());
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_space_after_operand_separator(true);
    formatter.format(instruction, &mut text);
    text
}

fn operands(snapshot: &Snapshot, instruction: &Instruction) -> Vec<u64> {
    // They name an address and leave what is there alone.
    if matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop | Mnemonic::Invlpg) {
        return Vec::new();
    }
    let is_memory = |kind: OpKind| {
        matches!(
            kind,
            OpKind::Memory
                | OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI
        )
    };
    let operands = (0..instruction.op_count()).filter(|&n| is_memory(instruction.op_kind(n)));
    let address = |n| instruction.virtual_address(n, 0, |name, _, _| register(snapshot, name));
    // The base of the segment is in it.
    operands.filter_map(address).map(|address| snapshot.cpu.linear(0, address)).collect()
}

/// What a register holds; of a segment register, its base.
pub(super) fn register(snapshot: &Snapshot, name: Register) -> Option<u64> {
    let (r, system) = (&snapshot.cpu.regs, &snapshot.cpu.system);
    let is_64 = snapshot.cpu.mode().cpu.bits() == 64;
    let flat = |segment: &Segment| Some(if is_64 { 0 } else { segment.base });
    match name {
        Register::CS => return flat(&system.cs),
        Register::DS => return flat(&system.ds),
        Register::ES => return flat(&system.es),
        Register::SS => return flat(&system.ss),
        Register::FS => return Some(system.fs.base),
        Register::GS => return Some(system.gs.base),
        _ => {}
    }
    let general =
        [r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15];
    // Registers of 8 bits are no part of an address, nor of a move to a control register.
    let sizes = [
        (Register::AX, Register::R15W, 0xffff),
        (Register::EAX, Register::R15D, 0xffff_ffff),
        (Register::RAX, Register::R15, u64::MAX),
    ];
    let (first, _, mask) = sizes.into_iter().find(|(first, last, _)| (*first..=*last).contains(&name))?;
    Some(general.get(name as usize - first as usize)? & mask)
}
