//! What each vCPU is, step 8 of the recipe: what KVM supports on this host, and how the specification shapes it.
//!
//! Spec: KVM API 4.46 `KVM_GET_SUPPORTED_CPUID`, 4.3 `KVM_GET_MSR_INDEX_LIST`.

use axvm_arch::cpuid::CpuidEntry;
use axvm_arch::msr::{self, Msr};
use axvm_boot::cpu::{self, CpuConfig};
use axvm_kvm::{Kvm, KvmError};

use crate::{MachineSpec, cpuinfo};

/// What the vCPUs of one machine are made from.
pub struct ProcessorModel {
    /// What KVM supports on this host, with the host's name for the processor.
    pub supported: Vec<CpuidEntry>,
    /// How the guest is to see it.
    pub config: CpuConfig,
    /// MSRs as firmware leaves them.
    pub msrs: Vec<Msr>,
}

impl ProcessorModel {
    /// The model that `spec` asks for on this host. `tsc_khz`: what a VM says of its TSC, if there is one.
    pub fn of(kvm: &Kvm, spec: &MachineSpec, tsc_khz: Option<u32>) -> Result<ProcessorModel, KvmError> {
        let mut supported = kvm.supported_cpuid()?;
        // KVM leaves the processor's name empty; the guest sees the host's.
        if let Some(name) = cpuinfo::processor_name() {
            cpu::put_name(&mut supported, name);
        }
        let supported_msrs = kvm.supported_msrs()?;
        let config = CpuConfig {
            model: spec.cpu,
            tsc_deadline: kvm.capabilities().tsc_deadline,
            tsc_khz,
            tsc_aux: supported_msrs.contains(&msr::TSC_AUX),
        };
        Ok(ProcessorModel { supported, config, msrs: cpu::msrs(&supported_msrs) })
    }

    /// What vCPU number `vcpu` answers to CPUID.
    pub fn cpuid(&self, spec: &MachineSpec, vcpu: u32) -> Vec<CpuidEntry> {
        cpu::leaves(&self.supported, &spec.topology, vcpu, &self.config)
    }
}
