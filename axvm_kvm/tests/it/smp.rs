//! Application processors wait for INIT and SIPI, which the bootstrap processor sends through its APIC.

use crate::common::{Bench, Special, guest, kvm_or_skip};
use axvm_arch::msi::{MsiMessage, MsiRoute};
use axvm_kvm::{Exit, Kicker, KvmVcpu, Routes};
use axvm_sync::EventFd;
use std::sync::Arc;
use std::thread;

/// Runs application processors, each on a thread, while `during` runs on this one; kicks them in the end.
fn with_aps<T>(aps: Vec<KvmVcpu>, during: impl FnOnce() -> T) -> T {
    let kickers: Vec<Arc<Kicker>> = aps.iter().map(|ap| Arc::new(ap.kicker().unwrap())).collect();
    thread::scope(|scope| {
        for (mut ap, kicker) in aps.into_iter().zip(&kickers) {
            scope.spawn(move || {
                crate::common::run_until(&mut ap, kicker, |exit| match exit {
                    Exit::Interrupted => true,
                    exit => panic!("{exit:x?}"),
                })
            });
        }
        let result = during();
        kickers.iter().for_each(|kicker| kicker.kick());
        result
    })
}

guest!(
    wakes_all_the_others,
    ".code32",
    "mov dword ptr [0xfee00300], 0xc4500", // INIT to all but self
    "mov dword ptr [0xfee00300], 0xc4608", // SIPI to all but self: start at 0x8000
    "2: cmp dword ptr [0x3000], 19",
    "jne 2b",
    "out 0x80, al",
    "hlt",
);
guest!(
    starts_in_real_mode,
    ".code16",
    "cli",
    "lgdt [0x4f0]",
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    ".byte 0x66, 0xea", // far jump to 0x10:0x9000
    ".long 0x9000",
    ".word 0x10",
);
guest!(
    tells_its_apic_id,
    ".code32",
    "mov eax, 0x18",
    "mov ds, eax",
    "mov eax, [0xfee00020]", // APIC id
    "shr eax, 24",
    "inc byte ptr [eax + 0x3100]",
    "lock inc dword ptr [0x3000]",
    "2: hlt",
    "jmp 2b",
);

#[test]
fn twenty_vcpus_start_and_each_knows_its_apic_id() {
    let mut bench = Bench::new(&kvm_or_skip!(), wakes_all_the_others());
    bench.place(0x8000, starts_in_real_mode());
    bench.place(0x9000, tells_its_apic_id());
    let aps = (1..20).map(|id| bench.ap(id)).collect();
    with_aps(aps, || bench.run_to_report());
    let said: Vec<usize> = (0..32).filter(|&id| bench.peek::<32>(0x3100)[id] == 1).collect();
    assert_eq!(said, (1..20).collect::<Vec<_>>());
}

guest!(
    wakes_number_300,
    ".code32",
    "mov ecx, 0x830", // x2APIC interrupt command register
    "mov edx, 300",
    "mov eax, 0x4500", // INIT
    "wrmsr",
    "mov eax, 0x4608", // SIPI: start at 0x8000
    "wrmsr",
    "2: cmp dword ptr [0x3000], 0",
    "je 2b",
    "out 0x80, al",
    "hlt",
);
guest!(
    tells_its_x2apic_id,
    ".code16",
    "mov ecx, 0x802", // x2APIC id
    "rdmsr",
    "mov [0x3000], eax",
    "2: hlt",
    "jmp 2b",
);

#[test]
fn an_apic_id_above_254_works_in_x2apic_mode() {
    let mut bench =
        Bench::special(&kvm_or_skip!(), wakes_number_300(), &Special { x2apic: true, ..Special::default() });
    bench.place(0x8000, tells_its_x2apic_id());
    let aps = vec![bench.ap(300)];
    with_aps(aps, || bench.run_to_report());
    assert_eq!(u32::from_le_bytes(bench.peek(0x3000)), 300);
}

guest!(
    waits_for_number_300,
    ".code32",
    "mov ecx, 0x830", // x2APIC interrupt command register
    "mov edx, 300",
    "mov eax, 0x4500", // INIT
    "wrmsr",
    "mov eax, 0x4608", // SIPI: start at 0x8000
    "wrmsr",
    "2: cmp dword ptr [0x3000], 0",
    "je 2b",
    "mov al, 1",
    "out 0x80, al",
    "3: cmp dword ptr [0x3004], 0",
    "je 3b",
    "mov al, 2",
    "out 0x80, al",
    "hlt",
);
guest!(
    waits_for_a_message_in_real_mode,
    ".code16",
    "mov ecx, 0x80f", // x2APIC spurious interrupt vector register: on
    "xor edx, edx",
    "mov eax, 0x1ff",
    "wrmsr",
    "mov ecx, 0x802",
    "rdmsr",
    "mov [0x3000], eax",
    "sti",
    "2: hlt",
    "jmp 2b",
);
guest!(takes_a_message_in_real_mode, ".code16", "mov dword ptr [0x3004], 1", "2: hlt", "jmp 2b");

/// The upper bits of its id are where a guest puts them that was told so (KVM_FEATURE_MSI_EXT_DEST_ID).
#[test]
fn a_message_reaches_an_apic_id_above_255() {
    let special = Special { x2apic: true, ..Special::default() };
    let mut bench = Bench::special(&kvm_or_skip!(), waits_for_number_300(), &special);
    bench.place(0x8000, waits_for_a_message_in_real_mode());
    bench.place(0x9000, takes_a_message_in_real_mode());
    bench.place(0x44 * 4, &[0x00, 0x90, 0, 0]); // the real-mode vector table
    let routes = Routes::new(&bench.vm).unwrap();
    let (gsi, line) = (routes.allocate().unwrap(), EventFd::new().unwrap());
    bench.vm.irqfd(gsi, &line).unwrap();
    let aps = vec![bench.ap(300)];
    with_aps(aps, || {
        assert_eq!(bench.run_to_report(), 1);
        let address = 0xfee0_0000 | (300 & 0xff) << 12 | (300 >> 8) << 5;
        routes.set(&[MsiRoute { gsi, message: Some(MsiMessage { address, data: 0x44 }) }]).unwrap();
        line.signal();
        assert_eq!(bench.run_to_report(), 2);
    });
}
