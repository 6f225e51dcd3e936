//! Exceptions and interrupts that are on their way into a vCPU.
//!
//! ```text
//!   pending    decided, the vCPU has not looked yet
//!   injected   being delivered: the next entry into the guest goes on with it
//! ```
//!
//! Spec: KVM API 4.31 `KVM_GET_VCPU_EVENTS`, 4.32 `KVM_SET_VCPU_EVENTS`. Left out: the SIPI vector, which KVM never tells
//! (an AP that got its SIPI has it in CS).

use kvm_bindings::{self as kvm, kvm_vcpu_events};
use serde::{Deserialize, Serialize};

/// All that is on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventState {
    /// A fault or trap.
    pub exception: ExceptionState,
    /// An external interrupt.
    pub interrupt: InterruptState,
    /// Non-maskable interrupts.
    pub nmi: NmiState,
    /// System management interrupts, where KVM knows them.
    pub smi: Option<SmiState>,
    /// A triple fault that waits to be told, where KVM tells.
    pub triple_fault: Option<bool>,
}

/// An exception on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExceptionState {
    /// Being delivered.
    pub injected: bool,
    /// Decided, where KVM tells it apart.
    pub pending: bool,
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code that is pushed.
    pub error_code: Option<u32>,
    /// What goes into CR2 or DR6 with it, where KVM tells it apart.
    pub payload: Option<u64>,
}

/// An external interrupt on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterruptState {
    /// Being delivered.
    pub injected: bool,
    /// Vector.
    pub vector: u8,
    /// From an INT instruction.
    pub soft: bool,
    /// What holds interrupts off for one instruction: bit 0 MOV SS, bit 1 STI.
    pub shadow: u8,
}

/// Non-maskable interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NmiState {
    /// Being delivered.
    pub injected: bool,
    /// How many wait: 0 to 2.
    pub pending: u8,
    /// Held off until IRET.
    pub masked: bool,
}

/// System management mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmiState {
    /// The vCPU is in it.
    pub active: bool,
    /// An SMI waits.
    pub pending: bool,
    /// It interrupted an NMI handler.
    pub inside_nmi: bool,
    /// An INIT waits for its end.
    pub latched_init: bool,
}

impl EventState {
    /// KVM's structure, in our words. A KVM that was not asked to tell `pending` from `injected` (AxVM does not ask)
    /// fills in both, and takes back only the latter.
    pub(super) fn from_kvm(events: &kvm_vcpu_events) -> EventState {
        let told = |flag: u32| events.flags & flag != 0;
        let (exception, smi) = (&events.exception, &events.smi);
        EventState {
            exception: ExceptionState {
                injected: exception.injected != 0,
                pending: exception.pending != 0 && told(kvm::KVM_VCPUEVENT_VALID_PAYLOAD),
                vector: exception.nr,
                error_code: (exception.has_error_code != 0).then_some(exception.error_code),
                payload: (events.exception_has_payload != 0 && told(kvm::KVM_VCPUEVENT_VALID_PAYLOAD))
                    .then_some(events.exception_payload),
            },
            interrupt: InterruptState {
                injected: events.interrupt.injected != 0,
                vector: events.interrupt.nr,
                soft: events.interrupt.soft != 0,
                shadow: events.interrupt.shadow,
            },
            nmi: NmiState {
                injected: events.nmi.injected != 0,
                pending: events.nmi.pending,
                masked: events.nmi.masked != 0,
            },
            smi: told(kvm::KVM_VCPUEVENT_VALID_SMM).then_some(SmiState {
                active: smi.smm != 0,
                pending: smi.pending != 0,
                inside_nmi: smi.smm_inside_nmi != 0,
                latched_init: smi.latched_init != 0,
            }),
            triple_fault: told(kvm::KVM_VCPUEVENT_VALID_TRIPLE_FAULT).then_some(events.triple_fault.pending != 0),
        }
    }

    /// The same for KVM. It takes `pending` and `payload` of an exception only where it told of them.
    pub(super) fn to_kvm(self) -> kvm_vcpu_events {
        let mut events = kvm_vcpu_events {
            flags: kvm::KVM_VCPUEVENT_VALID_NMI_PENDING | kvm::KVM_VCPUEVENT_VALID_SHADOW,
            ..Default::default()
        };
        events.exception.injected = self.exception.injected.into();
        events.exception.nr = self.exception.vector;
        events.exception.has_error_code = self.exception.error_code.is_some().into();
        events.exception.error_code = self.exception.error_code.unwrap_or(0);
        if self.exception.pending || self.exception.payload.is_some() {
            events.flags |= kvm::KVM_VCPUEVENT_VALID_PAYLOAD;
            events.exception.pending = self.exception.pending.into();
            events.exception_has_payload = self.exception.payload.is_some().into();
            events.exception_payload = self.exception.payload.unwrap_or(0);
        }
        events.interrupt.injected = self.interrupt.injected.into();
        events.interrupt.nr = self.interrupt.vector;
        events.interrupt.soft = self.interrupt.soft.into();
        events.interrupt.shadow = self.interrupt.shadow;
        events.nmi.injected = self.nmi.injected.into();
        events.nmi.pending = self.nmi.pending;
        events.nmi.masked = self.nmi.masked.into();
        if let Some(smi) = self.smi {
            events.flags |= kvm::KVM_VCPUEVENT_VALID_SMM;
            events.smi.smm = smi.active.into();
            events.smi.pending = smi.pending.into();
            events.smi.smm_inside_nmi = smi.inside_nmi.into();
            events.smi.latched_init = smi.latched_init.into();
        }
        if let Some(pending) = self.triple_fault {
            events.flags |= kvm::KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
            events.triple_fault.pending = pending.into();
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_way_to_kvm_and_back() {
        let state = EventState {
            exception: ExceptionState {
                injected: false,
                pending: true,
                vector: 14,
                error_code: Some(2),
                payload: Some(0x1234),
            },
            interrupt: InterruptState { injected: true, vector: 0x44, soft: true, shadow: 2 },
            nmi: NmiState { injected: true, pending: 2, masked: true },
            smi: Some(SmiState { active: true, pending: true, inside_nmi: true, latched_init: true }),
            triple_fault: Some(true),
        };
        assert_eq!(EventState::from_kvm(&state.to_kvm()), state);
        assert_eq!(EventState::from_kvm(&EventState::default().to_kvm()), EventState::default());
    }

    #[test]
    fn an_exception_that_kvm_does_not_tell_apart_is_injected_and_no_more() {
        let mut events = kvm_vcpu_events::default();
        (events.exception.injected, events.exception.pending, events.exception.nr) = (1, 1, 13);
        events.exception_has_payload = 1;
        let expected = ExceptionState { injected: true, vector: 13, ..ExceptionState::default() };
        assert_eq!(EventState::from_kvm(&events).exception, expected);
    }

    #[test]
    fn kvm_is_told_only_of_what_it_told() {
        let plain = EventState::default().to_kvm();
        assert_eq!(plain.flags, kvm::KVM_VCPUEVENT_VALID_NMI_PENDING | kvm::KVM_VCPUEVENT_VALID_SHADOW);
    }
}
