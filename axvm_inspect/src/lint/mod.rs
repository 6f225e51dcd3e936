//! The VM-entry lint: would a processor take these registers? What it refuses it refuses with a number; this says which
//! rule, what was found, and what would be right.
//!
//! ```text
//!   Snapshot, Processor, RAM --every rule--> findings    error    this processor refuses the entry
//!                                                        warning  another one does, or the guest cannot get far
//! ```
//!
//! The state is judged as KVM gives it to the processor: CR0.NE and CR4.VMXE are KVM's business, EFER.LMA is what it makes
//! the "IA-32e mode guest" control of, guests may have paging and protection off ("unrestricted guest"; an Intel processor
//! without that is KVM's to emulate), and a halted vCPU waits in KVM.
//!
//! Spec: Intel SDM volume 3C, 27.3.1 "Checks on the Guest State Area", 27.2.1.3 "VM-Entry Control Fields"; AMD APM volume
//! 2, 15.5.1 "Canonicalization and Consistency Checks", 15.20 "Event Injection", 15.25.4. Section numbers drift from
//! edition to edition: titles count.
//! Left out: what KVM alone decides (controls, host state, VMCS link pointer, activity state, SMM), shadow stacks (CET),
//! IA32_PERF_GLOBAL_CTRL, IA32_BNDCFGS, IA32_RTIT_CTL, IA32_LBR_CTL, PKRS, pending debug exceptions.

use std::fmt;

use axvm_arch::cpuid::Vendor;
use axvm_arch::paging::{ReadPhysical, is_canonical};
use axvm_arch::registers::{Registers, SystemRegisters, cr0, efer};
use serde::Serialize;

use crate::snapshot::{Processor, Snapshot};

mod advice;
mod control;
mod events;
mod instruction;
mod segments;

#[cfg(test)]
mod tests;

/// What is looked at.
#[derive(Clone, Copy)]
pub struct EntryState<'a> {
    /// The vCPU.
    pub snapshot: &'a Snapshot,
    /// The processor that it is to be.
    pub processor: &'a Processor,
    /// The guest's RAM, if rules may look at it.
    pub read: Option<ReadPhysical<'a>>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grade {
    /// The processor refuses to enter the guest.
    Error,
    /// Another maker's processor would refuse, or the guest cannot get far.
    Warning,
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Grade::Error => "error",
            Grade::Warning => "warning",
        })
    }
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name here.
    pub rule: &'static str,
    /// How bad it is.
    pub grade: Grade,
    /// The rule.
    pub says: &'static str,
    /// Where manuals say so.
    pub source: String,
    /// What breaks it.
    pub found: String,
    /// What would be right.
    pub right: String,
}

impl fmt::Display for Finding {
    /// One line: `CR0.PG needs CR0.PE: CR0 is 0x80000010; set PE or clear PG (Intel SDM volume 3C, ...) [cr0-pg-pe]`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { rule, says, source, found, right, .. } = self;
        write!(f, "{says}: {found}; {right} ({source}) [{rule}]")
    }
}

/// Everything that is wrong with a state, errors first; none if an entry succeeds.
pub fn check(state: &EntryState<'_>) -> Vec<Finding> {
    let finding = |rule: &Rule| {
        let Wrong { found, right } = (rule.look)(state)?;
        let grade = rule.source.grade(state.processor.vendor);
        Some(Finding { rule: rule.name, grade, says: rule.says, source: rule.source.to_string(), found, right })
    };
    let mut findings: Vec<Finding> = rules().filter_map(finding).collect();
    findings.sort_by_key(|finding| finding.grade);
    findings
}

/// Every rule, in the manuals' order.
fn rules() -> impl Iterator<Item = &'static Rule> {
    [control::RULES, segments::RULES, instruction::RULES, events::RULES, advice::RULES].into_iter().flatten()
}

/// One rule of the manuals.
struct Rule {
    name: &'static str,
    source: Source,
    /// In our words, without the values.
    says: &'static str,
    look: fn(&EntryState<'_>) -> Option<Wrong>,
}

/// Where a rule stands: a section of each manual.
enum Source {
    Both(&'static str, &'static str),
    Intel(&'static str),
    Amd(&'static str),
    /// The processor enters the guest all the same; Intel's section on what happens then.
    Advice(&'static str),
}

impl Source {
    fn grade(&self, vendor: Vendor) -> Grade {
        match (self, vendor) {
            (Source::Both(..), _) | (Source::Intel(_), Vendor::Intel) | (Source::Amd(_), Vendor::Amd) => Grade::Error,
            _ => Grade::Warning,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Both(intel, amd) => write!(f, "Intel SDM volume 3C, {intel}; AMD APM volume 2, {amd}"),
            Source::Intel(section) => write!(f, "Intel SDM volume 3C, {section}"),
            Source::Amd(section) => write!(f, "AMD APM volume 2, {section}"),
            Source::Advice(section) => write!(f, "Intel SDM volume 3A, {section}"),
        }
    }
}

/// AMD's checks of everything.
const CONSISTENCY: &str = "15.5.1 \"Canonicalization and Consistency Checks\"";

/// What breaks a rule, and what would not.
struct Wrong {
    found: String,
    right: String,
}

/// A broken rule, if `broken`.
fn wrong(broken: bool, found: impl Into<String>, right: impl Into<String>) -> Option<Wrong> {
    broken.then(|| Wrong { found: found.into(), right: right.into() })
}

/// A broken rule if `bits` are set in `value`.
fn must_be_clear(name: &str, value: u64, bits: u64) -> Option<Wrong> {
    let set = value & bits;
    wrong(set != 0, format!("{name} is {value:#x}"), format!("clear {set:#x}"))
}

/// A broken rule if an address is not canonical.
fn must_be_canonical(name: &str, address: u64, bits: u8) -> Option<Wrong> {
    let right = || format!("bits 63 to {} must be all alike", bits - 1);
    wrong(!is_canonical(address, bits), format!("{name} is {address:#x}"), right())
}

impl EntryState<'_> {
    fn regs(&self) -> &Registers {
        &self.snapshot.cpu.regs
    }

    fn system(&self) -> &SystemRegisters {
        &self.snapshot.cpu.system
    }

    fn cr0(&self, bit: u64) -> bool {
        self.system().cr0 & bit != 0
    }

    fn cr4(&self, bit: u64) -> bool {
        self.system().cr4 & bit != 0
    }

    fn efer(&self, bit: u64) -> bool {
        self.system().efer & bit != 0
    }

    fn flag(&self, bit: u64) -> bool {
        self.regs().rflags & bit != 0
    }

    /// The "IA-32e mode guest" control, as KVM sets it.
    fn is_long(&self) -> bool {
        self.efer(efer::LMA)
    }

    fn has_protection(&self) -> bool {
        self.cr0(cr0::PE)
    }

    /// Whether the guest's CPUID has a feature: leaf, subleaf, register (0 EAX to 3 EDX), bit. Unknown counts as there.
    fn has(&self, (function, index, register, bit): Feature) -> bool {
        if self.processor.cpuid.is_empty() {
            return true;
        }
        let leaf = self.processor.leaf(function, index);
        leaf.is_some_and(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx][register] & 1 << bit != 0)
    }
}

/// A bit of CPUID.
type Feature = (u32, u32, usize, u32);
