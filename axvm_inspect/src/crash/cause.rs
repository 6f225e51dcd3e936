//! What likely happened, ranked, each with what to try.
//!
//! ```text
//!   triple fault     the trigger, then why it had no handler: gate, stack      (on purpose? then the other way round)
//!   no entry         the rules that are broken
//!   internal error   code outside of RAM; an operand on a device; an instruction that this KVM does not know;
//!                    tables or stack outside of RAM
//! ```
//!
//! No specification: experience. Left out: guesses without a ground in the facts.

use axvm_arch::Gpa;
use axvm_kvm::failure::{EntryFailure, Failure, InternalError, exit_reason};
use serde::Serialize;

use super::place::{Code, Linear};
use super::trigger::Trigger;
use super::{CrashFacts, CrashReport};
use crate::lint::Grade;

/// A likely cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// What happened.
    pub what: String,
    /// What to try.
    pub remedy: String,
}

impl Cause {
    pub(crate) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Cause {
        let (mut what, remedy) = (what.into(), remedy.into());
        // A sentence begins in upper case, but for a vCPU.
        if !what.starts_with("vCPU")
            && let Some(first) = what.get_mut(..1)
        {
            first.make_ascii_uppercase();
        }
        Cause { what, remedy }
    }
}

/// The causes of what `report` shows, the likeliest first; never none.
pub(super) fn rank(facts: &CrashFacts<'_>, report: &CrashReport, linear: &Linear<'_>) -> Vec<Cause> {
    match facts.failure {
        Failure::TripleFault => triple_fault(facts, report, linear),
        Failure::Entry(failure) => entry(failure, report),
        Failure::Internal(error) => internal(facts, error, report, linear),
        Failure::SystemEvent(_) => vec![Cause::new(
            "the guest, or KVM for it, asked for the end of the whole machine",
            "look at the console's last lines",
        )],
        Failure::Other(_) => vec![Cause::new(
            "KVM has a feature on that AxVM did not ask for",
            "update AxVM; look for what else uses this /dev/kvm",
        )],
    }
}

fn triple_fault(facts: &CrashFacts<'_>, report: &CrashReport, linear: &Linear<'_>) -> Vec<Cause> {
    let reboot = "if that is how the guest resets (Linux: reboot=t), give --on-crash restart";
    if report.was_reset {
        return vec![Cause::new(
            "an exception had no handler, nor had the double fault after it; which one, this processor does not tell",
            format!("look at the console's last lines; have the guest load an IDT earlier and print; {reboot}"),
        )];
    }
    let trigger = report.trigger.iter().map(|Trigger { what, remedy, .. }| Cause::new(what, remedy));
    let handlers = report.gates.iter().filter_map(|gate| {
        let fault = gate.fault.as_ref()?;
        Some(Cause::new(
            format!("{} has no handler: {fault}", gate.vector),
            "load an IDT with handlers (LIDT) before anything can fault, and keep its pages mapped",
        ))
    });
    // Without a handler for the first, there need be none for the double fault.
    let handler = handlers.take(1);
    let mut causes: Vec<Cause> = match report.trigger.as_ref().is_some_and(|trigger| trigger.deliberate) {
        true => handler.chain(trigger).collect(),
        false => trigger.chain(handler).collect(),
    };
    causes.extend(stack(facts, linear));
    if causes.is_empty() {
        causes.push(Cause::new(
            "an exception could not be delivered, nor the double fault after it; the registers do not show which",
            "look at what the instruction does, and at the handlers, their stacks and the TSS",
        ));
    }
    causes.push(Cause::new("the guest wanted a reset, and triple faults for it", reboot));
    causes
}

/// The stack onto which the exception's frame goes is nowhere.
fn stack(facts: &CrashFacts<'_>, linear: &Linear<'_>) -> Option<Cause> {
    let cpu = &facts.snapshot.cpu;
    // From user space the processor changes to the kernel's stack, which the TSS names.
    if cpu.mode().cpl == 3 {
        return None;
    }
    let below = cpu.linear(cpu.system.ss.base, cpu.regs.rsp.wrapping_sub(8));
    let why = match linear.walk(below).end {
        Err(fault) => fault.to_string(),
        Ok(page) if !linear.is_ram(page.gpa) => format!("physical {} is no RAM", page.gpa),
        Ok(_) => return None,
    };
    Some(Cause::new(
        format!("no exception can be delivered on this stack, RSP {:#x}: {why}", cpu.regs.rsp),
        "set RSP to RAM that is mapped before anything can fault; look for a stack that overflowed into a guard page",
    ))
}

