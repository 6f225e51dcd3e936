//! A vCPU starts in the state it was given.

use crate::common::{Bench, CODE, Special, flat_32bit, guest, kvm_or_skip, say_skipped_for};
use axvm_arch::cpuid::CpuidEntry;
use axvm_arch::msr::{MTRR_DEF_TYPE, MTRR_ENABLE, MTRR_WRITE_BACK, Msr};

#[test]
fn registers_are_as_given() {
    let bench = Bench::new(&kvm_or_skip!(), &[]);
    assert_eq!(bench.bsp.state().unwrap(), flat_32bit(CODE));
}

#[test]
fn the_tsc_has_a_credible_frequency_or_none_is_claimed() {
    let bench = Bench::new(&kvm_or_skip!(), &[]);
    let khz = bench.vm.tsc_khz();
    assert!(khz.is_none_or(|khz| (100_000..20_000_000).contains(&khz)), "{khz:?}");
}

guest!(
    reads_its_apic,
    ".code32",
    "mov eax, [0xfee000f0]",
    "mov [0x3000], eax",
    "mov eax, [0xfee00350]",
    "mov [0x3004], eax",
    "mov eax, [0xfee00360]",
    "mov [0x3008], eax",
    "out 0x80, al",
    "hlt",
);

#[test]
fn the_bootstrap_processor_is_in_virtual_wire_mode() {
    let mut bench = Bench::new(&kvm_or_skip!(), reads_its_apic());
    bench.run_to_report();
    let registers = [0x3000, 0x3004, 0x3008].map(|gpa| u32::from_le_bytes(bench.peek(gpa)));
    assert_eq!(registers, [0x1ff, 0x700, 0x400], "SVR, LINT0 ExtINT, LINT1 NMI");
}

guest!(
    tells_cpuid_msr_and_fpu,
    ".code32",
    "mov eax, 0x40000100", // CPUID, subleaf 1
    "mov ecx, 1",
    "cpuid",
    "mov [0x3000], ebx",
    "mov ecx, 0x2ff", // IA32_MTRR_DEF_TYPE
    "rdmsr",
    "mov [0x3004], eax",
    "fnstcw [0x3008]",
    "out 0x80, al",
    "hlt",
);

#[test]
fn the_guest_sees_the_cpuid_msrs_and_fpu_it_was_given() {
    let leaf = CpuidEntry { function: 0x4000_0100, indexed: true, ebx: 0x11, ..CpuidEntry::default() };
    let leaves = [leaf, CpuidEntry { index: 1, ebx: 0x22, ..leaf }];
    let mtrr = Msr { index: MTRR_DEF_TYPE, value: MTRR_ENABLE | MTRR_WRITE_BACK };
    let special = Special { cpuid: &leaves, msrs: &[mtrr], ..Special::default() };
    let mut bench = Bench::special(&kvm_or_skip!(), tells_cpuid_msr_and_fpu(), &special);
    bench.run_to_report();
    let seen = [0x3000, 0x3004, 0x3008].map(|gpa| u32::from_le_bytes(bench.peek(gpa)));
    assert_eq!(seen, [0x22, 0x806, 0x37f]);
}

guest!(counts_with_the_first_counter, ".code32", "xor ecx, ecx", "rdpmc", "mov al, 1", "out 0x80, al", "hlt",);

guest!(reports_a_fault, ".code32", "mov al, 13", "out 0x80, al", "hlt");

/// CPUID tells this guest of all counters that KVM has: it is KVM that refuses them.
#[test]
fn a_vm_without_counters_has_none_for_a_guest_that_looks_all_the_same() {
    const GENERAL_PROTECTION: u64 = 13;
    let kvm = kvm_or_skip!();
    let told = kvm.supported_cpuid().unwrap();
    let counters = told.iter().any(|leaf| leaf.function == 0xa && leaf.eax & 0xff != 0);
    if counters && !kvm.capabilities().pmu_disable {
        return say_skipped_for("KVM cannot take its counters away", "Linux before 5.18");
    }
    let mut bench =
        Bench::special(&kvm, counts_with_the_first_counter(), &Special { no_pmu: true, ..Special::default() });
    bench.interrupt_gate(GENERAL_PROTECTION, 0x2000);
    bench.place(0x2000, reports_a_fault());
    assert_eq!(bench.run_to_report(), 13);
}
