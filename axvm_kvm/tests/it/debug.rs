//! Steps, and an OUT as a breakpoint, also beside OUTs of the guest's own: none of its bytes is lost.

use axvm_arch::Gpa;
use axvm_kvm::{DebugControl, Exit, SHORT_TRAP, Trap, Vcpu};

use crate::common::{Bench, CODE, guest, kvm_or_skip, say_skipped_for};

guest!(
    writes_three_letters,
    ".code32",
    "mov edx, 0x3f8",
    "mov al, 0x41",
    "out dx, al",
    "nop",
    "out dx, al",
    "mov al, 0x43",
    "out dx, al",
    "nop",
    "2: hlt",
    "jmp 2b",
);

/// Where each instruction begins, behind the first.
const PLACES: [(u64, &str); 7] =
    [(5, "mov al"), (7, "first out"), (8, "nop"), (9, "second out"), (10, "mov al"), (12, "third out"), (13, "nop")];

#[test]
fn a_breakpoint_at_any_instruction_loses_no_byte_and_stops_once() {
    let kvm = kvm_or_skip!();
    for (offset, what) in PLACES {
        let mut bench = Bench::new(&kvm, writes_three_letters());
        let at = CODE + offset;
        let was: [u8; 1] = bench.peek(at);
        bench.ram.write(Gpa(at), &SHORT_TRAP).unwrap();
        let traps = vec![Trap { at, len: 1 }];
        bench.bsp.set_debug(&DebugControl { traps, ..DebugControl::default() }).unwrap();
        let (mut letters, mut stops) = (Vec::new(), 0);
        bench.kicker.attach();
        while letters.len() < 3 {
            match bench.bsp.run().unwrap() {
                Exit::IoOut { port: 0x3f8, data, .. } => letters.extend_from_slice(data),
                Exit::Interrupted => {}
                Exit::Debug { pc, .. } => {
                    assert_eq!((pc, bench.bsp.state().unwrap().regs.rip), (at, at), "{what}");
                    stops += 1;
                    // As a debugger: the instruction is back for one step, then the guest goes on.
                    bench.ram.write(Gpa(at), &was).unwrap();
                    bench.bsp.set_debug(&DebugControl::default()).unwrap();
                    bench.bsp.hold_back(false);
                }
                exit => panic!("{what}: {exit:x?}"),
            }
        }
        // Behind the last OUT nothing is met before the loop ends.
        let met = u32::from(offset != 13);
        assert_eq!((String::from_utf8(letters).unwrap().as_str(), stops), ("AAC", met), "{what}");
    }
}

guest!(meets_an_int3, ".code32", "nop", "int3", "mov al, 0x41", "out 0x80, al", "2: hlt", "jmp 2b");
guest!(reports_a_breakpoint, ".code32", "mov al, 0x42", "out 0x80, al", "iretd");

/// Such a guest, and a debugger with an INT3 of its own elsewhere.
fn with_int3(kvm: &axvm_kvm::Kvm) -> Bench {
    let mut bench = Bench::new(kvm, meets_an_int3());
    bench.interrupt_gate(3, 0x2000);
    bench.place(0x2000, reports_a_breakpoint());
    bench.bsp.set_debug(&DebugControl { int3: vec![0x3000], ..DebugControl::default() }).unwrap();
    bench
}

#[test]
fn an_int3_of_the_guests_own_is_its_handlers() {
    let kvm = kvm_or_skip!();
    if !kvm.try_debugging().unwrap().kernel.int3 {
        return say_skipped_for("KVM does not stop at INT3", "");
    }
    let mut bench = with_int3(&kvm);
    assert_eq!([bench.run_to_report(), bench.run_to_report()], [0x42, 0x41]);
}

#[test]
fn a_breakpoint_that_is_given_back_comes_to_the_guests_handler() {
    let mut bench = with_int3(&kvm_or_skip!());
    bench.bsp.inject_breakpoint().unwrap();
    assert_eq!(bench.run_to_report(), 0x42, "the handler is first");
}

#[test]
fn a_step_is_one_instruction() {
    let mut bench = Bench::new(&kvm_or_skip!(), writes_three_letters());
    bench.bsp.set_debug(&DebugControl { step: true, ..DebugControl::default() }).unwrap();
    bench.kicker.attach();
    let mut places = Vec::new();
    while places.len() < 6 {
        let is_out = match bench.bsp.run().unwrap() {
            Exit::IoOut { .. } => true,
            Exit::Debug { .. } | Exit::Interrupted => false,
            exit => panic!("{exit:x?}"),
        };
        // An instruction that asks a device is done with the answer; KVM may not stop behind it by itself.
        bench.bsp.hold_back(is_out);
        if !is_out {
            places.push(bench.bsp.state().unwrap().regs.rip - CODE);
        }
    }
    assert_eq!(places, [5, 7, 8, 9, 10, 12]);
}
