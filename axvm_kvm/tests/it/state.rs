//! A guest in the middle of work goes on in another VM, and notices nothing.
//!
//! ```text
//!   VM 1: run, stop anywhere --save--> text --restore--> VM 2 over the same RAM: run on
//! ```
//!
//! Left out, because this KVM may be one that interprets: x87 instructions (their registers are carried all the same).

use crate::common::{Bench, Special, guest, kvm_or_skip, say_skipped_for};
use crate::modes::turns_on_long_mode;
use axvm_arch::msr;
use axvm_kvm::state::EventState;
use axvm_kvm::{Exit, KvmError, VcpuState};
use std::thread;
use std::time::Duration;

const ROUNDS: u32 = 20_000;

guest!(
    computes,
    ".code32",
    "mov ecx, 20000",
    "mov ebx, 12345",
    "xor esi, esi",
    "2: imul ebx, ebx, 1664525",
    "add ebx, 1013904223",
    "xor esi, ebx",
    "mov [0x3000], esi", // half of the work lies in memory
    "mov ebp, [0x3000]",
    "rol ebp, 5",
    "mov esi, ebp",
    "test ecx, 0xfff",
    "jnz 3f",
    "out 0x81, al", // now and then, a stop that comes on a busy host too
    "3: dec ecx",
    "jnz 2b",
    "mov [0x3004], esi",
    "out 0x80, al",
    "hlt",
);

/// What the guest above computes.
fn computed() -> u32 {
    let (mut ebx, mut esi) = (12345_u32, 0_u32);
    for _ in 0..ROUNDS {
        ebx = ebx.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        esi = (esi ^ ebx).rotate_left(5);
    }
    esi
}

#[test]
fn a_computation_stopped_anywhere_gives_the_same_result() {
    let kvm = kvm_or_skip!();
    let mut bench = Bench::new(&kvm, computes());
    let (mut moves, mut done) = (0, false);
    while !done {
        // Ends the run at some moment, or lets it finish the instruction that stopped it.
        let kicker = bench.kicker.clone();
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(5));
            kicker.kick();
        });
        let kicker = bench.kicker.clone();
        bench.run_until(|exit| {
            match exit {
                Exit::IoOut { port: 0x81, .. } => kicker.kick(),
                Exit::IoOut { .. } => done = true,
                _ => {}
            }
            done || *exit == Exit::Interrupted
        });
        other.join().unwrap();
        bench.kicker.clear();
        if !done {
            (bench, _) = bench.moved(&kvm, Vec::new());
            moves += 1;
        }
    }
    assert_eq!(u32::from_le_bytes(bench.peek(0x3004)), computed());
    assert!(moves > 0, "it was over before the first move");
}

guest!(
    fills_registers,
    ".code32",
    "mov eax, cr4",
    "or eax, 0x200", // OSFXSR
    "mov cr4, eax",
    "movdqu xmm0, [0x4000]",
    "movdqu xmm7, [0x4010]",
    "mov eax, 0x11112222",
    "mov cr2, eax",
    "mov dr0, eax",
    "mov eax, 0x33334444",
    "mov dr3, eax",
    "mov ecx, 0xc0000081", // STAR
    "mov eax, 0",
    "mov edx, 0x00100008",
    "wrmsr",
    "mov ecx, 0xc0000082", // LSTAR
    "mov eax, 0x89abcdef",
    "mov edx, 0x00004567",
    "wrmsr",
    "mov ecx, 0xc0000102", // KERNEL_GS_BASE
    "mov eax, 0x55556666",
    "mov edx, 0x00000007",
    "wrmsr",
    "mov ecx, 0x2ff", // MTRR_DEF_TYPE, which KVM's list does not have
    "mov eax, 0xc06",
    "xor edx, edx",
    "wrmsr",
    "mov dword ptr [0xfee00080], 0x50", // TPR
    "mov eax, 0x18",
    "mov fs, eax",
    "mov esp, 0xffc",
    "mov edi, 0x77778888",
    "mov al, 1",
    "out 0x80, al",
    "movdqu [0x4020], xmm0",
    "movdqu [0x4030], xmm7",
    "mov [0x3000], edi",
    "mov eax, cr2",
    "mov [0x3004], eax",
    "mov eax, dr0",
    "mov [0x3008], eax",
    "mov eax, dr3",
    "mov [0x300c], eax",
    "mov ecx, 0xc0000081",
    "rdmsr",
    "mov [0x3010], edx",
    "mov ecx, 0xc0000082",
    "rdmsr",
    "mov [0x3014], eax",
    "mov [0x3018], edx",
    "mov ecx, 0xc0000102",
    "rdmsr",
    "mov [0x301c], eax",
    "mov ecx, 0x2ff",
    "rdmsr",
    "mov [0x3020], eax",
    "mov eax, [0xfee00080]",
    "mov [0x3024], eax",
    "mov al, 2",
    "out 0x80, al",
    "hlt",
);

