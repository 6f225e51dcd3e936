//! What a vCPU rests in while it runs nothing: whether an interrupt can wake it.
//!
//! ```text
//!   MP state HALTED,  RFLAGS.IF = 1  --> awake: any interrupt wakes it          idle guests are there
//!   MP state HALTED,  RFLAGS.IF = 0  --> halted: an NMI, an INIT, or nothing    `cli; hlt`
//!   waits for INIT or a SIPI         --> not started: another processor, or nothing
//! ```
//!
//! Spec: KVM API 4.38 `KVM_GET_MP_STATE`, 4.31 `KVM_GET_VCPU_EVENTS`, 4.48 `KVM_NMI`; Intel SDM volume 2, "HLT".

use std::io;

use kvm_bindings as kvm;

use crate::KvmVcpu;

/// RFLAGS.IF: maskable interrupts are taken.
const RFLAGS_IF: u64 = 1 << 9;

/// What a vCPU rests in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// In nothing: it runs, or what is to come can wake it.
    Awake,
    /// In HLT with interrupts off; RIP is behind that instruction.
    Halted {
        /// Where.
        rip: u64,
    },
    /// It was never started, or was stopped by an INIT.
    NotStarted,
}

impl KvmVcpu {
    /// What it rests in. Right after [`Exit::Interrupted`](crate::Exit::Interrupted) only, when its state is whole.
    pub fn rest(&self) -> io::Result<Rest> {
        Ok(match self.fd.get_mp_state()?.mp_state {
            kvm::KVM_MP_STATE_UNINITIALIZED => Rest::NotStarted,
            kvm::KVM_MP_STATE_HALTED => {
                let (events, regs) = (self.fd.get_vcpu_events()?, self.fd.get_regs()?);
                let to_come = events.nmi.pending | events.nmi.injected | events.smi.pending | events.smi.latched_init;
                match regs.rflags & RFLAGS_IF == 0 && to_come == 0 {
                    true => Rest::Halted { rip: regs.rip },
                    false => Rest::Awake,
                }
            }
            _ => Rest::Awake,
        })
    }

    /// Gives it a non-maskable interrupt.
    pub fn nmi(&self) -> io::Result<()> {
        Ok(self.fd.nmi()?)
    }
}
