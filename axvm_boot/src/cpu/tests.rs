//! CPUID as a guest's kernel would read it.

use super::*;

/// An entry without subleaves: `[eax, ebx, ecx, edx]`.
fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, eax, ebx, ecx, edx, ..CpuidEntry::default() }
}

fn subleaf(function: u32, index: u32, answer: [u32; 4]) -> CpuidEntry {
    CpuidEntry { index, indexed: true, ..leaf(function, answer) }
}

fn name(text: &[u8; 12]) -> [u32; 3] {
    [0, 4, 8].map(|at| u32::from_le_bytes(*text[at..].first_chunk().unwrap()))
}

/// What is alike on every host: all feature bits set, and what they stand on.
fn host(vendor: &[u8; 12], last: u32, last_extended: u32) -> Vec<CpuidEntry> {
    let [b, d, c] = name(vendor);
    let mut host = vec![
        leaf(0, [last, b, c, d]),
        leaf(1, [0x00a2_0f12, 0xff12_0800, 0x7eff_ffff, 0xffff_ffff]),
        subleaf(7, 0, [2, !0, !0, !0]),
        subleaf(7, 1, [!0; 4]),
        leaf(0xa, [2, 0, 0, 0]),
        subleaf(0xd, 0, [0xe_02ff, 2696, 2696, 1 << 30]),
        subleaf(0xd, 1, [0x1f, 2696, 0xdd00, 0]),
        subleaf(0xd, 2, [256, 576, 0, 0]),
        subleaf(0xd, 5, [64, 1088, 0, 0]),
        leaf(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        leaf(0x4000_0001, [0x0100_7efb, 0, 0, 0]),
        leaf(0x8000_0000, [last_extended, 0, 0, 0]),
        leaf(0x8000_0001, [0, 0, !0, !0]),
        leaf(0x8000_0008, [0x3934, !0, 0x0003_7007, 0]),
    ];
    if last >= 0x1f {
        host.push(subleaf(0x1f, 0, [7, 7, 7, 7]));
        host.push(leaf(0x14, [1; 4]));
    }
    host
}

fn intel() -> Vec<CpuidEntry> {
    let mut host = host(b"GenuineIntel", 0x20, 0x8000_0008);
    // L1d, L1i, L2, L3 of some host, then the end.
    for (index, eax) in [0x7c00_4121, 0x7c00_4122, 0x7c00_c143, 0x7c0f_c163, 0].into_iter().enumerate() {
        host.push(subleaf(4, index as u32, [eax, 0, 0, 0]));
    }
    host.push(subleaf(0xb, 0, [9, 9, 9, 9]));
    host
}

fn amd() -> Vec<CpuidEntry> {
    let mut host = host(b"AuthenticAMD", 0x10, 0x8000_0026);
    for (index, eax) in [0x4121, 0x4122, 0x4143, 0x1_c163, 0].into_iter().enumerate() {
        host.push(subleaf(0x8000_001d, index as u32, [eax, 0, 0, 0]));
    }
    host.push(leaf(0x8000_001e, [9; 4]));
    host.push(subleaf(0x8000_0026, 0, [9; 4]));
    host.push(leaf(0x8000_000a, [1, 8, 0, !0]));
    host.push(leaf(0x8000_0021, [!0; 4]));
    host
}

const TWO_SOCKETS: Topology = Topology { sockets: 2, cores: 5, threads: 2 };
const SHAPES: [Topology; 5] = [
    Topology::flat(1),
    Topology::flat(20),
    TWO_SOCKETS,
    Topology { sockets: 3, cores: 1, threads: 1 },
    Topology { sockets: 2, cores: 100, threads: 2 },
];

fn made(supported: &[CpuidEntry], topology: Topology, vcpu: u32, template: CpuTemplate) -> Leaves {
    with_options(supported, topology, vcpu, CpuModel { template, ..CpuModel::default() })
}

fn with_options(supported: &[CpuidEntry], topology: Topology, vcpu: u32, model: CpuModel) -> Leaves {
    let config = CpuConfig { model, tsc_deadline: true, tsc_khz: None, tsc_aux: true };
    Leaves::new(&leaves(supported, &topology, vcpu, &config))
}

fn on_host(supported: &[CpuidEntry], topology: Topology, vcpu: u32) -> Leaves {
    made(supported, topology, vcpu, CpuTemplate::Host)
}

fn ivybridge(supported: &[CpuidEntry]) -> Leaves {
    made(supported, TWO_SOCKETS, 0, CpuTemplate::IvyBridge)
}

/// `(package, core, thread)` as a kernel takes an id apart by leaf 0xB or 0x1F.
fn taken_apart(leaves: &Leaves, function: u32) -> (u32, u32, u32) {
    let (threads, cores) = (leaves.get(function, 0).unwrap(), leaves.get(function, 1).unwrap());
    assert_eq!((threads.ecx, cores.ecx), (1 << 8, 2 << 8 | 1));
    let id = threads.edx;
    let below = |bits: u32| (1 << bits) - 1;
    (id >> cores.eax, (id & below(cores.eax)) >> threads.eax, id & below(threads.eax))
}

#[test]
fn a_kernel_finds_each_vcpu_in_its_package_core_and_thread() {
    for topology in SHAPES {
        for vcpu in 0..topology.count() {
            let leaves = on_host(&intel(), topology, vcpu);
            let per_package = topology.cores * topology.threads;
            let expected = (vcpu / per_package, vcpu % per_package / topology.threads, vcpu % topology.threads);
            assert_eq!(taken_apart(&leaves, 0xb), expected, "{topology:?}");
            assert_eq!(taken_apart(&leaves, 0x1f), expected, "{topology:?}");
            assert_eq!(leaves.get(1, 0).unwrap().ebx >> 24, topology.apic_id(vcpu) & 0xff);
            assert_eq!(leaves.get(0xb, 1).unwrap().ebx, per_package);
            assert_eq!(leaves.get(0xb, 2).unwrap().ecx, 2, "level 0 ends the list");
        }
    }
}

#[test]
fn leaf_1_counts_logical_processors_and_keeps_the_rest() {
    let one = on_host(&intel(), Topology::flat(1), 0);
    let many = on_host(&intel(), TWO_SOCKETS, 13);
    let (one, many) = (one.get(1, 0).unwrap(), many.get(1, 0).unwrap());
    assert_eq!((one.ebx, one.edx >> 28 & 1), (0x0001_0800, 0));
    assert_eq!((many.ebx, many.edx >> 28 & 1), (0x130a_0800, 1));
    let huge = on_host(&intel(), Topology::flat(300), 299);
    assert_eq!(huge.get(1, 0).unwrap().ebx, 0x2bff_0800);
}

#[test]
fn caches_are_shared_by_threads_of_a_core_and_cores_of_a_package() {
    let sharers = |leaves: &Leaves, function: u32| {
        [0, 1, 2, 3].map(|index| (leaves.get(function, index).unwrap().eax >> 14 & 0xfff) + 1)
    };
    let leaves = on_host(&intel(), TWO_SOCKETS, 0);
    assert_eq!(sharers(&leaves, 4), [2, 2, 2, 16]);
    assert_eq!(leaves.get(4, 0).unwrap().eax >> 26, 7, "ids of cores");
    assert_eq!(leaves.get(4, 0).unwrap().eax & 0x3fff, 0x121, "type and level stay");
    assert_eq!(leaves.get(4, 4).unwrap().eax, 0);
    assert_eq!(sharers(&on_host(&amd(), TWO_SOCKETS, 0), 0x8000_001d), [2, 2, 2, 16]);
    assert_eq!(sharers(&on_host(&intel(), Topology::flat(1), 0), 4), [1, 1, 1, 1]);
}

#[test]
fn amd_leaves_tell_the_same_topology() {
    for topology in SHAPES {
        for vcpu in 0..topology.count() {
            let leaves = on_host(&amd(), topology, vcpu);
            let (package, core, _) = taken_apart(&leaves, 0xb);
            let ids = leaves.get(0x8000_001e, 0).unwrap();
            assert_eq!(ids.eax, topology.apic_id(vcpu));
            assert_eq!((ids.ebx & 0xff, ids.ebx >> 8 & 0xff), (core, topology.threads - 1));
            assert_eq!((ids.ecx & 0xff, ids.ecx >> 8 & 7), (package, 0));
            let size = leaves.get(0x8000_0008, 0).unwrap().ecx;
            assert_eq!(size & 0xff, topology.cores * topology.threads - 1);
            assert_eq!(size >> 12 & 15, topology.package_shift());
            assert_eq!(size >> 16, 3, "the width of the performance TSC stays");
        }
    }
    let cmp_legacy = |topology| on_host(&amd(), topology, 0).get(0x8000_0001, 0).unwrap().ecx >> 1 & 1;
    assert_eq!((cmp_legacy(Topology::flat(1)), cmp_legacy(Topology::flat(2))), (0, 1));
}

#[test]
fn topology_extensions_are_shown_wherever_the_caches_are_known() {
    let shown = |supported: &[CpuidEntry]| {
        let leaves = on_host(supported, TWO_SOCKETS, 0);
        (leaves.get(0x8000_0001, 0).unwrap().ecx >> 22 & 1, leaves.get(0x8000_001e, 0).is_some())
    };
    let mut hidden = amd();
    hidden.iter_mut().find(|entry| entry.function == 0x8000_0001).unwrap().ecx = 0;
    assert_eq!(shown(&hidden), (1, true));
    let mut old = amd();
    old.iter_mut().filter(|entry| entry.function == 0x8000_001d).for_each(|cache| cache.eax = 0);
    assert_eq!(shown(&old), (0, false));
    assert!(on_host(&amd(), TWO_SOCKETS, 0).get(0x8000_0026, 0).is_none(), "would contradict");
}

#[test]
fn a_name_is_kept_for_the_host_and_cut_where_it_is_too_long() {
    let mut supported = intel();
    put_name(&mut supported, &"Core 47 ".repeat(7));
    let name = name_of(&on_host(&supported, TWO_SOCKETS, 0));
    assert_eq!(name, "Core 47 ".repeat(7)[..47]);
}

/// The processor's name, as /proc/cpuinfo has it.
fn name_of(leaves: &Leaves) -> String {
    let parts = (2..5).filter_map(|n| leaves.get(0x8000_0000 + n, 0));
    let text = parts.flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]).flat_map(u32::to_le_bytes);
    String::from_utf8(text.collect()).unwrap().trim_end_matches('\0').into()
}

