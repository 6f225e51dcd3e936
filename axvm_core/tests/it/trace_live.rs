//! A trace that begins while the machine runs, the last moments of one, and kicks as exits. The sandbox is on.
//!
//! ```text
//!   axvm ctl api trace start t.json ... work ... stop     axvm ctl api trace dump d.json
//! ```

use std::fs;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::common::{AXVM, Axvm, Place, has_kvm, until};
use crate::trace::{events, names, names_of_lanes};

/// A command of `axvm ctl` that has nothing to say.
#[track_caller]
fn ctl(place: &Place, words: &str) {
    assert_eq!(place.run(&format!("ctl ./api {words}")), (0, String::new(), String::new()), "{words}");
}

/// What is wrong with a command.
#[track_caller]
fn refused(place: &Place, words: &str) -> String {
    let (code, said, errors) = place.run(&format!("ctl ./api {words}"));
    assert!(code == 1 && said.is_empty() && errors.lines().count() == 1, "{words}: {code} {said}{errors}");
    errors
}

fn requests(events: &[Value], queue: &str) -> usize {
    events.iter().filter(|event| event["ph"] == "e" && event["cat"] == queue).count()
}

/// The nice value of a thread: field 19 of its `stat`, the 17th behind the name.
fn niceness(axvm: &Axvm, thread: &str) -> Option<i32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", axvm.pid())).unwrap();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let fields = stats.filter_map(|stat| stat.split_once(&format!("({thread}) ")).map(|(_, fields)| fields.to_owned()));
    fields.last()?.split(' ').nth(16)?.parse().ok()
}

fn end(axvm: Axvm, place: &Place) {
    ctl(place, "stop");
    axvm.ends_with(0);
}

#[test]
fn a_trace_begins_and_ends_while_the_machine_runs() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("--disk disk.img");
    let status = || place.run("ctl ./api trace status").1;
    talk.ask("work 1");
    assert_eq!(status(), "nothing is recorded\n");
    for round in 0..3 {
        let began = Instant::now();
        ctl(&place, "trace start t.json");
        assert!(status().contains("each exit and request is written to"), "{}", status());
        assert!(refused(&place, "trace start u.json").contains("stop it first"));
        assert!(!place.path("u.json").exists(), "no file is made in vain");
        talk.ask("work 3");
        assert_eq!(niceness(&axvm, "trace"), Some(10), "the writer comes behind the others");
        ctl(&place, "trace stop");
        let events = events(&place.path("t.json"));
        let letters = names(&events, "port write").iter().filter(|name| **name == "COM1 THR").count();
        // Its disk's worker, too, has a tape from the first request on.
        assert!(letters > 100 && requests(&events, "vda-q0") >= 3, "{round}: {letters} letters");
        let last = &events[events.len() - 1];
        assert_eq!((&last["name"], &last["args"]["lost"]), (&"end".into(), &0.into()));
        // Times begin with the trace, not with the machine, which is older in the later rounds.
        let age = Some(began.elapsed().as_micros() as f64);
        assert!(events.iter().all(|event| event["ts"].as_f64() <= age), "{age:?}: {last}");
        // Each exit for a device tells where the guest was.
        let placed = |event: &&Value| event["args"]["rip"].as_str().is_some_and(|rip| rip.starts_with("0x1"));
        assert!(events.iter().filter(|event| event["name"] == "COM1 THR").all(|event| placed(&event)));
        talk.ask("work 1");
    }
    assert_eq!(status(), "nothing is recorded\n");
    assert!(refused(&place, "trace stop").contains("No trace is being written"));
    end(axvm, &place);
}

#[test]
fn a_trace_of_a_paused_machine_begins_when_it_goes_on_and_outlives_a_reset() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("--disk disk.img");
    ctl(&place, "pause");
    ctl(&place, "trace start t.json");
    assert!(axvm.status().paused_s.is_some(), "it stays paused");
    ctl(&place, "resume");
    talk.ask("work 2");
    ctl(&place, "reset");
    talk.hear("ready\n> ");
    talk.ask("work 2");
    // The machine's end is the trace's.
    end(axvm, &place);
    let events = events(&place.path("t.json"));
    assert_eq!(names_of_lanes(&events).iter().filter(|lane| **lane == "vcpu0").count(), 1);
    assert!(requests(&events, "vda-q0") >= 4 && events[events.len() - 1]["name"] == "end");
    assert!(names(&events, "console").contains(&"ready"), "the second start is in it");
}

