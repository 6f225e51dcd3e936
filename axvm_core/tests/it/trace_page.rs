//! The page of `axvm report -o`, in a real browser: drawn, used with keys, in light and dark, and with a million events.
//!
//! ```text
//!   guest --> t.json --> t.html + trace_page.js --> chromium --headless --dump-dom --> what the script has seen
//! ```
//!
//! The script is appended to a copy of the page, so that the page itself knows of no test.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::common::{Place, has_kvm, skip};

const LOOKS: &str = include_str!("trace_page.js");
/// Before the page's own script: whatever goes wrong is kept.
const FAULTS: &str = "<script>const faults = [];
    addEventListener('error', (event) => faults.push(event.message));
    addEventListener('securitypolicyviolation', (event) => faults.push(event.violatedDirective));</script>";

/// The browser of this machine.
fn browser() -> Option<&'static str> {
    static FOUND: OnceLock<Option<&str>> = OnceLock::new();
    let answers =
        |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    let found = FOUND.get_or_init(|| ["chromium", "chromium-browser", "google-chrome"].into_iter().find(answers));
    if found.is_none() {
        skip("no chromium, chromium-browser or google-chrome");
    }
    *found
}

/// Opens a page in a window of 1280 by 900 points, and has `call` of the script made in it.
fn seen(place: &Place, page: &str, call: &str, options: &[&str]) -> Value {
    let browser = browser().unwrap();
    let (before, after) = page.split_once("<meta charset").unwrap();
    let page = format!("{before}{FAULTS}<meta charset{after}<script>{LOOKS}\n{call}();</script>");
    fs::write(place.path("looked.html"), page).unwrap();
    let mut command = Command::new("timeout");
    command.args(["60", browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"]);
    command.arg(format!("--user-data-dir={}", place.path("browser").display()));
    command.args(options).arg("--dump-dom").arg(format!("file://{}", place.path("looked.html").display()));
    let output = command.stdin(Stdio::null()).env("HOME", place.path("")).output().unwrap();
    let dom = String::from_utf8_lossy(&output.stdout);
    let found = dom.split_once("<pre id=\"seen\">").and_then(|(_, rest)| rest.split_once("</pre>"));
    let Some((found, _)) = found else { panic!("{}", String::from_utf8_lossy(&output.stderr)) };
    let plain = found.replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", "\u{a0}").replace("&amp;", "&");
    let seen: Value = serde_json::from_str(&plain).unwrap();
    assert_eq!(seen["faults"], json!([]));
    assert!(seen["wide"].as_f64() <= Some(0.0), "it is too wide by {}", seen["wide"]);
    seen
}

/// The page of our guest with a disk, where there is all that this needs.
fn page(place: &Place) -> Option<String> {
    if !has_kvm() || browser().is_none() {
        return None;
    }
    for words in
        ["run guest.elf --cpus 2 --memory 64M --disk disk.img --console none --trace t.json", "report t.json -o t.html"]
    {
        let (code, _, errors) = place.run(words);
        assert_eq!(code, 0, "{errors}");
    }
    Some(fs::read_to_string(place.path("t.html")).unwrap())
}

fn lane<'a>(seen: &'a Value, title: &str) -> &'a Value {
    let found = seen["lanes"].as_array().unwrap().iter().find(|lane| lane["title"] == title);
    found.unwrap_or_else(|| panic!("no lane {title} in {}", seen["lanes"]))
}

/// From when to when the page shows, after a step.
fn view(seen: &Value, step: &str) -> (f64, f64) {
    let view = &seen["steps"][step];
    (view["from"].as_f64().unwrap(), view["to"].as_f64().unwrap())
}

