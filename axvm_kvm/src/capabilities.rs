//! What this host's KVM can do, asked once.
//!
//! Source: KVM API 4.4 `KVM_CHECK_EXTENSION`, and chapter 8 "Other capabilities".

use kvm_ioctls::Cap;

use crate::KvmError;

/// Answers of `KVM_CHECK_EXTENSION` that shape a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Most vCPUs a VM may have.
    pub max_vcpus: u32,
    /// vCPUs up to which KVM's authors recommend a VM (the host's online CPUs on recent kernels).
    pub recommended_vcpus: u32,
    /// First APIC id too large for a vCPU.
    pub max_vcpu_id: u32,
    /// Most memory slots a VM may have.
    pub memory_slots: u32,
    /// The in-kernel APIC has the TSC-deadline timer: CPUID.1:ECX bit 24 may be shown.
    pub tsc_deadline: bool,
    /// APIC ids above 254 work (`Vm::enable_x2apic_api`).
    pub x2apic_api: bool,
    /// A vCPU's TSC may run at another frequency than the host's.
    pub tsc_control: bool,
}

/// What no machine here can do without: capability, name, first Linux version.
const REQUIRED: [(Cap, &str, &str); 8] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP", "2.6.24"),
    (Cap::MpState, "KVM_CAP_MP_STATE", "2.6.26"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING", "2.6.30"),
    (Cap::Irqfd, "KVM_CAP_IRQFD", "2.6.32"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD", "2.6.32"),
    (Cap::Pit2, "KVM_CAP_PIT2", "2.6.32"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR", "2.6.32"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "4.11"),
];

impl Capabilities {
    /// Asks KVM; an answer that rules every machine out is an error.
    pub(crate) fn ask(kvm: &kvm_ioctls::Kvm) -> Result<Capabilities, KvmError> {
        for (cap, name, since) in REQUIRED {
            if !kvm.check_extension(cap) {
                return Err(KvmError::MissingCapability { name, since });
            }
        }
        Ok(Capabilities {
            max_vcpus: kvm.get_max_vcpus() as u32,
            recommended_vcpus: kvm.get_nr_vcpus() as u32,
            max_vcpu_id: kvm.get_max_vcpu_id() as u32,
            memory_slots: kvm.get_nr_memslots() as u32,
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            x2apic_api: kvm.check_extension(Cap::X2ApicApi),
            tsc_control: kvm.check_extension(Cap::TscControl),
        })
    }
}
