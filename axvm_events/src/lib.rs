//! One typed stream of what happened inside the machine.
//!
//! ```text
//!  vCPU threads --\                 /--> Sink   (narration, timeline, metrics, tests)
//!  devices ------- > Events::emit ----> Sink   (the control socket, while it has a subscriber)
//!  boot steps ----/
//! ```
//!
//! Off by default, and then an `emit` costs one branch: the event is not even built. A sink that is subscribed only
//! at times costs one relaxed load while it is not.
//!
//! What comes too often to be an event for people, exits and requests, goes onto [tapes](tape) instead.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start threads of their own"))]

mod ring;
pub mod rules;
pub mod tape;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rules::{Rule, Violations};
use tape::{Capacity, Names, Tape, Tapes};

/// Something that happened. Every consumer reads this one enum.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A numbered step of building the machine took this long.
    BootStep {
        /// What was built.
        what: &'static str,
        /// The facts worth telling, for people.
        detail: String,
        /// Wall-clock time of the step.
        took: Duration,
    },
    /// The guest accessed a port or an MMIO address that no device claims.
    UnclaimedAddress {
        /// "port" or "mmio".
        space: &'static str,
        /// Address on that bus.
        address: u64,
        /// What was written; `None` for a read.
        written: Option<u64>,
        /// Width of the access in bytes.
        width: usize,
        /// Which vCPU.
        vcpu: u32,
        /// Where that was in its program: at the instruction, or just behind it. `None` if it is not known.
        rip: Option<u64>,
        /// What this port is on other machines, and what does the same here.
        elsewhere: Option<&'static str>,
    },
    /// How often the guest accessed what no device claims; told when the machine stops.
    UnclaimedCount {
        /// "port" or "mmio".
        space: &'static str,
        /// The port, or the first address of the page; `None` for all that were not told one by one.
        address: Option<u64>,
        /// Accesses.
        count: u64,
    },
    /// A virtio driver changed the device status register.
    VirtioStatus {
        /// Device name, such as `vda`.
        device: Arc<str>,
        /// Value before.
        from: u32,
        /// Value after.
        to: u32,
    },
    /// A virtio driver broke the rules; the device asked for a reset.
    VirtioNeedsReset {
        /// Device name.
        device: Arc<str>,
        /// Which rule, for people.
        reason: String,
    },
    /// A virtio driver broke a rule of the standard, for the first time; told with `--virtio-check`.
    VirtioRule {
        /// Device name.
        device: Arc<str>,
        /// Which rule.
        rule: &'static Rule,
        /// What was seen.
        seen: String,
    },
    /// The host has no room for what the guest writes to a disk: the machine is paused, and the request is kept.
    DiskFull {
        /// Device name.
        device: Arc<str>,
        /// What is to be done: "write", "zero".
        action: &'static str,
        /// The file whose file system is full.
        path: String,
        /// What the host said.
        error: String,
        /// Bytes that are free there; `None` for a block device.
        free: Option<u64>,
    },
    /// A device was added while the guest runs.
    DeviceAdded {
        /// Device name, such as `vdb`.
        device: Arc<str>,
        /// Where it is.
        place: String,
    },
    /// A device has gone, and what it had is given back.
    DeviceRemoved {
        /// Device name.
        device: Arc<str>,
        /// The guest did not let go of it.
        forced: bool,
    },
    /// A paused machine goes on.
    Resumed {
        /// How long it stood still.
        after: Duration,
    },
    /// Something the user should know, not fatal.
    Warning {
        /// Which part of AxVM warns.
        from: &'static str,
        /// What happened and what to do.
        message: String,
    },
    /// The machine's power state changed: power-off, reset, crash.
    Power {
        /// Who asked, for people.
        reason: String,
    },
}

/// One fact of an event, for programs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Words.
    Text(&'a str),
    /// A count, an address, a register.
    Number(u64),
    /// Yes or no.
    Flag(bool),
}

