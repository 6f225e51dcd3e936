//! What a debugger does to a machine: its vCPUs are held, changed, stepped one by one.
//!
//! ```text
//!   debugger: hold_vcpus --Mode::Stopped--> look, change, step n ............ resume
//!   vCPU n:   gate .......................... visit: KVM_RUN of one instruction ... runs --Exit::Debug--> Stops, gate
//! ```
//!
//! Devices go on meanwhile: what a disk had begun completes, and its interrupt waits.
//!
//! Source: KVM API, `KVM_SET_GUEST_DEBUG`.

use std::sync::Arc;
use std::time::Duration;

use axvm_kvm::{Exit, KvmVcpu, Vcpu};

use crate::Machine;
use crate::stops::Stops;
use crate::vcpu::VcpuShared;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// One instruction further.
    Done,
    /// The instruction waits for something: a HLT for an interrupt, a vCPU that was not started for INIT and SIPI.
    Waits,
    /// The machine is on its way to an end, or the guest crashed.
    Over,
}

/// How long one instruction may take.
const STEP: Duration = Duration::from_millis(200);

impl Machine {
    /// The vCPUs that have stopped by themselves.
    pub fn stops(&self) -> &Stops {
        &self.shared.stops
    }

    /// Acts on a vCPU that is held, and may change it.
    pub fn alter<T: Send + 'static>(
        &self,
        index: u32,
        act: impl FnOnce(&mut KvmVcpu) -> T + Send + 'static,
    ) -> Option<T> {
        self.shared.gate.visit(index, |vcpu| vcpu.as_kvm_mut().map(act)).flatten()
    }

    /// Has a vCPU that is held run one instruction; the others stand still. It must have been told to step
    /// ([`KvmVcpu::set_debug`]).
    pub fn step(&self, index: u32) -> Step {
        let shared = Arc::clone(&self.shared);
        let end = self.shared.gate.visit_within(index, STEP, || self.kick_one(index), move |vcpu| step(vcpu, &shared));
        end.unwrap_or(Step::Over)
    }
}

/// Runs until the instruction is done. A HLT that was begun before is over. One that asks a device is done with the answer:
/// not every KVM stops behind it by itself.
fn step(vcpu: &mut dyn Vcpu, shared: &VcpuShared) -> Step {
    let hold_back = |vcpu: &dyn Vcpu, hold: bool| vcpu.as_kvm().into_iter().for_each(|vcpu| vcpu.hold_back(hold));
    hold_back(vcpu, false);
    if vcpu.as_kvm().is_some_and(|vcpu| vcpu.wake().is_err()) {
        return Step::Over;
    }
    let mut is_answered = false;
    let end = loop {
        match vcpu.run() {
            Ok(Exit::Debug { .. }) => break Step::Done,
            Ok(Exit::Interrupted) if is_answered => break Step::Done,
            Ok(Exit::Interrupted) => break Step::Waits,
            Ok(exit) => match shared.answer(exit) {
                true => is_answered = true,
                false => break Step::Over,
            },
            Err(_) => break Step::Over,
        }
        hold_back(vcpu, true);
    };
    hold_back(vcpu, true);
    end
}
