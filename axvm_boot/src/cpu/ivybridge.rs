//! The template `ivybridge`: nothing that a Xeon E5 v2 (Ivy Bridge EP, 2013) lacks.
//!
//! ```text
//!   word of CPUID         kept where the host has it         reported if it lacks it
//!   leaf 7 EBX      FEATURES  fsgsbase smep erms             yes
//!   leaf 7 EDX      ALLOWED   md_clear ibrs stibp ssbd       no: microcode brought them later
//!   all other bits of these words: cleared (avx2, bmi1, fma, movbe, rdseed, smap, avx512, sha, ...)
//! ```
//!
//! It can only take away. On an Intel host the guest also sees family, model and name of Ivy Bridge.
//! On an AMD host vendor, family and model stay the host's: a kernel that believed in an Intel CPU
//! would use Intel's MSRs, errata workarounds and system call paths, which are not there.
//!
//! Spec: Intel SDM volume 2A, CPUID, and volume 1, 13.4 "XSAVE Area"; AMD APM volume 3, appendix E.

use super::leaves::{EXTENDED, Leaves, Vendor};
use super::word::{L1_ECX, L7_EBX, L7_ECX, L7_EDX, LD1_EAX, Word, X1_ECX, X1_EDX, X8_EBX};

/// Highest basic leaf of Ivy Bridge: extended state.
const LAST_BASIC: u32 = 0xd;
/// First leaf of the hypervisor's range.
const HYPERVISOR: u32 = 0x4000_0000;
/// Performance counters: version in EAX 7 to 0, their number in 15 to 8.
const COUNTERS: u32 = 0xa;
/// Leaf 1 EAX: extended model 3, family 6, model 0xe, stepping 4.
const SIGNATURE: u32 = 0x306e4;
const NAME: &str = "Intel Xeon Processor E5 v2 (Ivy Bridge)";

/// All words that are cut down.
const WORDS: [Word; 8] = [L1_ECX, L7_EBX, L7_ECX, L7_EDX, LD1_EAX, X1_ECX, X1_EDX, X8_EBX];

/// Bits of one word: number, and name as in /proc/cpuinfo where Linux has one.
type Bits = &'static [(u32, &'static str)];

/// What programs and kernels built for Ivy Bridge rely on.
#[rustfmt::skip]
const FEATURES: [(Word, Bits); 5] = [
    (L1_ECX, &[
        (0, "pni"), (1, "pclmulqdq"), (9, "ssse3"), (13, "cx16"), (17, "pcid"), (19, "sse4_1"), (20, "sse4_2"),
        (23, "popcnt"), (25, "aes"), (26, "xsave"), (28, "avx"), (29, "f16c"), (30, "rdrand")
    ]),
    (L7_EBX, &[(0, "fsgsbase"), (7, "smep"), (9, "erms")]),
    (LD1_EAX, &[(0, "xsaveopt")]),
    (X1_ECX, &[(0, "lahf_lm")]),
    (X1_EDX, &[(11, "syscall"), (20, "nx"), (26, "pdpe1gb"), (27, "rdtscp"), (29, "lm")]),
];

/// Bits that may stay, though a guest does well without them.
#[rustfmt::skip]
const ALLOWED: [(Word, Bits); 5] = [
    // Tracing, power and virtualization of the processor; what every guest is told anew: x2APIC, timer, hypervisor.
    (L1_ECX, &[
        (2, "dtes64"), (3, "monitor"), (4, "ds_cpl"), (5, "vmx"), (6, "smx"), (7, "est"), (8, "tm2"), (14, "xtpr"),
        (15, "pdcm"), (18, "dca"), (21, "x2apic"), (24, "tsc_deadline_timer"), (27, "osxsave"), (31, "hypervisor")
    ]),
    // Microcode for old processors.
    (L7_EDX, &[(10, "md_clear"), (26, "ibrs, ibpb"), (27, "stibp"), (28, "flush_l1d"), (31, "ssbd")]),
    // AMD: what describes the topology; virtualization and counters, in the place of Intel's.
    (X1_ECX, &[(1, "cmp_legacy"), (2, "svm"), (22, "topoext"), (23, "perfctr_core")]),
    // AMD repeats leaf 1 EDX here. Its own are not among them: MMXEXT, FXSR_OPT and 3DNow!.
    (X1_EDX, &[
        (0, "fpu"), (1, "vme"), (2, "de"), (3, "pse"), (4, "tsc"), (5, "msr"), (6, "pae"), (7, "mce"), (8, "cx8"),
        (9, "apic"), (12, "mtrr"), (13, "pge"), (14, "mca"), (15, "cmov"), (16, "pat"), (17, "pse36"), (23, "mmx"),
        (24, "fxsr")
    ]),
    // AMD: barriers against speculation, how to use them, and "not vulnerable".
    (X8_EBX, &[
        (12, "ibpb"), (14, "ibrs"), (15, "stibp"), (16, "ibrs always on"), (17, "stibp always on"),
        (18, "ibrs preferred"), (19, "ibrs same mode"), (24, "ssbd"), (25, "virt_ssbd"), (26, "ssb_no"),
        (29, "btc_no"), (30, "ibpb_ret")
    ]),
];