#[test]
fn a_browser_draws_the_page_and_obeys_keys_in_light_and_dark() {
    let place = Place::new();
    let Some(page) = page(&place) else { return };
    for (scheme, is_dark) in [("1", false), ("0", true)] {
        let scheme = format!("--blink-settings=preferredColorScheme={scheme}");
        let seen = seen(&place, &page, "look_and_use", &[&scheme, "--virtual-time-budget=20000"]);
        for title in ["axvm", "vcpu0", "vcpu1", "vda-q0"] {
            let lane = lane(&seen, title);
            assert!(lane["events"].as_u64() > Some(0) && lane["painted"].as_u64() > Some(20), "{lane}");
        }
        let row = |table: &str, words: &str| {
            let mut rows = seen[table].as_array().unwrap().iter();
            assert!(rows.any(|row| row[0].as_str().unwrap().contains(words)), "{words}: {}", seen[table]);
        };
        row("boot", "AxVM: set-up");
        assert!(seen["phases"].as_u64() >= Some(2), "the boot is drawn above the lanes: {}", seen["phases"]);
        assert!(seen["advice"].as_str().unwrap().contains("printing on the serial port"), "{}", seen["advice"]);
        row("exits", "COM1 THR (port write)");
        assert!(
            seen["printed"].as_array().unwrap().iter().any(|row| row[1].as_str().unwrap().contains("virtio-block"))
        );
        assert!(seen["legend"].as_str().unwrap().contains("port write"));
        // The histogram's bins hold each request once.
        let bins = seen["requests"].as_array().unwrap().iter();
        let sum: u64 = bins.map(|bin| bin[1].as_str().unwrap().parse::<u64>().unwrap()).sum();
        let queues =
            seen["lanes"].as_array().unwrap().iter().filter(|lane| lane["title"].as_str().unwrap().contains("-q"));
        assert_eq!(sum, queues.map(|lane| lane["events"].as_u64().unwrap()).sum::<u64>());
        let (ground, ink) = (seen["ground"].as_f64().unwrap(), seen["ink"].as_f64().unwrap());
        assert!((ink - ground).abs() > 0.6 && (ink > ground) == is_dark, "ground {ground}, ink {ink}");
        used(&seen);
    }
}

/// What keys, the wheel and buttons do.
fn used(seen: &Value) {
    let end = seen["end"].as_f64().unwrap();
    let span = |step| view(seen, step).1 - view(seen, step).0;
    let told = |step: &str| seen["steps"][step]["told"].as_str().unwrap();
    assert_eq!(view(seen, "start"), (0.0, end));
    assert_eq!(span("closer"), end / 2.0);
    assert!(view(seen, "right").0 > view(seen, "closer").0 && span("right") == span("closer"));
    assert_eq!((&seen["steps"]["down"]["lane"], &seen["steps"]["up"]["lane"]), (&json!(1), &json!(0)));
    assert!(told("next").starts_with("vcpu0: ") && told("next").contains(" in AxVM"), "{}", told("next"));
    assert!(told("after") != told("next") && told("before") == told("next"), "{}", told("before"));
    assert_eq!(view(seen, "whole"), (0.0, end));
    assert!(seen["steps"]["focused"] == true && span("phase") < end, "a phase is shown by Enter");
    let counts: Vec<_> = seen["steps"]["byNumber"].as_array().unwrap().iter().map(Value::as_u64).collect();
    assert!(counts.len() > 3 && counts.is_sorted_by(|one, other| one >= other), "{counts:?}");
    assert!(span("wheel") < end && span("button") == end / 2.0);
}

#[test]
fn a_page_of_a_million_events_is_ready_within_seconds() {
    let place = Place::new();
    let Some(page) = page(&place) else { return };
    let (before, rest) = page.split_once("id=\"data\">").unwrap();
    let (data, after) = rest.split_once("</script>").unwrap();
    let mut data: Value = serde_json::from_str(data).unwrap();
    // The same events again and again: times are those since the event before.
    let count = |lane: &Value| lane["exits"].as_array().unwrap().len() / 4;
    let one: usize = data["lanes"].as_array().unwrap().iter().map(count).sum();
    let rounds = 1_000_000 / one + 1;
    for lane in data["lanes"].as_array_mut().unwrap() {
        let exits: Vec<u64> = lane["exits"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
        lane["exits"] = exits.repeat(rounds).into();
    }
    data["end"] = (data["end"].as_u64().unwrap() * rounds as u64).into();
    let page = format!("{before}id=\"data\">{data}</script>{after}");
    let seen = seen(&place, &page, "draw_at_once", &[]);
    let events: u64 = seen["lanes"].as_array().unwrap().iter().map(|lane| lane["events"].as_u64().unwrap()).sum();
    assert!(events >= 1_000_000 && lane(&seen, "vcpu0")["painted"].as_u64() > Some(1000), "{events}");
    // A second and a fifth of one, where no other program runs.
    assert!(seen["ready"].as_f64() < Some(10_000.0), "ready after {} ms", seen["ready"]);
    assert!(seen["redrawn"].as_f64() < Some(2_000.0), "drawn again in {} ms", seen["redrawn"]);
}
