//! What this host's KVM can do: one table, used to open `/dev/kvm` and to explain a host.
//!
//! ```text
//!                      +--> Kvm::open     the first required one that is missing is the error
//!   CAPABILITIES -ask--+
//!                      +--> Kvm::survey   every answer, none judged
//! ```
//!
//! Spec: KVM API 4.4 `KVM_CHECK_EXTENSION`, and chapter 8 "Other capabilities". Left out: what AxVM does not use yet,
//! such as dirty logging.

use std::os::raw::c_ulong;

use axvm_arch::cpuid::CpuidEntry;
use kvm_bindings as kvm;

use crate::KvmError;

/// A part of the KVM API that AxVM uses.
#[derive(Debug, PartialEq, Eq)]
pub struct Capability {
    /// The name in the KVM API, such as `KVM_CAP_IRQFD`.
    pub name: &'static str,
    /// The first Linux version that has it.
    pub since: &'static str,
    /// What AxVM does with it.
    pub what_for: &'static str,
    /// What is lost without it; `None` when no machine can do without.
    pub without: Option<&'static str>,
    number: u32,
}

impl Capability {
    /// Whether no machine can do without it.
    pub fn is_required(&self) -> bool {
        self.without.is_none()
    }
}

const fn required(number: u32, name: &'static str, since: &'static str, what_for: &'static str) -> Capability {
    Capability { name, since, what_for, without: None, number }
}

const fn optional(
    number: u32,
    name: &'static str,
    since: &'static str,
    what_for: &'static str,
    without: &'static str,
) -> Capability {
    Capability { name, since, what_for, without: Some(without), number }
}

