//! A trace is what the format wants, so that viewers of others draw all of it: no slice that sticks out of another, no arrow
//! that ends nowhere, no request without its end.
//!
//! ```text
//!   lane   |---- slice ----|  |-- slice --|     each inside of another, or beside it
//!             |- inner -|
//!   arrow     s ------------> t ----> f         each on a slice, forward in time
//! ```
//!
//! Spec: "Trace Event Format", sections "Duration Events" (nesting), "Async Events", "Flow Events", "Instant Events".

use std::collections::HashMap;

use serde_json::Value;

use crate::common::{Place, has_kvm};
use crate::trace::events;

/// Nanoseconds: the file has microseconds with three digits.
fn nanos(event: &Value, key: &str) -> u64 {
    let micros = event[key].as_f64().unwrap_or_else(|| panic!("no {key}: {event}"));
    assert!(micros >= 0.0, "{event}");
    (micros * 1000.0).round() as u64
}

fn lane(event: &Value) -> u64 {
    event["tid"].as_u64().unwrap_or_else(|| panic!("no lane: {event}"))
}

/// From when to when the slices of each lane last.
type Slices = HashMap<u64, Vec<(u64, u64)>>;

/// Panics at what a viewer would not draw.
#[track_caller]
fn check(events: &[Value]) {
    let named = |event: &&Value| event["ph"] == "M" && event["name"] == "thread_name";
    let lanes: Vec<u64> = events.iter().filter(named).map(lane).collect();
    let mut slices = Slices::new();
    for event in events.iter().filter(|event| event["ph"] != "M") {
        assert!(event["pid"] == 1 && lanes.contains(&lane(event)), "a lane without a name: {event}");
        assert!(event["name"].is_string() && event["cat"].is_string(), "{event}");
        let at = nanos(event, "ts");
        match event["ph"].as_str().unwrap() {
            "X" => slices.entry(lane(event)).or_default().push((at, at + nanos(event, "dur"))),
            "i" => assert!(["g", "p", "t"].iter().any(|scope| event["s"] == *scope), "{event}"),
            "b" | "e" | "s" | "t" => assert!(event["id"].is_u64(), "{event}"),
            "f" => assert!(event["id"].is_u64() && event["bp"] == "e", "{event}"),
            other => panic!("{other} is no phase that we write: {event}"),
        }
    }
    slices.values_mut().for_each(|slices| nest(slices));
    flows(events, &slices);
    spans(events);
}

/// Each slice of a lane lies inside of the one that is open, or behind it.
#[track_caller]
fn nest(slices: &mut [(u64, u64)]) {
    slices.sort_by_key(|(begin, end)| (*begin, std::cmp::Reverse(*end)));
    let mut open: Vec<u64> = Vec::new();
    for (begin, end) in slices {
        while open.last().is_some_and(|last| *last <= *begin) {
            open.pop();
        }
        assert!(open.last().is_none_or(|last| *end <= *last), "a slice from {begin} to {end} sticks out: {open:?}");
        open.push(*end);
    }
}

/// Each arrow begins once, goes forward, and has each of its ends on a slice.
#[track_caller]
fn flows(events: &[Value], slices: &Slices) {
    let mut arrows: HashMap<u64, Vec<(&str, u64)>> = HashMap::new();
    for event in events.iter().filter(|event| event["cat"] == "flow") {
        let at = nanos(event, "ts");
        let held = slices.get(&lane(event)).is_some_and(|all| all.iter().any(|(from, to)| (*from..=*to).contains(&at)));
        assert!(held, "an arrow's end on no slice: {event}");
        arrows.entry(event["id"].as_u64().unwrap()).or_default().push((event["ph"].as_str().unwrap(), at));
    }
    for (id, steps) in arrows {
        let phases: String = steps.iter().map(|(phase, _)| *phase).collect();
        let rest = phases.strip_prefix('s').unwrap_or_else(|| panic!("arrow {id} has no beginning: {phases}"));
        let between = rest.strip_suffix('f').unwrap_or(rest);
        assert!(between.chars().all(|phase| phase == 't'), "arrow {id}: {phases}");
        assert!(steps.is_sorted_by_key(|(_, at)| *at), "arrow {id} goes back: {steps:?}");
    }
}