#[test]
fn leaf_0xb_appears_where_it_was_missing_and_0x1f_where_it_may() {
    let old = on_host(&host(b"AuthenticAMD", 5, 0x8000_0008), TWO_SOCKETS, 3);
    assert_eq!((old.last_of(0), taken_apart(&old, 0xb)), (0xb, (0, 1, 1)));
    assert!(old.get(0x1f, 0).is_none());
    assert_eq!(on_host(&intel(), TWO_SOCKETS, 3).last_of(0), 0x20);
}

#[test]
fn the_timer_bits_follow_the_host() {
    let ecx = |tsc_deadline| {
        let config = CpuConfig { tsc_deadline, ..CpuConfig::default() };
        let leaves = leaves(&intel(), &TWO_SOCKETS, 0, &config);
        leaves.iter().find(|entry| entry.function == 1).unwrap().ecx
    };
    assert_eq!((ecx(true) >> 24 & 1, ecx(false) >> 24 & 1), (1, 0));
    assert_eq!((ecx(false) >> 21 & 1, ecx(false) >> 31 & 1), (1, 1), "x2APIC and hypervisor always");
}

#[test]
fn kvm_features_stay_as_supported() {
    let features = |topology| on_host(&intel(), topology, 0).get(0x4000_0001, 0).unwrap().eax;
    assert_eq!(features(TWO_SOCKETS), 0x0100_7efb);
    assert_eq!(features(Topology::flat(255)), 0x0100_7efb);
    assert_eq!(features(Topology::flat(256)), 0x0100_fefb, "ids above 254 need MSI_EXT_DEST_ID");
}

