//! What went wrong first: the exception that the instruction at RIP raises.
//!
//! ```text
//!   told      by KVM: the exception on its way, or the last one that it delivered, if it fits the instruction
//!   deduced   fetch: RIP's page walk    #UD: no instruction, UD2, SSE while it is off
//!             operands, stack: page walks    #GP: a control register or EFER that would break a rule of the processor
//! ```
//!
//! Spec: Intel SDM volume 3, 2.5, 4.7, 6.15; volume 2, MOV to CR, WRMSR. Left out: segment limits, alignment, FPU faults.

use axvm_arch::exception::{ErrorCode, GENERAL_PROTECTION, PAGE_FAULT, Vector};
use axvm_arch::mode::CpuMode;
use axvm_arch::msr;
use axvm_arch::paging::{Page, Scheme};
use axvm_arch::registers::{cr0, cr4, efer};
use iced_x86::{Mnemonic, Register};
use serde::Serialize;

use super::CrashFacts;
use super::place::{Code, Linear, register};
use crate::lint::{self, EntryState};
use crate::snapshot::Snapshot;

/// The exception that began it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trigger {
    /// Its vector.
    pub vector: Vector,
    /// Its error code, where KVM tells.
    pub error_code: Option<ErrorCode>,
    /// What happened, as a clause.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
    /// The guest raised it on purpose.
    pub deliberate: bool,
}

impl Trigger {
    fn new(vector: u8, what: impl Into<String>, remedy: impl Into<String>) -> Trigger {
        let (what, remedy) = (what.into(), remedy.into());
        Trigger { vector: Vector(vector), error_code: None, what, remedy, deliberate: false }
    }
}

/// The exception that the vCPU met where it stands, as far as that can be known.
pub(super) fn find(facts: &CrashFacts<'_>, code: Option<&Code>, linear: &Linear<'_>) -> Option<Trigger> {
    let told = told(facts.snapshot);
    let refused = told.as_ref().is_some_and(|told| told.vector.0 == GENERAL_PROTECTION);
    let deduced = fetch(facts, linear)
        .or_else(|| code.and_then(|code| invalid(facts.snapshot, code)))
        .or_else(|| code.and_then(|code| privileged(facts.snapshot, code)))
        .or_else(|| code.and_then(|code| forbidden(facts, code)))
        .or_else(|| code.filter(|_| refused).and_then(|code| unknown_msr(facts.snapshot, code)))
        .or_else(|| code.and_then(|code| operand(facts, code, linear)));
    match (told, deduced) {
        (Some(told), Some(deduced)) if told.vector == deduced.vector => {
            Some(Trigger { error_code: told.error_code, ..deduced })
        }
        // What is on its way goes before what could be; what KVM remembers may be long past.
        (Some(told), _) if is_on_its_way(facts.snapshot) => Some(told),
        (_, Some(deduced)) => Some(deduced),
        (told, None) => told,
    }
}

fn is_on_its_way(snapshot: &Snapshot) -> bool {
    snapshot.events.exception.injected || snapshot.events.exception.pending
}

/// The exception that KVM has in mind.
fn told(snapshot: &Snapshot) -> Option<Trigger> {
    let exception = snapshot.events.exception;
    let vector = Vector(exception.vector);
    // A vector of 0 without more is what a vCPU has that never met one.
    let known = is_on_its_way(snapshot) || exception.vector != 0;
    let name = vector.exception().filter(|_| known)?;
    let error_code = exception.error_code.map(|code| ErrorCode { vector, code });
    let what = match (vector.0, error_code) {
        (PAGE_FAULT, Some(code)) => format!("{code}, at {:#x}", snapshot.cr2),
        (_, Some(code)) => format!("{} {} ({code})", name.mnemonic, name.name),
        (_, None) => format!("{} {}", name.mnemonic, name.name),
    };
    let what = match is_on_its_way(snapshot) {
        true => what,
        false => format!("the last exception that KVM knows of was {what}"),
    };
    let remedy = "look at the instruction, and at what led there";
    Some(Trigger { error_code, ..Trigger::new(vector.0, what, remedy) })
}

/// The instruction could not be fetched.
fn fetch(facts: &CrashFacts<'_>, linear: &Linear<'_>) -> Option<Trigger> {
    let cpu = &facts.snapshot.cpu;
    let rip = cpu.linear_rip();
    let remedy = "look for a wild jump, call or return: a function pointer or a return address that was overwritten, \
                  or a table that does not map the kernel's code";
    match linear.walk(rip).end {
        Err(axvm_arch::paging::Fault::NotCanonical) => {
            Some(Trigger::new(GENERAL_PROTECTION, format!("RIP {rip:#x} is not canonical"), remedy))
        }
        Err(fault) => Some(Trigger::new(PAGE_FAULT, format!("the code at RIP {rip:#x} has no page: {fault}"), remedy)),
        Ok(Page { rights, .. }) if !rights.execute => Some(Trigger::new(
            PAGE_FAULT,
            format!("the page of RIP {rip:#x} forbids execution (XD)"),
            "clear XD in the page table, or look for a jump into data",
        )),
        Ok(Page { rights, .. }) if rights.user && cpu.mode().cpl < 3 && cpu.system.cr4 & cr4::SMEP != 0 => {
            let what = format!("the kernel executes a page of user space at RIP {rip:#x}, and CR4.SMEP forbids that");
            Some(Trigger::new(PAGE_FAULT, what, remedy))
        }
        Ok(_) => None,
    }
}

