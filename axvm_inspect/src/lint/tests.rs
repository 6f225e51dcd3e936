//! Each rule is broken once, by the smallest change of a good state, and then is found alone.

use std::collections::BTreeSet;

use axvm_arch::Gpa;
use axvm_arch::control::rflags;
use axvm_arch::cpuid::CpuidEntry;
use axvm_arch::msr::{self, Msr};
use axvm_arch::registers::{CpuState, DescriptorTable, Registers, Segment, SystemRegisters, cr0, cr4, efer};

use super::*;

/// RAM of 1 MiB, all zero but for page tables of PAE and of long mode, which map the first 2 MiB.
fn ram(at: Gpa, data: &mut [u8], pdpte: u64) -> bool {
    const WORDS: [(u64, u64); 4] = [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x83), (0x4000, 0x3001)];
    let word = WORDS.iter().find(|(gpa, _)| *gpa == at.0).map_or(0, |(_, word)| *word);
    let word = if at.0 == 0x4008 { pdpte } else { word };
    data.iter_mut().zip(word.to_le_bytes().into_iter().chain(std::iter::repeat(0))).for_each(|(to, byte)| *to = byte);
    at.0 < 1 << 20
}

/// Long mode at 64 KiB, with nothing to complain about.
fn long() -> Snapshot {
    let data = Segment::data(0x18);
    let system = SystemRegisters {
        cs: Segment::code64(0x10),
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        tr: Segment::tss(0x20, 0),
        gdt: DescriptorTable { base: 0x500, limit: 0x2f },
        idt: DescriptorTable { base: 0x600, limit: 0xfff },
        cr0: cr0::PE | cr0::ET | cr0::PG,
        cr3: 0x1000,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
    };
    let regs = Registers { rip: 0x1_0000, rflags: 2, ..Registers::default() };
    let msrs = [(msr::DEBUGCTL, 0), (msr::SYSENTER_ESP, 0), (msr::SYSENTER_EIP, 0), (msr::PAT, 0x0007_0406_0007_0406)];
    let msrs = msrs.map(|(index, value)| Msr { index, value }).to_vec();
    Snapshot { msrs, ..Snapshot::from(CpuState { regs, system }) }
}

/// Protected mode with paging off.
fn flat() -> Snapshot {
    let mut flat = long();
    let system = &mut flat.cpu.system;
    (system.cs, system.cr0, system.cr4, system.efer) = (Segment::code32(0x10), cr0::PE | cr0::ET, 0, 0);
    flat
}

/// Protected mode with PAE paging.
fn pae() -> Snapshot {
    let mut pae = flat();
    let system = &mut pae.cpu.system;
    (system.cr0, system.cr3, system.cr4) = (system.cr0 | cr0::PG, 0x4000, cr4::PAE);
    pae
}

fn real() -> Snapshot {
    let mut real = flat();
    let system = &mut real.cpu.system;
    system.cr0 = cr0::ET;
    for segment in [&mut system.cs, &mut system.ss, &mut system.ds, &mut system.es, &mut system.fs, &mut system.gs] {
        *segment = Segment { limit: 0xffff, granularity: false, db: false, ..Segment::data(0) };
    }
    real
}

fn v86() -> Snapshot {
    let mut v86 = real();
    let system = &mut v86.cpu.system;
    system.cr0 |= cr0::PE;
    for segment in [&mut system.cs, &mut system.ss, &mut system.ds, &mut system.es, &mut system.fs, &mut system.gs] {
        *segment = Segment { base: 0x1230, selector: 0x123, dpl: 3, ..*segment };
    }
    v86.cpu.regs.rflags |= rflags::VM;
    v86
}

fn names(snapshot: &Snapshot, processor: &Processor, pdpte: u64) -> Vec<&'static str> {
    let read = |at: Gpa, data: &mut [u8]| ram(at, data, pdpte);
    let state = EntryState { snapshot, processor, read: Some(&read) };
    check(&state).iter().map(|finding| finding.rule).collect()
}

