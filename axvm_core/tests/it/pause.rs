//! Pauses: that they hold, that nothing is lost, and what still ends a paused machine.
//!
//! Needs /dev/kvm; without it each test says that it was skipped. The sandbox is on, as for users.

use std::thread;
use std::time::Duration;

use axvm_api::types::{MachineState, VmUpdate, WantedState};
use rustix::process::Signal;

use crate::common::talk::flood;
use crate::common::{Place, has_kvm};
use crate::life::{pause, resume};

#[test]
fn a_guest_that_resets_again_and_again_does_not_overtake_a_pause() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell_on_hvc0("--restart-limit 0");
    // Typed ahead: each start takes one.
    talk.say("reset\n".repeat(8000));
    thread::scope(|scope| {
        // Killed if this fails, so that the listener ends.
        let axvm = axvm;
        scope.spawn(|| talk.rest());
        let mut control = axvm.control();
        for round in 0..250 {
            control.patch("/vm", &VmUpdate { state: WantedState::Paused }).unwrap();
            let paused = axvm.status();
            thread::sleep(Duration::from_millis(round % 8));
            let still = axvm.status();
            for status in [&paused, &still] {
                assert_eq!(status.state, MachineState::Paused, "in round {round}");
            }
            assert_eq!(paused.exits.total, still.exits.total, "in round {round}");
            control.patch("/vm", &VmUpdate { state: WantedState::Resumed }).unwrap();
        }
        axvm.signal(Signal::QUIT);
        axvm.ends_with(128 + 3);
    });
}

#[test]
fn a_paused_machine_ends_by_signal_and_by_request() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, _talk) = place.shell("--grace 0");
    pause(&axvm);
    axvm.signal(Signal::TERM);
    axvm.ends_with(143);

    let (axvm, _talk) = place.shell("");
    pause(&axvm);
    assert_eq!(place.run("ctl ./api stop").0, 0);
    axvm.ends_with(0);

    let (axvm, mut talk) = place.shell("");
    pause(&axvm);
    assert_eq!(place.run("ctl ./api reset").0, 0);
    talk.hear("ready\n> ");
    talk.say("off\n");
    axvm.ends_with(0);
}

#[test]
fn a_hundred_pauses_under_load_lose_nothing() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for (console, words, rounds) in [("shell=hvc0", "--virtio-console stdio", 25), ("shell", "", 8)] {
        let (axvm, mut talk) = place.talking(place.machine(console, &format!("--disk disk.img {words}")));
        let mut pauses = 0;
        let mut control = axvm.control();
        while pauses < 50 {
            talk.say(format!("work {rounds}\n"));
            let listening = thread::scope(|scope| {
                let answer = scope.spawn(|| talk.hear(" done\n> "));
                while !answer.is_finished() {
                    control.patch("/vm", &VmUpdate { state: WantedState::Paused }).unwrap();
                    assert_eq!(axvm.status().state, MachineState::Paused);
                    control.patch("/vm", &VmUpdate { state: WantedState::Resumed }).unwrap();
                    pauses += 1;
                }
                answer.join().unwrap()
            });
            let (lines, answer) = listening.split_once("= ").unwrap();
            assert_eq!(answer, format!("{rounds} of {rounds} work done\n> "), "{lines}");
            let line = flood(1);
            assert_eq!(lines.matches(&line).count(), rounds, "{lines}");
        }
        talk.say("off\n");
        axvm.ends_with(0);
    }
}

#[test]
fn a_paused_machine_stands_still() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("");
    pause(&axvm);
    let before = axvm.status();
    assert_eq!(before.state, MachineState::Paused);
    talk.say("flood 1\n");
    thread::sleep(Duration::from_millis(100));
    assert_eq!(axvm.status().exits.total, before.exits.total);
    let (code, _, errors) = place.run("ctl ./api power-button");
    assert!(code == 1 && errors.contains("resume it first"), "{errors}");
    resume(&axvm);
    assert_eq!(talk.answer_after_all(&flood(1)), "1 flood");
    talk.say("off\n");
    axvm.ends_with(0);
}
