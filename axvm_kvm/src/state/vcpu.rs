//! A vCPU's state, taken and given back. The order of the steps is drawn in [`super`].
//!
//! ```text
//!   KvmVcpu --save--> VcpuState --(serde)--> ... --> Vm::restore_vcpu --> KvmVcpu
//! ```
//!
//! Spec: KVM API 4.11 to 4.14, 4.18, 4.19, 4.31, 4.32, 4.33 `KVM_GET_DEBUGREGS`, 4.38 `KVM_GET_MP_STATE`, 4.42
//! `KVM_GET_XSAVE`, 4.44 `KVM_GET_XCRS`, 4.56 `KVM_GET_TSC_KHZ`, 4.57 `KVM_GET_LAPIC`.
//! Left out: XSAVE areas above 4 KiB (AMX), which a guest gets only if a VMM asks the host for them.

use axvm_arch::HexBytes;
use axvm_arch::irqchip::LapicState;
use kvm_bindings::{self as kvm, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_sregs, kvm_xcrs, kvm_xsave};

use crate::registers::{kvm_regs_for, kvm_segment_for, registers_of, segment_of, system_of};
use crate::vcpu::VcpuSetup;
use crate::{KvmError, KvmVcpu, Owner, Vm, registers};

use super::{DebugRegisters, EventState, MpState, VcpuState, Xcr, damaged, not_restored, not_saved};

/// Length of an XSAVE area without features that have to be asked for, in bytes.
const XSAVE_LEN: usize = 4096;

impl KvmVcpu {
    /// Everything this vCPU is. It must stand still with its last exit answered, and its interrupts must have been saved
    /// before ([`Vm::save`]).
    pub fn save(&self) -> Result<VcpuState, KvmError> {
        let not = |what| not_saved(self.owner(), what);
        // Asking makes KVM finish what it had put off, in registers that are read afterwards.
        let mp_state = self.fd.get_mp_state().map_err(not("the MP state (KVM_GET_MP_STATE)"))?;
        let events = || self.fd.get_vcpu_events().map_err(not("events (KVM_GET_VCPU_EVENTS)"));
        events()?;

        let regs = self.fd.get_regs().map_err(not("registers (KVM_GET_REGS)"))?;
        let sregs = self.fd.get_sregs().map_err(not("system registers (KVM_GET_SREGS)"))?;
        let debug = self.fd.get_debug_regs().map_err(not("debug registers (KVM_GET_DEBUGREGS)"))?;
        let xsave = self.fd.get_xsave().map_err(not("the XSAVE area (KVM_GET_XSAVE)"))?;
        let xcrs = self.fd.get_xcrs().map_err(not("extended control registers (KVM_GET_XCRS)"))?;
        let msrs = self.read_msrs(self.msr_indices())?;
        let lapic = self.fd.get_lapic().map_err(not("the local APIC (KVM_GET_LAPIC)"))?;
        let cpuid = self.fd.get_cpuid2(kvm::KVM_MAX_CPUID_ENTRIES).map_err(not("CPUID (KVM_GET_CPUID2)"))?;
        Ok(VcpuState {
            id: self.id(),
            mp_state: MpState::from_kvm(mp_state, self.owner())?,
            regs: registers_of(&regs),
            system: system_of(&sregs),
            ldt: segment_of(&sregs.ldt),
            cr2: sregs.cr2,
            cr8: sregs.cr8,
            apic_base: sregs.apic_base,
            pending_interrupt: pending_interrupt(&sregs),
            debug: DebugRegisters { addresses: debug.db, dr6: debug.dr6, dr7: debug.dr7 },
            xcrs: some_xcrs(&xcrs),
            xsave: HexBytes(xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect()),
            msrs,
            lapic: LapicState(HexBytes(lapic.regs.iter().map(|&byte| byte as u8).collect())),
            events: EventState::from_kvm(&events()?),
            cpuid: cpuid.as_slice().iter().map(registers::cpuid_entry).collect(),
            tsc_khz: self.fd.get_tsc_khz().ok().filter(|&khz| khz > 0),
        })
    }