#[test]
fn the_tsc_frequency_is_told_when_known() {
    let config = CpuConfig { tsc_khz: Some(2_400_000), ..CpuConfig::default() };
    let leaves = Leaves::new(&leaves(&intel(), &TWO_SOCKETS, 0, &config));
    assert_eq!(leaves.last_of(0x4000_0000), 0x4000_0010);
    let timing = leaves.get(0x4000_0010, 0).unwrap();
    assert_eq!((timing.eax, timing.ebx), (2_400_000, 1_000_000));
}

#[test]
fn host_template_with_all_options_changes_no_other_feature() {
    for supported in [intel(), amd()] {
        let leaves = with_options(&supported, TWO_SOCKETS, 0, CpuModel::ALL_OF_HOST);
        for (function, index) in [(7, 0), (7, 1), (0xd, 0), (0xd, 1), (0xd, 5)] {
            let original = supported.iter().find(|entry| (entry.function, entry.index) == (function, index));
            assert_eq!(leaves.get(function, index), original);
        }
    }
}

#[test]
fn ivybridge_lacks_what_came_later() {
    for supported in [intel(), amd()] {
        let leaves = ivybridge(&supported);
        assert_eq!(leaves.get(7, 0).unwrap().ebx, 1 << 0 | 1 << 7 | 1 << 9, "no BMI, AVX2, RDSEED, ADX, SMAP, SHA");
        assert_eq!(leaves.get(7, 0).unwrap().ecx, 0, "no UMIP, PKU, LA57, RDPID");
        let ecx = leaves.get(1, 0).unwrap().ecx;
        assert_eq!(ecx >> 12 & 1, 0, "FMA");
        assert_eq!(ecx >> 22 & 1, 0, "MOVBE");
        assert_eq!(ecx >> 28 & 0b111, 0b111, "AVX, F16C, RDRAND");
        assert_eq!(leaves.get(0x8000_0001, 0).unwrap().ecx & !(1 << 1 | 1 << 22), 1, "only LAHF");
        assert_eq!(leaves.get(0x8000_0001, 0).unwrap().edx >> 30, 0, "3DNow!");
        assert_eq!(leaves.get(0x8000_0008, 0).unwrap().eax, 0x3034, "48-bit linear, the host's physical");
        assert_eq!(leaves.last_of(0), 0xd);
        let later = |entry: &CpuidEntry| matches!(entry.function, 0xe..0x4000_0000);
        assert_eq!(leaves.into_entries().iter().filter(|entry| later(entry)).count(), 0);
    }
}