/// Cuts `leaves` down to Ivy Bridge, with all that options can ask for.
pub(super) fn apply(leaves: &mut Leaves) {
    let vendor = leaves.vendor();
    let last_extended = EXTENDED + if vendor == Vendor::Amd { 0x1e } else { 8 };
    for (base, last) in [(0, LAST_BASIC), (EXTENDED, last_extended)] {
        if let Some(leaf) = leaves.get_mut(base, 0) {
            leaf.eax = leaf.eax.min(last);
        }
    }
    leaves.retain(|entry| match (entry.function, entry.index) {
        (7, 1..) | (0xd, 3..) => false,
        (0..=LAST_BASIC | HYPERVISOR..EXTENDED, _) => true,
        (function, _) => (EXTENDED..=last_extended).contains(&function),
    });
    for word in WORDS {
        if let Some(value) = word.find_mut(leaves) {
            *value &= mask(word);
        }
    }
    if let Some(leaf) = leaves.get_mut(7, 0) {
        leaf.eax = 0; // no further subleaves
    }
    if let Some(leaf) = leaves.get_mut(EXTENDED + 8, 0) {
        // Four-level paging: 48 bits of linear address. The physical width is the host's, as EPT and NPT need it.
        leaf.eax = leaf.eax & !0xff00 | 48 << 8;
    }
    extended_state(leaves);
    counters(leaves);
    if vendor == Vendor::Intel {
        rename(leaves);
    }
}

/// Features of Ivy Bridge that are not in `leaves`.
pub(super) fn missing(leaves: &Leaves) -> Vec<&'static str> {
    let lacks = |word: Word, bit: u32| word.find(leaves) >> bit & 1 == 0;
    let in_word =
        |(word, bits): (Word, Bits)| bits.iter().filter(move |&&(bit, _)| lacks(word, bit)).map(|&(_, name)| name);
    FEATURES.into_iter().flat_map(in_word).collect()
}

/// The bits of `word` that may stay.
fn mask(word: Word) -> u32 {
    let bits = FEATURES.iter().chain(&ALLOWED).filter(|(other, _)| *other == word).flat_map(|(_, bits)| *bits);
    bits.fold(0, |mask, (bit, _)| mask | 1 << bit)
}

/// XSAVE of x87, SSE and AVX state only (leaf 0xD).
fn extended_state(leaves: &mut Leaves) {
    const LEGACY_AND_HEADER: u32 = 512 + 64;
    const AVX: u32 = 256;
    if let Some(leaf) = leaves.get_mut(0xd, 0) {
        leaf.eax &= 0b111;
        leaf.edx = 0;
        leaf.ecx = LEGACY_AND_HEADER + if leaf.eax & 0b100 != 0 { AVX } else { 0 };
        leaf.ebx = LEGACY_AND_HEADER; // for XCR0 at reset; KVM keeps it current
    }
    if let Some(leaf) = leaves.get_mut(0xd, 1) {
        (leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0); // no supervisor state, no compaction
    }
}

/// Version 3 of performance monitoring: four counters for each thread, three for fixed events, seven events by name.
fn counters(leaves: &mut Leaves) {
    let Some(leaf) = leaves.get_mut(COUNTERS, 0) else { return };
    let at_most = |shift: u32, most: u32| (leaf.eax >> shift & 0xff).min(most) << shift;
    leaf.eax = at_most(0, 3) | at_most(8, 4) | leaf.eax & 0xff_0000 | at_most(24, 7);
    leaf.ebx &= 0x7f;
    leaf.ecx = 0; // fixed counters by mask, of version 5
    leaf.edx = leaf.edx & !0x1f | (leaf.edx & 0x1f).min(3);
}

fn rename(leaves: &mut Leaves) {
    if let Some(leaf) = leaves.get_mut(1, 0) {
        leaf.eax = SIGNATURE;
    }
    leaves.put_name(NAME);
}
