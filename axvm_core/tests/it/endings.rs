//! What follows when a guest does not power off: crash, panic, reset in a loop, halt, silence.
//!
//! Needs /dev/kvm; without it each test says that it was skipped. The sandbox is on, as for users.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::common::{Axvm, Place, Talk, has_kvm, until};
use crate::{images, life};

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

#[test]
fn a_guest_that_has_halted_for_good_ends_axvm_or_is_told_and_kept() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for cpus in [1, 3] {
        // Processors that were never started do not keep it alive.
        let (axvm, talk) = shell(&place, cpus);
        talk.say("hang\n");
        let end = axvm.ends_with(6);
        let told = "The guest halted for good: every vCPU is in HLT with interrupts off (vCPU 0 at RIP 0x";
        assert!(end.errors.contains(told), "{end:?}");
    }
    // A kernel that does nothing else.
    fs::write(place.path("halt.elf"), mute(HALT)).unwrap();
    let (code, _, errors) = place.run("run --kernel halt.elf --entry 64 --memory 32M --cpus 1");
    assert!(code == 6 && errors.contains("(vCPU 0 at RIP 0x100001)"), "{code}: {errors}");
    let (axvm, talk) = place.shell("--on-halt wait");
    talk.say("hang\n");
    until("it is told", || axvm.errors().contains("halted for good"));
    // Once: what comes after it changes nothing.
    talk.say("x\n");
    life::pause(&axvm);
    life::resume(&axvm);
    thread::sleep(Duration::from_secs(5));
    assert_eq!(place.run("ctl ./api reset").0, 0);
    talk.say("\n".repeat(30) + "off\n");
    let end = axvm.ends_with(0);
    assert_eq!(end.errors.matches("guest: halted for good").count(), 1, "{end:?}");
}

#[test]
fn an_idle_guest_is_none_that_has_halted_and_stays_alone() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = shell(&place, 2);
    // Beyond both looks, no thread wakes any more.
    thread::sleep(Duration::from_secs(10));
    let before = turns(&axvm);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(turns(&axvm), before);
    assert_eq!(talk.ask("flood 1").lines().last(), Some("1 flood"));
    talk.say("hang\n");
    axvm.ends_with(6);
}

#[test]
fn a_guest_that_shows_nothing_is_told_once_and_one_that_speaks_is_not() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let told = "guest: nothing came out of a console and no device was touched for 1 s. Try: ";
    fs::write(place.path("mute.elf"), mute(JUMP_TO_ITSELF)).unwrap();
    let run = |words: &str| {
        let words =
            format!("run --kernel mute.elf --entry 64 --memory 32M --cpus 1 --api-sock api --console none {words}");
        place.start(place.axvm(&words), Stdio::null(), Stdio::null())
    };
    let axvm = run("--silence 1");
    until("it is told", || axvm.errors().contains(told));
    // Not a second time, nor after a reset.
    assert_eq!(place.run("ctl ./api reset").0, 0);
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(place.run("ctl ./api stop").0, 0);
    let end = axvm.ends_with(0);
    assert_eq!(end.errors.matches(told).count(), 1, "{end:?}");
    for way in ["--virtio-console stdio", "--acpi cpus or --acpi off", "console=ttyS0", "`axvm ctl mute.elf status`"] {
        assert!(end.errors.contains(way), "{way}: {end:?}");
    }
    let axvm = run("--silence 0 --timeout 3s");
    assert!(!axvm.ends_with(124).errors.contains("nothing came out"));
    // An idle one that has spoken.
    let (axvm, talk) = place.shell("--silence 1");
    thread::sleep(Duration::from_millis(2500));
    talk.say("off\n");
    assert!(!axvm.ends_with(0).errors.contains("nothing came out"));
}

/// An interpreter on the first of so many processors.
fn shell(place: &Place, cpus: u32) -> (Axvm, Talk) {
    let words = format!("run --kernel guest.elf --memory 32M --cpus {cpus} --api-sock api --append shell");
    place.talking(place.axvm(&words))
}

/// How often each thread has run, by its name and number.
fn turns(axvm: &Axvm) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", axvm.pid())).unwrap();
    let turns = |task: PathBuf| {
        let statistics = fs::read_to_string(task.join("schedstat")).unwrap();
        (task.display().to_string(), statistics.split_whitespace().last().unwrap().to_owned())
    };
    tasks.map(|task| turns(task.unwrap().path())).collect()
}

/// A kernel that shows nothing, and does this for ever.
fn mute(code: &[u8]) -> Vec<u8> {
    let mut image = images::segments(&[1 << 20]);
    let start = image.len() - 4096;
    image[start..start + code.len()].copy_from_slice(code);
    image
}

const JUMP_TO_ITSELF: &[u8] = &[0xeb, 0xfe];
/// `hlt`, interrupts being off from the start; and the same again after an NMI.
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];