#[test]
fn ivybridge_saves_x87_sse_and_avx_state_only() {
    let leaves = ivybridge(&intel());
    assert_eq!(*leaves.get(0xd, 0).unwrap(), subleaf(0xd, 0, [7, 576, 832, 0]));
    assert_eq!(*leaves.get(0xd, 1).unwrap(), subleaf(0xd, 1, [1, 0, 0, 0]));
    assert!(leaves.get(0xd, 2).is_some() && leaves.get(0xd, 5).is_none());
    assert!(leaves.get(7, 1).is_none());
}

#[test]
fn ivybridge_keeps_the_vendor_and_renames_only_intel() {
    let (intel, amd) = (ivybridge(&intel()), ivybridge(&amd()));
    assert_eq!(intel.get(1, 0).unwrap().eax, 0x306e4);
    assert_eq!(name_of(&intel), "Intel Xeon Processor E5 v2 (Ivy Bridge)");
    assert_eq!(amd.get(1, 0).unwrap().eax, 0x00a2_0f12);
    assert!(amd.get(0x8000_0002, 0).is_none());
    assert!(amd.get(0x8000_001e, 0).is_some(), "the topology needs it");
    assert!(amd.get(0x8000_000a, 0).is_none() && amd.get(0x8000_0021, 0).is_none());
    assert_eq!((amd.last_of(0x8000_0000), intel.last_of(0x8000_0000)), (0x8000_001e, 0x8000_0008));
}

