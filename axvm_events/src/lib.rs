//! One typed stream of what happened inside the machine.
//!
//! ```text
//!  vCPU threads --\
//!  devices ------- > Events::emit --> Sink   (narration, timeline, metrics, tests)
//!  boot steps ----/
//! ```
//!
//! Off by default, and then an `emit` costs one branch: the event is not even built.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

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
    /// The guest accessed a port or an MMIO register that nobody answers.
    NobodyHome {
        /// "port" or "mmio".
        space: &'static str,
        /// Address on that bus.
        address: u64,
        /// A write (true) or a read.
        write: bool,
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
    /// Something the user should know, not fatal.
    Warning {
        /// Who speaks.
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

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::BootStep { what, detail, took } => {
                write!(f, "[{:>7.3} ms] {what}: {detail}", took.as_secs_f64() * 1e3)
            }
            Event::NobodyHome { space, address, write } => {
                let verb = if *write { "write to" } else { "read from" };
                write!(f, "{verb} {space} {address:#x}: nobody there")
            }
            Event::VirtioStatus { device, from, to } => {
                write!(f, "{device}: status {from:#x} -> {to:#x}")
            }
            Event::VirtioNeedsReset { device, reason } => {
                write!(f, "{device}: needs reset: {reason}")
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
    sink: Option<Arc<dyn Sink>>,
    quiet: bool,
}

impl Events {
    /// A stream that ends in `sink`.
    pub fn to(sink: Arc<dyn Sink>) -> Events {
        Events { sink: Some(sink), quiet: false }
    }

    /// A stream of warnings only.
    pub fn warnings_to(sink: Arc<dyn Sink>) -> Events {
        Events { sink: Some(sink), quiet: true }
    }

    /// Whether anyone listens to more than warnings.
    pub fn is_on(&self) -> bool {
        self.sink.is_some() && !self.quiet
    }

    /// Builds and delivers an event, if anyone listens.
    #[inline]
    pub fn emit(&self, event: impl FnOnce() -> Event) {
        if !self.quiet {
            self.warn(event);
        }
    }

    /// Builds and delivers an event that matters even when nobody asked for the whole stream.
    #[inline]
    pub fn warn(&self, event: impl FnOnce() -> Event) {
        if let Some(sink) = &self.sink {
            sink.event(&event());
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
    fn an_event_nobody_hears_is_not_built() {
        Events::default().emit(|| panic!("built for nobody"));
        Events::default().warn(|| panic!("built for nobody"));
    }

    #[test]
    fn a_quiet_stream_carries_warnings_only() {
        let tape = Arc::new(Tape(Mutex::default()));
        let events = Events::warnings_to(tape.clone());
        events.emit(|| panic!("built for nobody"));
        events.warn(|| Event::Power { reason: "crash".into() });
        assert_eq!(*tape.0.lock().unwrap(), ["power: crash"]);
    }
}
