//! What a feature stands on: a guest is told of none whose ground is missing.
//!
//! ```text
//!   avx512f --> avx2 --> avx --> xsave --> fxsr --> fpu       a feature that lacks what it stands on goes,
//!      |                  |        |                          then what stands on that, until all that is
//!      v                  v        v                          left has its ground
//!   XCR0 5, 6, 7       XCR0 2    XCR0 0, 1    (leaf 0xD)
//! ```
//!
//! A host can be inconsistent: an emulated processor without XSAVE that still reports AVX, a hypervisor that masks one
//! bit of a pair, a KVM that reports AMX and keeps back its state, for which a program has to ask first. Kernels check few of these: Linux runs its AVX code for RAID 6 and AES in such a guest, and dies of an
//! invalid opcode. What goes can only be said less of, never more: nothing here adds a feature.
//!
//! Spec: Intel SDM volume 2A, CPUID; volume 1, 13.2 "Enumeration of CPU Support for XSAVE Instructions and
//! XSAVE-Supported Features", 14.3 "Detection of Intel AVX Instructions", 15.2 "Detection of AVX-512 Foundation
//! Instructions"; AMD APM volume 3, appendix E. Left out: BMI and TBM, which use VEX and XOP encodings on general registers
//! and need no state beyond them; pairs that only performance suffers from.

use std::fmt;

use super::CpuConfig;
use super::leaves::{EXTENDED, Leaves};
use super::word::{L1_ECX, L1_EDX, L7_1_EAX, L7_1_EDX, L7_EBX, L7_ECX, L7_EDX, LD1_EAX, Word, X1_ECX, X1_EDX};

/// A bit of a word, and the feature's name in /proc/cpuinfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Feature(Word, u32, &'static str);

/// What a feature may stand on.
#[derive(Clone, Copy, Debug)]
enum Ground {
    /// Another feature.
    On(Feature),
    /// All of these components of XCR0: leaf 0xD, subleaf 0.
    User(u64),
    /// All of these components of IA32_XSS: leaf 0xD, subleaf 1.
    Supervisor(u64),
    /// The performance counters of leaf 0xA, version 1 or later.
    Counters,
    /// The MSR TSC_AUX, which RDTSCP and RDPID read.
    TscAux,
}

use Ground::{Counters, On, Supervisor, TscAux, User};

const FPU: Feature = Feature(L1_EDX, 0, "fpu");
const PSE: Feature = Feature(L1_EDX, 3, "pse");
const TSC: Feature = Feature(L1_EDX, 4, "tsc");
const MSR: Feature = Feature(L1_EDX, 5, "msr");
const PAE: Feature = Feature(L1_EDX, 6, "pae");
const MCE: Feature = Feature(L1_EDX, 7, "mce");
const APIC: Feature = Feature(L1_EDX, 9, "apic");
const MMX: Feature = Feature(L1_EDX, 23, "mmx");
const FXSR: Feature = Feature(L1_EDX, 24, "fxsr");
const SSE: Feature = Feature(L1_EDX, 25, "sse");
const SSE2: Feature = Feature(L1_EDX, 26, "sse2");
const SSE3: Feature = Feature(L1_ECX, 0, "pni");
const PCLMULQDQ: Feature = Feature(L1_ECX, 1, "pclmulqdq");
const SSSE3: Feature = Feature(L1_ECX, 9, "ssse3");
const PCID: Feature = Feature(L1_ECX, 17, "pcid");
const SSE4_1: Feature = Feature(L1_ECX, 19, "sse4_1");
const AES: Feature = Feature(L1_ECX, 25, "aes");
const XSAVE: Feature = Feature(L1_ECX, 26, "xsave");
const AVX: Feature = Feature(L1_ECX, 28, "avx");
const SGX: Feature = Feature(L7_EBX, 2, "sgx");
const AVX2: Feature = Feature(L7_EBX, 5, "avx2");
const RDT_M: Feature = Feature(L7_EBX, 12, "cqm");
const MPX: Feature = Feature(L7_EBX, 14, "mpx");
const RDT_A: Feature = Feature(L7_EBX, 15, "rdt_a");
const AVX512F: Feature = Feature(L7_EBX, 16, "avx512f");
const INTEL_PT: Feature = Feature(L7_EBX, 25, "intel_pt");
const AVX512BW: Feature = Feature(L7_EBX, 30, "avx512bw");
const PKU: Feature = Feature(L7_ECX, 3, "pku");
const SHSTK: Feature = Feature(L7_ECX, 7, "shstk");
const KEY_LOCKER: Feature = Feature(L7_ECX, 23, "key_locker");
const ENQCMD: Feature = Feature(L7_ECX, 29, "enqcmd");
const UINTR: Feature = Feature(L7_EDX, 5, "uintr");
const ARCH_LBR: Feature = Feature(L7_EDX, 19, "arch_lbr");
const IBT: Feature = Feature(L7_EDX, 20, "ibt");
const AMX_TILE: Feature = Feature(L7_EDX, 24, "amx_tile");
const ARCH_PERFMON: Feature = Feature(L7_1_EAX, 8, "arch_perfmon_ext");
const AVX10: Feature = Feature(L7_1_EDX, 19, "avx10");
const APX: Feature = Feature(L7_1_EDX, 21, "apx");
const XSAVEC: Feature = Feature(LD1_EAX, 1, "xsavec");
const XSAVES: Feature = Feature(LD1_EAX, 3, "xsaves");
const SVM: Feature = Feature(X1_ECX, 2, "svm");
const IBS: Feature = Feature(X1_ECX, 10, "ibs");
const LWP: Feature = Feature(X1_ECX, 15, "lwp");
const PERFCTR_CORE: Feature = Feature(X1_ECX, 23, "perfctr_core");
const MMXEXT: Feature = Feature(X1_EDX, 22, "mmxext");
const LM: Feature = Feature(X1_EDX, 29, "lm");
const AMD_3DNOW: Feature = Feature(X1_EDX, 31, "3dnow");

