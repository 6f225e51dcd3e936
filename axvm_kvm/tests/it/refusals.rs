//! What KVM refuses comes back as an error that names the thing and the reason.

use crate::common::{Bench, kvm_or_skip};
use axvm_arch::Gpa;
use axvm_arch::cpuid::CpuidEntry;
use axvm_arch::msr::{MTRR_DEF_TYPE, MTRR_ENABLE, MTRR_WRITE_BACK, Msr};
use axvm_kvm::{KvmError, VcpuSetup};
use axvm_sync::EventFd;

#[test]
fn an_unknown_msr_is_named() {
    let bench = Bench::new(&kvm_or_skip!(), &[]);
    let msrs = [
        Msr { index: MTRR_DEF_TYPE, value: MTRR_ENABLE | MTRR_WRITE_BACK },
        Msr { index: 0x1234_5678, value: 9 },
        Msr { index: MTRR_DEF_TYPE, value: 0 },
    ];
    let setup = VcpuSetup { cpuid: &bench.cpuid, msrs: &msrs, start: None, is_bsp: false };
    let error = bench.vm.create_vcpu(1, &setup).unwrap_err();
    assert!(matches!(error, KvmError::Msr { id: 1, msr: 0x1234_5678, value: 9 }), "{error:?}");
}

#[test]
fn a_vcpu_too_many_says_both_limits() {
    let kvm = kvm_or_skip!();
    let bench = Bench::new(&kvm, &[]);
    let limit = kvm.capabilities().max_vcpu_id;
    let setup = VcpuSetup { cpuid: &bench.cpuid, msrs: &[], start: None, is_bsp: false };
    for id in [limit, 0] {
        let text = bench.vm.create_vcpu(id, &setup).unwrap_err().to_string();
        assert!(text.contains(&format!("APIC id {id} ")) && text.contains(&format!("below {limit}")), "{text}");
    }
}

#[test]
fn a_cpuid_too_long_is_an_error() {
    let bench = Bench::new(&kvm_or_skip!(), &[]);
    let setup = VcpuSetup { cpuid: &[CpuidEntry::default(); 300], msrs: &[], start: None, is_bsp: false };
    let error = bench.vm.create_vcpu(1, &setup).unwrap_err();
    assert!(matches!(error, KvmError::VcpuSetup { id: 1, .. }), "{error:?}");
}

#[test]
fn eventfds_that_kvm_does_not_take_are_errors() {
    let bench = Bench::new(&kvm_or_skip!(), &[]);
    let fd = EventFd::new().unwrap();
    bench.vm.irqfd(5, &fd).unwrap();
    assert!(matches!(bench.vm.irqfd(5, &fd), Err(KvmError::IrqFd { gsi: 5, .. })));
    assert!(matches!(bench.vm.ioeventfd(Gpa(0), 3, None, &fd), Err(KvmError::IoEventFd { len: 3, .. })));
    assert!(matches!(bench.vm.ioeventfd(Gpa(0), 0, Some(1), &fd), Err(KvmError::IoEventFd { len: 0, .. })));
}

#[test]
fn this_kvm_answers_for_the_host() {
    let kvm = kvm_or_skip!();
    let capabilities = kvm.capabilities();
    assert!(capabilities.max_vcpus >= 20, "{capabilities:?}");
    assert!(capabilities.max_vcpu_id >= capabilities.max_vcpus, "{capabilities:?}");
    let cpuid = kvm.supported_cpuid().unwrap();
    assert!(cpuid.iter().any(|leaf| leaf.function == 0x4000_0000), "KVM's own leaf");
    assert!(cpuid.iter().any(|leaf| leaf.function == 7 && leaf.indexed));
    assert!(kvm.supported_msrs().unwrap().contains(&0x10), "the TSC");
}
