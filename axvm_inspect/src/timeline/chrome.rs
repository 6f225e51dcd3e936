//! Records as lines of a trace file.
//!
//! ```text
//!   [
//!   {"name":"COM1 THR","cat":"port write","ph":"X","ts":12.345,"dur":0.812,"pid":1,"tid":2,"args":{"value":"0x41"}},
//!   {"name":"request", "cat":"vda-q0",    "ph":"b" ... "e", with arrows "s" "t" "f" from kick to interrupt
//!   {"name":"Linux version ...", "cat":"console", "ph":"i" ...
//!   ...
//!   ]
//! ```
//!
//! One event a line, so that a file can be read in pieces and one without its end can be read, too. The guest chose what
//! is in it, and how much: text is bounded and escaped, and past the limit events are only counted.
//!
//! Format: "Trace Event Format", JSON Array Format; times are microseconds since the trace began.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axvm_events::tape::{Kind, Record};

use super::console::Serial;
use super::line::{Line, Micros, Quoted};

/// Names of registers that are kept: more than a machine has, and an end for a guest that looks everywhere.
const NAMES: usize = 4096;
/// Room for the last lines, below the limit.
const RESERVE: u64 = 2048;
/// How each trace begins.
pub const BEGIN: &[u8] = b"[\n{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":1,\"args\":{\"name\":\"axvm\"}},\n";
/// The lane of the program itself.
pub const PROGRAM: usize = 0;

/// From ticks of the records' clock to time.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// The clock when the trace began.
    pub start: u64,
    /// How long a tick is, in nanoseconds.
    pub tick: f64,
}

impl Scale {
    /// Time since the trace began; what came before it began with it.
    fn time(&self, at: u64) -> Micros {
        self.ticks(at.saturating_sub(self.start))
    }

    fn ticks(&self, ticks: u64) -> Micros {
        Micros((ticks as f64 * self.tick) as u64)
    }
}

/// A thread, or a queue.
struct Lane {
    name: Arc<str>,
    serial: Serial,
    requests: Requests,
}

/// What is known of a queue's requests.
#[derive(Default)]
struct Requests {
    /// Exits in which the driver kicked, for which no request was seen: lane and time.
    exits: VecDeque<(usize, u64)>,
    /// The last step of a request.
    latest: u64,
    /// The last kick that no request was seen for.
    kick: Option<u64>,
    /// By the heads of their chains: number and beginning.
    open: HashMap<u64, (u64, u64)>,
    /// Completed, and the driver was not told yet.
    untold: Vec<u64>,
}

/// Requests that wait for their driver to be told, as far as arrows are drawn.
const UNTOLD: usize = 1024;

/// Kicks that wait for their request.
const KICKS: usize = 4096;

/// Makes the text of a trace file; the caller writes it.
pub struct Chrome {
    text: Vec<u8>,
    scale: Scale,
    limit: u64,
    /// Bytes so far, with those that were written.
    len: u64,
    left_out: u64,
    missed: u64,
    lanes: Vec<Lane>,
    names: HashMap<(Kind, u64), Arc<str>>,
    requests: u64,
}

impl Chrome {
    /// A trace that becomes `limit` bytes long at most.
    pub fn new(scale: Scale, limit: u64) -> Chrome {
        let (lanes, names, text) = (Vec::new(), HashMap::new(), BEGIN.to_vec());
        let mut chrome =
            Chrome { text, scale, limit, len: BEGIN.len() as u64, left_out: 0, missed: 0, lanes, names, requests: 0 };
        chrome.lane("axvm");
        chrome
    }

    /// Writes what waits.
    pub fn write_to(&mut self, file: &mut impl io::Write) -> io::Result<()> {
        file.write_all(&self.text)?;
        self.text.clear();
        Ok(())
    }