/// Components of XCR0 (SDM volume 1, 13.1; APM volume 2, 11.5.2).
const X87_SSE: u64 = 0b11;
const YMM: u64 = 1 << 2;
const BOUNDS: u64 = 0b11 << 3;
const OPMASK_ZMM: u64 = 0b111 << 5;
const PKRU: u64 = 1 << 9;
const TILES: u64 = 0b11 << 17;
const EGPR: u64 = 1 << 19;
const PROFILING: u64 = 1 << 62;
/// Components of IA32_XSS.
const PT: u64 = 1 << 8;
const PASID: u64 = 1 << 10;
const CET: u64 = 0b11 << 11;
const USER_INTERRUPTS: u64 = 1 << 14;
const LBR: u64 = 1 << 15;

/// Every feature that stands on something, from the ground up.
#[rustfmt::skip]
const RULES: &[(Feature, &[Ground])] = &[
    // The oldest state: x87, MMX and SSE, saved by FXSAVE.
    (Feature(L1_EDX, 17, "pse36"), &[On(PSE)]),
    (Feature(L1_EDX, 13, "pge"), &[On(PSE)]),
    (Feature(L1_EDX, 14, "mca"), &[On(MCE)]),
    (MMX, &[On(FPU)]), (FXSR, &[On(FPU)]),
    (SSE, &[On(FXSR)]), (SSE2, &[On(SSE)]), (SSE3, &[On(SSE2)]), (SSSE3, &[On(SSE3)]), (SSE4_1, &[On(SSSE3)]),
    (Feature(L1_ECX, 20, "sse4_2"), &[On(SSE4_1)]), (Feature(X1_ECX, 6, "sse4a"), &[On(SSE3)]),
    (PCLMULQDQ, &[On(SSE2)]), (AES, &[On(SSE2)]), (Feature(L7_EBX, 29, "sha_ni"), &[On(SSE2)]),
    (Feature(L7_ECX, 8, "gfni"), &[On(SSE2)]), (KEY_LOCKER, &[On(SSE2)]),
    (Feature(X1_ECX, 7, "misalignsse"), &[On(SSE)]), (Feature(X1_EDX, 25, "fxsr_opt"), &[On(FXSR)]),
    (MMXEXT, &[On(MMX)]), (AMD_3DNOW, &[On(MMX)]), (Feature(X1_EDX, 30, "3dnowext"), &[On(AMD_3DNOW)]),
    // XSAVE, its kinds, and what needs a component of its own.
    (XSAVE, &[On(FXSR), User(X87_SSE)]), (Feature(L1_ECX, 27, "osxsave"), &[On(XSAVE)]),
    (Feature(LD1_EAX, 0, "xsaveopt"), &[On(XSAVE)]), (XSAVEC, &[On(XSAVE)]),
    (Feature(LD1_EAX, 2, "xgetbv1"), &[On(XSAVE)]), (XSAVES, &[On(XSAVE)]), (Feature(LD1_EAX, 4, "xfd"), &[On(XSAVE)]),
    (MPX, &[On(XSAVE), User(BOUNDS)]), (PKU, &[On(XSAVE), User(PKRU)]), (Feature(L7_ECX, 4, "ospke"), &[On(PKU)]),
    (LWP, &[On(XSAVE), User(PROFILING)]), (APX, &[On(LM), On(XSAVE), User(EGPR)]),
    (SHSTK, &[On(XSAVES), Supervisor(CET)]), (IBT, &[On(XSAVES), Supervisor(CET)]),
    (ENQCMD, &[On(XSAVES), Supervisor(PASID)]), (UINTR, &[On(LM), On(XSAVES), Supervisor(USER_INTERRUPTS)]),
    // 256 bits.
    (AVX, &[On(SSE4_1), On(XSAVE), User(YMM)]),
    (Feature(L1_ECX, 12, "fma"), &[On(AVX)]), (Feature(L1_ECX, 29, "f16c"), &[On(AVX)]), (AVX2, &[On(AVX)]),
    (Feature(X1_ECX, 11, "xop"), &[On(AVX)]), (Feature(X1_ECX, 16, "fma4"), &[On(AVX)]),
    (Feature(L7_ECX, 9, "vaes"), &[On(AES), On(AVX)]), (Feature(L7_ECX, 10, "vpclmulqdq"), &[On(PCLMULQDQ), On(AVX)]),
    (Feature(L7_1_EAX, 0, "sha512"), &[On(AVX2)]), (Feature(L7_1_EAX, 1, "sm3"), &[On(AVX)]),
    (Feature(L7_1_EAX, 2, "sm4"), &[On(AVX2)]), (Feature(L7_1_EAX, 4, "avx_vnni"), &[On(AVX2)]),
    (Feature(L7_1_EAX, 23, "avx_ifma"), &[On(AVX2)]), (Feature(L7_1_EDX, 4, "avx_vnni_int8"), &[On(AVX2)]),
    (Feature(L7_1_EDX, 5, "avx_ne_convert"), &[On(AVX2)]), (Feature(L7_1_EDX, 10, "avx_vnni_int16"), &[On(AVX2)]),
    // 512 bits, and tiles.
    (AVX512F, &[On(AVX2), User(YMM | OPMASK_ZMM)]),
    (Feature(L7_EBX, 17, "avx512dq"), &[On(AVX512F)]), (Feature(L7_EBX, 21, "avx512ifma"), &[On(AVX512F)]),
    (Feature(L7_EBX, 26, "avx512pf"), &[On(AVX512F)]), (Feature(L7_EBX, 27, "avx512er"), &[On(AVX512F)]),
    (Feature(L7_EBX, 28, "avx512cd"), &[On(AVX512F)]), (AVX512BW, &[On(AVX512F)]),
    (Feature(L7_EBX, 31, "avx512vl"), &[On(AVX512F)]), (Feature(L7_ECX, 1, "avx512vbmi"), &[On(AVX512BW)]),
    (Feature(L7_ECX, 6, "avx512_vbmi2"), &[On(AVX512BW)]), (Feature(L7_ECX, 11, "avx512_vnni"), &[On(AVX512F)]),
    (Feature(L7_ECX, 12, "avx512_bitalg"), &[On(AVX512BW)]), (Feature(L7_ECX, 14, "avx512_vpopcntdq"), &[On(AVX512F)]),
    (Feature(L7_EDX, 2, "avx512_4vnniw"), &[On(AVX512F)]), (Feature(L7_EDX, 3, "avx512_4fmaps"), &[On(AVX512F)]),
    (Feature(L7_EDX, 8, "avx512_vp2intersect"), &[On(AVX512F)]), (Feature(L7_EDX, 23, "avx512_fp16"), &[On(AVX512BW)]),
    (Feature(L7_1_EAX, 5, "avx512_bf16"), &[On(AVX512F)]), (AVX10, &[On(AVX512BW)]),
    (AMX_TILE, &[On(LM), On(XSAVE), User(TILES)]),
    (Feature(L7_EDX, 22, "amx_bf16"), &[On(AMX_TILE)]), (Feature(L7_EDX, 25, "amx_int8"), &[On(AMX_TILE)]),
    (Feature(L7_1_EAX, 21, "amx_fp16"), &[On(AMX_TILE)]), (Feature(L7_1_EDX, 8, "amx_complex"), &[On(AMX_TILE)]),
    // Long mode and paging.
    (Feature(X1_EDX, 20, "nx"), &[On(PAE)]), (LM, &[On(PAE), On(MSR)]),
    (Feature(X1_EDX, 11, "syscall"), &[On(MSR)]), (Feature(X1_EDX, 26, "pdpe1gb"), &[On(LM)]),
    (Feature(X1_ECX, 0, "lahf_lm"), &[On(LM)]), (Feature(L1_ECX, 13, "cx16"), &[On(LM)]),
    (Feature(L7_EBX, 0, "fsgsbase"), &[On(LM)]), (Feature(L7_ECX, 16, "la57"), &[On(LM)]),
    (Feature(L7_ECX, 31, "pks"), &[On(LM)]), (PCID, &[On(LM)]), (Feature(L7_EBX, 10, "invpcid"), &[On(PCID)]),
    // Time and interrupts.
    (Feature(L1_ECX, 21, "x2apic"), &[On(APIC), On(MSR)]),
    (Feature(L1_ECX, 24, "tsc_deadline_timer"), &[On(APIC), On(TSC), On(MSR)]),
    (Feature(L7_EBX, 1, "tsc_adjust"), &[On(TSC), On(MSR)]),
    (Feature(X1_EDX, 27, "rdtscp"), &[On(TSC), TscAux]), (Feature(L7_ECX, 22, "rdpid"), &[TscAux]),
    // Performance counters.
    (Feature(L1_ECX, 15, "pdcm"), &[On(MSR), Counters]), (ARCH_LBR, &[On(MSR), Counters]),
    (ARCH_PERFMON, &[Counters]),
];

