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

mod consoles;
mod control;
mod current;
mod doctor;
mod narrator;
mod remote;
mod run;
mod selftest;
mod serve;

use std::process::ExitCode;

use anyhow::Result;
use axvm_core::{cli, config, pages, speech};

use crate::cli::{Cli, Command};
use crate::config::ConfigError;

fn main() -> ExitCode {
    Cli::read().map_err(Into::into).and_then(command).map(ExitCode::from).unwrap_or_else(|error| {
        speech::tell(chain(&error));
        ExitCode::from(error.downcast_ref().map_or(1, ConfigError::exit_code))
    })
}

/// Does what was asked for; the exit code.
fn command(cli: Cli) -> Result<u8> {
    match cli.command {
        Some(Command::Run(args)) => run::run(args),
        Some(Command::Ctl(args)) => remote::ctl(&args),
        Some(Command::Ps(args)) => remote::ps(&args),
        Some(Command::Selftest(args)) => selftest::selftest(&args),
        Some(Command::Doctor(args)) => doctor::doctor(&args),
        Some(Command::Config(args)) => pages::config(args).map_err(Into::into),
        Some(Command::Completions(args)) => pages::completions(&args).map_err(Into::into),
        Some(Command::Man(args)) => pages::man(&args).map_err(Into::into),
        None => run::run(cli.run),
    }
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
