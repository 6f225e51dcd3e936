//! A trace file, read back.
//!
//! ```text
//!   FILE --a line at a time--> Timeline { lanes, exits, steps, requests, marks }
//! ```
//!
//! A file without its end can be read as far as it goes. Times are nanoseconds since the trace began.
//!
//! Format: what [`chrome`](super::chrome) writes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, BufRead, Read};

use serde::Deserialize;

/// A line that is longer is none of ours.
const LINE: u64 = 64 << 10;

/// An index into [`Timeline::names`].
pub type Name = u32;

/// One exit, or one step of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Which lane.
    pub lane: u32,
    /// What the guest accessed, or what was done.
    pub name: Name,
    /// Why: `port read` ...
    pub reason: Name,
    /// When it began.
    pub at: u64,
    /// How long AxVM took.
    pub took: u64,
    /// Where the guest was; 0 if that is not known.
    pub rip: u64,
}

/// One request of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which lane.
    pub lane: u32,
    /// When its driver kicked, as far as that is known; else as `popped`.
    pub kicked: u64,
    /// When it was taken from the ring.
    pub popped: u64,
    /// When it was given back.
    pub completed: u64,
    /// When the driver was interrupted for it, if it was.
    pub told: Option<u64>,
}

/// Something that happened at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which lane.
    pub lane: u32,
    /// When.
    pub at: u64,
    /// What kind of thing: `console`, `power`, `lost` ...
    pub kind: Name,
    /// In words.
    pub text: String,
}

/// A file's contents.
#[derive(Debug, Default)]
pub struct Timeline {
    /// The names of the lanes.
    pub lanes: Vec<String>,
    /// Names of registers, reasons and kinds, each once.
    pub names: Vec<String>,
    /// Exits, as they lie in the file.
    pub exits: Vec<Slice>,
    /// What AxVM did before the guest ran.
    pub steps: Vec<Slice>,
    /// What the kernel is, as the step `boot` says: `bzImage, ...`.
    pub kernel: String,
    /// Requests that were completed.
    pub requests: Vec<Request>,
    /// Lines of the console, and events.
    pub marks: Vec<Mark>,
    /// The guest's entry for system calls, by which it is known where its kernel is.
    pub entry: Option<u64>,
    /// The last time in it.
    pub end: u64,
    /// Events that are not in the file, as it says itself; `None` for a file without its end.
    pub missing: Option<u64>,
    /// Lines that were not understood.
    pub strange: u64,
    index: HashMap<String, Name>,
    open: HashMap<u64, Open>,
}

/// A request whose lines are not all read.
#[derive(Debug, Default)]
struct Open {
    arrow: Option<u64>,
    popped: u64,
    /// Of a request in [`Timeline::requests`].
    place: Option<usize>,
}

/// One line.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    cat: Cow<'a, str>,
    #[serde(borrow)]
    ph: Cow<'a, str>,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    tid: u32,
    #[serde(default)]
    id: u64,
    #[serde(borrow, default)]
    args: Args<'a>,
}

#[derive(Default, Deserialize)]
struct Args<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    rip: Cow<'a, str>,
    #[serde(borrow, default)]
    detail: Cow<'a, str>,
    #[serde(default)]
    lost: u64,
    #[serde(default)]
    left_out: u64,
}

/// Lanes that a file may have.
const LANES: u32 = 1 << 16;

impl Timeline {
    /// Reads a file. One without a single event of ours is an error.
    pub fn read(mut from: impl BufRead) -> io::Result<Timeline> {
        let mut timeline = Timeline::default();
        let mut line = Vec::new();
        loop {
            line.clear();
            if (&mut from).take(LINE).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let text = line.trim_ascii().strip_suffix(b",").unwrap_or(line.trim_ascii());
            match text {
                b"[" | b"]" | b"" => {}
                text => match serde_json::from_slice(text) {
                    Ok(line) => timeline.add(line),
                    Err(_) => timeline.strange += 1,
                },
            }
        }
        if timeline.lanes.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has no event that `axvm run --trace` writes"));
        }
        Ok(timeline)
    }

    fn add(&mut self, line: Line<'_>) {
        let Some(lane) = line.tid.checked_sub(1).filter(|lane| *lane < LANES) else { return };
        let at = nanos(line.ts);
        self.end = self.end.max(at.saturating_add(nanos(line.dur)));
        match (&*line.ph, &*line.cat) {
            ("M", _) if line.name == "thread_name" => {
                let needed = self.lanes.len().max(lane as usize + 1);
                self.lanes.resize(needed, String::new());
                self.lanes[lane as usize] = line.args.name.into_owned();
            }
            ("X", "hop") => {}
            ("X", cat) => {
                let is_step = cat == "step";
                let (name, reason) = (self.name(&line.name), self.name(&line.cat));
                let slice =
                    Slice { lane, name, reason, at, took: nanos(line.dur), rip: address(&line.args.rip).unwrap_or(0) };
                if is_step && line.name == "boot" {
                    self.kernel = line.args.detail.into_owned();
                }
                if is_step { self.steps.push(slice) } else { self.exits.push(slice) }
            }
            ("s", _) => self.open.entry(line.id).or_default().arrow = Some(at),
            ("b", _) => self.open.entry(line.id).or_default().popped = at,
            ("e", _) => {
                let Some(open) = self.open.get_mut(&line.id) else { return };
                open.place = Some(self.requests.len());
                let (popped, kicked) = (open.popped, open.arrow.unwrap_or(open.popped).min(open.popped));
                self.requests.push(Request { lane, kicked, popped, completed: at, told: None });
            }
            ("f", _) => {
                let place = self.open.remove(&line.id).and_then(|open| open.place);
                if let Some(request) = place.and_then(|place| self.requests.get_mut(place)) {
                    request.told = Some(at);
                }
            }
            ("i", "end of trace") => self.missing = Some(line.args.lost.saturating_add(line.args.left_out)),
            ("i", "entry") => self.entry = address(&line.name).or(self.entry),
            ("i", "clock") => {}
            ("i", _) => {
                let kind = self.name(&line.cat);
                self.marks.push(Mark { lane, at, kind, text: line.name.into_owned() });
            }
            _ => {}
        }
    }

    fn name(&mut self, name: &str) -> Name {
        if let Some(known) = self.index.get(name) {
            return *known;
        }
        let number = self.names.len() as Name;
        self.names.push(name.to_owned());
        self.index.insert(name.to_owned(), number);
        number
    }

    /// A name in words.
    pub fn word(&self, name: Name) -> &str {
        self.names.get(name as usize).map_or("", String::as_str)
    }

    /// A lane in words.
    pub fn lane(&self, lane: u32) -> &str {
        self.lanes.get(lane as usize).map_or("", String::as_str)
    }

    /// The lines that the guest printed, and when.
    pub fn console(&self) -> impl Iterator<Item = (u64, &str)> {
        self.marks.iter().filter(|mark| self.word(mark.kind) == "console").map(|mark| (mark.at, &*mark.text))
    }
}

