//! The library with its fence on: a machine is built, paused, saved, carried and ended under the filters of its threads.
//!
//! A sandbox closes around a process with one thread and never opens again, so this is a program of its own and not a
//! module of `it`. A system call that a thread's role does not have would end it with 159.
//!
//! Needs /dev/kvm; without it the test says that it was skipped.

#[path = "it/guest.rs"]
mod guest;

use std::time::Duration;

use axvm_devices::StopReason;
use axvm_machine::WaitOutcome;
use axvm_sandbox::Files;

use guest::{Lab, assert_proved, end, fresh_ports, has_kvm, soon};

fn main() {
    let (passed, ignored) = if has_kvm() { (1, 0) } else { (0, 1) };
    if passed == 1 {
        a_machine_is_carried_with_the_sandbox_closed();
    }
    println!("test result: ok. {passed} passed; 0 failed; {ignored} ignored; 0 measured; 0 filtered out");
}

fn a_machine_is_carried_with_the_sandbox_closed() {
    let mut lab = Lab::new(2, "");
    axvm_sandbox::arm(&Files::default()).unwrap();
    let (mut machine, mut said, mut count) = (lab.build(), String::new(), 0);
    while machine.wait(&[], Some(Duration::from_millis(7))).unwrap() == WaitOutcome::TimedOut {
        machine.pause(soon()).unwrap();
        let saved = machine.save().unwrap();
        machine.stop(soon()).1.unwrap();
        drop(machine);
        lab.ports = fresh_ports();
        machine = lab.resources.restore(&lab.spec, &lab.ports, &saved).unwrap();
        machine.resume(soon()).unwrap();
        (said, count) = (said + &lab.said(), count + 1);
    }
    assert_eq!(end(&machine), StopReason::Off, "{said}");
    said += &lab.said();
    assert_proved(&said);
    assert!(count > 2, "carried only {count} times");
}
