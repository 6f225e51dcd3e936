//! What a halted vCPU can be woken by, and that an NMI wakes one with its interrupts off.

use crate::common::{Bench, guest, kvm_or_skip};
use axvm_kvm::{Exit, Rest, Vcpu};
use std::thread;
use std::time::Duration;

guest!(halts_for_good, ".code32", "cli", "2: hlt", "jmp 2b",);
guest!(halts_for_an_interrupt, ".code32", "sti", "2: hlt", "jmp 2b",);
guest!(runs_with_interrupts_off, ".code32", "cli", "2: jmp 2b",);
guest!(takes_an_nmi, ".code32", "mov al, 7", "out 0x80, al", "2: hlt", "jmp 2b",);

/// Runs the guest for a while, until a kick.
fn run_for_a_while(bench: &mut Bench) {
    let kicker = bench.kicker.clone();
    kicker.attach();
    let kick = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        kicker.kick();
    });
    assert_eq!(bench.bsp.run().unwrap(), Exit::Interrupted);
    kick.join().unwrap();
    bench.kicker.clear();
}

#[test]
fn only_hlt_with_interrupts_off_is_for_good() {
    let kvm = kvm_or_skip!();
    let mut bench = Bench::new(&kvm, halts_for_good());
    run_for_a_while(&mut bench);
    let rip = bench.bsp.state().unwrap().regs.rip;
    assert_eq!(bench.bsp.rest().unwrap(), Rest::Halted { rip });
    for code in [halts_for_an_interrupt(), runs_with_interrupts_off()] {
        let mut bench = Bench::new(&kvm, code);
        run_for_a_while(&mut bench);
        assert_eq!(bench.bsp.rest().unwrap(), Rest::Awake);
        assert_eq!(bench.ap(1).rest().unwrap(), Rest::NotStarted);
    }
}

#[test]
fn an_nmi_wakes_a_vcpu_that_has_halted_for_good() {
    let mut bench = Bench::new(&kvm_or_skip!(), halts_for_good());
    bench.interrupt_gate(2, 0x2000);
    bench.place(0x2000, takes_an_nmi());
    run_for_a_while(&mut bench);
    bench.bsp.nmi().unwrap();
    assert_eq!(bench.bsp.rest().unwrap(), Rest::Awake, "what is to come wakes it");
    assert_eq!(bench.run_to_report(), 7);
}