impl Event {
    /// The name of the event for programs; it never changes.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::BootStep { .. } => "boot_step",
            Event::UnclaimedAddress { .. } => "unclaimed_address",
            Event::UnclaimedCount { .. } => "unclaimed_count",
            Event::VirtioStatus { .. } => "virtio_status",
            Event::VirtioNeedsReset { .. } => "virtio_needs_reset",
            Event::VirtioRule { .. } => "virtio_rule",
            Event::DiskFull { .. } => "disk_full",
            Event::DeviceAdded { .. } => "device_added",
            Event::DeviceRemoved { .. } => "device_removed",
            Event::Resumed { .. } => "resumed",
            Event::Warning { .. } => "warning",
            Event::Power { .. } => "power",
        }
    }

    /// Its facts by name, for programs; names never change, new ones may come.
    pub fn fields(&self) -> Vec<(&'static str, Value<'_>)> {
        use Value::{Flag, Number, Text};
        match self {
            Event::BootStep { what, detail, took } => {
                vec![("what", Text(what)), ("detail", Text(detail)), ("took_us", Number(micros(*took)))]
            }
            Event::UnclaimedAddress { space, address, written, width, vcpu, rip, elsewhere } => {
                let known = [("space", Text(space)), ("address", Number(*address)), ("write", Flag(written.is_some()))];
                let width = ("width", Number(*width as u64));
                let maybe = [written.map(|value| ("value", Number(value))), rip.map(|rip| ("rip", Number(rip)))];
                let elsewhere = elsewhere.map(|words| ("elsewhere", Text(words)));
                let vcpu = ("vcpu", Number((*vcpu).into()));
                known.into_iter().chain([width, vcpu]).chain(maybe.into_iter().flatten()).chain(elsewhere).collect()
            }
            Event::UnclaimedCount { space, address, count } => {
                let address = address.map(|address| ("address", Number(address)));
                [("space", Text(space))].into_iter().chain(address).chain([("count", Number(*count))]).collect()
            }
            Event::VirtioStatus { device, from, to } => {
                vec![("device", Text(device)), ("from", Number((*from).into())), ("to", Number((*to).into()))]
            }
            Event::VirtioNeedsReset { device, reason } => vec![("device", Text(device)), ("reason", Text(reason))],
            Event::VirtioRule { device, rule, seen } => {
                let facts = [("device", &**device), ("rule", rule.id), ("seen", seen)];
                let cited = [("section", rule.section), ("title", rule.title), ("clause", rule.clause)];
                facts.into_iter().chain(cited).map(|(name, text)| (name, Text(text))).collect()
            }
            Event::DiskFull { device, action, path, error, free } => {
                let fields =
                    [("device", Text(device)), ("action", Text(action)), ("path", Text(path)), ("error", Text(error))];
                fields.into_iter().chain(free.map(|free| ("free", Number(free)))).collect()
            }
            Event::DeviceAdded { device, place } => vec![("device", Text(device)), ("place", Text(place))],
            Event::DeviceRemoved { device, forced } => vec![("device", Text(device)), ("forced", Flag(*forced))],
            Event::Resumed { after } => vec![("after_us", Number(micros(*after)))],
            Event::Warning { from, message } => vec![("from", Text(from)), ("message", Text(message))],
            Event::Power { reason } => vec![("reason", Text(reason))],
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::BootStep { what, detail, took } => {
                write!(f, "[{:>7.3} ms] {what}: {detail}", took.as_secs_f64() * 1e3)
            }
            Event::UnclaimedAddress { space, address, written, width, vcpu, rip, elsewhere } => {
                let bits = width * 8;
                match written {
                    Some(value) => {
                        write!(f, "write of {value:#x} ({bits} bits) to {space} {address:#x} by vCPU {vcpu}")?
                    }
                    None => write!(f, "read ({bits} bits) from {space} {address:#x} by vCPU {vcpu}")?,
                }
                rip.map_or(Ok(()), |rip| write!(f, " at rip {rip:#x}"))?;
                f.write_str(": no device there")?;
                elsewhere.map_or(Ok(()), |words| write!(f, "; elsewhere it is {words}"))
            }
            Event::UnclaimedCount { space, address, count } => {
                let place = address.map_or(format!("{space}, elsewhere"), |address| format!("{space} {address:#x}"));
                write!(f, "{place}: {count} accesses in all, no device there")
            }
            Event::VirtioStatus { device, from, to } => {
                write!(f, "{device}: status {from:#x} -> {to:#x}")
            }
            Event::VirtioNeedsReset { device, reason } => {
                write!(f, "{device}: needs reset: {reason}")
            }
            Event::VirtioRule { device, rule: Rule { id, level, source, section, title, clause }, seen } => {
                write!(f, "{device}: {id}: {seen}; {source}, {section} \"{title}\" ({level}): {clause}")
            }
            Event::DiskFull { device, action, path, error, free } => {
                let free = free.map(|free| format!("; {free} bytes are free")).unwrap_or_default();
                write!(
                    f,
                    "{device}: no room to {action} in {path}: {error}{free}. The machine is paused, and nothing is \
                     lost: make room, then resume it (axvm ctl MACHINE resume). With on-full=report the guest gets an \
                     I/O error instead"
                )
            }
            Event::DeviceAdded { device, place } => write!(f, "{device}: added at {place}"),
            Event::DeviceRemoved { device, forced: false } => write!(f, "{device}: removed, the guest let it go"),
            Event::DeviceRemoved { device, forced: true } => write!(f, "{device}: removed by force"),
            Event::Resumed { after } => {
                write!(f, "resumed after {:.1} s: meanwhile the guest's clocks ran on", after.as_secs_f64())
            }
            Event::Warning { from, message } => write!(f, "{from}: {message}"),
            Event::Power { reason } => write!(f, "power: {reason}"),
        }
    }
}