/// There is no such instruction, here.
fn invalid(snapshot: &Snapshot, code: &Code) -> Option<Trigger> {
    const UNDEFINED: u8 = 6;
    let system = &snapshot.cpu.system;
    let Some(text) = &code.text else {
        let what = "the bytes at RIP are no instruction";
        return Some(Trigger::new(
            UNDEFINED,
            what,
            "look for a jump into data, or code of another mode (16, 32, 64 bits)",
        ));
    };
    let on_purpose = |vector, what: String| {
        let remedy = "the guest asked for it: look at its last messages, and at what calls this";
        Some(Trigger { deliberate: true, ..Trigger::new(vector, what, remedy) })
    };
    let uses = |first: Register, last: Register| {
        (0..code.decoded.op_count()).any(|n| (first..=last).contains(&code.decoded.op_register(n)))
    };
    match code.decoded.mnemonic() {
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => {
            on_purpose(UNDEFINED, format!("`{text}`, an instruction that is undefined on purpose, was executed"))
        }
        Mnemonic::Int3 => on_purpose(3, "a breakpoint instruction (INT3) was executed".into()),
        Mnemonic::Int => {
            let vector = code.decoded.immediate8();
            on_purpose(vector, format!("INT {vector:#x} was executed"))
        }
        _ if uses(Register::XMM0, Register::XMM31) && system.cr4 & cr4::OSFXSR == 0 => Some(Trigger::new(
            UNDEFINED,
            format!("`{text}` needs SSE, and CR4.OSFXSR is clear"),
            "set CR4.OSFXSR (and clear CR0.EM) before any SSE instruction; or build the guest without SSE",
        )),
        _ if uses(Register::YMM0, Register::ZMM31) && system.cr4 & cr4::OSXSAVE == 0 => Some(Trigger::new(
            UNDEFINED,
            format!("`{text}` needs AVX, and CR4.OSXSAVE is clear"),
            "set CR4.OSXSAVE and XCR0 first, or build the guest without AVX",
        )),
        _ => None,
    }
}

/// It is not for CPL 3.
fn privileged(snapshot: &Snapshot, code: &Code) -> Option<Trigger> {
    use Mnemonic::{Hlt, Invd, Invlpg, Lgdt, Lidt, Lldt, Lmsw, Ltr, Rdmsr, Swapgs, Wbinvd, Wrmsr};
    let kernels = [Hlt, Invd, Invlpg, Lgdt, Lidt, Lldt, Lmsw, Ltr, Rdmsr, Swapgs, Wbinvd, Wrmsr];
    let is = kernels.contains(&code.decoded.mnemonic()) || is_control_move(code);
    let text = code.text.as_deref().filter(|_| is && snapshot.cpu.mode().cpl == 3)?;
    let what = format!("`{text}` is for the kernel only, and the CPL is 3");
    Some(Trigger::new(GENERAL_PROTECTION, what, "do it in the kernel, or look for a jump into the kernel's code"))
}

/// MOV to or from a control register.
fn is_control_move(code: &Code) -> bool {
    let control = |n| (Register::CR0..=Register::CR15).contains(&code.decoded.op_register(n));
    code.decoded.mnemonic() == Mnemonic::Mov && (control(0) || control(1))
}

/// KVM, or the processor, refused an MSR.
fn unknown_msr(snapshot: &Snapshot, code: &Code) -> Option<Trigger> {
    let regs = &snapshot.cpu.regs;
    let index = regs.rcx as u32;
    let name = msr::name(index).map(|name| format!(" ({name})")).unwrap_or_default();
    let what = match code.decoded.mnemonic() {
        Mnemonic::Rdmsr => format!("`rdmsr` of MSR {index:#x}{name}, which this vCPU does not have"),
        Mnemonic::Wrmsr => {
            let value = regs.rdx << 32 | regs.rax & 0xffff_ffff;
            format!("`wrmsr` of MSR {index:#x}{name} with {value:#x}, which this vCPU does not take")
        }
        _ => return None,
    };
    let remedy = "ask CPUID before the MSR is used, or have a handler for #GP there; another --cpu may have it";
    Some(Trigger::new(GENERAL_PROTECTION, what, remedy))
}

