//! Rules on control registers, debug registers and MSRs.
//!
//! ```text
//!   CR0 CR3 CR4 EFER   what goes together, what is reserved, what this processor lacks
//!   DR6 DR7            upper halves
//!   DEBUGCTL SYSENTER_ESP SYSENTER_EIP PAT
//! ```
//!
//! Spec: Intel SDM volume 3C, 27.3.1.1; AMD APM volume 2, 15.5.1, 15.25.4. Left out: see [`super`].

use axvm_arch::bits::Bits;
use axvm_arch::control::{cr3, cr4 as names, efer as efer_names};
use axvm_arch::cpuid::Vendor;
use axvm_arch::msr;
use axvm_arch::registers::{cr0, cr4, efer};

use super::{CONSISTENCY, EntryState, Feature, Rule, Source, must_be_canonical, must_be_clear, wrong};

const SECTION: &str = "27.3.1.1 \"Checks on Guest Control Registers, Debug Registers, and MSRs\"";
const BOTH: Source = Source::Both(SECTION, CONSISTENCY);
const INTEL: Source = Source::Intel(SECTION);
const AMD: Source = Source::Amd(CONSISTENCY);
const UPPER: u64 = 0xffff_ffff_0000_0000;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "cr0-upper",
        source: BOTH,
        says: "Bits 63 to 32 of CR0 are reserved",
        look: |s| must_be_clear("CR0", s.system().cr0, UPPER),
    },
    Rule {
        name: "cr0-pg-pe",
        source: INTEL,
        says: "Paging (CR0.PG) needs protected mode (CR0.PE)",
        look: |s| wrong(s.cr0(cr0::PG) && !s.has_protection(), pair(s), "set CR0.PE or clear CR0.PG"),
    },
    Rule {
        name: "long-needs-protection",
        source: AMD,
        says: "Long mode (EFER.LME with CR0.PG) needs protected mode (CR0.PE)",
        look: |s| wrong(lme_with_paging(s) && !s.has_protection(), pair(s), "set CR0.PE or clear EFER.LME"),
    },
    Rule {
        name: "cr0-nw-cd",
        source: AMD,
        says: "Not-write-through (CR0.NW) needs the cache disabled (CR0.CD)",
        look: |s| wrong(s.cr0(cr0::NW) && !s.cr0(cr0::CD), pair(s), "set CR0.CD or clear CR0.NW"),
    },
    Rule {
        name: "cr3-reserved",
        source: BOTH,
        says: "CR3 has no bits above the processor's physical addresses",
        look: |s| {
            const LAM: Feature = (7, 1, 0, 26);
            let lam = if s.has(LAM) { cr3::LAM_U48 | cr3::LAM_U57 } else { 0 };
            must_be_clear("CR3", s.system().cr3, !((1 << s.processor.physical_bits) - 1) & !lam)
        },
    },
    Rule {
        name: "cr4-unknown",
        source: BOTH,
        says: "CR4 has only bits that this processor knows",
        look: |s| {
            let reserved = Bits::new(s.system().cr4, names::BITS).unnamed();
            let lacking = FEATURES.iter().filter(|(bit, feature)| s.cr4(*bit) && !s.has(*feature));
            let wrong_bits = lacking.fold(reserved, |bits, (bit, _)| bits | bit);
            let mut said = must_be_clear("CR4", s.system().cr4, wrong_bits)?;
            let names = names::bits(wrong_bits & !reserved);
            if names.value != 0 {
                said.right += &format!(": CPUID has no {}", names.names());
            }
            Some(said)
        },
    },
    Rule {
        name: "cr4-cet-wp",
        source: BOTH,
        says: "Control-flow enforcement (CR4.CET) needs write protection (CR0.WP)",
        look: |s| wrong(s.cr4(cr4::CET) && !s.cr0(cr0::WP), pair(s), "set CR0.WP or clear CR4.CET"),
    },
    Rule {
        name: "long-needs-paging",
        source: INTEL,
        says: "Long mode (EFER.LMA) needs paging (CR0.PG)",
        look: |s| wrong(s.is_long() && !s.cr0(cr0::PG), pair(s), "set CR0.PG or clear EFER.LMA"),
    },
    Rule {
        name: "long-needs-pae",
        source: BOTH,
        says: "Long mode needs entries of 64 bits (CR4.PAE)",
        look: |s| {
            let long = s.is_long() || lme_with_paging(s);
            wrong(long && !s.cr4(cr4::PAE), pair(s), "set CR4.PAE or clear EFER.LME and LMA")
        },
    },
    Rule {
        name: "cr4-pcide-long",
        source: INTEL,
        says: "Process-context identifiers (CR4.PCIDE) need long mode (EFER.LMA)",
        look: |s| wrong(s.cr4(cr4::PCIDE) && !s.is_long(), pair(s), "clear CR4.PCIDE"),
    },
    Rule {
        name: "efer-reserved",
        source: BOTH,
        says: "EFER has only bits that this processor knows",
        look: |s| {
            let of_amd = efer::SVME | efer::LMSLE | efer::FFXSR | efer::TCE;
            let of_amd = of_amd | efer::MCOMMIT | efer::INTWB | efer::UAIE | efer::AIBRSE;
            let foreign = if s.processor.vendor == Vendor::Intel { of_amd } else { 0 };
            let no_nx = if s.has(NX) { 0 } else { efer::NXE };
            let reserved = Bits::new(s.system().efer, efer_names::BITS).unnamed();
            must_be_clear("EFER", s.system().efer, reserved | foreign | no_nx)
        },
    },
    Rule {
        name: "efer-no-long-mode",
        source: BOTH,
        says: "EFER.LME and LMA need a processor with long mode",
        look: |s| {
            let right = "clear both: CPUID has no long mode (0x80000001, EDX bit 29)";
            wrong(s.efer(efer::LME | efer::LMA) && !s.has(LONG_MODE), pair(s), right)
        },
    },
    Rule {
        name: "efer-lma-lme",
        source: INTEL,
        says: "With paging, EFER.LMA is what EFER.LME is",
        look: |s| {
            let differ = s.cr0(cr0::PG) && s.is_long() != s.efer(efer::LME);
            wrong(differ, pair(s), "set both or neither of EFER.LME and LMA")
        },
    },
    Rule {
        name: "dr6-upper",
        source: AMD,
        says: "Bits 63 to 32 of DR6 are reserved",
        look: |s| must_be_clear("DR6", s.snapshot.debug.dr6, UPPER),
    },
    Rule {
        name: "dr7-upper",
        source: BOTH,
        says: "Bits 63 to 32 of DR7 are reserved",
        look: |s| must_be_clear("DR7", s.snapshot.debug.dr7, UPPER),
    },
    Rule {
        name: "debugctl-reserved",
        source: INTEL,
        says: "IA32_DEBUGCTL has bits 0 to 2 and 6 to 15 only",
        look: |s| must_be_clear("IA32_DEBUGCTL", s.snapshot.msr(msr::DEBUGCTL)?, !0xffc7),
    },
    Rule {
        name: "sysenter-esp",
        source: INTEL,
        says: "The stack of SYSENTER is a canonical address",
        look: |s| must_be_canonical("IA32_SYSENTER_ESP", s.snapshot.msr(msr::SYSENTER_ESP)?, s.processor.linear_bits),
    },
    Rule {
        name: "sysenter-eip",
        source: INTEL,
        says: "The target of SYSENTER is a canonical address",
        look: |s| must_be_canonical("IA32_SYSENTER_EIP", s.snapshot.msr(msr::SYSENTER_EIP)?, s.processor.linear_bits),
    },
    Rule {
        name: "pat-types",
        source: Source::Both(SECTION, "15.25.4 \"Nested Paging and VMRUN/#VMEXIT\""),
        says: "Each of IA32_PAT's eight bytes is a memory type: 0, 1, 4, 5, 6 or 7",
        look: |s| {
            let pat = s.snapshot.msr(msr::PAT)?;
            let bad = pat.to_le_bytes().iter().position(|kind| !matches!(kind, 0 | 1 | 4..=7))?;
            wrong(true, format!("IA32_PAT is {pat:#x}"), format!("change byte {bad}; a reset leaves 0x7040600070406"))
        },
    },
];