/// Components of XCR0 that are of use only to these features; a group goes as a whole.
const USER_STATE: &[(u64, &[Feature])] = &[
    (YMM, &[AVX]),
    (BOUNDS, &[MPX]),
    (OPMASK_ZMM, &[AVX512F]),
    (PKRU, &[PKU]),
    (TILES, &[AMX_TILE]),
    (EGPR, &[APX]),
    (PROFILING, &[LWP]),
];

/// The same of IA32_XSS.
const SUPERVISOR_STATE: &[(u64, &[Feature])] =
    &[(PT, &[INTEL_PT]), (PASID, &[ENQCMD]), (CET, &[SHSTK, IBT]), (USER_INTERRUPTS, &[UINTR]), (LBR, &[ARCH_LBR])];

/// Leaves that only tell more of a feature.
const DETAILS: &[(u32, Feature)] = &[
    (0xd, XSAVE),
    (0xf, RDT_M),
    (0x10, RDT_A),
    (0x12, SGX),
    (0x14, INTEL_PT),
    (0x19, KEY_LOCKER),
    (0x1c, ARCH_LBR),
    (0x1d, AMX_TILE),
    (0x1e, AMX_TILE),
    (0x23, ARCH_PERFMON),
    (0x24, AVX10),
    (EXTENDED + 0xa, SVM),
    (EXTENDED + 0x1b, IBS),
    (EXTENDED + 0x1c, LWP),
    (EXTENDED + 0x22, PERFCTR_CORE),
];

