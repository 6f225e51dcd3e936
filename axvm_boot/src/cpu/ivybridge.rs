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

/// Highest basic leaf of Ivy Bridge: extended state.
const LAST_BASIC: u32 = 0xd;
/// First leaf of the hypervisor's range.
const HYPERVISOR: u32 = 0x4000_0000;
/// AMD's virtualization, for nested guests.
const SVM: u32 = 0x8000_000a;
/// Family 6, model 0x3e, stepping 4.
const SIGNATURE: u32 = 0x306e4;
const NAME: &str = "Intel Xeon Processor E5 v2 (Ivy Bridge)";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// One 32-bit answer of CPUID whose bits are features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word(u32, u32, Register);

const L1_ECX: Word = Word(1, 0, Register::Ecx);
const L7_EBX: Word = Word(7, 0, Register::Ebx);
const L7_ECX: Word = Word(7, 0, Register::Ecx);
const L7_EDX: Word = Word(7, 0, Register::Edx);
const LD1_EAX: Word = Word(0xd, 1, Register::Eax);
const X1_ECX: Word = Word(EXTENDED + 1, 0, Register::Ecx);
const X1_EDX: Word = Word(EXTENDED + 1, 0, Register::Edx);
const X8_EBX: Word = Word(EXTENDED + 8, 0, Register::Ebx);

/// All words that are cut down.
const WORDS: [Word; 8] = [L1_ECX, L7_EBX, L7_ECX, L7_EDX, LD1_EAX, X1_ECX, X1_EDX, X8_EBX];

/// What programs and kernels built for Ivy Bridge rely on: bit and name.
const FEATURES: [(Word, &[(u32, &str)]); 5] = [
    (
        L1_ECX,
        &[
            (0, "pni"),
            (1, "pclmulqdq"),
            (9, "ssse3"),
            (13, "cx16"),
            (17, "pcid"),
            (19, "sse4_1"),
            (20, "sse4_2"),
            (23, "popcnt"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
        ],
    ),
    (L7_EBX, &[(0, "fsgsbase"), (7, "smep"), (9, "erms")]),
    (LD1_EAX, &[(0, "xsaveopt")]),
    (X1_ECX, &[(0, "lahf_lm")]),
    (X1_EDX, &[(11, "syscall"), (20, "nx"), (26, "pdpe1gb"), (27, "rdtscp"), (29, "lm")]),
];

/// Bits that may stay, though a guest does well without them.
const ALLOWED: [(Word, u32); 5] = [
    // DTES64, MONITOR, DS-CPL, VMX, SMX, EST, TM2, xTPR, PDCM, DCA, x2APIC, TSC deadline, OSXSAVE, hypervisor.
    (L1_ECX, 0x8924_c1fc),
    // Microcode for old processors: MD_CLEAR, IBRS and IBPB, STIBP, L1D_FLUSH, SSBD.
    (L7_EDX, 0x9c00_0400),
    // AMD: CmpLegacy and TopologyExtensions describe the topology.
    (X1_ECX, 1 << 1 | 1 << 22),
    // AMD repeats leaf 1 EDX here; MMXEXT, FXSR_OPT and 3DNow! are its own.
    (X1_EDX, 0x0183_f3ff),
    // AMD: IBPB, IBRS, STIBP and how to use them, SSBD, and "not vulnerable" bits.
    (X8_EBX, 0x670f_d000),
];

/// Cuts `leaves` down to Ivy Bridge.
pub(super) fn apply(leaves: &mut Leaves) {
    let vendor = leaves.vendor();
    let last_extended = EXTENDED + if vendor == Vendor::Amd { 0x1e } else { 8 };
    for (base, last) in [(0, LAST_BASIC), (EXTENDED, last_extended)] {
        if let Some(leaf) = leaves.get_mut(base, 0) {
            leaf.eax = leaf.eax.min(last);
        }
    }
    leaves.retain(|entry| match (entry.function, entry.index) {
        (7, 1..) | (0xd, 3..) | (SVM, _) => false,
        (0..=LAST_BASIC | HYPERVISOR..EXTENDED, _) => true,
        (function, _) => (EXTENDED..=last_extended).contains(&function),
    });
    for word in WORDS {
        if let Some(value) = word.find_mut(leaves) {
            *value &= word.mask();
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
    if vendor == Vendor::Intel {
        rename(leaves);
    }
}

/// Features of Ivy Bridge that are not in `leaves`.
pub(super) fn missing(leaves: &Leaves) -> Vec<&'static str> {
    let lacks = |word: Word, bit: u32| word.find(leaves) >> bit & 1 == 0;
    let in_word = |(word, bits): (Word, &'static [(u32, &'static str)])| {
        bits.iter().filter(move |&&(bit, _)| lacks(word, bit)).map(|&(_, name)| name)
    };
    FEATURES.into_iter().flat_map(in_word).collect()
}

impl Word {
    fn find(self, leaves: &Leaves) -> u32 {
        leaves.get(self.0, self.1).map_or(0, |leaf| match self.2 {
            Register::Eax => leaf.eax,
            Register::Ebx => leaf.ebx,
            Register::Ecx => leaf.ecx,
            Register::Edx => leaf.edx,
        })
    }

    fn find_mut(self, leaves: &mut Leaves) -> Option<&mut u32> {
        let leaf = leaves.get_mut(self.0, self.1)?;
        Some(match self.2 {
            Register::Eax => &mut leaf.eax,
            Register::Ebx => &mut leaf.ebx,
            Register::Ecx => &mut leaf.ecx,
            Register::Edx => &mut leaf.edx,
        })
    }

    /// The bits that may stay.
    fn mask(self) -> u32 {
        let features = FEATURES.iter().filter(|(word, _)| *word == self).flat_map(|(_, bits)| *bits);
        let allowed = ALLOWED.iter().filter(|(word, _)| *word == self);
        features.fold(0, |mask, (bit, _)| mask | 1 << bit) | allowed.fold(0, |mask, (_, bits)| mask | bits)
    }
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

fn rename(leaves: &mut Leaves) {
    if let Some(leaf) = leaves.get_mut(1, 0) {
        leaf.eax = SIGNATURE;
    }
    leaves.put_name(NAME);
}
