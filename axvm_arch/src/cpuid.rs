//! CPUID leaves and the CPU topology they describe.
//!
//! Spec: Intel SDM volume 2A, "CPUID: CPU Identification"; volume 3, 10.9 "Programming Considerations for Hardware
//! Multi-Threading Capable Processors"; KVM API 4.46 `KVM_GET_SUPPORTED_CPUID`. Left out: what the leaves mean, which
//! `axvm_boot` decides.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What CPUID answers for one leaf (and subleaf, where the leaf has them).
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidEntry {
    /// Leaf: EAX on input.
    pub function: u32,
    /// Subleaf: ECX on input; meaningful only when `indexed`.
    pub index: u32,
    /// The answer depends on ECX (`KVM_CPUID_FLAG_SIGNIFCANT_INDEX`).
    pub indexed: bool,
    /// EAX on output.
    pub eax: u32,
    /// EBX on output.
    pub ebx: u32,
    /// ECX on output.
    pub ecx: u32,
    /// EDX on output.
    pub edx: u32,
}

impl fmt::Debug for CpuidEntry {
    /// `0x7.1: eax 0x1c30, ebx 0x0, ecx 0x0, edx 0x4000`, with the subleaf where there are some.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.function)?;
        if self.indexed {
            write!(f, ".{:x}", self.index)?;
        }
        write!(f, ": eax {:#x}, ebx {:#x}, ecx {:#x}, edx {:#x}", self.eax, self.ebx, self.ecx, self.edx)
    }
}

/// Who made a processor. The two companies' hypervisor extensions differ: in what they refuse, and in what they report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vendor {
    /// VMX.
    Intel,
    /// SVM; processors that follow AMD.
    Amd,
    /// Another company, or no CPUID is at hand.
    Unknown,
}

impl Vendor {
    /// The one that leaf 0 names.
    pub fn of(cpuid: &[CpuidEntry]) -> Vendor {
        let Some(leaf) = cpuid.iter().find(|leaf| leaf.function == 0) else { return Vendor::Unknown };
        let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
        match name.as_flattened() {
            b"GenuineIntel" => Vendor::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Unknown,
        }
    }
}

/// How vCPUs are grouped: `sockets * cores * threads` vCPUs, numbered threads first.
///
/// ```text
///  APIC id:  | socket | core | thread |     each field as wide as its count needs
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Packages.
    pub sockets: u32,
    /// Cores in a package.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
}

impl Topology {
    /// One socket with `count` single-threaded cores.
    pub const fn flat(count: u32) -> Topology {
        Topology { sockets: 1, cores: count, threads: 1 }
    }

    /// Number of vCPUs.
    pub const fn count(&self) -> u32 {
        self.sockets * self.cores * self.threads
    }

    /// Width of the thread field of an APIC id, in bits.
    pub const fn thread_bits(&self) -> u32 {
        bits_for(self.threads)
    }

    /// Width of the core and thread fields together, in bits: the package starts above them.
    pub const fn package_shift(&self) -> u32 {
        bits_for(self.cores) + bits_for(self.threads)
    }

    /// The APIC id of vCPU number `vcpu`. Ids have gaps where a count is no power of two.
    pub const fn apic_id(&self, vcpu: u32) -> u32 {
        let thread = vcpu % self.threads;
        let core = vcpu / self.threads % self.cores;
        let socket = vcpu / self.threads / self.cores;
        socket << self.package_shift() | core << self.thread_bits() | thread
    }
}

/// Bits needed to number `count` things from 0.
const fn bits_for(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_one_line() {
        let leaf =
            CpuidEntry { function: 7, index: 1, indexed: true, eax: 0x1c30, edx: 0x4000, ..CpuidEntry::default() };
        assert_eq!(format!("{leaf:?}"), "0x7.1: eax 0x1c30, ebx 0x0, ecx 0x0, edx 0x4000");
        assert_eq!(format!("{:?}", CpuidEntry::default()), "0x0: eax 0x0, ebx 0x0, ecx 0x0, edx 0x0");
    }

    #[test]
    fn flat_ids_are_consecutive() {
        let topology = Topology::flat(20);
        assert!((0..20).all(|n| topology.apic_id(n) == n));
    }

    #[test]
    fn every_level_has_a_field_of_its_own() {
        let topology = Topology { sockets: 2, cores: 5, threads: 2 };
        assert_eq!(topology.count(), 20);
        assert_eq!((topology.thread_bits(), topology.package_shift()), (1, 4));
        assert_eq!(topology.apic_id(9), 4 << 1 | 1);
        assert_eq!(topology.apic_id(10), 1 << 4);
    }
}
