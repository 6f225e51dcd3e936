//! What a vCPU answers to CPUID, and the MSRs that firmware leaves behind.
//!
//! ```text
//!   KVM's supported set --template--> --always--> hypervisor bit, x2APIC, TSC deadline, KVM's own leaves
//!      (the host)       host: all     --options-> no virtualization, no PMU, unless asked for
//!                       ivybridge: less --consistency-> nothing that lacks what it stands on
//!                                       --per vCPU-> APIC id, cores, threads, shared caches
//! ```
//!
//! Spec: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; Linux
//! Documentation/virt/kvm/x86/cpuid.rst (leaves 0x4000_0000 and 0x4000_0001).
//! Left out: leaf 2 and the AMD cache sizes (0x8000_0005/6) describe the host's caches, as they are.

mod consistency;
mod ivybridge;
mod leaves;
mod model;
mod msr;
mod topology;
mod word;

use axvm_arch::cpuid::{CpuidEntry, Topology};

use leaves::Leaves;

pub use consistency::{Explained, Groundless};
pub use model::{CpuModel, CpuModelError, CpuTemplate, OptionLacking};
pub use msr::msrs;

/// How the vCPUs of one VM look, besides their topology.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuConfig {
    /// The processor to show.
    pub model: CpuModel,
    /// The host has the capability `KVM_CAP_TSC_DEADLINE_TIMER`.
    pub tsc_deadline: bool,
    /// TSC frequency, for guests that do not use kvmclock.
    pub tsc_khz: Option<u32>,
    /// KVM keeps the MSR TSC_AUX for each vCPU: it is in `KVM_GET_MSR_INDEX_LIST`.
    pub tsc_aux: bool,
}

/// Leaf 1 ECX: the APIC timer can be armed with a TSC value.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: x2APIC. KVM emulates it on every host.
const X2APIC: u32 = 1 << 21;
/// Leaf 1 ECX: "you are in a virtual machine"; then 0x4000_0000 says in whose.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 0x4000_0001 EAX, KVM_FEATURE_MSI_EXT_DEST_ID: interrupts can be sent to APIC ids above 255.
const MSI_EXT_DEST_ID: u32 = 1 << 15;
/// Frequency of KVM's APIC timer, in kHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// The CPUID leaves of vCPU number `vcpu`, made from those that KVM supports on this host.
pub fn leaves(supported: &[CpuidEntry], topology: &Topology, vcpu: u32, config: &CpuConfig) -> Vec<CpuidEntry> {
    let (mut leaves, _) = consistent(supported, config);
    topology::describe(&mut leaves, topology, vcpu);
    paravirtualize(&mut leaves, topology, config);
    leaves.into_entries()
}

/// Features of the template that this host reports although it lacks what they stand on; [`leaves`] leaves them out.
pub fn groundless(supported: &[CpuidEntry], config: &CpuConfig) -> Vec<Groundless> {
    consistent(supported, config).1
}

/// What every vCPU is told alike, and what had to go for want of its ground.
fn consistent(supported: &[CpuidEntry], config: &CpuConfig) -> (Leaves, Vec<Groundless>) {
    let mut leaves = Leaves::new(supported);
    if config.model.template == CpuTemplate::IvyBridge {
        ivybridge::apply(&mut leaves);
    }
    model::apply(&mut leaves, config.model);
    if let Some(leaf) = leaves.get_mut(1, 0) {
        leaf.ecx |= HYPERVISOR | X2APIC;
        // KVM reports this one as a capability, not in its CPUID.
        leaf.ecx = if config.tsc_deadline { leaf.ecx | TSC_DEADLINE } else { leaf.ecx & !TSC_DEADLINE };
    }
    let taken = consistency::close(&mut leaves, config);
    (leaves, taken)
}

/// Writes the processor's name into `supported`, where KVM leaves it empty; [`leaves`] keeps it for
/// [`CpuTemplate::Host`]. The host's own name is `model name` in /proc/cpuinfo.
pub fn put_name(supported: &mut Vec<CpuidEntry>, name: &str) {
    let mut leaves = Leaves::new(supported);
    leaves.put_name(name);
    *supported = leaves.into_entries();
}

/// Options of `model` that this host cannot give.
pub fn missing_options(supported: &[CpuidEntry], model: CpuModel) -> Vec<OptionLacking> {
    model::lacking(&Leaves::new(supported), model)
}

/// Whether KVM has performance counters for guests here.
pub fn has_pmu(supported: &[CpuidEntry]) -> bool {
    model::has_pmu(&Leaves::new(supported))
}

/// Features of `template` that this host cannot give, by their names in /proc/cpuinfo.
pub fn missing_features(supported: &[CpuidEntry], template: CpuTemplate) -> Vec<&'static str> {
    match template {
        CpuTemplate::Host => Vec::new(),
        CpuTemplate::IvyBridge => ivybridge::missing(&Leaves::new(supported)),
    }
}

/// KVM's own leaves: its features stay as supported (kvmclock, PV EOI, steal time, ...).
fn paravirtualize(leaves: &mut Leaves, topology: &Topology, config: &CpuConfig) {
    const BASE: u32 = 0x4000_0000;
    // Linux leaves CPUs with larger ids offline without this. KVM's IOAPIC still takes 8 bits of
    // destination only; Linux spreads the few IOAPIC pins from CPU 0 upwards, so it gets away with it.
    let last_id = topology.apic_id(topology.count().saturating_sub(1));
    if last_id > 254
        && let Some(features) = leaves.get_mut(BASE + 1, 0)
    {
        features.eax |= MSI_EXT_DEST_ID;
    }
    // The timing leaf that hypervisors agreed on: TSC and APIC timer frequency.
    if let Some(tsc_khz) = config.tsc_khz
        && let Some(base) = leaves.get_mut(BASE, 0)
    {
        base.eax = base.eax.max(BASE + 0x10);
        leaves.put(CpuidEntry { function: BASE + 0x10, eax: tsc_khz, ebx: APIC_BUS_KHZ, ..CpuidEntry::default() });
    }
}

#[cfg(test)]
mod tests;
