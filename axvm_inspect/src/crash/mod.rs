//! The crash report: why a vCPU cannot go on, as a person can act on it.
//!
//! ```text
//!   CrashFacts: reason, Snapshot, Processor, RAM, console --+-- code at RIP, decoded     --\
//!                                                           +-- page walks of RIP, CR2 ...  > causes, ranked --> text,
//!                                                           +-- trigger, its gate          /                     JSON
//!                                                           +-- rules broken (lint)      -/
//! ```
//!
//! A pure look at what is there: the guest wrote all of it, so nothing is believed and all text is cleaned.
//!
//! Spec: Intel SDM volume 3, chapters 4 and 6; AMD APM volume 2, 15.14.3 "Shutdown Event" for what a triple fault leaves.
//! Left out: symbols; other vCPUs; what happened before.

use std::fmt;

use axvm_arch::exception::{DOUBLE_FAULT, PAGE_FAULT, Vector};
use axvm_arch::paging::{ReadPhysical, Scheme, Walk};
use axvm_arch::registers::cr0;
use axvm_kvm::failure::{Failure, InternalError};
use serde::Serialize;

use crate::lint::{self, EntryState, Finding, Grade};
use crate::registers::Explained;
use crate::snapshot::{Processor, Snapshot};
use crate::symbols::Symbols;
use crate::text::clean;
use crate::wrap::{TERMINAL, paragraph};

mod cause;
mod gate;
mod place;
mod trigger;

#[cfg(test)]
mod tests;

pub use cause::Cause;
pub use gate::GateWords;
pub use place::Code;
pub(crate) use place::assembly;
pub use trigger::Trigger;

/// All that a report is made of.
#[derive(Clone, Copy)]
pub struct CrashFacts<'a> {
    /// Which vCPU.
    pub vcpu: u32,
    /// Why it cannot go on.
    pub failure: &'a Failure,
    /// How it stands.
    pub snapshot: &'a Snapshot,
    /// What processor it is.
    pub processor: &'a Processor,
    /// The guest's RAM.
    pub read: ReadPhysical<'a>,
    /// The last lines on the guest's console, the latest one last.
    pub console: &'a [String],
}

/// Lines of the console that a report shows.
pub const CONSOLE_LINES: usize = 8;

/// The report. Its text fits a terminal of 80 columns.
#[derive(Clone, Debug, Serialize)]
pub struct CrashReport {
    /// Which vCPU.
    pub vcpu: u32,
    /// Why it cannot go on.
    pub failure: Failure,
    /// The registers are those of a reset: on AMD a triple fault leaves no others.
    pub was_reset: bool,
    /// What likely happened and what to try, the likeliest first.
    pub causes: Vec<Cause>,
    /// The exception that began it, as far as that can be known.
    pub trigger: Option<Trigger>,
    /// The instruction at RIP, if it can be read.
    pub code: Option<Code>,
    /// Registers and mode.
    pub registers: Explained,
    /// The ways of addresses that matter, each with the register that holds it.
    pub walks: Vec<(&'static str, Walk)>,
    /// Gates of the exceptions that matter.
    pub gates: Vec<GateWords>,
    /// Rules of the processor that the registers break.
    pub rules: Vec<Finding>,
    /// What this vCPU asked for before, the latest last, where that was recorded.
    pub exits: Vec<String>,
    /// The console's last lines, without control characters.
    pub console: Vec<String>,
    /// RIP as a function and an offset, if symbols were given.
    pub function: Option<String>,
    #[serde(skip)]
    snapshot: Snapshot,
}

impl CrashFacts<'_> {
    /// Makes the report.
    pub fn report(&self) -> CrashReport {
        let snapshot = self.snapshot;
        let cpu = &snapshot.cpu;
        let linear = place::Linear { paging: self.processor.paging(cpu), read: self.read };
        let was_reset = *self.failure == Failure::TripleFault && is_reset(snapshot);
        let code = place::Code::decode(snapshot, &self.code_bytes(&linear));
        let trigger = if was_reset { None } else { trigger::find(self, code.as_ref(), &linear) };
        let vectors = self.vectors(trigger.as_ref());
        let gates = vectors.into_iter().flatten().filter_map(|vector| gate::look(snapshot, vector, &linear)).collect();
        let rules = match self.failure {
            Failure::Entry(_) => {
                lint::check(&EntryState { snapshot, processor: self.processor, read: Some(self.read) })
            }
            _ => Vec::new(),
        };
        let mut report = CrashReport {
            vcpu: self.vcpu,
            failure: self.failure.clone(),
            was_reset,
            causes: Vec::new(),
            walks: self.walks(&linear, code.as_ref(), trigger.as_ref()),
            trigger,
            code,
            registers: Explained::of(snapshot),
            gates,
            rules,
            exits: Vec::new(),
            console: Vec::new(),
            function: None,
            snapshot: snapshot.clone(),
        };
        report.add_console(self.console);
        report.causes = cause::rank(self, &report, &linear);
        report
    }

    /// The bytes at RIP: from KVM if it tells, else from RAM.
    fn code_bytes(&self, linear: &place::Linear<'_>) -> Vec<u8> {
        match self.failure {
            Failure::Internal(InternalError::Emulation { code, .. }) if !code.is_empty() => code.clone(),
            _ => linear.bytes(self.snapshot.cpu.linear_rip(), 15),
        }
    }