    /// Makes this vCPU, which has not run yet, what `state` says.
    ///
    /// All vCPUs come before the VM ([`Vm::restore`]), and both before the first run.
    pub fn restore(&self, state: &VcpuState) -> Result<(), KvmError> {
        self.check(state)?;
        let not = |what| not_restored(self.owner(), what);
        self.set_cpuid(&state.cpuid)?;
        self.set_tsc_khz(state.tsc_khz)?;

        let sregs = self.sregs_for(state)?;
        self.fd.set_sregs(&sregs).map_err(not("system registers (KVM_SET_SREGS)"))?;
        self.fd.set_regs(&kvm_regs_for(&state.regs)).map_err(not("registers (KVM_SET_REGS)"))?;
        if !state.xcrs.is_empty() {
            self.fd.set_xcrs(&xcrs_for(&state.xcrs)).map_err(not("extended control registers (KVM_SET_XCRS)"))?;
        }
        self.set_xsave(&state.xsave)?;
        let DebugRegisters { addresses: db, dr6, dr7 } = state.debug;
        let debug = kvm_debugregs { db, dr6, dr7, ..Default::default() };
        self.fd.set_debug_regs(&debug).map_err(not("debug registers (KVM_SET_DEBUGREGS)"))?;
        self.fd.set_lapic(&lapic_for(&state.lapic)).map_err(not("the local APIC (KVM_SET_LAPIC)"))?;
        self.load_msrs(&state.msrs)?;
        self.fd.set_vcpu_events(&state.events.to_kvm()).map_err(not("events (KVM_SET_VCPU_EVENTS)"))?;
        self.fd.set_mp_state(state.mp_state.to_kvm()).map_err(not("the MP state (KVM_SET_MP_STATE)"))
    }

    /// Refuses what the structures of KVM cannot hold, or another vCPU's state.
    fn check(&self, state: &VcpuState) -> Result<(), KvmError> {
        let wrong = |field, found: &dyn std::fmt::Display, allowed: &dyn std::fmt::Display| {
            Err(damaged(self.owner(), field, found, allowed))
        };
        let (xsave, lapic) = (state.xsave.0.len(), state.lapic.0.0.len());
        match state {
            _ if state.id != self.id() => wrong("id", &state.id, &self.id()),
            _ if xsave != XSAVE_LEN => wrong("the length of xsave", &xsave, &XSAVE_LEN),
            _ if lapic != LapicState::LEN => wrong("the length of lapic", &lapic, &LapicState::LEN),
            _ if state.xcrs.len() > kvm_xcrs::default().xcrs.len() => {
                wrong("the number of xcrs", &state.xcrs.len(), &"16 at most")
            }
            _ => Ok(()),
        }
    }

    fn sregs_for(&self, state: &VcpuState) -> Result<kvm_sregs, KvmError> {
        let mut sregs = kvm_sregs::default();
        registers::apply(&state.system, &mut sregs);
        sregs.ldt = kvm_segment_for(&state.ldt);
        (sregs.cr2, sregs.cr8, sregs.apic_base) = (state.cr2, state.cr8, state.apic_base);
        if let Some(vector) = state.pending_interrupt {
            sregs.interrupt_bitmap[usize::from(vector / 64)] = 1 << (vector % 64);
        }
        Ok(sregs)
    }

    /// Gives the TSC its frequency, where that is not the one that it has anyway.
    fn set_tsc_khz(&self, khz: Option<u32>) -> Result<(), KvmError> {
        match khz {
            Some(khz) if self.fd.get_tsc_khz().ok() != Some(khz) => {
                self.fd.set_tsc_khz(khz).map_err(not_restored(self.owner(), "the TSC's frequency (KVM_SET_TSC_KHZ)"))
            }
            _ => Ok(()),
        }
    }