#[test]
fn a_trace_that_cannot_be_written_is_over_and_another_can_begin() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    // No file of this machine becomes longer than 32 KiB.
    let words = "run --kernel guest.elf --memory 32M --cpus 1 --api-sock api --append shell";
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -f 64; exec {AXVM} {words}")]);
    limited.current_dir(place.path("")).env("XDG_RUNTIME_DIR", place.path("")).env_remove("NOTIFY_SOCKET");
    let (axvm, talk) = place.talking(limited);
    let status = || place.run("ctl ./api trace status").1;
    ctl(&place, "trace start t.json");
    until("it has failed", || {
        talk.say("\r");
        status().contains("Cannot write the trace")
    });
    assert!(status().starts_with("nothing is recorded\n"), "{}", status());
    assert!(refused(&place, "trace stop").contains("No trace is being written"));
    ctl(&place, "trace start u.json");
    ctl(&place, "trace stop");
    assert_eq!(events(&place.path("u.json")).last().unwrap()["name"], "end");
    end(axvm, &place);
}

#[test]
fn the_last_moments_are_on_offer_again_and_again() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("--disk disk.img --flight-recorder");
    talk.ask("work 3");
    for file in ["a.json", "b.json"] {
        ctl(&place, &format!("trace dump {file}"));
        let events = events(&place.path(file));
        // From the machine's start on, as there is room for it.
        assert!(names(&events, "step").contains(&"vcpus") && requests(&events, "vda-q0") >= 3, "{file}");
        let last = &events[events.len() - 1];
        assert_eq!((&last["name"], &last["args"]["lost"]), (&"end".into(), &0.into()));
    }
    // A trace begins with what was kept, and what was kept stays.
    ctl(&place, "trace start t.json");
    assert!(refused(&place, "trace dump c.json").contains("stop it first"));
    talk.ask("work 1");
    ctl(&place, "trace stop");
    let whole = events(&place.path("t.json"));
    assert!(names(&whole, "step").contains(&"vcpus") && requests(&whole, "vda-q0") >= 4);
    ctl(&place, "trace dump c.json");
    assert!(requests(&events(&place.path("c.json")), "vda-q0") >= requests(&whole, "vda-q0"));
    // Reports tell the last exits.
    let (_, told, _) = place.run("ctl ./api explain");
    assert!(told.contains("\nLast exits, the latest last\n  vCPU 0: ") && told.contains("COM1 "), "{told}");
    end(axvm, &place);
}

#[test]
fn a_crash_is_told_with_the_last_exits_where_they_are_kept_and_also_before_a_restart() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let words = "run guest.elf --memory 32M --cpus 1 --append crash=6 --console none --flight-recorder";
    for (policy, count) in [("", 1), ("--on-crash restart --restart-limit 2", 2)] {
        let (code, _, errors) = place.run(&format!("{words} {policy}"));
        let reports = errors.matches("Last exits of this vCPU, the latest below\n  ").count();
        assert!(code == 5 && reports >= count && errors.contains("\n  COM1 THR write 0xa\n"), "{policy}: {errors}");
    }
}

#[test]
fn what_a_virtio_console_prints_is_in_the_trace_and_kicks_are_where_they_are_to_be() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for bus in ["mmio", "pci"] {
        for (kicks, shown) in [("", false), ("--trace-kicks", true)] {
            let (axvm, mut talk) = place.shell_on_hvc0(&format!("--disk disk.img --bus {bus} --trace t.json {kicks}"));
            talk.ask("work 3");
            end(axvm, &place);
            let events = events(&place.path("t.json"));
            assert!(names(&events, "console").iter().any(|line| line.contains("of 3 work done")), "{bus}");
            assert_eq!(names(&events, "mmio write").contains(&"vda QueueNotify"), shown, "{bus} {kicks}");
            let status = if bus == "pci" { "vda device_status" } else { "vda Status" };
            assert!(names(&events, "mmio write").contains(&status), "{bus}");
        }
    }
}

#[test]
fn what_cannot_be_traced_says_why_and_costs_no_file() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, _talk) = place.shell("");
    for (words, why) in [
        ("trace dump d.json", "keeps no last moments; start it with --flight-recorder"),
        ("trace start guest.elf", "guest.elf is there and is no trace"),
        ("trace start none/t.json", "Cannot make the trace none/t.json: No such file"),
        ("trace start .", "Cannot make the trace .: Is a directory"),
    ] {
        let said = refused(&place, words);
        assert!(said.contains(why), "{words}: {said}");
    }
    assert!(!place.path("d.json").exists());
    assert_eq!(fs::read(place.path("guest.elf")).unwrap(), axvm_guest::selftest());
    // A client that sends no descriptor, and one whose file cannot be written.
    let mut client = axvm.control();
    let start = serde_json::json!({"action": "Start", "path_on_host": "x"});
    let error = client.put("/trace", &start).unwrap_err().to_string();
    assert!(error.contains("must come with the request"), "{error}");
    let file = fs::File::open(place.path("guest.elf")).unwrap();
    client.send_with("/trace", &start, &[std::os::fd::AsFd::as_fd(&file)]).unwrap();
    crate::common::until("the failure is told", || {
        place.run("ctl ./api trace status").1.contains("Cannot write the trace x")
    });
    end(axvm, &place);
}
