//! A kick ends a run at any moment, and stays until it is taken back.

use crate::common::{Bench, Watchdog, guest, kvm_or_skip};
use axvm_kvm::{Exit, Vcpu};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

guest!(spins, ".code32", "2: jmp 2b");
guest!(halts, ".code32", "cli", "2: hlt", "jmp 2b");

#[test]
fn a_kick_breaks_an_endless_loop() {
    let kvm = kvm_or_skip!();
    for code in [spins(), halts()] {
        let mut bench = Bench::new(&kvm, code);
        let kicker = bench.kicker.clone();
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            kicker.kick();
        });
        bench.run_until(|exit| *exit == Exit::Interrupted);
        other.join().unwrap();
        let rip = bench.bsp.state().unwrap().regs.rip;
        assert!((0x1000..0x1004).contains(&rip), "{rip:#x}");
    }
}

guest!(says_1_and_2, ".code32", "mov al, 1", "out 0x80, al", "inc eax", "out 0x80, al", "hlt");

#[test]
fn a_kick_before_the_run_is_not_lost_and_lasts_until_cleared() {
    let mut bench = Bench::new(&kvm_or_skip!(), says_1_and_2());
    bench.kicker.kick();
    bench.kicker.attach();
    for _ in 0..3 {
        assert_eq!(bench.bsp.run().unwrap(), Exit::Interrupted);
    }
    assert_eq!(bench.bsp.state().unwrap().regs.rip, 0x1000, "not one instruction ran");
    bench.kicker.clear();
    assert_eq!(bench.run_to_report(), 1);
}

#[test]
fn a_kicked_run_still_finishes_the_access_it_had_begun() {
    let mut bench = Bench::new(&kvm_or_skip!(), says_1_and_2());
    assert_eq!(bench.run_to_report(), 1);
    bench.kicker.kick();
    assert_eq!(bench.bsp.run().unwrap(), Exit::Interrupted);
    assert_eq!(bench.bsp.state().unwrap().regs.rip, 0x1004, "OUT is done, INC is next");
    bench.kicker.clear();
    assert_eq!(bench.run_to_report(), 2);
}

/// Kicks come at random moments around the entry to KVM_RUN; a lost one would spin until the time limit.
#[test]
fn no_kick_is_lost_at_any_moment() {
    let mut bench = Bench::new(&kvm_or_skip!(), spins());
    let kicker = bench.kicker.clone();
    let (go, round) = channel::<u32>();
    let other = thread::spawn(move || {
        for n in round {
            (0..n * 37 % 4001).for_each(|_| std::hint::spin_loop());
            kicker.kick();
        }
    });
    let _watchdog = Watchdog::over(&bench.kicker);
    bench.kicker.attach();
    for n in 0..2000 {
        bench.kicker.clear();
        go.send(n).unwrap();
        assert_eq!(bench.bsp.run().unwrap(), Exit::Interrupted);
    }
    drop(go);
    other.join().unwrap();
}