    fn set_xsave(&self, area: &HexBytes) -> Result<(), KvmError> {
        let mut xsave = kvm_xsave::default();
        for (word, bytes) in xsave.region.iter_mut().zip(area.0.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        // SAFETY: KVM reads more than this structure only for features that a VMM asked the host for (AMX), and AxVM
        // asks for none.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(not_restored(self.owner(), "the XSAVE area (KVM_SET_XSAVE)"))
    }

    fn owner(&self) -> Owner {
        Owner::Vcpu(self.id())
    }
}

impl Vm {
    /// Creates the vCPU that `state` is of.
    pub fn restore_vcpu(&self, state: &VcpuState) -> Result<KvmVcpu, KvmError> {
        // Virtual wire mode is of no consequence: the APIC's page follows.
        let setup = VcpuSetup { cpuid: &state.cpuid, msrs: &[], start: None, is_bsp: false };
        let vcpu = self.create_vcpu(state.id, &setup)?;
        vcpu.restore(state)?;
        Ok(vcpu)
    }
}

impl MpState {
    fn from_kvm(state: kvm_mp_state, of: Owner) -> Result<MpState, KvmError> {
        match state.mp_state {
            kvm::KVM_MP_STATE_RUNNABLE => Ok(MpState::Runnable),
            kvm::KVM_MP_STATE_UNINITIALIZED => Ok(MpState::Uninitialized),
            kvm::KVM_MP_STATE_INIT_RECEIVED => Ok(MpState::InitReceived),
            kvm::KVM_MP_STATE_SIPI_RECEIVED => Ok(MpState::SipiReceived),
            kvm::KVM_MP_STATE_HALTED => Ok(MpState::Halted),
            other => Err(damaged(of, "the MP state", other, "0 to 4")),
        }
    }

    fn to_kvm(self) -> kvm_mp_state {
        let mp_state = match self {
            MpState::Runnable => kvm::KVM_MP_STATE_RUNNABLE,
            MpState::Uninitialized => kvm::KVM_MP_STATE_UNINITIALIZED,
            MpState::InitReceived => kvm::KVM_MP_STATE_INIT_RECEIVED,
            MpState::SipiReceived => kvm::KVM_MP_STATE_SIPI_RECEIVED,
            MpState::Halted => kvm::KVM_MP_STATE_HALTED,
        };
        kvm_mp_state { mp_state }
    }
}

/// The one bit that is set in the bitmap of interrupts, if there is one.
fn pending_interrupt(sregs: &kvm_sregs) -> Option<u8> {
    let vector = |(index, word): (usize, &u64)| (*word != 0).then(|| index * 64 + word.trailing_zeros() as usize);
    sregs.interrupt_bitmap.iter().enumerate().find_map(vector).map(|vector| vector as u8)
}

fn some_xcrs(xcrs: &kvm_xcrs) -> Vec<Xcr> {
    xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).map(|xcr| Xcr { index: xcr.xcr, value: xcr.value }).collect()
}

fn xcrs_for(xcrs: &[Xcr]) -> kvm_xcrs {
    let mut all = kvm_xcrs { nr_xcrs: xcrs.len() as u32, ..Default::default() };
    for (to, from) in all.xcrs.iter_mut().zip(xcrs) {
        (to.xcr, to.value) = (from.index, from.value);
    }
    all
}

fn lapic_for(state: &LapicState) -> kvm_lapic_state {
    let mut lapic = kvm_lapic_state::default();
    for (to, &from) in lapic.regs.iter_mut().zip(&state.0.0) {
        *to = from as libc::c_char;
    }
    lapic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_vector_is_found_in_the_bitmap() {
        let mut sregs = kvm_sregs::default();
        assert_eq!(pending_interrupt(&sregs), None);
        for vector in [0, 63, 64, 255_usize] {
            sregs.interrupt_bitmap = Default::default();
            sregs.interrupt_bitmap[vector / 64] = 1 << (vector % 64);
            assert_eq!(pending_interrupt(&sregs), Some(vector as u8));
        }
    }

    #[test]
    fn an_mp_state_that_no_x86_has_is_an_error() {
        let error = MpState::from_kvm(kvm_mp_state { mp_state: 5 }, Owner::Vcpu(3)).unwrap_err().to_string();
        assert!(error.contains("APIC id 3") && error.contains("the MP state is 5"), "{error}");
    }

    #[test]
    fn extended_control_registers_come_back() {
        let xcrs = [Xcr { index: 0, value: 7 }, Xcr { index: 1, value: 9 }];
        assert_eq!(some_xcrs(&xcrs_for(&xcrs)), xcrs);
    }
}
