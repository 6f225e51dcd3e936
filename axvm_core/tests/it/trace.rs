//! `axvm run --trace`: what a guest did, in a file that other programs read. The sandbox is on.
//!
//! ```text
//!   guest: prints, reads its disk, ends --> axvm --trace t.json --> JSON, register by register
//! ```

use crate::common;

use std::fs;
use std::path::Path;

use common::{Place, has_kvm};
use serde_json::Value;

/// A file's events; a file that is no JSON fails.
pub(crate) fn events(path: &Path) -> Vec<Value> {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub(crate) fn names<'a>(events: &'a [Value], category: &str) -> Vec<&'a str> {
    events.iter().filter(|event| event["cat"] == category).filter_map(|event| event["name"].as_str()).collect()
}

#[test]
fn a_trace_names_what_the_guest_accessed_and_what_it_printed() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let words = "run guest.elf --cpus 2 --memory 64M --disk disk.img --trace t.json";
    let (code, said, errors) = place.run(words);
    assert_eq!(code, 0, "{errors}");
    let events = events(&place.path("t.json"));
    let lanes: Vec<_> = names_of_lanes(&events);
    assert!(["axvm", "vcpu0", "vcpu1"].iter().all(|lane| lanes.contains(lane)), "{lanes:?}");
    for (category, name) in [
        ("port write", "COM1 THR"),
        ("port read", "COM1 LSR"),
        ("mmio write", "vda Status"),
        ("mmio read", "vda MagicValue"),
        ("step", "vcpus"),
    ] {
        assert!(names(&events, category).contains(&name), "{category} {name}");
    }
    // Each letter is one exit, and the lines are what came out.
    let printed = names(&events, "console");
    let lines: Vec<_> = said.lines().filter(|line| line.contains("virtio-block")).map(str::trim_end).collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| printed.contains(line)), "{lines:?} in {printed:?}");
    let letters = names(&events, "port write").iter().filter(|name| **name == "COM1 THR").count();
    assert!(letters >= said.len(), "{letters} of {}", said.len());
    // Each request of the disk has a beginning and an end, and its arrow ends at an interrupt.
    let phases = |phase: &str, category: &str| {
        events.iter().filter(|event| event["ph"] == phase && event["cat"] == category).count()
    };
    let requests = phases("b", "vda-q0");
    assert!(requests > 10 && requests == phases("e", "vda-q0"), "{requests}");
    assert!(phases("f", "flow") >= requests && phases("s", "flow") >= requests);
    let last = &events[events.len() - 1];
    assert_eq!((&last["name"], &last["args"]["left_out"]), (&"end".into(), &0.into()));
    let (code, said, errors) = place.run("report t.json");
    assert_eq!(code, 0, "{errors}");
    for part in ["of 2 vCPUs", "  COM1 THR write ", "Exits by time in AxVM", "Requests of vda-q0: ", "  AxVM: set-up "]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (code, said, errors) = place.run("report t.json -o t.html");
    assert_eq!((code, &*said), (0, ""), "{errors}");
    let page = fs::read_to_string(place.path("t.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("COM1 THR") && page.contains("vda-q0"));
    // Again, over the old one; and what is no trace stays.
    assert_eq!(place.run(words).0, 0);
    let (code, _, errors) = place.run("run guest.elf --cpus 1 --memory 64M --trace guest.elf");
    assert!(code == 1 && errors.contains("is there and is no trace"), "{errors}");
    assert_eq!(fs::read(place.path("guest.elf")).unwrap(), axvm_guest::selftest());
}

pub(crate) fn names_of_lanes(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .filter(|event| event["name"] == "thread_name")
        .filter_map(|event| event["args"]["name"].as_str())
        .collect()
}

#[test]
fn a_crash_is_told_with_the_exits_before_it_and_ends_the_trace_in_order() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let words = "run guest.elf --memory 32M --cpus 1 --append crash=6 --console none --trace t.json";
    let (code, _, errors) = place.run(words);
    assert!(code == 5 && errors.contains("Last exits of this vCPU, the latest below\n  "), "{errors}");
    assert!(errors.contains("\n  COM1 THR write 0xa\n"), "{errors}");
    let events = events(&place.path("t.json"));
    assert!(names(&events, "end").contains(&"the last exit") && events[events.len() - 1]["name"] == "end");
}

#[test]
fn a_machine_that_starts_again_goes_on_in_its_lanes() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("--trace t.json");
    talk.say("reset\n");
    talk.hear("ready\n> ");
    axvm.signal(rustix::process::Signal::TERM);
    axvm.signal(rustix::process::Signal::TERM);
    axvm.end();
    let events = events(&place.path("t.json"));
    assert_eq!(names_of_lanes(&events).iter().filter(|lane| **lane == "vcpu0").count(), 1);
    let begins = names(&events, "step").iter().filter(|step| **step == "vcpus").count();
    assert_eq!(begins, 2, "both starts are in it");
}

#[test]
fn what_is_no_trace_is_refused_with_what_to_do() {
    let place = Place::new();
    for (words, said) in [
        ("report none.json", "Cannot open none.json: No such file"),
        ("report guest.elf", "Cannot read guest.elf: it has no event that `axvm run --trace` writes; name a file that"),
        ("report .", "Cannot read .: Is a directory"),
        ("run guest.elf --trace none/t.json", "Cannot make the trace none/t.json: No such file or directory"),
    ] {
        let (code, _, errors) = place.run(words);
        assert!(code == 1 && errors.contains(said), "axvm {words}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
    for (words, said) in [
        ("run guest.elf --trace t.json,limit=5", "--trace t.json,limit=5: no limit for a file; say limit=64M"),
        ("run guest.elf --trace ,limit=5M", "no file; say FILE or FILE,limit=256M"),
        ("report", "FILE"),
    ] {
        let (code, _, errors) = place.run(words);
        assert!(code == 2 && errors.contains(said), "axvm {words}: {errors}");
    }
}

#[test]
fn a_guest_that_prints_for_ever_stays_below_the_limit() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (code, _, errors) = place.run("run guest.elf --cpus 1 --memory 64M --trace t.json,limit=64K");
    assert_eq!(code, 0, "{errors}");
    assert!(fs::metadata(place.path("t.json")).unwrap().len() <= 64 << 10);
    let events = events(&place.path("t.json"));
    assert!(events[events.len() - 1]["args"]["left_out"].as_u64().unwrap() > 0);
}