fn msr_is(snapshot: &mut Snapshot, index: u32, value: u64) {
    snapshot.msrs.iter_mut().filter(|msr| msr.index == index).for_each(|msr| msr.value = value);
}

/// From a good state, by this change, exactly these rules are broken.
fn breaks(good: Snapshot, change: fn(&mut Snapshot), rules: &[&'static str]) {
    let (any, mut state) = (Processor::default(), good);
    assert_eq!(names(&state, &any, 0), [""; 0], "the state is good before the change");
    change(&mut state);
    let found: BTreeSet<_> = names(&state, &any, 0).into_iter().collect();
    assert_eq!(found, rules.iter().copied().collect());
}

/// A test for each rule, with others that cannot but break with it. And a list of all.
macro_rules! broken {
    ($($test:ident: $rule:literal $(with $other:literal)*, $good:ident, $change:expr;)*) => {
        $(#[test] fn $test() { breaks($good(), $change, &[$rule, $($other),*]); })*
        const BROKEN: &[&str] = &[$($rule),*];
    };
}

broken! {
    upper_half_of_cr0: "cr0-upper", long, |s| s.cpu.system.cr0 |= 1 << 32;
    paging_without_protection: "cr0-pg-pe" with "first-instruction", real, |s| s.cpu.system.cr0 |= cr0::PG;
    long_mode_without_protection: "long-needs-protection" with "cr0-pg-pe", long, |s| s.cpu.system.cr0 &= !cr0::PE;
    long_mode_without_paging: "long-needs-paging", long, |s| s.cpu.system.cr0 &= !cr0::PG;
    long_mode_with_small_entries: "long-needs-pae" with "first-instruction", long, |s| s.cpu.system.cr4 &= !cr4::PAE;
    address_above_the_processors: "cr3-reserved", long, |s| s.cpu.system.cr3 |= 1 << 52;
    write_through_with_cache: "cr0-nw-cd", long, |s| s.cpu.system.cr0 |= cr0::NW;
    unknown_bit_of_cr4: "cr4-unknown", long, |s| s.cpu.system.cr4 |= 1 << 15;
    control_flow_without_write_protection: "cr4-cet-wp", long, |s| s.cpu.system.cr4 |= cr4::CET;
    identifiers_without_long_mode: "cr4-pcide-long", flat, |s| s.cpu.system.cr4 |= cr4::PCIDE;
    unknown_bit_of_efer: "efer-reserved", long, |s| s.cpu.system.efer |= 1 << 9;
    long_mode_enabled_and_not_active: "efer-lma-lme", pae, |s| s.cpu.system.efer |= efer::LME;
    upper_half_of_dr6: "dr6-upper", long, |s| s.debug.dr6 |= 1 << 32;
    upper_half_of_dr7: "dr7-upper", long, |s| s.debug.dr7 |= 1 << 63;
    reserved_bit_of_debugctl: "debugctl-reserved", long, |s| msr_is(s, msr::DEBUGCTL, 1 << 3);
    stack_of_sysenter: "sysenter-esp", long, |s| msr_is(s, msr::SYSENTER_ESP, 1 << 60);
    target_of_sysenter: "sysenter-eip", long, |s| msr_is(s, msr::SYSENTER_EIP, 1 << 60);
    memory_type_that_is_none: "pat-types", long, |s| msr_is(s, msr::PAT, 2 << 56);
    task_in_the_ldt: "tr-ti", long, |s| s.cpu.system.tr.selector |= 4;
    ldt_in_the_ldt: "ldtr-ti", long, |s| s.ldt.selector |= 4;
    virtual_8086_base: "v86-base", v86, |s| s.cpu.system.es.base = 0;
    virtual_8086_limit: "v86-limit", v86, |s| s.cpu.system.gs.limit = 0xfffff;
    virtual_8086_rights: "v86-rights", v86, |s| s.cpu.system.cs.dpl = 0;
    base_of_the_task: "tr-base", long, |s| s.cpu.system.tr.base = 1 << 60;
    base_of_fs: "fs-gs-base", long, |s| s.cpu.system.fs.base = 1 << 60;
    base_of_gs: "fs-gs-base", long, |s| s.cpu.system.gs.base = 1 << 60;
    base_of_the_ldt: "ldtr-base", long, |s| s.ldt.base = 1 << 60;
    base_of_cs: "cs-base", long, |s| s.cpu.system.cs.base = 1 << 32;
    base_of_ds: "data-base", long, |s| s.cpu.system.ds.base = 1 << 32;
    code_that_is_read_only_data: "cs-type", long, |s| s.cpu.system.cs.kind = 1;
    stack_that_is_read_only: "ss-type", long, |s| s.cpu.system.ss.kind = 1;
    data_that_was_not_accessed: "data-type", long, |s| s.cpu.system.ds.kind = 2;
    code_that_cannot_be_read_in_es: "data-type", long, |s| s.cpu.system.es.kind = 9;
    code_that_is_not_usable: "cs-present", long, |s| s.cpu.system.cs.present = false;
    system_segment_in_fs: "code-or-data", long, |s| s.cpu.system.fs.code_or_data = false;
    system_segment_in_cs: "code-or-data", long, |s| s.cpu.system.cs.code_or_data = false;
    code_of_another_level: "cs-dpl", long, |s| s.cpu.system.cs.dpl = 3;
    conforming_code_above_the_stack: "cs-dpl", long, |s| (s.cpu.system.cs.kind, s.cpu.system.cs.dpl) = (15, 1);
    stack_of_real_mode: "ss-dpl", real, |s| s.cpu.system.ss.dpl = 3;
    code_of_both_widths: "cs-l-db", long, |s| s.cpu.system.cs.db = true;
    small_limit_in_pages: "granularity", long, |s| s.cpu.system.tr.granularity = true;
    large_limit_in_bytes: "granularity", long, |s| s.cpu.system.ds.granularity = false;
    task_that_is_not_busy: "tr-type", long, |s| s.cpu.system.tr.kind = 9;
    task_of_16_bits_in_long_mode: "tr-type", long, |s| s.cpu.system.tr.kind = 3;
    no_task: "tr-usable", long, |s| s.cpu.system.tr.present = false;
    ldt_of_another_type: "ldtr-type", long, |s| s.ldt.kind = 3;
    base_of_the_gdt: "gdtr-base", long, |s| s.cpu.system.gdt.base = 1 << 60;
    base_of_the_idt: "idtr-base", long, |s| s.cpu.system.idt.base = 1 << 60;
    rip_above_32_bits: "rip-upper", flat, |s| s.cpu.regs.rip |= 1 << 32;
    rip_above_32_bits_in_compatibility: "rip-upper", long, |s| {
        (s.cpu.regs.rip, s.cpu.system.cs) = (s.cpu.regs.rip | 1 << 32, Segment::code32(0x10));
    };
    rip_between_the_halves: "rip-canonical" with "first-instruction", long, |s| s.cpu.regs.rip |= 1 << 60;
    virtual_8086_in_real_mode: "rflags-vm", v86, |s| s.cpu.system.cr0 &= !cr0::PE;
    zero_flags: "rflags-one", long, |s| s.cpu.regs.rflags = 0;
    reserved_flags: "rflags-reserved", long, |s| s.cpu.regs.rflags |= 1 << 15;
    interrupt_while_they_are_off: "rflags-if", long, |s| s.events.interrupt.injected = true;
    exception_that_is_none: "exception-vector", long, |s| (s.events.exception.injected, s.events.exception.vector) = (true, 2);
    page_fault_without_error_code: "exception-error-code", long, |s| (s.events.exception.injected, s.events.exception.vector) = (true, 14);
    breakpoint_with_error_code: "exception-error-code", long, |s| {
        (s.events.exception.injected, s.events.exception.vector, s.events.exception.error_code) = (true, 3, Some(0));
    };
    unknown_shadow: "shadow-reserved", long, |s| s.events.interrupt.shadow = 4;
    both_shadows: "shadow-both", long, |s| (s.events.interrupt.shadow, s.cpu.regs.rflags) = (3, 0x202);
    shadow_of_sti_while_off: "shadow-sti-if", long, |s| s.events.interrupt.shadow = 2;
    interrupt_in_a_shadow: "shadow-interrupt", long, |s| {
        (s.events.interrupt.shadow, s.cpu.regs.rflags, s.events.interrupt.injected) = (1, 0x202, true);
    };
    nmi_in_a_shadow: "shadow-nmi", long, |s| (s.events.interrupt.shadow, s.events.nmi.injected) = (1, true);
    start_outside_of_ram: "first-instruction", flat, |s| s.cpu.regs.rip = 1 << 21;
    start_on_no_page: "first-instruction", long, |s| s.cpu.regs.rip = 1 << 21;
    no_gate_for_an_interrupt: "idt-too-short", long, |s| (s.cpu.regs.rflags, s.cpu.system.idt.limit) = (0x202, 0x1ff);
}

#[test]
fn every_rule_has_been_broken_and_no_two_have_one_name() {
    let elsewhere = ["efer-no-long-mode", "pdpte-reserved"];
    let broken: BTreeSet<_> = BROKEN.iter().copied().chain(elsewhere).collect();
    let names: Vec<_> = rules().map(|rule| rule.name).collect();
    let all: BTreeSet<_> = names.iter().copied().collect();
    assert_eq!(broken, all);
    assert_eq!(names.len(), all.len());
}

#[test]
fn entries_of_paes_first_level_are_looked_at() {
    let (state, any) = (pae(), Processor::default());
    assert_eq!(names(&state, &any, 0x5001), [""; 0]);
    assert_eq!(names(&state, &any, 0x5003), ["pdpte-reserved"]);
    assert_eq!(names(&state, &any, 0x5002), [""; 0], "what is not present is not looked at");
    assert_eq!(names(&state, &Processor { physical_bits: 36, ..any }, 1 << 36 | 1), ["pdpte-reserved"]);
}

/// A processor with these leaves: 1 EDX, 7 EBX, 0x8000_0001 EDX.
fn with(edx: u32, ebx: u32, extended: u32) -> Processor {
    let leaf = |function, ebx, edx| CpuidEntry { function, ebx, edx, ..CpuidEntry::default() };
    Processor {
        cpuid: vec![leaf(1, 0, edx), CpuidEntry { indexed: true, ..leaf(7, ebx, 0) }, leaf(0x8000_0001, 0, extended)],
        ..Processor::default()
    }
}

#[test]
fn features_are_the_processors() {
    let (pae, long_mode) = (1 << 6, 1 << 29 | 1 << 20);
    let (plain, mut state) = (with(pae, 0, long_mode), long());
    assert_eq!(names(&state, &plain, 0), [""; 0]);
    assert_eq!(names(&state, &with(0, 0, long_mode), 0), ["cr4-unknown"]);
    assert_eq!(names(&state, &with(pae, 0, 1 << 20), 0), ["efer-no-long-mode"]);
    state.cpu.system.cr4 |= cr4::SMEP;
    let findings = check(&EntryState { snapshot: &state, processor: &plain, read: None });
    assert_eq!(
        findings[0].to_string(),
        "CR4 has only bits that this processor knows: CR4 is 0x100020; clear 0x100000: CPUID has no SMEP (Intel SDM \
         volume 3C, 27.3.1.1 \"Checks on Guest Control Registers, Debug Registers, and MSRs\"; AMD APM volume 2, 15.5.1 \
         \"Canonicalization and Consistency Checks\") [cr4-unknown]"
    );
    assert_eq!(names(&state, &with(pae, 1 << 7, long_mode), 0), [""; 0]);
    state.cpu.system.efer |= efer::NXE;
    assert_eq!(names(&state, &with(pae, 1 << 7, 1 << 29), 0), ["efer-reserved"]);
    state.cpu.system.cr3 |= 1 << 61;
    assert_eq!(names(&state, &with(pae, 1 << 7, long_mode), 0), ["cr3-reserved"], "without LAM");
}

#[test]
fn makers_refuse_different_states_and_another_makers_rule_is_a_warning() {
    let by = |vendor| Processor { vendor, ..Processor::default() };
    let grades = |state: &Snapshot, vendor| {
        let findings = check(&EntryState { snapshot: state, processor: &by(vendor), read: None });
        findings.iter().map(|finding| (finding.rule, finding.grade)).collect::<Vec<_>>()
    };
    let (mut amds, mut intels, mut both) = (long(), long(), long());
    amds.cpu.system.cr0 |= cr0::NW;
    intels.cpu.regs.rflags = 0;
    both.cpu.system.cr0 |= 1 << 32;
    for (state, rule, intel, amd, unknown) in [
        (&amds, "cr0-nw-cd", Grade::Warning, Grade::Error, Grade::Warning),
        (&intels, "rflags-one", Grade::Error, Grade::Warning, Grade::Warning),
        (&both, "cr0-upper", Grade::Error, Grade::Error, Grade::Error),
    ] {
        assert_eq!(grades(state, Vendor::Intel), [(rule, intel)]);
        assert_eq!(grades(state, Vendor::Amd), [(rule, amd)]);
        assert_eq!(grades(state, Vendor::Unknown), [(rule, unknown)]);
    }
    let mut svm = long();
    svm.cpu.system.efer |= efer::SVME;
    assert_eq!(grades(&svm, Vendor::Intel), [("efer-reserved", Grade::Error)]);
    assert_eq!(grades(&svm, Vendor::Amd), []);
}

#[test]
fn errors_come_first() {
    let mut state = long();
    (state.cpu.regs.rflags, state.cpu.system.cr0) = (0, state.cpu.system.cr0 | 1 << 40 | cr0::NW);
    let intel = Processor { vendor: Vendor::Intel, ..Processor::default() };
    let findings = check(&EntryState { snapshot: &state, processor: &intel, read: None });
    let found: Vec<_> = findings.iter().map(|finding| (finding.grade, finding.rule)).collect();
    assert_eq!(found, [(Grade::Error, "cr0-upper"), (Grade::Error, "rflags-one"), (Grade::Warning, "cr0-nw-cd")]);
}

#[test]
fn a_page_that_forbids_execution_is_no_place_to_start() {
    let mut state = long();
    state.cpu.system.efer |= efer::NXE;
    let read = |at: Gpa, data: &mut [u8]| {
        let there = ram(at, data, 0);
        if at.0 == 0x3000 && data.len() == 8 {
            data[7] = 0x80;
        }
        there
    };
    let any = Processor::default();
    let findings = check(&EntryState { snapshot: &state, processor: &any, read: Some(&read) });
    assert!(findings[0].found.contains("forbids execution"), "{findings:?}");
}

/// Anything at all: rules neither panic nor overflow.
#[test]
fn no_state_is_too_odd_to_be_judged() {
    for odd in [0, u64::MAX, 1 << 63, 0x5555_5555_5555_5555, 0xaaaa_aaaa_aaaa_aaaa] {
        let mut state = long();
        let segment = Segment {
            base: odd,
            limit: odd as u32,
            selector: odd as u16,
            kind: odd as u8,
            dpl: odd as u8,
            ..Segment::code64(0)
        };
        let system = &mut state.cpu.system;
        (system.cr0, system.cr3, system.cr4, system.efer) = (odd, odd, odd, odd);
        (system.cs, system.ss, system.fs, system.tr) = (segment, segment, segment, segment);
        (state.cpu.regs.rip, state.cpu.regs.rflags, state.debug.dr7) = (odd, odd, odd);
        msr_is(&mut state, msr::PAT, odd);
        for physical_bits in [32, 52] {
            let processor = Processor { physical_bits, linear_bits: 48, ..Processor::default() };
            names(&state, &processor, odd);
        }
    }
}
