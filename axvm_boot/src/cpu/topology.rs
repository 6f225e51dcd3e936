//! Threads, cores and packages: the same facts, in each place a kernel looks for them.
//!
//! ```text
//!   leaf 1            every CPU    8-bit APIC id, logical processors in the package
//!   leaf 4            Intel        per cache: how many ids share it; ids of cores in the package
//!   leaf 0xB, 0x1F    Intel, Zen 2 levels: | package | core | thread |, 32-bit x2APIC id in EDX
//!   0x8000_0008       AMD          logical processors in the package, width of their ids
//!   0x8000_001D       AMD          leaf 4 in AMD's place
//!   0x8000_001E       AMD          x2APIC id, core, threads per core, node
//! ```
//!
//! Spec: Intel SDM volume 2A, CPUID, and volume 3, 9.9.3 "Hierarchical Mapping of CPUID Extended
//! Topology Leaf"; AMD APM volume 3, E.4.
//! Left out: modules, tiles and dies (0x1F), 0x8000_0026: a package has cores, a core has threads.

use axvm_arch::cpuid::{CpuidEntry, Topology};

use super::leaves::{EXTENDED, Leaves, Vendor};

/// Leaf 1 EDX: the logical processor count of leaf 1 means something.
const HTT: u32 = 1 << 28;
/// 0x8000_0001 ECX: more than one logical processor in the package, so say CPUs without HTT.
const CMP_LEGACY: u32 = 1 << 1;
/// 0x8000_0001 ECX: leaves 0x8000_001D and 0x8000_001E exist.
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// Leaf 4 EAX, bits 31 to 26: ids of cores in the package, less one.
const CORE_IDS: u32 = 0x3f << CORE_IDS_SHIFT;
const CORE_IDS_SHIFT: u32 = 26;
/// Leaf 4 and 0x8000_001D EAX, bits 25 to 14: ids of threads that share the cache, less one.
const SHARING_IDS: u32 = 0xfff << SHARING_IDS_SHIFT;
const SHARING_IDS_SHIFT: u32 = 14;
/// 0x8000_0008 ECX, bits 15 to 12: width of an id in the package; bits 7 to 0: logical processors in it, less one.
const PACKAGE: u32 = 0xf << PACKAGE_WIDTH_SHIFT | 0xff;
const PACKAGE_WIDTH_SHIFT: u32 = 12;
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Writes `topology`, as seen by vCPU number `vcpu`, into all leaves that speak of it.
pub(super) fn describe(leaves: &mut Leaves, topology: &Topology, vcpu: u32) {
    let vendor = leaves.vendor();
    let id = topology.apic_id(vcpu);
    let logical = topology.cores * topology.threads;
    if let Some(leaf) = leaves.get_mut(1, 0) {
        leaf.ebx = leaf.ebx & 0xffff | logical.min(255) << 16 | id << 24;
        leaf.edx = with(leaf.edx, HTT, logical > 1);
    }
    if vendor == Vendor::Amd {
        amd(leaves, topology, vcpu);
    } else {
        let core_ids = 1 << (topology.package_shift() - topology.thread_bits());
        for cache in leaves.subleaves_mut(4) {
            share(cache, topology);
            if has_cache(cache) {
                cache.eax = cache.eax & !CORE_IDS | (core_ids - 1u32).min(0x3f) << CORE_IDS_SHIFT;
            }
        }
    }
    levels(leaves, topology, id);
}

/// Leaf 0xB always, 0x1F where the processor has it.
fn levels(leaves: &mut Leaves, topology: &Topology, id: u32) {
    let has_v2 = leaves.last_of(0) >= 0x1f;
    leaves.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    if let Some(leaf) = leaves.get_mut(0, 0) {
        leaf.eax = leaf.eax.max(0xb);
    }
    let rows = [
        (topology.thread_bits(), topology.threads, LEVEL_THREAD),
        (topology.package_shift(), topology.cores * topology.threads, LEVEL_CORE),
        (0, 0, 0),
    ];
    let functions: &[u32] = if has_v2 { &[0xb, 0x1f] } else { &[0xb] };
    for &function in functions {
        for (index, (eax, ebx, level)) in (0..).zip(rows) {
            leaves.put(CpuidEntry { function, index, indexed: true, eax, ebx, ecx: level << 8 | index, edx: id });
        }
    }
}

/// KVM hides the topology extensions where its host has none to show, but they are only words: wherever the
/// caches (0x8000_001D) are known, the rest can be said, and kernels find threads by it.
fn amd(leaves: &mut Leaves, topology: &Topology, vcpu: u32) {
    let logical = topology.cores * topology.threads;
    let extended = leaves.get(EXTENDED + 0x1d, 0).is_some_and(has_cache);
    if let Some(leaf) = leaves.get_mut(EXTENDED + 1, 0) {
        leaf.ecx = with(leaf.ecx, CMP_LEGACY, logical > 1);
        leaf.ecx = with(leaf.ecx, TOPOLOGY_EXTENSIONS, extended);
    }
    if let Some(leaf) = leaves.get_mut(EXTENDED + 8, 0) {
        let width = topology.package_shift().min(15);
        leaf.ecx = leaf.ecx & !PACKAGE | (logical.min(256) - 1) | width << PACKAGE_WIDTH_SHIFT;
    }
    leaves.retain(|entry| !matches!(entry.function, 0x8000_001e | 0x8000_0026));
    leaves.subleaves_mut(EXTENDED + 0x1d).for_each(|cache| share(cache, topology));
    if extended {
        let (core, package) = (vcpu / topology.threads % topology.cores, vcpu / logical);
        leaves.put(CpuidEntry {
            function: EXTENDED + 0x1e,
            eax: topology.apic_id(vcpu),
            ebx: core & 0xff | (topology.threads - 1) << 8,
            ecx: package & 0xff,
            ..CpuidEntry::default()
        });
    }
}

/// First and second level caches belong to a core, larger ones to the package. The count is of ids,
/// gaps included: kernels find the sharers by masking ids.
fn share(cache: &mut CpuidEntry, topology: &Topology) {
    if !has_cache(cache) {
        return; // the end of the list
    }
    let level = cache.eax >> 5 & 7;
    let bits = if level <= 2 { topology.thread_bits() } else { topology.package_shift() };
    let ids = 1u32 << bits.min(12);
    cache.eax = cache.eax & !SHARING_IDS | (ids - 1) << SHARING_IDS_SHIFT;
}

/// Whether this subleaf of leaf 4 or 0x8000_001D describes a cache: type 0 ends the list.
fn has_cache(cache: &CpuidEntry) -> bool {
    cache.eax & 0x1f != 0
}

fn with(word: u32, bit: u32, set: bool) -> u32 {
    if set { word | bit } else { word & !bit }
}