    /// What waits.
    #[cfg(test)]
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.text)
    }

    /// Bytes that wait to be written.
    pub fn waiting(&self) -> usize {
        self.text.len()
    }

    /// Events that found no room in the file.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// The lane that is called `name`, which may be a new one.
    pub fn lane(&mut self, name: &str) -> usize {
        if let Some(known) = self.lanes.iter().position(|lane| &*lane.name == name) {
            return known;
        }
        let lane = self.lanes.len();
        self.lanes.push(Lane { name: name.into(), serial: Serial::default(), requests: Requests::default() });
        let tid = lane + 1;
        for (what, key, value) in [
            ("thread_name", "name", format!("\"{}\"", Quoted(name))),
            ("thread_sort_index", "sort_index", tid.to_string()),
        ] {
            self.line(format_args!(r#"{{"name":"{what}","ph":"M","pid":1,"tid":{tid},"args":{{"{key}":{value}}}}}"#));
        }
        lane
    }

    /// A record of a lane; `name` is asked what the guest accessed.
    pub fn record(&mut self, lane: usize, record: &Record, name: impl FnOnce(Kind, u64) -> Option<String>) {
        match record.kind {
            Kind::PortRead | Kind::PortWrite | Kind::MmioRead | Kind::MmioWrite => self.access(lane, record, name),
            Kind::Halt => self.exit(lane, record, ("HLT", "halt"), |_| {}),
            Kind::Kick => self.exit(lane, record, ("held or kicked", "kick"), |_| {}),
            Kind::End => self.exit(lane, record, ("the last exit", "end"), |_| {}),
            Kind::Doorbell | Kind::Pop | Kind::Complete | Kind::Interrupt => self.request(lane, record),
            Kind::Entry => {
                let at = record.at;
                self.instant(lane, at, "entry", &format!("{:#x}", record.address));
            }
            Kind::Print => {
                let lines = self.lanes[lane].serial.printed(record);
                self.console(lane, lines);
            }
        }
    }

    fn access(&mut self, lane: usize, record: &Record, name: impl FnOnce(Kind, u64) -> Option<String>) {
        let Record { kind, address, value, size, count, .. } = *record;
        let (reason, space) = match kind {
            Kind::PortRead => ("port read", "port"),
            Kind::PortWrite => ("port write", "port"),
            Kind::MmioRead => ("mmio read", "mmio"),
            _ => ("mmio write", "mmio"),
        };
        let name =
            self.name_of(kind, address, || name(kind, address).unwrap_or_else(|| format!("{space} {address:#x}")));
        if let Some(device) = name.strip_suffix(" QueueNotify") {
            self.kicked(device, lane, record);
        }
        let name = self.lanes[lane].serial.register(&name);
        self.exit(lane, record, (name, reason), |line| {
            line.text("\"").text(space).text("\":\"").hex(address).text("\",\"value\":\"").hex(value);
            line.text("\",\"size\":").number(size.into()).text(",\"count\":").number(count.into());
        });
        let lines = self.lanes[lane].serial.accessed(name, record);
        self.console(lane, lines);
    }

    /// A driver's kick that is an exit (`--trace-kicks`): its value is the number of the queue.
    fn kicked(&mut self, device: &str, lane: usize, record: &Record) {
        let queue = format!("{device}-q{}", record.value & 0xffff);
        let Some(queue) = self.lanes.iter_mut().find(|lane| *lane.name == *queue) else { return };
        if queue.requests.exits.len() < KICKS {
            queue.requests.exits.push_back((lane, record.at));
        }
    }

    /// Lines that the guest has printed.
    fn console(&mut self, lane: usize, lines: Vec<(u64, String)>) {
        for (at, text) in lines {
            self.instant(lane, at, "console", &text);
        }
    }

    /// The name of a register, asked for once.
    fn name_of(&mut self, kind: Kind, address: u64, name: impl FnOnce() -> String) -> Arc<str> {
        if let Some(known) = self.names.get(&(kind, address)) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name().into();
        if self.names.len() < NAMES {
            self.names.insert((kind, address), Arc::clone(&name));
        }
        name
    }

    /// `args`: what is to be said of it beside RIP.
    fn exit(&mut self, lane: usize, record: &Record, (name, reason): (&str, &str), args: impl FnOnce(&mut Line<'_>)) {
        let (at, took) = (self.scale.time(record.at), self.scale.ticks(record.took.into()));
        let Some(mut line) = self.open() else { return };
        line.text("{\"name\":\"").quoted(name).text("\",\"cat\":\"").text(reason);
        line.text("\",\"ph\":\"X\",\"ts\":").time(at).text(",\"dur\":").time(took).lane(lane + 1).text(",\"args\":{");
        let before = line.len();
        args(&mut line);
        if record.rip != 0 {
            line.text(if line.len() > before { ",\"rip\":\"" } else { "\"rip\":\"" }).hex(record.rip).text("\"");
        }
        line.text("}}");
    }

    /// One step of a request. A slice of no length holds each end of an arrow.
    fn request(&mut self, lane: usize, record: &Record) {
        let (at, head, tid) = (record.at, record.address, lane + 1);
        match record.kind {
            Kind::Doorbell => {
                self.hop(tid, at, "kick");
                let Requests { exits, latest, kick, .. } = &mut self.lanes[lane].requests;
                *kick = Some(at);
                // The thread slept: what was kicked before is done.
                exits.retain(|(_, exit)| *exit > *latest);
            }
            Kind::Pop => {
                self.requests += 1;
                let number = self.requests;
                self.hop(tid, at, "pop");
                let Requests { exits, kick, open, .. } = &mut self.lanes[lane].requests;
                open.insert(head, (number, at));
                let due = exits.front().is_some_and(|(_, exit)| *exit <= at);
                let exit = due.then(|| exits.pop_front()).flatten().map(|(vcpu, exit)| (vcpu + 1, exit));
                let kick = kick.take().map(|kick| (tid, kick));
                let steps =
                    [exit, kick.filter(|(_, kick)| exit.is_none_or(|(_, exit)| exit <= *kick)), Some((tid, at))];
                for (n, (tid, at)) in steps.into_iter().flatten().enumerate() {
                    self.arrow(tid, at, number, if n == 0 { "s" } else { "t" });
                }
            }
            Kind::Complete => {
                self.hop(tid, at, "complete");
                if let Some((number, since)) = self.lanes[lane].requests.open.remove(&head) {
                    self.span(lane, (since, at), number, record);
                    self.arrow(tid, at, number, "t");
                    let untold = &mut self.lanes[lane].requests.untold;
                    untold.extend((untold.len() < UNTOLD).then_some(number));
                }
            }
            _ => {
                self.hop(tid, at, "interrupt");
                for number in std::mem::take(&mut self.lanes[lane].requests.untold) {
                    self.arrow(tid, at, number, "f");
                }
            }
        }
        self.lanes[lane].requests.latest = at;
    }

    fn hop(&mut self, tid: usize, at: u64, name: &str) {
        let at = self.scale.time(at);
        let Some(mut line) = self.open() else { return };
        line.text("{\"name\":\"").text(name).text("\",\"cat\":\"hop\",\"ph\":\"X\",\"ts\":").time(at);
        line.text(",\"dur\":0.001").lane(tid).text("}");
    }

    fn arrow(&mut self, tid: usize, at: u64, number: u64, phase: &str) {
        let at = self.scale.time(at);
        let Some(mut line) = self.open() else { return };
        line.text("{\"name\":\"request\",\"cat\":\"flow\",\"ph\":\"").text(phase);
        line.text(if phase == "f" { "\",\"bp\":\"e\",\"id\":" } else { "\",\"id\":" }).number(number);
        line.text(",\"ts\":").time(at).lane(tid).text("}");
    }

    /// A request from pop to completion: requests of one queue overlap, so each has a track of its own.
    fn span(&mut self, lane: usize, (since, at): (u64, u64), number: u64, record: &Record) {
        let (since, at, name) = (self.scale.time(since), self.scale.time(at), Arc::clone(&self.lanes[lane].name));
        for (phase, at) in [("b", since), ("e", at)] {
            let Some(mut line) = self.open() else { return };
            line.text("{\"name\":\"request\",\"cat\":\"").quoted(&name).text("\",\"ph\":\"").text(phase);
            line.text("\",\"id\":").number(number).text(",\"ts\":").time(at).lane(lane + 1);
            if phase == "b" {
                line.text(",\"args\":{\"head\":").number(record.address);
                line.text(",\"written\":").number(record.value).text("}");
            }
            line.text("}");
        }
    }

    /// Something that happened at a moment, of a kind that programs know.
    pub fn instant(&mut self, lane: usize, at: u64, kind: &str, text: &str) {
        let (at, tid, text, kind) = (self.scale.time(at), lane + 1, Quoted(text), Quoted(kind));
        self.event(format_args!(
            r#"{{"name":"{text}","cat":"{kind}","ph":"i","s":"p","ts":{at},"pid":1,"tid":{tid}}}"#
        ));
    }

    /// A step of the program that ends at `at`.
    pub fn step(&mut self, at: u64, took: Duration, what: &str, detail: &str) {
        let end = self.scale.time(at).0;
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).min(end);
        let (start, took, what, detail) = (Micros(end - took), Micros(took), Quoted(what), Quoted(detail));
        let tid = PROGRAM + 1;
        self.event(format_args!(
            r#"{{"name":"{what}","cat":"step","ph":"X","ts":{start},"dur":{took},"pid":1,"tid":{tid},"args":{{"detail":"{detail}"}}}}"#
        ));
    }

    /// Which time the host's monotonic clock has when the records' clock says `at`.
    pub fn clock(&mut self, at: u64, monotonic: Duration) {
        let (time, nanos) = (self.scale.time(at), monotonic.as_nanos());
        self.event(format_args!(
            r#"{{"name":"clock","cat":"clock","ph":"i","s":"g","ts":{time},"pid":1,"tid":1,"args":{{"tsc":{at},"monotonic_ns":{nanos}}}}}"#
        ));
    }

    /// So many records of a lane were overwritten before they could be read, until `at`.
    pub fn missed(&mut self, lane: usize, at: u64, count: u64) {
        if count > 0 {
            self.missed += count;
            let (at, tid) = (self.scale.time(at), lane + 1);
            self.event(format_args!(
                r#"{{"name":"{count} events lost: more came than could be written","cat":"lost","ph":"i","s":"t","ts":{at},"pid":1,"tid":{tid},"args":{{"count":{count}}}}}"#
            ));
        }
    }

    /// The end of the trace, at `at`.
    pub fn end(&mut self, at: u64) {
        for lane in 0..self.lanes.len() {
            if let Some((at, text)) = self.lanes[lane].serial.take() {
                self.instant(lane, at, "console", &text);
            }
        }
        let (at, left_out, missed) = (self.scale.time(at), self.left_out, self.missed);
        // Below the limit: there is a reserve.
        if left_out > 0 {
            self.line(format_args!(
                r#"{{"name":"the file is full: {left_out} events left out","cat":"lost","ph":"i","s":"g","ts":{at},"pid":1,"tid":1,"args":{{"count":{left_out}}}}}"#
            ));
        }
        let last = format!(
            "{{\"name\":\"end\",\"cat\":\"end of trace\",\"ph\":\"i\",\"s\":\"g\",\"ts\":{at},\"pid\":1,\"tid\":1,\
             \"args\":{{\"lost\":{missed},\"left_out\":{left_out}}}}}\n]\n"
        );
        self.len += last.len() as u64;
        self.text.extend(last.as_bytes());
    }

    /// An event, if there is room for it.
    fn event(&mut self, event: fmt::Arguments<'_>) {
        if let Some(mut line) = self.open() {
            line.format(event);
        }
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        self.begin().format(line);
    }

    /// Begins the line of an event, if there is room for it.
    fn open(&mut self) -> Option<Line<'_>> {
        if self.len + RESERVE > self.limit {
            self.left_out += 1;
            return None;
        }
        Some(self.begin())
    }

    fn begin(&mut self) -> Line<'_> {
        Line::new(&mut self.text, &mut self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chrome(limit: u64) -> Chrome {
        Chrome::new(Scale { start: 1000, tick: 0.5 }, limit)
    }

    fn record(at: u64, kind: Kind, address: u64, value: u64) -> Record {
        Record { at, took: 8, kind, size: 1, count: 1, address, value, rip: 0 }
    }

    fn events(chrome: &mut Chrome) -> Vec<serde_json::Value> {
        serde_json::from_slice(&chrome.take()).unwrap()
    }

    #[test]
    fn an_exit_is_a_slice_with_its_register() {
        let mut chrome = chrome(1 << 20);
        let lane = chrome.lane("vcpu0");
        chrome.record(lane, &record(3000, Kind::PortWrite, 0x80, 7), |_, _| None);
        chrome.end(4000);
        let events = events(&mut chrome);
        let exit = events.iter().find(|event| event["cat"] == "port write").unwrap();
        let wanted = serde_json::json!({
            "name": "port 0x80", "cat": "port write", "ph": "X", "ts": 1.0, "dur": 0.004, "pid": 1, "tid": 2,
            "args": { "port": "0x80", "value": "0x7", "size": 1, "count": 1 }
        });
        assert_eq!(*exit, wanted);
        assert_eq!(events.last().unwrap()["args"], serde_json::json!({ "lost": 0, "left_out": 0 }));
    }

    #[test]
    fn names_are_asked_for_once() {
        let mut chrome = chrome(1 << 20);
        let lane = chrome.lane("vcpu0");
        chrome.record(lane, &record(1, Kind::MmioRead, 9, 0), |_, _| Some("vda Status".into()));
        chrome.record(lane, &record(2, Kind::MmioRead, 9, 0), |_, _| panic!("asked again"));
        chrome.end(3);
        assert_eq!(events(&mut chrome).iter().filter(|event| event["name"] == "vda Status").count(), 2);
    }

    #[test]
    fn arrows_lead_from_the_kick_to_the_interrupt_of_each_request() {
        let mut chrome = chrome(1 << 20);
        let lane = chrome.lane("vda-q0");
        let steps = [
            (Kind::Doorbell, 0),
            (Kind::Pop, 3),
            (Kind::Pop, 4),
            (Kind::Complete, 4),
            (Kind::Complete, 3),
            (Kind::Interrupt, 0),
        ];
        for (n, (kind, head)) in (0..).zip(steps) {
            chrome.record(lane, &record(2000 + n * 1000, kind, head, 0), |_, _| None);
        }
        chrome.end(9000);
        let events = events(&mut chrome);
        let of = |id: u64, wanted: &str| {
            let is_wanted = |event: &&serde_json::Value| event["id"] == id && event["cat"] == wanted;
            let step = |event: &serde_json::Value| {
                (event["ph"].as_str().unwrap().to_owned(), (event["ts"].as_f64().unwrap() * 1000.0) as u64)
            };
            events.iter().filter(is_wanted).map(step).collect::<Vec<_>>()
        };
        let steps = |steps: &[(&str, u64)]| steps.iter().map(|(ph, ts)| ((*ph).to_owned(), *ts)).collect::<Vec<_>>();
        assert_eq!(of(1, "flow"), steps(&[("s", 500), ("t", 1000), ("t", 2500), ("f", 3000)]));
        assert_eq!(of(2, "flow"), steps(&[("s", 1500), ("t", 2000), ("f", 3000)]));
        assert_eq!(of(1, "vda-q0"), steps(&[("b", 1000), ("e", 2500)]));
        assert_eq!(of(2, "vda-q0"), steps(&[("b", 1500), ("e", 2000)]));
    }

    #[test]
    fn an_arrow_begins_at_the_exit_of_the_kick_where_kicks_are_exits() {
        let mut chrome = chrome(1 << 20);
        let (vcpu, queue) = (chrome.lane("vcpu0"), chrome.lane("vda-q1"));
        let kick = |chrome: &mut Chrome, at, number| {
            let name = |_, _| Some("vda QueueNotify".into());
            chrome.record(vcpu, &record(at, Kind::MmioWrite, 0x50, number), name);
        };
        // Those of another queue, and those that were served before the thread slept, begin no arrow.
        [(1400, 1), (2000, 1), (2010, 0), (9000, 1)].into_iter().for_each(|(at, number)| kick(&mut chrome, at, number));
        for (at, kind) in [(1500, Kind::Complete), (2200, Kind::Doorbell), (2400, Kind::Pop), (2600, Kind::Pop)] {
            chrome.record(queue, &record(at, kind, at, 0), |_, _| None);
        }
        chrome.end(9000);
        let events = events(&mut chrome);
        let flow = |event: &&serde_json::Value| event["cat"] == "flow";
        let step = |event: &serde_json::Value| {
            let number = |key: &str| (event[key].as_f64().unwrap() * 1000.0) as u64;
            (event["id"].as_u64().unwrap(), event["tid"].as_u64().unwrap(), number("ts"))
        };
        let steps: Vec<_> = events.iter().filter(flow).map(step).collect();
        assert_eq!(steps, [(1, 2, 500), (1, 3, 600), (1, 3, 700), (2, 3, 800)]);
    }

    #[test]
    fn a_hostile_guest_stays_below_the_limit_and_inside_of_quotes() {
        let mut chrome = chrome(16 << 10);
        let lane = chrome.lane("vcpu0");
        let mut len = 0;
        for (n, byte) in (0..100_000).zip(b"\"},\x1b]0;x\x07\\\x00\n\xff\"".iter().cycle()) {
            let name = |_, _| Some("COM1 THR".into());
            chrome.record(lane, &record(n, Kind::PortWrite, 0x3f8, (*byte).into()), name);
            chrome.record(lane, &record(n, Kind::PortWrite, n, 0), |_, _| Some("a\"\\\n\0\u{9b}".repeat(999)));
        }
        chrome.missed(lane, 5, 17);
        chrome.end(100_000);
        let text = chrome.take();
        len += text.len();
        assert!(len <= 16 << 10, "{len}");
        assert!(String::from_utf8(text.clone()).unwrap().chars().all(|letter| letter == '\n' || !letter.is_control()));
        let events: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
        let args = &events.last().unwrap()["args"];
        assert!(args["left_out"].as_u64().unwrap() > 190_000 && args["lost"] == 17, "{args}");
    }
}