#[test]
fn ivybridge_can_only_take_away() {
    let leaves = ivybridge(&host(b"GenuineIntel", 0xd, 0x8000_0008).into_iter().map(bare).collect::<Vec<_>>());
    assert_eq!(leaves.get(7, 0).unwrap().ebx, 0);
    assert_eq!(leaves.get(1, 0).unwrap().ecx, HYPERVISOR | X2APIC | TSC_DEADLINE);
}

/// The entry of a host with none of the features that the template is about.
fn bare(entry: CpuidEntry) -> CpuidEntry {
    match entry.function {
        1 => CpuidEntry { ecx: 0, ..entry },
        7 | 0xd | 0x8000_0001 => CpuidEntry { eax: 0, ebx: 0, ecx: 0, edx: 0, ..entry },
        _ => entry,
    }
}

#[test]
fn what_the_host_cannot_give_is_named() {
    let mut supported = intel();
    assert!(missing_features(&supported, CpuTemplate::IvyBridge).is_empty());
    supported.iter_mut().find(|entry| entry.function == 1).unwrap().ecx &= !(1 << 29);
    supported.retain(|entry| entry.function != 7);
    assert_eq!(missing_features(&supported, CpuTemplate::IvyBridge), ["f16c", "fsgsbase", "smep", "erms"]);
    assert!(missing_features(&supported, CpuTemplate::Host).is_empty());
}

#[test]
fn a_host_that_reports_nothing_is_no_reason_to_panic() {
    for template in [CpuTemplate::Host, CpuTemplate::IvyBridge] {
        let leaves = made(&[], TWO_SOCKETS, 19, template).into_entries();
        assert!(leaves.iter().all(|entry| entry.function == 0xb));
    }
}

const OFF: CpuModel = CpuModel { template: CpuTemplate::Host, nested: false, pmu: false };
const NESTED: CpuModel = CpuModel { nested: true, ..OFF };
const PMU: CpuModel = CpuModel { pmu: true, ..OFF };

/// Bit `bit` of a register of `function`, subleaf `index`; registers are counted from EAX.
fn bit(leaves: &Leaves, (function, index): (u32, u32), register: usize, bit: u32) -> u32 {
    let leaf = leaves.get(function, index).copied().unwrap_or_default();
    [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx][register] >> bit & 1
}

#[test]
fn no_guest_can_be_a_host_unless_asked_for() {
    for (template, model) in
        [CpuTemplate::Host, CpuTemplate::IvyBridge].map(|t| (t, CpuModel { template: t, ..NESTED }))
    {
        let off = CpuModel { nested: false, ..model };
        let seen = |supported: &[CpuidEntry], model| {
            let leaves = with_options(supported, TWO_SOCKETS, 0, model);
            (bit(&leaves, (1, 0), 2, 5), bit(&leaves, (0x8000_0001, 0), 2, 2), leaves.get(0x8000_000a, 0).is_some())
        };
        assert_eq!((seen(&intel(), off).0, seen(&intel(), model).0), (0, 1), "{template}: VMX");
        assert_eq!(seen(&amd(), off), (0, 0, false), "{template}: SVM and its leaf");
        assert_eq!(seen(&amd(), model), (1, 1, true), "{template}");
    }
}

