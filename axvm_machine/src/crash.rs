//! A vCPU that cannot go on: why, in words that a person can act on.
//!
//! ```text
//!   Exit --Failure::of--> Failure \
//!   KvmVcpu --> Snapshot, Processor --> CrashReport (kept by the machine), StopReason
//! ```
//!
//! Nothing here runs before something failed, but in debug builds: there each machine's first entry is linted beforehand.
//!
//! Source: KVM API, 5 "The kvm_run structure".

use std::sync::OnceLock;

use axvm_arch::Gpa;
use axvm_devices::StopReason;
use axvm_events::{Event, Events};
use axvm_inspect::crash::{CrashFacts, CrashReport};
use axvm_inspect::lint::{self, EntryState, Grade};
use axvm_inspect::snapshot::Snapshot;
use axvm_kvm::failure::Failure;
use axvm_kvm::{KvmVcpu, Vcpu};

/// Why the machine stops when vCPU number `index` ends with `failure`, after `exits`; `to` is where the whole report goes.
pub(crate) fn end(
    index: u32,
    failure: Failure,
    vcpu: &dyn Vcpu,
    exits: Vec<String>,
    to: &OnceLock<CrashReport>,
) -> StopReason {
    let report = vcpu.as_kvm().and_then(|vcpu| report(index, &failure, vcpu));
    let errors = report.iter().flat_map(|report| &report.rules).filter(|finding| finding.grade == Grade::Error);
    let broken: String = errors.map(|finding| format!(". {finding}")).collect();
    if let Some(mut report) = report {
        report.exits = exits;
        let _ = to.set(report);
    }
    match failure {
        Failure::TripleFault => StopReason::TripleFault,
        failure => StopReason::Crash(format!("vCPU {index}: {failure}{broken}")),
    }
}

/// What is left of the guest, explained.
fn report(index: u32, failure: &Failure, vcpu: &KvmVcpu) -> Option<CrashReport> {
    let (snapshot, processor) = Snapshot::take(vcpu).ok()?;
    let read = |gpa: Gpa, data: &mut [u8]| vcpu.ram().read(gpa, data).is_ok();
    let (snapshot, processor) = (&snapshot, &processor);
    Some(CrashFacts { vcpu: index, failure, snapshot, processor, read: &read, console: &[] }.report())
}

/// Before the first entry of a debug build: what AxVM itself gives a processor is to break no rule.
pub(crate) fn check_first_entry(vcpu: &KvmVcpu, events: &Events) {
    let Ok((snapshot, processor)) = Snapshot::take(vcpu) else { return };
    let read = |gpa: Gpa, data: &mut [u8]| vcpu.ram().read(gpa, data).is_ok();
    let state = EntryState { snapshot: &snapshot, processor: &processor, read: Some(&read) };
    for finding in lint::check(&state) {
        events.warn(|| Event::Warning { from: "entry", message: format!("{}: {finding}", finding.grade) });
    }
}