/// A feature that the host reports, and a guest is not told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groundless {
    /// Its name in /proc/cpuinfo.
    pub feature: &'static str,
    /// What it stands on and is missing.
    pub lacks: &'static str,
}

/// What was taken out, and why, for people: `avx (no xsave); fma, f16c, avx2 (no avx)`.
pub struct Explained<'a>(pub &'a [Groundless]);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, group) in self.0.chunk_by(|one, next| one.lacks == next.lacks).enumerate() {
            let names: Vec<_> = group.iter().map(|groundless| groundless.feature).collect();
            write!(f, "{}{} (no {})", if n > 0 { "; " } else { "" }, names.join(", "), group[0].lacks)?;
        }
        Ok(())
    }
}

/// Takes out every feature that lacks its ground, and what only describes such a feature. Gives their names.
pub(super) fn close(leaves: &mut Leaves, config: &CpuConfig) -> Vec<Groundless> {
    let mut taken = Vec::new();
    // A feature that goes can take the ground from one before it in the table only by way of leaf 0xD.
    loop {
        let count = taken.len();
        for &(feature, grounds) in RULES {
            let lacks = grounds.iter().find_map(|ground| ground.lacking(leaves, config));
            if let Some(lacks) = lacks.filter(|_| feature.is_in(leaves)) {
                feature.take_out(leaves);
                taken.push(Groundless { feature: feature.2, lacks });
            }
        }
        extended_state(leaves);
        if taken.len() == count {
            break;
        }
    }
    let useless: Vec<u32> =
        DETAILS.iter().filter(|(_, feature)| !feature.is_in(leaves)).map(|&(function, _)| function).collect();
    leaves.retain(|entry| !useless.contains(&entry.function));
    taken
}