#[test]
fn no_guest_measures_the_processor_unless_asked_for() {
    const BITS: [((u32, u32), usize, u32, &str); 12] = [
        ((1, 0), 2, 2, "dtes64"),
        ((1, 0), 2, 4, "ds_cpl"),
        ((1, 0), 2, 15, "pdcm"),
        ((1, 0), 3, 21, "ds"),
        ((7, 0), 1, 25, "intel_pt"),
        ((7, 0), 3, 19, "arch_lbr"),
        ((7, 1), 0, 8, "arch_perfmon_ext"),
        ((0x8000_0001, 0), 2, 10, "ibs"),
        ((0x8000_0001, 0), 2, 23, "perfctr_core"),
        ((0x8000_0001, 0), 2, 24, "perfctr_nb"),
        ((0x8000_0001, 0), 2, 27, "ptsc"),
        ((0x8000_0001, 0), 2, 28, "perfctr_llc"),
    ];
    let mut supported = intel();
    supported.extend([0x1c, 0x23, 0x8000_001b, 0x8000_0022].map(|function| leaf(function, [1; 4])));
    supported.iter_mut().find(|entry| entry.function == 0xa).unwrap().edx = 0x603;
    let [off, on] = [OFF, PMU].map(|model| with_options(&supported, TWO_SOCKETS, 0, model));
    for (at, register, number, name) in BITS {
        assert_eq!(bit(&off, at, register, number), 0, "{name}");
        assert_eq!(bit(&on, at, register, number), 1, "{name}");
    }
    assert_eq!(*off.get(0xa, 0).unwrap(), leaf(0xa, [0; 4]));
    assert_eq!(*on.get(0xa, 0).unwrap(), leaf(0xa, [2, 0, 0, 0x603]));
    for function in [0x14, 0x1c, 0x23, 0x8000_001b, 0x8000_0022] {
        assert_eq!((off.get(function, 0).is_some(), on.get(function, 0).is_some()), (false, true), "{function:#x}");
    }
}

#[test]
fn what_is_taken_out_by_choice_is_no_fault_of_the_host() {
    let config = CpuConfig { tsc_deadline: true, tsc_aux: true, ..CpuConfig::default() };
    let of_host = CpuConfig { model: CpuModel::ALL_OF_HOST, ..config };
    let names = |config| groundless(&intel(), config).into_iter().map(|taken| taken.feature).collect::<Vec<_>>();
    let (ours, hosts) = (names(&config), names(&of_host));
    assert!(ours.iter().all(|name| hosts.contains(name)), "{ours:?} {hosts:?}");
    assert!(!ours.contains(&"pdcm") && !ours.contains(&"arch_lbr"), "{ours:?}");
}

#[test]
fn ivybridge_counts_as_a_xeon_e5_v2_does() {
    let mut supported = intel();
    *supported.iter_mut().find(|entry| entry.function == 0xa).unwrap() = leaf(0xa, [0x0c30_0806, 0x80, 0xf, 0x8604]);
    let counters = |model: CpuModel| *with_options(&supported, TWO_SOCKETS, 0, model).get(0xa, 0).unwrap();
    let ivybridge = CpuModel { template: CpuTemplate::IvyBridge, ..PMU };
    assert_eq!(counters(ivybridge), leaf(0xa, [0x0730_0403, 0, 0, 0x8603]));
    assert_eq!(counters(CpuModel { pmu: false, ..ivybridge }), leaf(0xa, [0; 4]));
    assert_eq!(counters(PMU), leaf(0xa, [0x0c30_0806, 0x80, 0xf, 0x8604]), "the host's are all there");
}

#[test]
fn options_that_the_host_cannot_give_say_what_to_do_there() {
    let bare = |host: Vec<CpuidEntry>| {
        let no_counters = |entry| if let CpuidEntry { function: 0xa, .. } = entry { leaf(0xa, [0; 4]) } else { entry };
        host.into_iter().map(bare).map(no_counters).collect::<Vec<_>>()
    };
    let said = |supported: &[CpuidEntry], model| {
        missing_options(supported, model).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    for supported in [intel(), amd()] {
        assert!(missing_options(&supported, CpuModel::ALL_OF_HOST).is_empty());
        assert!(missing_options(&bare(supported), OFF).is_empty(), "not asked for, not missed");
    }
    assert!(said(&bare(intel()), NESTED).contains("sudo modprobe -r kvm_intel; sudo modprobe kvm_intel nested=1"));
    assert!(said(&bare(amd()), NESTED).contains("sudo modprobe kvm_amd nested=1"));
    let both = said(&bare(intel()), CpuModel::ALL_OF_HOST);
    assert!(both.contains("no virtualization (VMX or SVM)") && both.contains("enable_pmu has to be Y"), "{both}");
    assert!(has_pmu(&intel()) && has_pmu(&amd()) && !has_pmu(&bare(amd())));
}
