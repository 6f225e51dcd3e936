//! `axvm run`: the life of a process, from settings to exit code.
//!
//! ```text
//!   settings -> sockets -> host -> consoles -> guest, again after each reset -> what it ended with
//! ```
//!
//! What can go wrong because of the user comes first; the terminal is taken last and given back before AxVM speaks.

use std::sync::Arc;

use anyhow::{Context, Result};
use axvm_api::{EventFeed, Registry, Server};
use axvm_devices::PowerEvent;
use axvm_events::{Event, Events};

use crate::cli::{OnReboot, RunArgs};
use crate::config::Config;
use crate::consoles::Consoles;
use crate::control::Panel;
use crate::current::Current;
use crate::host;
use crate::machine::Machine;
use crate::narrator::Narrator;
use crate::recipe::Host;
use crate::serve::{Signals, serve};

/// Runs a machine to its end; the exit code.
pub fn run(args: RunArgs) -> Result<u8> {
    let config = Config::from_args(args)?;
    let feed = EventFeed::new().context("Cannot make the event stream")?;
    let narrator = Arc::new(Narrator::new(config.verbose));
    let narration = if config.verbose { Events::to(narrator) } else { Events::warnings_to(narrator) };
    let events = narration.and(feed.events());
    if config.by_default {
        eprintln!("axvm: {}", taken(&config));
    }
    warn_about_host(&events);

    let bound = bind(&config, &events)?;
    let host = Host::open(&config, events.clone())?;
    let signals = Signals::catch().context("Cannot catch signals")?;
    let current = Arc::new(Current::default());
    let consoles = Consoles::open(&config, &current, &events)?;
    let panel = Panel::new(&config, Arc::clone(host.ram()), &consoles, Arc::clone(&current));
    let server = bound.serve(Arc::new(panel), feed, || Ok::<(), std::io::Error>(()))?;

    let end = guests(&Room { config: &config, host: &host, consoles: &consoles, current: &current, signals: &signals });
    server.stop();
    consoles.finish();
    let end = end?;
    if let Some(words) = end.words() {
        eprintln!("axvm: {words}");
    }
    end.code()
}

/// What every start of the guest works with.
struct Room<'a> {
    config: &'a Config,
    host: &'a Host,
    consoles: &'a Consoles,
    current: &'a Current,
    signals: &'a Signals,
}

/// Runs guest after guest, until one ends for good.
fn guests(room: &Room<'_>) -> Result<End> {
    let Room { config, host, consoles, current, signals } = room;
    loop {
        let machine = Arc::new(Machine::start(host.build(config, consoles)?, &config.pins)?);
        current.install(Arc::clone(&machine));
        let served = serve(&machine, consoles, signals, config.grace);
        current.remove();
        let end = End(machine.stop());
        served?;
        if !end.starts_again(config.on_reboot) {
            return Ok(end);
        }
        host.events().emit(|| Event::Power { reason: format!("{}, starting again", end.reset().unwrap_or_default()) });
        // The last of the old machine: its VM must be gone before its memory is.
        drop(machine);
        host.clear()?;
    }
}

/// How a guest ended.
struct End(PowerEvent);

impl End {
    /// Whether it was a reset: in words.
    fn reset(&self) -> Option<String> {
        match &self.0 {
            PowerEvent::Reset(door) => Some(format!("reset ({door})")),
            PowerEvent::TripleFault => Some("triple fault".into()),
            _ => None,
        }
    }

    fn starts_again(&self, on_reboot: OnReboot) -> bool {
        on_reboot == OnReboot::Restart && self.reset().is_some()
    }

    /// What the user must hear.
    fn words(&self) -> Option<String> {
        match &self.0 {
            PowerEvent::Panic => Some("The guest's kernel panicked; its last words are on the console above".into()),
            PowerEvent::TripleFault => Some("The guest crashed: triple fault".into()),
            PowerEvent::Crash(why) => Some(format!("The guest crashed: {why}")),
            _ => None,
        }
    }

    fn code(&self) -> Result<u8> {
        match &self.0 {
            PowerEvent::Off | PowerEvent::Quit => Ok(0),
            PowerEvent::Reset(_) => Ok(3),
            PowerEvent::Panic => Ok(4),
            PowerEvent::TripleFault | PowerEvent::Crash(_) => Ok(5),
            PowerEvent::Signal(signal) => Ok(128 + *signal as u8),
            PowerEvent::HostError(why) => anyhow::bail!("The host failed the guest: {why}"),
        }
    }
}

/// The control sockets: the user's, and the one by which `axvm ps` finds the machine. The second may be missing.
fn bind(config: &Config, events: &Events) -> Result<axvm_api::Bound> {
    let all = Registry::of_user().default_socket(std::process::id()).map(|own| {
        let paths: Vec<_> = config.api_sock.iter().cloned().chain([own]).collect();
        Server::bind(&paths)
    });
    let trouble = match all {
        Ok(Ok(bound)) => return Ok(bound),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let bound = Server::bind(config.api_sock.as_slice())?;
    let message = format!("`axvm ps` will not show this machine: {trouble}");
    events.emit(|| Event::Warning { from: "control socket", message });
    Ok(bound)
}

/// Which files were taken because none was named.
fn taken(config: &Config) -> String {
    let mut files = vec![format!("kernel {}", config.kernel.display())];
    files.extend(config.initrd.iter().map(|path| format!("initrd {}", path.display())));
    files.extend(config.disks.iter().map(|disk| format!("disk {}", disk.path.display())));
    format!("taking {}", files.join(", "))
}

/// A KVM without hardware behind it runs Linux too slowly to wait for: say so before the wait.
fn warn_about_host(events: &Events) {
    if !host::has_virtualization() {
        events.warn(|| Event::Warning {
            from: "host",
            message: "this processor offers no virtualization (no vmx or svm in /proc/cpuinfo): \
                      Linux will be too slow to use; `cargo xtask boot` runs it in the lab instead"
                .into(),
        });
    }
}