/// As the file has an address: `0x1000`.
fn address(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// From the file's microseconds; what is no time is none.
fn nanos(micros: f64) -> u64 {
    (micros * 1000.0).round() as u64
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::timeline::chrome::{Chrome, Scale};
    use axvm_events::tape::{Kind, Record};
    use std::time::Duration;

    /// A small machine's file.
    pub(in crate::timeline) fn file() -> Vec<u8> {
        let mut chrome = Chrome::new(Scale { start: 0, tick: 1.0 }, u64::MAX);
        chrome.step(2_000_000, Duration::from_millis(1), "vcpus", "1 created");
        chrome.step(900_000, Duration::from_micros(500), "boot", "bzImage, boot protocol 2.15, zstd");
        let (vcpu, queue) = (chrome.lane("vcpu0"), chrome.lane("vda-q0"));
        let record =
            |at, took, kind, address, value| Record { at, took, kind, size: 1, count: 1, address, value, rip: 0 };
        let name = |kind, _| Some(if kind == Kind::PortWrite { "COM1 THR" } else { "vda Status" }.into());
        let lines = "[    0.000000] Linux version 6.12\n[    0.002000] Run /init as init process\nhello\n";
        for (n, byte) in (0..).zip(lines.bytes()) {
            let record = record(3_000_000 + n * 100_000, 2000, Kind::PortWrite, 0x3f8, byte.into());
            chrome.record(vcpu, &record, name);
        }
        chrome.record(vcpu, &record(20_000_000, 70_000, Kind::MmioRead, 9, 0), name);
        for (at, kind) in [(100, Kind::Doorbell), (110, Kind::Pop), (150, Kind::Complete), (155, Kind::Interrupt)] {
            chrome.record(queue, &record(at * 100_000, 0, kind, 1, 0), name);
        }
        chrome.missed(vcpu, 21_000_000, 3);
        chrome.end(22_000_000);
        chrome.take()
    }

    #[test]
    fn a_file_comes_back_as_it_was_written() {
        let timeline = Timeline::read(&*file()).unwrap();
        assert_eq!(timeline.lanes, ["axvm", "vcpu0", "vda-q0"]);
        assert_eq!((timeline.end, timeline.missing, timeline.strange), (22_000_000, Some(3), 0));
        let last = timeline.exits.last().unwrap();
        assert_eq!((timeline.word(last.name), last.at, last.took), ("vda Status", 20_000_000, 70_000));
        let (kicked, popped, completed, told) = (10_000_000, 11_000_000, 15_000_000, Some(15_500_000));
        assert_eq!(timeline.requests, [Request { lane: 2, kicked, popped, completed, told }]);
        assert_eq!(timeline.console().last().unwrap().1, "hello");
        let step = timeline.steps[0];
        assert_eq!((timeline.word(step.name), step.at, step.took), ("vcpus", 1_000_000, 1_000_000));
    }

    #[test]
    fn a_file_without_its_end_is_read_as_far_as_it_goes() {
        let file = file();
        let whole = Timeline::read(&*file).unwrap();
        let part = Timeline::read(&file[..file.len() / 2]).unwrap();
        assert!(part.missing.is_none() && part.strange == 1, "the torn line");
        assert_eq!(part.exits, whole.exits[..part.exits.len()]);
    }

    #[test]
    fn other_files_are_refused_and_none_is_a_panic() {
        for other in [&b""[..], b"[]", b"{}", b"[\n{\"name\":\"x\",\"ph\":\"X\"}\n]", b"\xff\xfe\n\0", &[b'['; 200_000]]
        {
            assert!(Timeline::read(other).is_err());
        }
        let hostile = br#"{"name":"thread_name","ph":"M","tid":4294967295,"args":{"name":"x"}}
{"name":"thread_name","ph":"M","tid":1,"args":{"name":"x"}}
{"name":"x","ph":"X","ts":1e300,"dur":-5,"tid":9}
{"name":"x","ph":"f","id":7,"ts":1e300,"tid":9}"#;
        let timeline = Timeline::read(&hostile[..]).unwrap();
        assert_eq!((timeline.lanes.len(), timeline.exits[0].took, timeline.lane(8)), (1, 0, ""));
    }
}