    /// Whose gates matter: of the exception that began it and of the double fault, or of what was being delivered.
    fn vectors(&self, trigger: Option<&Trigger>) -> [Option<Vector>; 2] {
        let events = &self.snapshot.events;
        let exception = || events.exception.injected.then_some(Vector(events.exception.vector));
        let interrupt = || events.interrupt.injected.then_some(Vector(events.interrupt.vector));
        match self.failure {
            Failure::TripleFault => [trigger.map(|trigger| trigger.vector), trigger.map(|_| Vector(DOUBLE_FAULT))],
            Failure::Internal(InternalError::Delivery { event, .. }) => [Some(event.vector()), None],
            _ => [exception().or_else(interrupt), None],
        }
    }

    fn walks(
        &self,
        linear: &place::Linear<'_>,
        code: Option<&Code>,
        trigger: Option<&Trigger>,
    ) -> Vec<(&'static str, Walk)> {
        let cpu = &self.snapshot.cpu;
        if linear.paging.scheme == Scheme::Off {
            return Vec::new();
        }
        let mut walks = vec![("RIP", linear.walk(cpu.linear_rip()))];
        let page_fault = trigger.is_some_and(|trigger| trigger.vector == Vector(PAGE_FAULT));
        if page_fault || self.snapshot.cr2 != 0 {
            walks.push(("CR2", linear.walk(self.snapshot.cr2)));
        }
        let operands = code.map(|code| &code.operands[..]).unwrap_or_default();
        for &address in operands.iter().filter(|&&address| !page_fault || address != self.snapshot.cr2) {
            walks.push(("an operand", linear.walk(address)));
        }
        walks
    }
}

impl CrashReport {
    /// Names the function at RIP.
    pub fn add_symbols(&mut self, symbols: &Symbols) {
        let rip = self.snapshot.cpu.linear_rip();
        self.function = symbols.located(&self.snapshot).and_then(|names| names.name(rip));
    }

    /// Puts the guest's last lines into it, where they are known later than the rest.
    pub fn add_console(&mut self, lines: &[String]) {
        self.console = last_lines(lines);
    }
}

/// Whether the registers are those that an INIT leaves.
fn is_reset(snapshot: &Snapshot) -> bool {
    let (regs, system) = (&snapshot.cpu.regs, &snapshot.cpu.system);
    regs.rip == 0xfff0 && system.cs.base == 0xffff_0000 && system.cr0 & (cr0::PE | cr0::PG) == 0
}

/// The last lines of a guest's console, as a report shows them behind a margin.
pub(crate) fn last_lines(lines: &[String]) -> Vec<String> {
    let last = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    last.iter().map(|line| clean(line).chars().take(TERMINAL - 4).collect()).collect()
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        paragraph(f, "", &format!("vCPU {} cannot go on: {}", self.vcpu, self.failure))?;
        if self.was_reset {
            paragraph(
                f,
                "",
                "The registers are those of a reset: on AMD a triple fault has reset the processor before KVM sees it, \
                 and what they were before is lost.",
            )?;
        }
        writeln!(f, "\nLikely cause, and what to try")?;
        for (n, Cause { what, remedy }) in (1..).zip(&self.causes) {
            paragraph(f, &format!("{n:>3}. "), what)?;
            paragraph(f, "     > ", remedy)?;
        }
        if let Some(code) = &self.code {
            let bytes: Vec<String> = code.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let function = self.function.as_ref().map(|function| format!(", {function}")).unwrap_or_default();
            writeln!(f, "\nInstruction at {:#x}{function}", code.address)?;
            paragraph(f, "  ", code.text.as_deref().unwrap_or("no instruction"))?;
            paragraph(f, "  ", &bytes.join(" "))?;
        }
        writeln!(f, "\nRegisters")?;
        self.registers.to_string().lines().try_for_each(|line| writeln!(f, "  {line}"))?;
        for (name, walk) in &self.walks {
            writeln!(f, "\nPage walk of {name}, {:#x} ({})", walk.address, walk.scheme)?;
            for line in walk.to_string().lines() {
                paragraph(f, "  ", line)?;
            }
        }
        if !self.gates.is_empty() {
            writeln!(f, "\nInterrupt descriptor table")?;
        }
        for GateWords { vector, at, words, fault } in &self.gates {
            let fault = fault.as_ref().filter(|fault| *fault != words).map(|fault| format!("; {fault}"));
            paragraph(f, "  ", &format!("{vector} at {at:#x}: {words}{}", fault.unwrap_or_default()))?;
        }
        if !self.rules.is_empty() {
            writeln!(f, "\nRules of the processor that the registers break")?;
        }
        for finding in &self.rules {
            paragraph(
                f,
                if finding.grade == Grade::Error { "  error: " } else { "  warning: " },
                &finding.to_string(),
            )?;
        }
        if !self.exits.is_empty() {
            writeln!(f, "\nLast exits of this vCPU, the latest below")?;
        }
        self.exits.iter().try_for_each(|exit| writeln!(f, "  {exit}"))?;
        if !self.console.is_empty() {
            writeln!(f, "\nLast lines on the guest's console")?;
        }
        self.console.iter().try_for_each(|line| writeln!(f, "  | {line}"))
    }
}