#[test]
fn registers_of_every_kind_are_carried() {
    let kvm = kvm_or_skip!();
    let mut bench = Bench::new(&kvm, fills_registers());
    let vectors: Vec<u8> = (0..32).map(|n| n * 7 + 1).collect();
    bench.place(0x4000, &vectors);
    assert_eq!(bench.run_to_standstill(), 1);
    (bench, _) = bench.moved(&kvm, Vec::new());
    assert_eq!(bench.run_to_report(), 2);

    assert_eq!(bench.peek::<32>(0x4020)[..], vectors, "xmm0, xmm7");
    let seen: Vec<u32> = bench.peek::<40>(0x3000).as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    let expected =
        [0x7777_8888, 0x1111_2222, 0x1111_2222, 0x3333_4444, 0x10_0008, 0x89ab_cdef, 0x4567, 0x5555_6666, 0xc06, 0x50];
    assert_eq!(seen, expected, "{seen:x?}");
}

guest!(
    works_in_64_bits_twice,
    ".code64",
    "mov r9, 0x1122334455667788",
    "mov r15, 0x8877665544332211",
    "mov al, 1",
    "out 0x80, al",
    "mov [0x3000], r9",
    "mov [0x3008], r15",
    "mov rax, cr3",
    "mov [0x3010], rax",
    "mov al, 2",
    "out 0x80, al",
    "hlt",
);

#[test]
fn long_mode_and_its_paging_are_carried() {
    let kvm = kvm_or_skip!();
    let mut bench = Bench::new(&kvm, turns_on_long_mode());
    bench.place(0x2000, works_in_64_bits_twice());
    assert_eq!(bench.run_to_standstill(), 1);
    assert!(bench.bsp.save().unwrap().system.cs.long);
    (bench, _) = bench.moved(&kvm, Vec::new());
    assert_eq!(bench.run_to_report(), 2);
    let seen = [0x3000, 0x3008, 0x3010].map(|gpa| u64::from_le_bytes(bench.peek(gpa)));
    assert_eq!(seen, [0x1122_3344_5566_7788, 0x8877_6655_4433_2211, 0x1_0000], "{seen:x?}");
}

/// What moves by itself between two looks at a vCPU that stands still.
fn without_clocks(mut state: VcpuState) -> VcpuState {
    state.msrs.retain(|msr| ![msr::TSC, msr::TSC_DEADLINE].contains(&msr.index));
    state
}

#[test]
fn what_was_restored_is_what_is_saved_again() {
    let kvm = kvm_or_skip!();
    let mut bench = Bench::new(&kvm, fills_registers());
    assert_eq!(bench.run_to_standstill(), 1);
    let mut state = bench.bsp.save().unwrap();
    // x87 registers and control word, where FXSAVE has them, and that x87 is in use, in XSTATE_BV.
    state.xsave.0[0..2].copy_from_slice(&0x27f_u16.to_le_bytes());
    (32..160).filter(|at| at % 16 < 10).for_each(|at| state.xsave.0[at] = at as u8);
    state.xsave.0[512] |= 0b11;
    state.system.fs.available = true;
    state.debug.dr7 = 0x455; // breakpoints that no instruction meets
    state.ldt.selector = 0;

    let vm = kvm.create_vm(&bench.ram).unwrap();
    let vcpu = vm.restore_vcpu(&state).unwrap();
    let again = vcpu.save().unwrap();
    assert_eq!(without_clocks(again), without_clocks(state.clone()));
    let text = format!("{state:?}");
    assert!(text.contains("Runnable") && text.contains("4096 bytes: 7f02"), "{text}");
    assert!(text.len() < 30_000, "{} characters", text.len());
}

