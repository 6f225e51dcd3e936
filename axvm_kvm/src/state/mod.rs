//! The state of vCPUs and of a VM as plain values, and the order in which it is taken and given back.
//!
//! An interrupt travels: chip, eventfd, work queue of the kernel, PIC or IOAPIC, local APIC, vCPU. A save walks with it, so
//! that one on its way is met at least once; a restore walks against it, so that none arrives where its target is not yet:
//!
//! ```text
//!   save       chips of AxVM -> flush irqfds -> PIC, IOAPIC, PIT, clock -> each vCPU
//!   restore    each vCPU -> PIC, IOAPIC, PIT, clock -> chips of AxVM -> run
//!
//!   one vCPU, save                             one vCPU, restore
//!   MP state      KVM accepts INIT, SIPI now   CPUID       decides which registers exist
//!   events        ... and fills CR2, DR6 now   TSC rate    before any TSC value
//!   registers     which both may change        SREGS       APIC base: mode and format of the APIC's page
//!   XSAVE, XCRs, debug registers               registers
//!   MSRs          TSC_DEADLINE here, and ..    XCR0        decides what XSAVE may hold
//!   APIC page     .. the timer that fired      XSAVE, debug registers
//!                 between them in IRR here     APIC page   timer mode, for ..
//!   events        again, last: NMIs            MSRs        .. TSC, then TSC_DEADLINE, which arms it
//!                                              events      were on their way into the guest
//!                                              MP state    last: now it may run
//! ```
//!
//! All vCPUs stand still meanwhile, with their last exit answered: [`Vcpu::run`](crate::Vcpu::run) returned
//! [`Exit::Interrupted`](crate::Exit::Interrupted). Both ways an interrupt may be seen once too often (a timer that
//! fired during the save); guests bear that, and none is lost.
//!
//! Values are the project's own types, no binding type; what only an architecture defines (XSAVE area, APIC page) is
//! bytes. A damaged state is an error that names its field.
//!
//! Spec: KVM API (Linux Documentation/virt/kvm/api.rst), chapter 4; Intel SDM volume 3, 11.4 "Local APIC", 14.5 "XSAVE".
//! Left out: nested guests (a caller refuses to save what runs one); the PDPTE registers of a 32-bit PAE guest, which KVM reads again from memory; ticks of the
//! PIT that KVM still owed; time that passes between save and restore, which the guest's clocks do not see.

mod chips;
mod events;
mod msrs;
mod vcpu;
mod vm;

use std::fmt::Display;

use axvm_arch::HexBytes;
use axvm_arch::cpuid::CpuidEntry;
use axvm_arch::irqchip::{IoapicState, LapicState, PicState};
use axvm_arch::msr::Msr;
use axvm_arch::pit::PitState;
use axvm_arch::registers::{Registers, Segment, SystemRegisters};
use serde::{Deserialize, Serialize};

use crate::{KvmError, Owner};

pub use events::{EventState, ExceptionState, InterruptState, NmiState, SmiState};
pub(crate) use msrs::indices;
pub use msrs::{LEFT_OUT, LeftOut};

/// Everything a vCPU is. `{:#x?}` prints it for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// APIC id.
    pub id: u32,
    /// Whether it runs, halts or waits for INIT and SIPI.
    pub mp_state: MpState,
    /// General registers.
    pub regs: Registers,
    /// Segments, descriptor tables and control registers.
    pub system: SystemRegisters,
    /// LDTR.
    pub ldt: Segment,
    /// Linear address of the last page fault.
    pub cr2: u64,
    /// Task priority, as CR8 shows it.
    pub cr8: u64,
    /// IA32_APIC_BASE: on or off, mode, address.
    pub apic_base: u64,
    /// Vector of an external interrupt that was on its way in.
    pub pending_interrupt: Option<u8>,
    /// DR0 to DR3, DR6, DR7.
    pub debug: DebugRegisters,
    /// Extended control registers; none where the processor has no XSAVE.
    pub xcrs: Vec<Xcr>,
    /// The XSAVE area in standard format; of a processor without XSAVE, what FXSAVE stores of it.
    pub xsave: HexBytes,
    /// All MSRs but [`LEFT_OUT`], in the order of KVM's list.
    pub msrs: Vec<Msr>,
    /// Registers of the local APIC.
    pub lapic: LapicState,
    /// Exceptions and interrupts on their way in.
    pub events: EventState,
    /// CPUID as the guest sees it.
    pub cpuid: Vec<CpuidEntry>,
    /// Frequency of the TSC in kHz, where KVM tells it.
    pub tsc_khz: Option<u32>,
}

/// The debug registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebugRegisters {
    /// DR0 to DR3: linear addresses of the breakpoints.
    pub addresses: [u64; 4],
    /// DR6: which of them was met.
    pub dr6: u64,
    /// DR7: what they are for, and whether they are on.
    pub dr7: u64,
}

/// One extended control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Xcr {
    /// Its number: 0 says which parts of the XSAVE area are in use.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

/// What a vCPU is doing (`KVM_GET_MP_STATE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MpState {
    /// Executes instructions.
    Runnable,
    /// Waits for INIT.
    Uninitialized,
    /// Got INIT, waits for SIPI.
    InitReceived,
    /// Got SIPI, starts with the next run.
    SipiReceived,
    /// Halted: waits for an interrupt.
    Halted,
}

/// What a VM is beside its vCPUs and its RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// APIC ids above 254 are allowed; decides the format of every APIC page.
    pub x2apic_ids: bool,
    /// First and second PIC.
    pub pics: [PicState; 2],
    /// The IOAPIC.
    pub ioapic: IoapicState,
    /// The timer.
    pub pit: PitState,
    /// kvmclock: nanoseconds that the guest has lived.
    pub clock_ns: u64,
}

/// Why a part of a state could not be read.
fn not_saved(of: Owner, what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |errno| KvmError::Save { what, of, source: errno.into() }
}

/// Why a part of a state could not be given back.
fn not_restored(of: Owner, what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |errno| KvmError::Restore { what, of, source: errno.into() }
}

/// Refuses a part of a state that cannot be: `field` was `found`, and must be `allowed`.
fn damaged(of: Owner, field: &'static str, found: impl Display, allowed: impl Display) -> KvmError {
    KvmError::Damaged { of, field, found: found.to_string(), allowed: allowed.to_string() }
}