/// A control register or EFER would break a rule of the processor.
fn forbidden(facts: &CrashFacts<'_>, code: &Code) -> Option<Trigger> {
    let (before, instruction) = (facts.snapshot, &code.decoded);
    let mut after = before.clone();
    let system = &mut after.cpu.system;
    let source = || register(before, instruction.op_register(1));
    let name = match (instruction.mnemonic(), instruction.op_register(0)) {
        (Mnemonic::Mov, Register::CR0) => {
            system.cr0 = source()?;
            let active = system.cr0 & cr0::PG != 0 && system.efer & efer::LME != 0;
            system.efer = system.efer & !efer::LMA | if active { efer::LMA } else { 0 };
            format!("CR0 = {:#x}", system.cr0)
        }
        (Mnemonic::Mov, Register::CR3) => {
            system.cr3 = source()?;
            // With PCIDs bit 63 says what happens to the TLB; it is no part of the register.
            system.cr3 &= if system.cr4 & cr4::PCIDE != 0 { !(1 << 63) } else { u64::MAX };
            format!("CR3 = {:#x}", system.cr3)
        }
        (Mnemonic::Mov, Register::CR4) => {
            system.cr4 = source()?;
            format!("CR4 = {:#x}", system.cr4)
        }
        (Mnemonic::Wrmsr, _) if before.cpu.regs.rcx as u32 == msr::EFER => {
            let value = before.cpu.regs.rdx << 32 | before.cpu.regs.rax & 0xffff_ffff;
            // The processor keeps LMA.
            system.efer = value & !efer::LMA | system.efer & efer::LMA;
            format!("EFER = {value:#x}")
        }
        _ => return None,
    };
    let rule = broken_by(facts, &after)?;
    let what =
        format!("`{}` sets {name}, which the processor refuses: {rule}", code.text.as_deref().unwrap_or_default());
    Some(Trigger::new(
        GENERAL_PROTECTION,
        what,
        "change CR0, CR4 and EFER in the order of the manual: PAE, then LME, then PG; back with PG first (Intel SDM \
         volume 3, \"Initializing IA-32e Mode\")",
    ))
}

/// The rule that `after` breaks and the vCPU as it stands does not.
fn broken_by(facts: &CrashFacts<'_>, after: &Snapshot) -> Option<String> {
    let broken = |snapshot| {
        let findings = lint::check(&EntryState { snapshot, processor: facts.processor, read: None });
        findings.into_iter().map(|finding| (finding.rule, format!("{} [{}]", finding.says, finding.rule)))
    };
    let before: Vec<_> = broken(facts.snapshot).map(|(rule, _)| rule).collect();
    let new = broken(after).find(|(rule, _)| !before.contains(rule)).map(|(_, says)| says);
    let (was, is) = (&facts.snapshot.cpu.system, &after.cpu.system);
    let paging_ends = was.cr0 & cr0::PG != 0 && is.cr0 & cr0::PG == 0;
    let in_64_bits = facts.snapshot.cpu.mode().cpu == CpuMode::Long;
    let levels_change = was.efer & efer::LMA != 0 && (was.cr4 ^ is.cr4) & cr4::LA57 != 0;
    new.or_else(|| (paging_ends && in_64_bits).then(|| "64-bit code cannot switch paging off".into()))
        .or_else(|| levels_change.then(|| "CR4.LA57 cannot change in long mode".into()))
}

/// An operand, or the stack of an instruction that uses it, is nowhere.
fn operand(facts: &CrashFacts<'_>, code: &Code, linear: &Linear<'_>) -> Option<Trigger> {
    let cpu = &facts.snapshot.cpu;
    let stack = || cpu.linear(cpu.system.ss.base, cpu.regs.rsp);
    let stack = code.uses_stack().then(|| [stack(), stack().wrapping_sub(8)]);
    let addresses = code.operands.iter().map(|&address| (address, "its operand"));
    let addresses = addresses.chain(stack.into_iter().flatten().map(|address| (address, "the stack")));
    let text = code.text.as_deref().unwrap_or_default();
    let mode = cpu.mode();
    let bad = |(address, whose): (u64, &str)| match linear.walk(address).end {
        Err(axvm_arch::paging::Fault::NotCanonical) => Some(Trigger::new(
            GENERAL_PROTECTION,
            format!("`{text}`: the address {address:#x} of {whose} is not canonical"),
            "look for a pointer that was overwritten or never set",
        )),
        Err(fault @ axvm_arch::paging::Fault::Reserved { .. }) => Some(Trigger::new(
            PAGE_FAULT,
            format!("`{text}`: the way to {whose} at {address:#x} is corrupt: {fault}"),
            "look for what wrote that entry: a flag in the wrong place, an address above the processor's \
             physical bits, XD without EFER.NXE, or no page table at all",
        )),
        Err(fault) => Some(Trigger::new(
            PAGE_FAULT,
            format!("`{text}`: {whose} at {address:#x} has no page: {fault}"),
            "map the address before it is used, or look for a pointer that was overwritten or never set",
        )),
        Ok(Page { rights, .. }) if mode.cpl == 3 && !rights.user && mode.paging != Scheme::Off => Some(Trigger::new(
            PAGE_FAULT,
            format!("`{text}`: CPL 3 accesses {whose} at {address:#x}, a page of the kernel's"),
            "set U in every level of the entry, or look for a wrong pointer",
        )),
        Ok(_) => None,
    };
    addresses.into_iter().find_map(bad)
}