#[test]
fn ids_above_254_need_a_vm_that_allows_them() {
    let kvm = kvm_or_skip!();
    let mut bench = Bench::special(&kvm, computes(), &Special { x2apic: true, ..Special::default() });
    let ap = bench.ap(300);
    let (vm_state, ap_state) = (bench.vm.save().unwrap(), ap.save().unwrap());
    let plain = kvm.create_vm(&bench.ram).unwrap();
    let error = plain.restore(&vm_state).unwrap_err().to_string();
    assert!(error.contains("x2apic_ids is true, and must be false"), "{error}");
    let mut aps = vec![ap];
    (bench, aps) = bench.moved(&kvm, aps);
    assert_eq!(aps[0].save().unwrap().lapic, ap_state.lapic);
    assert!(bench.vm.save().unwrap().x2apic_ids);
}

#[test]
fn a_damaged_state_is_an_error_that_names_the_field() {
    let kvm = kvm_or_skip!();
    let bench = Bench::new(&kvm, computes());
    let good = bench.bsp.save().unwrap();
    let with = |damage: &dyn Fn(&mut VcpuState)| {
        let mut state = good.clone();
        damage(&mut state);
        kvm.create_vm(&bench.ram).unwrap().restore_vcpu(&state).unwrap_err()
    };
    let told = |error: KvmError, word: &str| assert!(error.to_string().contains(word), "{error}");
    told(with(&|state| state.xsave.0.truncate(4095)), "the length of xsave is 4095, and must be 4096");
    told(with(&|state| state.lapic.0.0.push(0)), "the length of lapic");
    told(with(&|state| state.xcrs = vec![axvm_kvm::state::Xcr { index: 0, value: 1 }; 17]), "the number of xcrs is 17");
    told(with(&|state| state.system.cr4 = u64::MAX), "system registers (KVM_SET_SREGS)");
    told(with(&|state| state.xsave.0[512..520].fill(0xff)), "the XSAVE area (KVM_SET_XSAVE)");
    told(
        with(&|state| (state.events.exception.injected, state.events.exception.vector) = (true, 99)),
        "events (KVM_SET_VCPU_EVENTS)",
    );
    told(with(&|state| state.msrs.push(msr::Msr { index: 0x1234_5678, value: 1 })), "0x12345678");
    let error = bench.bsp.restore(&VcpuState { id: 7, ..good.clone() }).unwrap_err();
    told(error, "APIC id 0 cannot be restored: id is 7, and must be 0");

    let mut vm = bench.vm.save().unwrap();
    vm.ioapic.pins.pop();
    told(bench.vm.restore(&vm).unwrap_err(), "the number of IOAPIC pins is 23, and must be 24");
    assert!(serde_json::from_str::<EventState>("{\"exception\": 1}").is_err());
}

/// Far from any clock of a test.
const FAR: u64 = 1 << 50;

#[test]
fn kvmclock_goes_on_where_it_stood() {
    let kvm = kvm_or_skip!();
    let bench = Bench::new(&kvm, computes());
    let mut state = bench.vm.save().unwrap();
    state.clock_ns += FAR;
    let vm = kvm.create_vm(&bench.ram).unwrap();
    vm.restore(&state).unwrap();
    let clock = vm.save().unwrap().clock_ns;
    assert!((state.clock_ns..state.clock_ns + 60_000_000_000).contains(&clock), "{clock}");
}

#[test]
fn the_tsc_goes_on_where_it_stood() {
    let kvm = kvm_or_skip!();
    let bench = Bench::new(&kvm, computes());
    let mut state = bench.bsp.save().unwrap();
    let tsc = |state: &VcpuState| state.msrs.iter().find(|msr| msr.index == msr::TSC).unwrap().value;
    let saved = tsc(&state);
    state.msrs.iter_mut().filter(|msr| msr.index == msr::TSC).for_each(|msr| msr.value += FAR);
    let vm = kvm.create_vm(&bench.ram).unwrap();
    let now = tsc(&vm.restore_vcpu(&state).unwrap().save().unwrap());
    if now < saved + FAR / 2 {
        return say_skipped_for("no TSC offsets", "this KVM ignores them");
    }
    assert!(now >= saved + FAR, "{now} after {}", saved + FAR);
}
