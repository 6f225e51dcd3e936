//! Start, end, reset, pause, visits.

use std::time::{Duration, Instant};

use axvm_devices::StopReason;
use axvm_machine::{Chip, PauseError, SaveError, WaitOutcome};

use crate::guest::{Lab, assert_proved, end, has_kvm, soon};

#[test]
fn a_guest_runs_in_this_process_and_again_after_a_reset() {
    if !has_kvm() {
        return;
    }
    let lab = Lab::new(2, "");
    for _ in 0..2 {
        let machine = lab.build();
        assert_eq!(end(&machine), StopReason::Off);
        assert_proved(&lab.said());
        drop(machine);
        lab.resources.clear().unwrap();
    }
}

#[test]
fn every_part_has_its_name_and_its_place() {
    if !has_kvm() {
        return;
    }
    let lab = Lab::new(1, "");
    let machine = lab.build();
    let wired: Vec<_> = machine.inventory().items().iter().map(|item| &*item.part.name).collect();
    let planned: Vec<_> =
        machine.plan().parts().iter().filter(|part| !part.kind.is_in_kvm()).map(|part| &*part.name).collect();
    assert_eq!(wired, planned, "all that is planned is wired");
    assert!(["COM1", "vda", "rng", "balloon", "hvc0"].iter().all(|name| wired.contains(name)), "{wired:?}");
}

#[test]
fn a_paused_machine_stands_still_until_it_is_resumed() {
    if !has_kvm() {
        return;
    }
    let lab = Lab::new(2, "shell");
    let machine = lab.build();
    lab.wait_until_said(&machine, "> ");
    machine.pause(soon()).unwrap();
    machine.pause(soon()).unwrap();
    assert!(machine.is_paused());
    let timer = || {
        let timer = machine.inventory().items().iter().find_map(|item| match &item.chip {
            Chip::PmTimer(timer) => Some(timer.state().nanos),
            _ => None,
        });
        timer.unwrap()
    };
    let (before, paused_at) = (machine.exits(), timer());
    lab.ports.com1.put(b"work 1\r");
    assert_eq!(machine.wait(&[], Some(Duration::from_millis(20))).unwrap(), WaitOutcome::TimedOut);
    assert_eq!(machine.exits(), before);
    assert!(timer() >= paused_at + 20_000_000, "the guest's clocks run on");
    machine.resume(soon()).unwrap();
    lab.wait_until_said(&machine, "= ");
    assert_eq!(machine.stop(soon()), (StopReason::Quit, Ok(())));
    assert_eq!(machine.pause(soon()), Err(PauseError::Stopping));
}

#[test]
fn what_only_the_guest_asked_for_waits_while_the_machine_is_paused() {
    if !has_kvm() {
        return;
    }
    let briefly = Some(Duration::from_millis(20));
    let (by_guest, by_user) = (StopReason::Reset("guest"), StopReason::Quit);
    for insists in [false, true] {
        let lab = Lab::new(2, "shell");
        let machine = lab.build();
        lab.wait_until_said(&machine, "> ");
        // As a vCPU does on its way to the gate; the machine's own thread has not seen it.
        machine.stop_switch().request(by_guest.clone());
        machine.pause(soon()).unwrap();
        assert!(matches!(machine.save(), Err(SaveError::Ended)), "where it went on, the reason would be lost");
        let before = machine.exits();
        for _ in 0..3 {
            assert_eq!(machine.wait(&[], briefly).unwrap(), WaitOutcome::TimedOut);
        }
        assert!(machine.is_paused());
        assert_eq!(machine.exits(), before);
        if insists {
            machine.stop_switch().insist(by_user.clone());
        } else {
            machine.resume(soon()).unwrap();
        }
        assert_eq!(end(&machine), if insists { by_user.clone() } else { by_guest.clone() });
    }
}

#[test]
fn a_stop_that_was_taken_up_comes_before_a_pause() {
    if !has_kvm() {
        return;
    }
    let lab = Lab::new(1, "shell");
    let machine = lab.build();
    machine.stop_switch().request(StopReason::Off);
    for _ in 0..2 {
        assert_eq!(machine.wait(&[], None).unwrap(), WaitOutcome::Stopped);
        assert_eq!(machine.pause(soon()), Err(PauseError::Stopping));
    }
    assert!(!machine.is_paused());
    assert_eq!(end(&machine), StopReason::Off);
}

#[test]
fn a_visit_comes_to_a_paused_vcpu_and_to_no_other() {
    if !has_kvm() {
        return;
    }
    let lab = Lab::new(2, "shell");
    let machine = lab.build();
    let thread = || std::thread::current().name().unwrap_or_default().to_owned();
    assert_eq!(machine.visit(0, move |_| thread()), None, "it runs");
    machine.pause(soon()).unwrap();
    for index in [1, 0] {
        assert_eq!(machine.visit(index, move |_| thread()), Some(format!("vcpu{index}")));
    }
    assert_eq!(machine.visit(2, move |_| thread()), None, "there is no such vCPU");
    machine.resume(soon()).unwrap();
    assert_eq!(machine.stop(soon()), (StopReason::Quit, Ok(())));
}

#[test]
fn a_machine_whose_vcpu_has_ended_is_not_saved() {
    if !has_kvm() {
        return;
    }
    let lab = Lab::new(1, "shell");
    let machine = lab.build();
    lab.wait_until_said(&machine, "> ");
    lab.ports.com1.put(b"triple\r");
    let deadline = soon();
    while machine.stop_switch().reason().is_none() {
        assert!(Instant::now() < deadline, "the guest does not crash");
        std::thread::sleep(Duration::from_millis(1));
    }
    machine.pause(soon()).unwrap();
    let refusal = machine.save().unwrap_err().to_string();
    assert!(refusal.contains("has powered off, reset or crashed just before the pause"), "{refusal}");
    machine.resume(soon()).unwrap();
    assert_eq!(end(&machine), StopReason::TripleFault);
}