impl Feature {
    fn is_in(self, leaves: &Leaves) -> bool {
        self.0.find(leaves) >> self.1 & 1 != 0
    }

    fn take_out(self, leaves: &mut Leaves) {
        if let Some(word) = self.0.find_mut(leaves) {
            *word &= !(1 << self.1);
        }
    }
}

impl Ground {
    /// What is missing of it, if it is.
    fn lacking(self, leaves: &Leaves, config: &CpuConfig) -> Option<&'static str> {
        let (there, name) = match self {
            On(feature) => (feature.is_in(leaves), feature.2),
            User(state) => (user_state(leaves) & state == state, "state in XCR0"),
            Supervisor(state) => (supervisor_state(leaves) & state == state, "state in XSS"),
            Counters => (leaves.get(0xa, 0).is_some_and(|leaf| leaf.eax & 0xff != 0), "performance counters"),
            TscAux => (config.tsc_aux, "MSR TSC_AUX"),
        };
        (!there).then_some(name)
    }
}

fn user_state(leaves: &Leaves) -> u64 {
    leaves.get(0xd, 0).map_or(0, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.eax))
}

fn supervisor_state(leaves: &Leaves) -> u64 {
    leaves.get(0xd, 1).map_or(0, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.ecx))
}

/// Of `state`, what has no feature any more.
fn without_feature(leaves: &Leaves, state: u64, groups: &[(u64, &[Feature])]) -> u64 {
    let useless = groups.iter().filter(|(_, features)| !features.iter().any(|feature| feature.is_in(leaves)));
    useless.fold(0, |all, (group, _)| all | group & state)
}

/// Leaf 0xD: components whose features have gone go too, with their subleaves and their room.
fn extended_state(leaves: &mut Leaves) {
    let (user, supervisor) = (user_state(leaves), supervisor_state(leaves));
    let user_out = without_feature(leaves, user, USER_STATE);
    let supervisor_out = match XSAVES.is_in(leaves) {
        true => without_feature(leaves, supervisor, SUPERVISOR_STATE),
        false => supervisor,
    };
    let out = user_out | supervisor_out;
    leaves.retain(|entry| !(entry.function == 0xd && (2..64).contains(&entry.index) && out >> entry.index & 1 != 0));
    if let Some(leaf) = leaves.get_mut(0xd, 1) {
        (leaf.ecx, leaf.edx) = halves(supervisor & !supervisor_out);
    }
    if user_out == 0 {
        return;
    }
    let user = user & !user_out;
    let size = standard_size(leaves, user);
    if let Some(leaf) = leaves.get_mut(0xd, 0) {
        (leaf.eax, leaf.edx) = halves(user);
        // The first is for XCR0 at reset; KVM keeps it current.
        (leaf.ebx, leaf.ecx) = (LEGACY_AND_HEADER, size);
    }
}

/// Length of an XSAVE area without any component beyond x87 and SSE.
const LEGACY_AND_HEADER: u32 = 512 + 64;

