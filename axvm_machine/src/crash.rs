//! A vCPU that cannot go on: why, in words that a person can act on.
//!
//! ```text
//!   Exit --Failure::of--> Failure, KvmVcpu --> Snapshot, Processor --lint--> StopReason
//! ```
//!
//! Nothing here runs before something failed, but in debug builds: there each machine's first entry is linted beforehand.
//!
//! Source: KVM API, 5 "The kvm_run structure".

use axvm_arch::Gpa;
use axvm_devices::StopReason;
use axvm_events::{Event, Events};
use axvm_inspect::lint::{self, EntryState, Finding, Grade};
use axvm_inspect::snapshot::Snapshot;
use axvm_kvm::failure::Failure;
use axvm_kvm::{KvmVcpu, Vcpu};

/// Why the machine stops when vCPU number `index` ends with `failure`.
pub(crate) fn reason(index: u32, failure: &Failure, vcpu: &dyn Vcpu) -> StopReason {
    if *failure == Failure::TripleFault {
        return StopReason::TripleFault;
    }
    let broken = match failure {
        Failure::Entry(failure) if failure.blames_guest_state() => vcpu.as_kvm().map(check).unwrap_or_default(),
        _ => Vec::new(),
    };
    let broken = broken.iter().filter(|finding| finding.grade == Grade::Error).map(|rule| format!(". {rule}"));
    StopReason::Crash(format!("vCPU {index}: {failure}{}", broken.collect::<String>()))
}

/// Before the first entry of a debug build: what AxVM itself gives a processor is to break no rule.
pub(crate) fn check_first_entry(vcpu: &KvmVcpu, events: &Events) {
    for finding in check(vcpu) {
        events.warn(|| Event::Warning { from: "entry", message: format!("{}: {finding}", finding.grade) });
    }
}

/// The rules that this vCPU's registers break.
fn check(vcpu: &KvmVcpu) -> Vec<Finding> {
    let Ok((snapshot, processor)) = Snapshot::take(vcpu) else { return Vec::new() };
    let read = |gpa: Gpa, data: &mut [u8]| vcpu.ram().read(gpa, data).is_ok();
    lint::check(&EntryState { snapshot: &snapshot, processor: &processor, read: Some(&read) })
}