/// Receives events, from any thread. Must not block and must not panic.
pub trait Sink: Send + Sync {
    /// One event, in the order its thread emitted it.
    fn event(&self, event: &Event);
}

/// A handle to the stream; cheap to clone. `Events::default()` is off.
#[derive(Clone, Default)]
pub struct Events {
    subscribers: Vec<Subscriber>,
    tapes: Option<Arc<Tapes>>,
    violations: Option<Arc<Violations>>,
}

/// A sink and what it wants.
#[derive(Clone)]
struct Subscriber {
    sink: Arc<dyn Sink>,
    wants: Wants,
}

#[derive(Clone)]
enum Wants {
    Everything,
    Warnings,
    /// Everything, while the switch is on.
    AtTimes(Arc<AtomicBool>),
}

impl Subscriber {
    fn takes(&self, warning: bool) -> bool {
        match &self.wants {
            Wants::Everything => true,
            Wants::Warnings => warning,
            Wants::AtTimes(on) => on.load(Ordering::Relaxed),
        }
    }
}

impl Events {
    /// A stream that ends in `sink`.
    pub fn to(sink: Arc<dyn Sink>) -> Events {
        Events::of(Subscriber { sink, wants: Wants::Everything })
    }

    /// A stream of warnings only.
    pub fn warnings_to(sink: Arc<dyn Sink>) -> Events {
        Events::of(Subscriber { sink, wants: Wants::Warnings })
    }

    /// A stream that ends in `sink` while `on` is true; it may be switched at any time.
    pub fn at_times_to(sink: Arc<dyn Sink>, on: Arc<AtomicBool>) -> Events {
        Events::of(Subscriber { sink, wants: Wants::AtTimes(on) })
    }

    /// This stream and `other` as one: each sink gets what it would have got alone.
    pub fn and(mut self, other: Events) -> Events {
        self.subscribers.extend(other.subscribers);
        self.tapes = self.tapes.or(other.tapes);
        self.violations = self.violations.or(other.violations);
        self
    }

    fn of(subscriber: Subscriber) -> Events {
        Events { subscribers: vec![subscriber], tapes: None, violations: None }
    }

    /// This stream, and what is recorded beside it.
    pub fn with_tapes(self, tapes: Arc<Tapes>) -> Events {
        Events { tapes: Some(tapes), ..self }
    }

    /// This stream, with rules checked: what is broken is told, and counted there.
    pub fn with_rules(self, violations: Arc<Violations>) -> Events {
        Events { violations: Some(violations), ..self }
    }

    /// Whether rules are checked.
    #[inline]
    pub fn checks_rules(&self) -> bool {
        self.violations.is_some()
    }

    /// The driver of `device` broke a rule. Nothing happens unless rules are checked.
    pub fn broke(&self, rule: &'static Rule, device: &Arc<str>, seen: impl FnOnce() -> String) {
        let Some(violations) = &self.violations else { return };
        if let Some((device, seen)) = violations.count(rule, device, seen) {
            self.warn(|| Event::VirtioRule { device, rule, seen });
        }
    }

    /// The tape that this thread is to have now: the same, a new one, or none.
    pub fn tape_after(&self, tape: Option<Tape>, name: &str) -> Option<Tape> {
        let tapes = self.tapes.as_ref()?;
        tape.and_then(|tape| tapes.still(tape)).or_else(|| tapes.tape(name, Capacity::Thread))
    }

    /// A tape for the queue of a device, of which a guest may have many made.
    pub fn queue_tape(&self, name: &str) -> Option<Tape> {
        self.tapes.as_ref().and_then(|tapes| tapes.tape(name, Capacity::Queue))
    }