fn entry(failure: &EntryFailure, report: &CrashReport) -> Vec<Cause> {
    let errors = report.rules.iter().filter(|finding| finding.grade == Grade::Error);
    let mut causes: Vec<Cause> = errors
        .map(|finding| {
            Cause::new(format!("{}: {}", finding.says, finding.found), format!("{} [{}]", finding.right, finding.rule))
        })
        .collect();
    if causes.is_empty() {
        causes.push(match failure.blames_guest_state() {
            true => Cause::new(
                "the processor refuses a state in which no rule that AxVM knows is broken",
                "look at dmesg of the host: kvm_intel.dump_invalid_vmcs=1 has it say the whole state; report this as a bug",
            ),
            false => Cause::new(
                format!("the fault is not in the guest's registers but with KVM, on host CPU {}", failure.host_cpu),
                "look at dmesg of the host; update its kernel and its microcode; stop other hypervisors",
            ),
        });
    }
    causes
}

fn internal(facts: &CrashFacts<'_>, error: &InternalError, report: &CrashReport, linear: &Linear<'_>) -> Vec<Cause> {
    let event = match error {
        InternalError::Emulation { .. } => {
            let first =
                outside(facts, linear).or_else(|| report.trigger.as_ref().map(|t| Cause::new(&t.what, &t.remedy)));
            let rest = match &report.code {
                Some(code) => vec![emulation(code, linear)],
                None => Vec::new(),
            };
            // Of what is not RAM there are no bytes, and no instruction is to blame.
            return if let Some(first) = first { vec![first] } else { or_unknown(rest) };
        }
        InternalError::Delivery { event, exit_reason: reason } => {
            let name = exit_reason(facts.processor.vendor, *reason).map(|name| format!(" ({name})"));
            let name = name.unwrap_or_default();
            Some(Cause::new(
                format!("while {event} was delivered, the processor came back with exit reason {reason:#x}{name}"),
                "look whether IDT, GDT, TSS and stack are in RAM: a table on a device's registers does this",
            ))
        }
        InternalError::UnexpectedExit { exit_reason: reason } => Some(Cause::new(
            format!("the host's KVM is older than its processor, or has a bug: exit reason {reason:#x}"),
            "update the host's kernel",
        )),
        InternalError::SimultaneousExceptions | InternalError::Unknown { .. } => None,
    };
    or_unknown(tables(facts, linear).into_iter().chain(stack(facts, linear)).chain(event).collect())
}

fn or_unknown(mut causes: Vec<Cause>) -> Vec<Cause> {
    if causes.is_empty() {
        causes.push(Cause::new(
            "KVM met what it does not handle, and does not say more",
            "look at dmesg of the host, and try another host: `axvm doctor` says what is special about this one",
        ));
    }
    causes
}

/// RIP is where no RAM is.
fn outside(facts: &CrashFacts<'_>, linear: &Linear<'_>) -> Option<Cause> {
    let rip = facts.snapshot.cpu.linear_rip();
    let gpa = linear.walk(rip).end.ok()?.gpa;
    (!linear.is_ram(gpa)).then(|| {
        Cause::new(
            format!("the guest jumped to where no RAM is: RIP {rip:#x}, physical {gpa}"),
            "look for a wild jump, call or return: a function pointer or return address that was overwritten or never \
             set, firmware that this machine does not have, or a kernel loaded elsewhere",
        )
    })
}

/// KVM had to carry out an instruction, and cannot.
fn emulation(code: &Code, linear: &Linear<'_>) -> Cause {
    let text = code.text.as_ref().map_or("bytes that are no instruction".into(), |text| format!("`{text}`"));
    let device = |address: &&u64| linear.walk(**address).end.is_ok_and(|page| !linear.is_ram(page.gpa));
    match code.operands.iter().find(device).map(|&address| (address, linear.walk(address).end)) {
        Some((address, Ok(page))) => Cause::new(
            format!(
                "an instruction that KVM does not emulate, on an address without RAM: {text} accesses {address:#x}, \
                 physical {}",
                page.gpa
            ),
            "access registers of devices by plain MOV of 1 to 8 bytes (in C, volatile; in Linux, readl and the like); \
             if no device is meant, the pointer is wrong",
        ),
        _ => Cause::new(
            format!("an instruction that this host's KVM does not know: {text}"),
            "`axvm doctor` says whether this KVM runs guest kernels on the processor or interprets them; build the \
             guest for an older processor, or use another host",
        ),
    }
}

/// A table that an exception needs is not in RAM.
fn tables(facts: &CrashFacts<'_>, linear: &Linear<'_>) -> Option<Cause> {
    let system = &facts.snapshot.cpu.system;
    let tables = [("IDT", system.idt.base), ("GDT", system.gdt.base), ("TSS", system.tr.base)];
    let not_ram = |gpa: Gpa| !linear.is_ram(gpa);
    tables.into_iter().find_map(|(name, base)| {
        let why = match linear.walk(base).end {
            Err(fault) => fault.to_string(),
            Ok(page) if not_ram(page.gpa) => format!("physical {} is no RAM", page.gpa),
            Ok(_) => return None,
        };
        Some(Cause::new(
            format!("the {name} at {base:#x} cannot be read: {why}"),
            "keep it in RAM that is mapped, at the address that was loaded",
        ))
    })
}
