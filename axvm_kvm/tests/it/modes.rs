//! A guest finds its own way from 32-bit protected mode to long mode.

use crate::common::{Bench, guest, kvm_or_skip};
use axvm_arch::registers::{cr0, cr4, efer};
use axvm_kvm::Exit;

guest!(
    turns_on_long_mode,
    ".code32",
    "mov dword ptr [0x10000], 0x11003",    // PML4 -> PDPT
    "mov dword ptr [0x11000], 0x12003",    // PDPT -> page directory of the first GiB
    "mov dword ptr [0x11018], 0x13003",    //      -> page directory of the fourth GiB
    "mov dword ptr [0x12000], 0x83",       // 2 MiB at 0
    "mov dword ptr [0x13400], 0xd0000083", // 2 MiB at 0xd0000000
    "mov eax, cr4",
    "or eax, 0x20", // PAE
    "mov cr4, eax",
    "mov eax, 0x10000",
    "mov cr3, eax",
    "mov ecx, 0xc0000080", // EFER
    "rdmsr",
    "or eax, 0x100", // LME
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80000000", // PG
    "mov cr0, eax",
    "push 0x08", // code64
    "push 0x2000",
    "retf",
);

guest!(
    works_in_64_bits,
    ".code64",
    "mov rax, 0x1122334455667788",
    "mov r15d, 0xd0000000",
    "mov [r15], rax",
    "mov rax, [r15 + 8]",
    "mov [0x3000], rax",
    "mov al, 64",
    "out 0x80, al",
    "hlt",
);

#[test]
fn a_guest_turns_on_long_mode_itself() {
    let mut bench = Bench::new(&kvm_or_skip!(), turns_on_long_mode());
    bench.place(0x2000, works_in_64_bits());
    let (mut wrote, mut report) = (0, 0);
    bench.run_until(|exit| {
        match exit {
            Exit::MmioWrite { address: 0xd000_0000, data } => wrote = u64::from_le_bytes((*data).try_into().unwrap()),
            Exit::MmioRead { address: 0xd000_0008, data } => data.copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]),
            Exit::IoOut { port: 0x80, data, .. } => report = data[0],
            exit => panic!("{exit:x?}"),
        }
        report != 0
    });
    assert_eq!(report, 64);
    assert_eq!(wrote, 0x1122_3344_5566_7788);
    assert_eq!(bench.peek(0x3000), [1, 2, 3, 4, 5, 6, 7, 8]);

    let state = bench.bsp.state().unwrap();
    assert!(state.system.cs.long, "{:x?}", state.system.cs);
    assert_eq!(state.system.cr3, 0x1_0000);
    assert_eq!(state.system.cr0 & (cr0::PE | cr0::PG), cr0::PE | cr0::PG);
    assert_eq!(state.system.cr4 & cr4::PAE, cr4::PAE);
    assert_eq!(state.system.efer & (efer::LME | efer::LMA), efer::LME | efer::LMA);
    assert_eq!(state.regs.r15, 0xd000_0000);
}