    /// Tells the recorder, if there is one, how registers are called.
    pub fn name_registers(&self, names: impl FnOnce() -> Names) {
        if let Some(tapes) = &self.tapes {
            tapes.set_names(names());
        }
    }

    /// Whether a subscriber takes more than warnings.
    pub fn is_on(&self) -> bool {
        self.subscribers.iter().any(|subscriber| subscriber.takes(false))
    }

    /// Builds and delivers an event, if there is a subscriber.
    #[inline]
    pub fn emit(&self, event: impl FnOnce() -> Event) {
        self.deliver(false, event);
    }

    /// Builds and delivers an event that matters even to a subscriber of warnings only.
    #[inline]
    pub fn warn(&self, event: impl FnOnce() -> Event) {
        self.deliver(true, event);
    }

    #[inline]
    fn deliver(&self, warning: bool, event: impl FnOnce() -> Event) {
        let mut takers = self.subscribers.iter().filter(|subscriber| subscriber.takes(warning)).peekable();
        if takers.peek().is_some() {
            let event = event();
            takers.for_each(|subscriber| subscriber.sink.event(&event));
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_on() { "Events(on)" } else { "Events(off)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Tape(Mutex<Vec<String>>);
    impl Sink for Tape {
        fn event(&self, event: &Event) {
            self.0.lock().unwrap().push(event.to_string());
        }
    }

    #[test]
    fn events_reach_the_sink_in_words() {
        let tape = Arc::new(Tape(Mutex::default()));
        Events::to(tape.clone()).emit(|| Event::VirtioStatus { device: "vda".into(), from: 0, to: 1 });
        assert_eq!(*tape.0.lock().unwrap(), ["vda: status 0x0 -> 0x1"]);
    }

    #[test]
    fn an_event_without_a_subscriber_is_not_built() {
        Events::default().emit(|| panic!("built without a subscriber"));
        Events::default().warn(|| panic!("built without a subscriber"));
    }

    #[test]
    fn a_quiet_stream_carries_warnings_only() {
        let tape = Arc::new(Tape(Mutex::default()));
        let events = Events::warnings_to(tape.clone());
        events.emit(|| panic!("built without a subscriber"));
        events.warn(|| Event::Power { reason: "crash".into() });
        assert_eq!(*tape.0.lock().unwrap(), ["power: crash"]);
    }

    #[test]
    fn a_sink_at_times_gets_what_comes_while_it_is_switched_on() {
        let (tape, all) = (Arc::new(Tape(Mutex::default())), Arc::new(Tape(Mutex::default())));
        let on = Arc::new(AtomicBool::new(false));
        let events = Events::warnings_to(all.clone()).and(Events::at_times_to(tape.clone(), on.clone()));
        assert!(!events.is_on());
        events.emit(|| panic!("built without a subscriber"));
        events.warn(|| Event::Power { reason: "one".into() });
        on.store(true, Ordering::Relaxed);
        assert!(events.is_on());
        events.emit(|| Event::Power { reason: "two".into() });
        events.warn(|| Event::Power { reason: "three".into() });
        assert_eq!(*all.0.lock().unwrap(), ["power: one", "power: three"]);
        assert_eq!(*tape.0.lock().unwrap(), ["power: two", "power: three"]);
    }

    #[test]
    fn programs_get_a_name_and_the_facts() {
        let (device, path) = ("vda".into(), "a.img".into());
        let full = Event::DiskFull { device, action: "write", path, error: "No space".into(), free: Some(7) };
        assert_eq!((full.kind(), full.fields().last()), ("disk_full", Some(&("free", Value::Number(7)))));
        assert!(full.to_string().starts_with("vda: no room to write in a.img: No space; 7 bytes are free. "), "{full}");
        let (written, rip) = (Some(0x12), Some(0x1000));
        let event =
            Event::UnclaimedAddress { space: "port", address: 0x80, written, width: 1, vcpu: 2, rip, elsewhere: None };
        assert_eq!(event.kind(), "unclaimed_address");
        let resumed = Event::Resumed { after: Duration::from_millis(2500) };
        assert_eq!((resumed.kind(), resumed.fields()), ("resumed", vec![("after_us", Value::Number(2_500_000))]));
        let numbers = [("width", 1), ("vcpu", 2), ("value", 0x12), ("rip", 0x1000)];
        let facts = [("space", Value::Text("port")), ("address", Value::Number(0x80)), ("write", Value::Flag(true))];
        let numbers = numbers.map(|(name, number)| (name, Value::Number(number)));
        assert_eq!(event.fields(), [&facts[..], &numbers].concat());
    }
}