/// All that AxVM uses of the KVM API, required ones first.
pub const CAPABILITIES: [Capability; 16] = [
    required(kvm::KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP", "2.6.24", "PIC, IOAPIC and local APICs inside the kernel"),
    required(kvm::KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY", "2.6.25", "guest RAM that is memory of this process"),
    required(kvm::KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR", "2.6.25", "a place for KVM's own TSS (Intel)"),
    required(kvm::KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID", "2.6.26", "CPUID leaves chosen for the guest"),
    required(kvm::KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE", "2.6.26", "processors that wait for INIT and SIPI"),
    required(kvm::KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING", "2.6.30", "interrupt lines wired as in a PC"),
    required(kvm::KVM_CAP_IRQFD, "KVM_CAP_IRQFD", "2.6.32", "interrupts raised through an eventfd"),
    required(kvm::KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD", "2.6.32", "doorbells that wake a device without an exit"),
    required(kvm::KVM_CAP_PIT2, "KVM_CAP_PIT2", "2.6.32", "the PC's timer (8254) inside the kernel"),
    required(
        kvm::KVM_CAP_SET_IDENTITY_MAP_ADDR,
        "KVM_CAP_SET_IDENTITY_MAP_ADDR",
        "2.6.32",
        "a place for KVM's page table of real mode (Intel)",
    ),
    required(kvm::KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", "4.11", "kicks of a vCPU that are never lost"),
    optional(
        kvm::KVM_CAP_TSC_DEADLINE_TIMER,
        "KVM_CAP_TSC_DEADLINE_TIMER",
        "3.2",
        "guest timers set by one MSR write",
        "guests program the APIC timer instead: more exits and coarser timers",
    ),
    optional(
        kvm::KVM_CAP_X2APIC_API,
        "KVM_CAP_X2APIC_API",
        "4.8",
        "APIC ids above 254",
        "machines are limited to APIC ids up to 254",
    ),
    optional(
        kvm::KVM_CAP_KVMCLOCK_CTRL,
        "KVM_CAP_KVMCLOCK_CTRL",
        "3.5",
        "telling a guest that it was paused",
        "guests may report a soft lockup after a pause",
    ),
    optional(
        kvm::KVM_CAP_GET_TSC_KHZ,
        "KVM_CAP_GET_TSC_KHZ",
        "2.6.39",
        "telling guests the TSC frequency",
        "guests measure it at start (tens of milliseconds)",
    ),
    optional(
        kvm::KVM_CAP_SYNC_REGS,
        "KVM_CAP_SYNC_REGS",
        "4.17",
        "the guest's address at each exit of a trace",
        "a trace does not tell which functions of the guest exit",
    ),
];

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
    /// A VM can be without performance counters ([`Vm::disable_pmu`](crate::Vm::disable_pmu)): Linux 5.18. A KVM that
    /// has none for any guest says no as well.
    pub pmu_disable: bool,
    /// A vCPU's TSC may run at another frequency than the host's.
    pub tsc_control: bool,
    /// KVM can leave a vCPU's registers where AxVM finds them after each exit.
    pub sync_regs: bool,
}

impl Capabilities {
    /// Asks KVM; an answer that rules every machine out is an error.
    pub(crate) fn ask(kvm: &kvm_ioctls::Kvm) -> Result<Capabilities, KvmError> {
        let missing = CAPABILITIES.iter().find(|capability| capability.is_required() && !has(kvm, capability.number));
        match missing {
            Some(&Capability { name, since, .. }) => Err(KvmError::MissingCapability { name, since }),
            None => Ok(Capabilities::limits(kvm)),
        }
    }

    fn limits(fd: &kvm_ioctls::Kvm) -> Capabilities {
        Capabilities {
            max_vcpus: fd.get_max_vcpus() as u32,
            recommended_vcpus: fd.get_nr_vcpus() as u32,
            max_vcpu_id: fd.get_max_vcpu_id() as u32,
            memory_slots: fd.get_nr_memslots() as u32,
            tsc_deadline: has(fd, kvm::KVM_CAP_TSC_DEADLINE_TIMER),
            x2apic_api: has(fd, kvm::KVM_CAP_X2APIC_API),
            pmu_disable: has(fd, kvm::KVM_CAP_PMU_CAPABILITY),
            tsc_control: has(fd, kvm::KVM_CAP_TSC_CONTROL),
            sync_regs: has(fd, kvm::KVM_CAP_SYNC_REGS),
        }
    }
}

/// All that KVM says about itself, without judging it: for explaining a host.
#[derive(Debug)]
pub struct Survey {
    /// Answer of `KVM_GET_API_VERSION`.
    pub api_version: i32,
    /// Limits and choices.
    pub limits: Capabilities,
    /// Each row of [`CAPABILITIES`] and whether this KVM has it.
    pub answers: Vec<(&'static Capability, bool)>,
    /// CPUID as a guest may see it; empty when KVM does not tell.
    pub cpuid: Vec<CpuidEntry>,
    /// Whether a VM could be created just now; another hypervisor may hold the processor.
    pub vm: Result<(), KvmError>,
}

impl Survey {
    /// Asks an open KVM of API version `api_version`.
    pub(crate) fn ask(
        fd: &kvm_ioctls::Kvm,
        api_version: i32,
        cpuid: Vec<CpuidEntry>,
        vm: Result<(), KvmError>,
    ) -> Survey {
        let answers = CAPABILITIES.iter().map(|capability| (capability, has(fd, capability.number))).collect();
        Survey { api_version, limits: Capabilities::limits(fd), answers, cpuid, vm }
    }
}

fn has(fd: &kvm_ioctls::Kvm, number: u32) -> bool {
    fd.check_extension_raw(c_ulong::from(number)) > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_capability_once_and_required_ones_first() {
        for (n, capability) in CAPABILITIES.iter().enumerate() {
            assert!(capability.name.starts_with("KVM_CAP_") && !capability.what_for.is_empty());
            assert!(CAPABILITIES[..n].iter().all(|other| other.number != capability.number), "{capability:?}");
        }
        assert!(CAPABILITIES.is_sorted_by_key(|capability| !capability.is_required()));
    }
}
