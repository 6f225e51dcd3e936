//! Signs of life: what AxVM says about a guest that shows none.
//!
//! ```text
//!   no exit, and no byte on any console, for --silence     --> one line, once: what to try
//!   no exit for --explain                              --> a report of what each vCPU does, once until there is one
//!   every vCPU in HLT with interrupts off                  --> --on-halt: an end with 6, or one line
//! ```
//!
//! Silence is no fault: a kernel may have other consoles, or none. So it is only told.

use std::cell::Cell;
use std::time::{Duration, Instant};

use axvm_boot::acpi::Acpi;
use axvm_devices::StopReason;
use axvm_events::{Event, Events};
use axvm_machine::Machine;

use crate::config::Config;
use crate::consoles::Consoles;
use crate::explain::{Explainer, Standstill};
use crate::lint;
use crate::settings::OnHalt;

/// What is watched for while guests come and go.
pub struct Signs<'a> {
    on_halt: OnHalt,
    /// How long is silent; none if that is not to be told, or was told.
    silence: Cell<Option<Duration>>,
    /// What would be another console, or another way to find one.
    advice: String,
    /// Explains a guest that does not move.
    standstill: Option<Standstill<'a>>,
    events: &'a Events,
}

impl Signs<'_> {
    /// What the user wants.
    pub fn of<'a>(config: &Config, events: &'a Events, explainer: Option<&'a Explainer>) -> Signs<'a> {
        let silence = Some(config.settings.silence()).filter(|&seconds| seconds > 0);
        let silence = silence.map(|seconds| Duration::from_secs(seconds.into()));
        let standstill = explainer.map(|explainer| Standstill::of(config, explainer));
        let (on_halt, silence) = (config.settings.on_halt(), Cell::new(silence));
        Signs { on_halt, silence, advice: advice(config), standstill, events }
    }

    /// The guest has halted for good.
    pub fn halted(&self, machine: &Machine, place: String) {
        match self.on_halt {
            OnHalt::End => machine.stop_switch().request(StopReason::Halted(place)),
            OnHalt::Wait => {
                let message = format!(
                    "halted for good: {place}. Nothing but `axvm ctl MACHINE nmi`, `reset` or `stop` changes that \
                     (--on-halt wait)"
                );
                self.events.warn(|| Event::Warning { from: "guest", message });
            }
        }
    }

    /// When to look at a guest that starts now; none if nothing is to be told.
    pub fn first_look(&self) -> Option<Instant> {
        let standstill = self.standstill.as_ref().and_then(Standstill::first_look);
        self.silence.get().map(|silence| Instant::now() + silence).into_iter().chain(standstill).min()
    }

    /// Looks whether there is silence, and tells it; when to look again.
    pub fn look(&self, machine: &Machine, consoles: &Consoles) -> Option<Instant> {
        let silence = self.look_for_silence(machine, consoles);
        let standstill = self.standstill.as_ref().and_then(|standstill| standstill.look(machine));
        silence.into_iter().chain(standstill).min()
    }

    fn look_for_silence(&self, machine: &Machine, consoles: &Consoles) -> Option<Instant> {
        let silence = self.silence.get().filter(|_| !consoles.have_spoken())?;
        let left = match machine.is_paused() {
            true => silence,
            false => silence.saturating_sub(machine.quiet()),
        };
        if !left.is_zero() {
            return Some(Instant::now() + left);
        }
        self.silence.set(None);
        let seconds = silence.as_secs();
        let message =
            format!("nothing came out of a console and no device was touched for {seconds} s. {}", self.advice);
        self.events.warn(|| Event::Warning { from: "guest", message });
        None
    }
}

/// What may bring a silent kernel to speak.
fn advice(config: &Config) -> String {
    let mut ways =
        vec!["a kernel with an 8250 driver speaks with console=ttyS0, or from its start with earlyprintk=ttyS0"];
    if config.virtio_console.is_none() {
        ways.push("one without with --virtio-console stdio");
    }
    if !lint::is_wanted(&config.settings) {
        ways.push("--lint on tells what the kernel lacks");
    }
    match config.machine.acpi {
        Acpi::Full => ways.push("one made for microVMs may need --acpi cpus or --acpi off"),
        Acpi::Cpus => ways.push("one made for microVMs may need --acpi off"),
        Acpi::Off => {}
    }
    format!("Try: {}; `axvm ctl {} status` tells whether its vCPUs do anything", ways.join(", "), config.name)
}