/// Each request that begins ends, later.
#[track_caller]
fn spans(events: &[Value]) {
    let mut open = HashMap::new();
    for event in events {
        let key = (event["cat"].as_str(), event["id"].as_u64());
        match event["ph"].as_str() {
            Some("b") => assert!(open.insert(key, nanos(event, "ts")).is_none(), "{event}"),
            Some("e") => assert!(open.remove(&key).is_some_and(|begin| begin <= nanos(event, "ts")), "{event}"),
            _ => {}
        }
    }
    assert!(open.is_empty(), "they have no end: {open:?}");
}

#[test]
fn a_trace_can_be_drawn_whole_with_kicks_as_exits_or_not() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for more in ["--bus mmio", "--bus pci", "--bus mmio --trace-kicks", "--bus pci --trace-kicks"] {
        let words = format!("run guest.elf --cpus 2 --memory 64M --disk disk.img --console none --trace t.json {more}");
        let (code, _, errors) = place.run(&words);
        assert_eq!(code, 0, "{more}: {errors}");
        let events = events(&place.path("t.json"));
        check(&events);
        // Where kicks are exits, arrows begin in a vCPU's lane.
        let of_vcpus = |event: &&Value| {
            let is_vcpu = |lane: &Value| lane["args"]["name"].as_str().is_some_and(|name| name.starts_with("vcpu"));
            events.iter().any(|lane| lane["name"] == "thread_name" && lane["tid"] == event["tid"] && is_vcpu(lane))
        };
        let begins = events.iter().filter(|event| event["ph"] == "s" && event["cat"] == "flow");
        let count = begins.filter(of_vcpus).count();
        assert!(if more.contains("kicks") { count > 10 } else { count == 0 }, "{more}: {count} arrows begin at a vCPU");
    }
}

#[test]
fn what_a_viewer_would_not_draw_is_found() {
    let lane = r#"{"name":"thread_name","ph":"M","pid":1,"tid":1,"args":{"name":"x"}}"#;
    let slice = r#"{"name":"a","cat":"c","ph":"X","ts":1,"dur":2,"pid":1,"tid":1}"#;
    let good = r#"{"name":"r","cat":"flow","ph":"s","id":1,"ts":1,"pid":1,"tid":1}"#;
    let of = |lines: &[&str]| lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
    check(&of(&[lane, slice, good]));
    let bad = |line: &str| std::panic::catch_unwind(|| check(&of(&[lane, slice, good, line]))).is_err();
    for line in [
        r#"{"name":"a","cat":"c","ph":"X","ts":2,"dur":2,"pid":1,"tid":1}"#,
        r#"{"name":"a","cat":"c","ph":"X","ts":9,"dur":2,"pid":1,"tid":2}"#,
        r#"{"name":"a","cat":"c","ph":"X","ts":9,"pid":1,"tid":1}"#,
        r#"{"name":"a","cat":"c","ph":"i","ts":9,"pid":1,"tid":1}"#,
        r#"{"name":"r","cat":"flow","ph":"t","id":1,"ts":9,"pid":1,"tid":1}"#,
        r#"{"name":"r","cat":"flow","ph":"f","bp":"e","id":2,"ts":1,"pid":1,"tid":1}"#,
        r#"{"name":"r","cat":"flow","ph":"s","id":1,"ts":1,"pid":1,"tid":1}"#,
        r#"{"name":"r","cat":"q","ph":"b","id":1,"ts":1,"pid":1,"tid":1}"#,
        r#"{"name":"r","cat":"q","ph":"e","id":1,"ts":1,"pid":1,"tid":1}"#,
    ] {
        assert!(bad(line), "{line}");
    }
}