/// CPUID: no-execute.
const NX: Feature = (0x8000_0001, 0, 3, 20);
/// CPUID: long mode.
const LONG_MODE: Feature = (0x8000_0001, 0, 3, 29);

/// Which feature a bit of CR4 needs; bits that are not here came with processors older than long mode.
const FEATURES: &[(u64, Feature)] = &[
    (cr4::VME, (1, 0, 3, 1)),
    (cr4::PVI, (1, 0, 3, 1)),
    (cr4::TSD, (1, 0, 3, 4)),
    (cr4::DE, (1, 0, 3, 2)),
    (cr4::PSE, (1, 0, 3, 3)),
    (cr4::PAE, (1, 0, 3, 6)),
    (cr4::MCE, (1, 0, 3, 7)),
    (cr4::PGE, (1, 0, 3, 13)),
    (cr4::OSFXSR, (1, 0, 3, 24)),
    (cr4::OSXMMEXCPT, (1, 0, 3, 25)),
    (cr4::UMIP, (7, 0, 2, 2)),
    (cr4::LA57, (7, 0, 2, 16)),
    (cr4::VMXE, (1, 0, 2, 5)),
    (cr4::SMXE, (1, 0, 2, 6)),
    (cr4::FSGSBASE, (7, 0, 1, 0)),
    (cr4::PCIDE, (1, 0, 2, 17)),
    (cr4::OSXSAVE, (1, 0, 2, 26)),
    (cr4::SMEP, (7, 0, 1, 7)),
    (cr4::SMAP, (7, 0, 1, 20)),
    (cr4::PKE, (7, 0, 2, 3)),
    (cr4::PKS, (7, 0, 2, 31)),
    (cr4::UINTR, (7, 0, 3, 5)),
    (cr4::LAM_SUP, (7, 1, 0, 26)),
    (cr4::FRED, (7, 1, 0, 17)),
];

/// The registers that decide on the mode.
fn pair(s: &EntryState<'_>) -> String {
    let system = s.system();
    format!("CR0 is {:#x}, CR4 {:#x}, EFER {:#x}", system.cr0, system.cr4, system.efer)
}

fn lme_with_paging(s: &EntryState<'_>) -> bool {
    s.efer(efer::LME) && s.cr0(cr0::PG)
}