/// Length of an XSAVE area in standard format with these components: where the last one ends.
fn standard_size(leaves: &Leaves, user: u64) -> u32 {
    let parts = (2..64).filter(|index| user >> index & 1 != 0).filter_map(|index| leaves.get(0xd, index));
    parts.map(|part| part.ebx.saturating_add(part.eax)).fold(LEGACY_AND_HEADER, u32::max)
}

fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::super::CpuModel;
    use super::*;
    use axvm_arch::cpuid::CpuidEntry;
    use proptest::prelude::*;

    const ALL_MSRS: CpuConfig =
        CpuConfig { model: CpuModel::ALL_OF_HOST, tsc_deadline: true, tsc_khz: None, tsc_aux: true };

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
        CpuidEntry { function, index, indexed: index > 0 || function == 0xd, eax, ebx, ecx, edx }
    }

    /// A processor that has everything this table knows.
    fn complete() -> Vec<CpuidEntry> {
        let user = X87_SSE | YMM | BOUNDS | OPMASK_ZMM | PKRU | TILES | EGPR | PROFILING;
        let supervisor = PT | PASID | CET | USER_INTERRUPTS | LBR;
        let mut all = vec![
            entry(0, 0, [0x24, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
            entry(1, 0, [0, 0, !0, !0]),
            entry(7, 0, [2, !0, !0, !0]),
            entry(7, 1, [!0; 4]),
            entry(0xa, 0, [2, 0, 0, 0]),
            entry(0xd, 0, [user as u32, 4096, 4096, (user >> 32) as u32]),
            entry(0xd, 1, [0x1f, 4096, supervisor as u32, 0]),
            entry(EXTENDED, 0, [EXTENDED + 0x26, 0, 0, 0]),
            entry(EXTENDED + 1, 0, [0, 0, !0, !0]),
        ];
        let parts = [(2, 256, 576), (3, 64, 960), (4, 64, 1024), (5, 64, 1088), (6, 512, 1152), (7, 1024, 1664)];
        let more = [(9, 8, 2688), (17, 64, 2752), (18, 8192, 2816), (19, 128, 11008), (62, 128, 11136)];
        all.extend(parts.into_iter().chain(more).map(|(index, len, at)| entry(0xd, index, [len, at, 0, 0])));
        all.extend([8, 10, 11, 12, 14, 15].map(|index| entry(0xd, index, [16, 0, 1, 0])));
        let details = DETAILS.iter().filter(|(function, _)| *function != 0xd);
        all.extend(details.map(|&(function, _)| entry(function, 0, [1; 4])));
        all
    }

    fn without(features: &[Feature]) -> Vec<CpuidEntry> {
        let mut leaves = Leaves::new(&complete());
        features.iter().for_each(|feature| feature.take_out(&mut leaves));
        leaves.into_entries()
    }

    fn closed(host: &[CpuidEntry]) -> (Leaves, Vec<Groundless>) {
        let mut leaves = Leaves::new(host);
        let taken = close(&mut leaves, &ALL_MSRS);
        (leaves, taken)
    }

    #[test]
    fn a_processor_that_holds_together_loses_nothing() {
        let (leaves, taken) = closed(&complete());
        assert_eq!((leaves.into_entries(), taken), (complete(), vec![]));
    }

    #[test]
    fn without_xsave_a_guest_is_told_of_no_avx() {
        // What QEMU's `-cpu EPYC,-xsave` shows: leaf 0xD is empty, and AVX stays.
        let mut host = without(&[XSAVE]);
        host.iter_mut().filter(|entry| entry.function == 0xd).for_each(|leaf| *leaf = entry(0xd, leaf.index, [0; 4]));
        let (leaves, taken) = closed(&host);
        let names: Vec<_> = taken.iter().map(|groundless| groundless.feature).collect();
        for name in ["avx", "f16c", "fma", "avx2", "avx512f", "vaes", "vpclmulqdq", "xop", "fma4", "pku", "amx_tile"] {
            assert!(names.contains(&name), "{name} stays: {names:?}");
        }
        assert_eq!(L1_ECX.find(&leaves) & (1 << 12 | 0b111 << 27), 0, "FMA, OSXSAVE, AVX, F16C");
        assert_eq!(L7_EBX.find(&leaves) & (1 << 5 | 0b1111 << 28) & !(1 << 29), 0, "AVX2, AVX-512");
        assert_eq!(L7_EBX.find(&leaves) >> 29 & 1, 1, "SHA needs no XSAVE");
        assert_eq!(L1_ECX.find(&leaves) >> 25 & 1, 1, "nor does AES");
        assert_eq!(L7_EBX.find(&leaves) & (1 << 3 | 1 << 8), 1 << 3 | 1 << 8, "nor do BMI1 and BMI2");
        assert!(leaves.get(0xd, 0).is_none() && leaves.get(0xd, 2).is_none());
        let said = Explained(&taken).to_string();
        assert!(said.contains("avx (no xsave); fma, f16c, avx2, xop, fma4, vaes, vpclmulqdq"), "{said}");
    }

    #[test]
    fn a_component_goes_with_its_feature_and_a_feature_with_its_component() {
        let (leaves, taken) = closed(&without(&[AVX512F]));
        assert_eq!(user_state(&leaves) & OPMASK_ZMM, 0);
        assert!(leaves.get(0xd, 5).is_none() && leaves.get(0xd, 2).is_some());
        assert!(taken.iter().all(|groundless| groundless.feature.starts_with("avx")), "{taken:?}");

        let mut host = complete();
        host.iter_mut().find(|entry| (entry.function, entry.index) == (0xd, 0)).unwrap().eax &= !(1 << 6);
        let (leaves, taken) = closed(&host);
        assert!(taken.contains(&Groundless { feature: "avx512f", lacks: "state in XCR0" }), "{taken:?}");
        assert_eq!(user_state(&leaves) & OPMASK_ZMM, 0, "a part of the group is of no use");
        assert!(AVX2.is_in(&leaves));
    }

    #[test]
    fn amx_goes_where_kvm_keeps_its_state_back() {
        let mut host = complete();
        host.iter_mut().find(|entry| (entry.function, entry.index) == (0xd, 0)).unwrap().eax &= !(TILES as u32);
        host.retain(|entry| entry.function != 0xd || !(17..=18).contains(&entry.index));
        let (leaves, taken) = closed(&host);
        let expected = "amx_tile (no state in XCR0); amx_bf16, amx_int8, amx_fp16, amx_complex (no amx_tile)";
        assert_eq!(Explained(&taken).to_string(), expected);
        assert!(leaves.get(0x1d, 0).is_none() && AVX512F.is_in(&leaves));
    }

    #[test]
    fn the_xsave_area_is_as_long_as_what_is_left() {
        let late = [APX, LWP, AMX_TILE];
        let size = |more: &[Feature]| closed(&without(&[&late, more].concat())).0.get(0xd, 0).unwrap().ecx;
        assert_eq!([size(&[]), size(&[PKU]), size(&[PKU, AVX512F])], [2696, 2688, 1088]);
        assert_eq!([size(&[PKU, AVX512F, MPX]), size(&[PKU, AVX512F, MPX, AVX])], [832, 576]);
    }

    #[test]
    fn supervisor_state_needs_xsaves() {
        let (leaves, taken) = closed(&without(&[XSAVES]));
        assert_eq!(supervisor_state(&leaves), 0);
        assert!(leaves.get(0xd, 11).is_none());
        assert!(["shstk", "ibt", "uintr"].iter().all(|name| taken.iter().any(|taken| taken.feature == *name)));
    }

    #[test]
    fn each_pair_that_kernels_trip_over_goes_together() {
        for (lost, names) in [
            (LM, &["pcid", "invpcid", "la57", "pdpe1gb", "fsgsbase", "cx16"][..]),
            (PCID, &["invpcid"]),
            (APIC, &["x2apic", "tsc_deadline_timer"]),
            (SSE2, &["pni", "ssse3", "sse4_1", "sse4_2", "aes", "pclmulqdq", "sha_ni", "avx"]),
            (AES, &["vaes"]),
            (AVX512BW, &["avx512vbmi", "avx512_fp16", "avx10"]),
        ] {
            let taken = closed(&without(&[lost])).1;
            for name in names {
                assert!(taken.iter().any(|taken| taken.feature == *name), "{name} without {}: {taken:?}", lost.2);
            }
        }
    }

    #[test]
    fn rdtscp_needs_the_msr_that_it_reads() {
        let mut leaves = Leaves::new(&complete());
        let taken = close(&mut leaves, &CpuConfig { tsc_aux: false, ..ALL_MSRS });
        assert_eq!(Explained(&taken).to_string(), "rdtscp, rdpid (no MSR TSC_AUX)");
    }

    #[test]
    fn leaves_that_tell_more_of_a_feature_go_with_it() {
        let (leaves, taken) = closed(&without(&[SVM, PERFCTR_CORE, SGX]));
        assert_eq!(taken, []);
        for function in [EXTENDED + 0xa, EXTENDED + 0x22, 0x12] {
            assert!(leaves.get(function, 0).is_none(), "{function:#x}");
        }
        assert!(leaves.get(0x14, 0).is_some());
        let mut host = complete();
        host.iter_mut().find(|entry| entry.function == 0xa).unwrap().eax = 0;
        assert_eq!(
            Explained(&closed(&host).1).to_string(),
            "pdcm, arch_lbr, arch_perfmon_ext (no performance counters)"
        );
    }

    #[test]
    fn no_feature_stands_on_itself_and_each_has_one_rule() {
        for (n, (feature, grounds)) in RULES.iter().enumerate() {
            let same = |other: &Feature| (other.0, other.1) == (feature.0, feature.1) || other.2 == feature.2;
            assert!(!RULES[..n].iter().any(|(other, _)| same(other)), "{feature:?} twice");
            assert!(!grounds.iter().any(|ground| matches!(ground, On(other) if same(other))), "{feature:?}");
        }
    }

    /// A host that reports anything at all.
    fn any_host() -> impl Strategy<Value = Vec<CpuidEntry>> {
        let masks = proptest::collection::vec(prop_oneof![Just([!0_u32; 4]), any::<[u32; 4]>()], complete().len());
        (masks, any::<u64>()).prop_map(|(masks, kept)| {
            let masked = |(entry, mask): (CpuidEntry, &[u32; 4])| CpuidEntry {
                eax: entry.eax & mask[0],
                ebx: entry.ebx & mask[1],
                ecx: entry.ecx & mask[2],
                edx: entry.edx & mask[3],
                ..entry
            };
            let all = complete().into_iter().zip(&masks).map(masked);
            all.enumerate().filter(|(n, _)| kept >> (n % 64) & 1 != 0 || n % 3 == 0).map(|(_, entry)| entry).collect()
        })
    }

    proptest! {
        /// What is left holds together, a second time changes nothing, and nothing came that was not there.
        #[test]
        fn the_result_is_closed_and_idempotent_and_adds_nothing(host in any_host(), tsc_aux: bool) {
            let config = CpuConfig { tsc_aux, ..ALL_MSRS };
            let mut leaves = Leaves::new(&host);
            let taken = close(&mut leaves, &config);
            for &(feature, grounds) in RULES.iter().filter(|(feature, _)| feature.is_in(&leaves)) {
                for ground in grounds {
                    prop_assert!(ground.lacking(&leaves, &config).is_none(), "{feature:?} without {ground:?}");
                }
            }
            for &(group, features) in USER_STATE {
                let there = user_state(&leaves) & group;
                prop_assert!(there == 0 || features.iter().any(|feature| feature.is_in(&leaves)), "{there:#x}");
            }
            let entries = leaves.into_entries();
            let mut again = Leaves::new(&entries);
            prop_assert_eq!(close(&mut again, &config), vec![]);
            prop_assert_eq!(&again.into_entries(), &entries);

            for entry in &entries {
                let before = host.iter().find(|old| (old.function, old.index) == (entry.function, entry.index)).unwrap();
                // EBX and ECX of leaf 0xD are lengths.
                let features = |entry: &CpuidEntry| match (entry.function, entry.index) {
                    (0xd, 0) => [entry.eax, 0, 0, entry.edx],
                    _ => [entry.eax, entry.ebx, entry.ecx, entry.edx],
                };
                let mut grown = features(entry).into_iter().zip(features(before)).filter(|(now, old)| now & !old != 0);
                prop_assert_eq!(grown.next(), None, "{:?} was {:?}", entry, before);
            }
            let names: std::collections::HashSet<_> = taken.iter().map(|taken| taken.feature).collect();
            prop_assert_eq!(names.len(), taken.len(), "each is told once");
        }
    }
}
