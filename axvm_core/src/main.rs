//! `axvm`: the program. Command line in, exit code out; everything between is the machine.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | the guest powered off, or the user quit |
//! | 1 | host or set-up error |
//! | 2 | wrong usage |
//! | 3 | the guest rebooted, with `--on-reboot exit` |
//! | 4 | the guest's kernel panicked (pvpanic) |
//! | 5 | the guest crashed |
//! | 128+n | ended by signal n |
#![forbid(unsafe_code)]

mod board;
mod console;
mod gate;
mod host;
mod machine;
mod narrator;
mod recipe;
mod serve;
mod vcpu;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use axvm_core::{cli, config, pages};
use axvm_devices::PowerEvent;
use axvm_events::{Event, Events};
use clap::Parser;

use crate::cli::{Cli, Command, OnReboot, RunArgs};
use crate::config::{Config, ConfigError};
use crate::console::{Input, RawTerminal};
use crate::machine::Machine;
use crate::narrator::Narrator;
use crate::recipe::Host;
use crate::serve::{Signals, serve};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Command::Run(args)) => run(args),
        Some(Command::Config(args)) => pages::config(&args).map_err(Into::into),
        Some(Command::Completions(args)) => pages::completions(&args).map_err(Into::into),
        Some(Command::Man(args)) => pages::man(&args).map_err(Into::into),
        None => run(cli.run),
    };
    result.map(ExitCode::from).unwrap_or_else(|error| {
        eprintln!("axvm: {}", chain(&error));
        ExitCode::from(error.downcast_ref().map_or(1, ConfigError::exit_code))
    })
}

/// An error and its causes on one line; a cause that its parent already tells is not repeated.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn run(args: RunArgs) -> Result<u8> {
    let config = Config::from_args(args)?;
    let narrator = Arc::new(Narrator::new(config.verbose));
    let events = if config.verbose { Events::to(narrator) } else { Events::warnings_to(narrator) };
    if config.by_default {
        eprintln!("axvm: {}", taken(&config));
    }
    warn_about_host(&events);

    let host = Host::open(&config, events.clone())?;
    let signals = Signals::catch().context("Cannot catch signals")?;
    let mut input = Input::from_stdin();
    let terminal = RawTerminal::enter().context("Cannot put the terminal into raw mode")?;
    loop {
        let machine = Machine::start(host.build(&config)?, &config.pins)?;
        serve(&machine, &mut input, &signals, config.grace)?;
        match (machine.stop(), config.on_reboot) {
            (PowerEvent::Off | PowerEvent::Quit, _) => return Ok(0),
            (PowerEvent::Signal(signal), _) => return Ok(128 + signal as u8),
            (PowerEvent::Panic, _) => {
                drop(terminal);
                eprintln!("axvm: The guest's kernel panicked; its last words are on the console above");
                return Ok(4);
            }
            (PowerEvent::Reset(door), OnReboot::Restart) => {
                events.emit(|| Event::Power { reason: format!("reset by the guest ({door}), starting again") });
            }
            (PowerEvent::TripleFault, OnReboot::Restart) => {
                events.warn(|| Event::Power { reason: "triple fault, starting again".into() });
            }
            (PowerEvent::Reset(_), OnReboot::Exit) => return Ok(3),
            (PowerEvent::TripleFault, OnReboot::Exit) => {
                drop(terminal);
                eprintln!("axvm: The guest crashed: triple fault");
                return Ok(5);
            }
            (PowerEvent::Crash(why), _) => {
                drop(terminal);
                eprintln!("axvm: The guest crashed: {why}");
                return Ok(5);
            }
            (PowerEvent::HostError(why), _) => anyhow::bail!("The host failed the guest: {why}"),
        }
        host.clear()?;
    }
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
