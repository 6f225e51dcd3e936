//! What follows when a guest does not power off: crash, panic, reset in a loop, halt, silence.
//!
//! Needs /dev/kvm; without it each test says that it was skipped. The sandbox is on, as for users.

use std::thread;

use crate::common::{Place, has_kvm};

#[test]
fn a_crash_ends_axvm_unless_it_is_to_restart_and_is_told() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = place.shell("--on-reboot restart");
    talk.say("triple\n");
    let end = axvm.ends_with(5);
    assert!(end.errors.contains("The guest crashed: triple fault"), "{end:?}");
    assert!(end.errors.contains("give --on-crash restart"), "{end:?}");
    let (axvm, mut talk) = place.shell("--on-crash restart --on-reboot end");
    talk.say("triple\n");
    talk.hear("ready\n> ");
    talk.say("reset\n");
    let end = axvm.ends_with(3);
    assert!(end.errors.contains("guest: crashed (triple fault) and starts again"), "{end:?}");
}

#[test]
fn a_panic_ends_axvm_restarts_or_is_left_to_the_guest() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let mut machine = place.axvm("run --kernel guest.elf --memory 32M --cpus 1 --api-sock api --append");
    machine.arg("shell panic=5");
    let (axvm, talk) = place.talking(machine);
    talk.say("panic\n");
    let end = axvm.ends_with(4);
    assert!(end.errors.contains("reset itself then (panic=5): --on-panic continue lets it"), "{end:?}");

    let (axvm, mut talk) = place.shell("--on-panic restart");
    talk.say("panic\n");
    talk.hear("ready\n> ");
    talk.say("off\n");
    let end = axvm.ends_with(0);
    assert!(end.errors.contains("guest: its kernel panicked; it starts again"), "{end:?}");

    // It resets itself, as one does with panic=5: that is a reset, but it is told and coded as what it was.
    for (words, code) in [("--on-panic continue --on-reboot end", 4), ("--on-panic continue", 0)] {
        let (axvm, mut talk) = place.shell(words);
        assert_eq!(talk.ask("panic"), "panic");
        talk.say("reset\n");
        if code == 0 {
            talk.hear("ready\n> ");
            talk.say("off\n");
        }
        let end = axvm.ends_with(code);
        assert_eq!(end.errors.matches("guest: its kernel panicked, and goes on").count(), 1, "{end:?}");
    }
}

#[test]
fn a_guest_in_a_loop_of_starts_is_ended_and_one_that_the_user_resets_is_not() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for (word, words, code, told) in [
        ("triple", "--on-crash restart", 5, "at last by triple fault"),
        ("reset", "", 3, "at last by reset ("),
        ("panic", "--on-panic restart", 4, "at last by kernel panic"),
    ] {
        // How fast a guest of ours starts depends on the host: three in a second it always does.
        let (axvm, mut talk) = place.shell_on_hvc0(&format!("{words} --restart-limit 3"));
        // Typed ahead: each start takes one.
        talk.say(format!("{word}\n").repeat(500));
        let end = thread::scope(|scope| {
            scope.spawn(|| talk.rest());
            axvm.ends_with(code)
        });
        assert!(end.errors.contains("The guest started again 3 times within a second and is ended"), "{end:?}");
        assert!(end.errors.contains(told), "{end:?}");
    }
    let (axvm, talk) = place.shell("--restart-limit 1");
    for _ in 0..5 {
        assert_eq!(place.run("ctl ./api reset").0, 0);
    }
    talk.say("\n".repeat(30) + "off\n");
    axvm.ends_with(0);
}
