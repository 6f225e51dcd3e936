//! A guest that does not move is explained: on request and by itself, and goes on as before.
//!
//! Needs /dev/kvm; without it each test says that it was skipped. The sandbox is on, as for users.

use std::fs;

use axvm_api::types::Explanation;
use rustix::process::Signal;

use crate::common::terminal::Terminal;
use crate::common::{Axvm, Place, has_kvm, until};

const TITLE: &str = "What the guest does";

/// Waits for the report number `count` on standard error: all that was said.
fn report(axvm: &Axvm, count: usize) -> String {
    until("a report", || {
        let errors = axvm.errors();
        errors.matches(TITLE).count() == count && errors.ends_with("\n\n")
    });
    axvm.errors()
}

#[test]
fn a_guest_is_explained_when_its_user_asks_and_goes_on() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("--console stdio --disk disk.img --on-halt wait");
    talk.ask("work 10");
    axvm.signal(Signal::USR1);
    let told = report(&axvm, 1);
    assert!(told.contains("vCPU 0: asks devices from between 0x") || told.contains("vCPU 0: halted"), "{told}");
    assert!(told.contains("vda: status 0xf ACKNOWLEDGE DRIVER FEATURES_OK DRIVER_OK\n"), "{told}");
    assert!(told.contains("  | = 10 of 10 work done"), "{told}");
    talk.ask("work 10");
    // The same by the control socket, for people and programs.
    let explanation: Explanation = axvm.control().get("/explain").unwrap();
    assert!(explanation.text.starts_with(TITLE) && explanation.vcpus.len() == 1, "{}", explanation.text);
    talk.say("hang\r");
    until("it is halted", || {
        let (code, told, _) = place.run("ctl api explain");
        code == 0 && told.contains("  1. Every vCPU is halted with interrupts off")
    });
    let (_, told, _) = place.run("ctl api explain --json");
    let parsed: Explanation = serde_json::from_str(&told).unwrap();
    assert!(parsed.causes[0].what.starts_with("Every vCPU is halted") && parsed.text.contains("for good"), "{told}");
    assert_eq!(place.run("ctl api pause").0, 0);
    let (_, told, _) = place.run("ctl api explain");
    assert!(told.contains("  1. The machine is paused\n") && told.contains("vCPU 0: halted"), "{told}");
    assert_eq!(place.run("ctl api stop").0, 0);
    axvm.ends_with(0);
}

#[test]
fn a_key_at_the_terminal_explains_the_guest() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let terminal = Terminal::new();
    let (axvm, talk) = terminal.talking(&place, &place.machine("shell", ""));
    talk.say("\x01d");
    assert!(report(&axvm, 1).contains("vCPU 0: "));
    talk.say("off\r");
    axvm.ends_with(0);
}

#[test]
fn a_guest_that_stands_still_is_explained_once_until_it_moves() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = place.shell("--console stdio --on-halt wait --explain 1");
    talk.say("hang\r");
    let told = report(&axvm, 1);
    assert!(told.contains("Every vCPU is halted with interrupts off"), "{told}");
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(axvm.errors().matches(TITLE).count(), 1, "told again: {}", axvm.errors());
    assert_eq!(place.run("ctl api reset").0, 0);
    report(&axvm, 2);
    assert_eq!(place.run("ctl api stop").0, 0);
    axvm.ends_with(0);
}

#[test]
fn symbols_name_functions() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    // The guest's program begins at 1 MiB.
    fs::write(place.path("System.map"), "0000000000100000 T everything\n").unwrap();
    let (axvm, talk) = place.shell("--console stdio --on-halt wait --symbols System.map");
    talk.say("hang\r");
    until("a function is named", || place.run("ctl api explain").1.contains(", everything+0x"));
    assert_eq!(place.run("ctl api stop").0, 0);
    axvm.ends_with(0);
    let crash = "run --kernel guest.elf --memory 32M --cpus 1 --append crash=1 --symbols System.map";
    let (code, _, told) = place.run(crash);
    assert!(code == 5 && told.contains(", everything+0x"), "{told}");

    fs::write(place.path("System.map"), "no names\n").unwrap();
    let (code, _, told) = place.run(crash);
    assert!(code == 5 && told.contains("symbols: The file of symbols names no function"), "{told}");
    let (code, _, told) = place.run("run --kernel guest.elf --memory 32M --symbols none");
    assert!(code == 1 && told.contains("Cannot read symbols none: No such file"), "{told}");
    let (code, _, told) = place.run("run --kernel guest.elf --memory 32M --symbols .");
    assert!(code == 1 && told.contains("give --symbols the file itself"), "{told}");
}

#[test]
fn a_queue_on_pci_tells_where_its_messages_go() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (_axvm, mut talk) = place.shell("--console stdio --disk disk.img --bus pci --name messages");
    talk.say("work 1\r");
    talk.hear("= ");
    let (code, told, _) = place.run("ctl messages explain");
    let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(code == 0 && told.contains(" MSI-X 0: vector 0x28 -> APIC 0x0"), "{told}");
}
