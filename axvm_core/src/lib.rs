//! The program around the machine: what the user says, one life of a process, and what it says back.
//!
//! ```text
//!   said:       cli --> settings <-- vm.toml         what was typed, or filed
//!                          |
//!               config <---'                         what will be done: a MachineSpec, and its surroundings
//!                 |
//!   done:       run, selftest --> axvm_machine       one guest after another
//!                 |    serve, current                the main thread meanwhile; the machine of the moment
//!                 '--> consoles, control, notify     terminals and sockets; the API; the service manager
//!   elsewhere:  remote --> axvm_api                  machines of other processes: axvm ctl, axvm ps
//!   printed:    pages, doctor --> axvm_inspect       about AxVM, about the host
//!               speech, narrator, error              how answers, events and mistakes are said
//! ```
//!
//! Floor 6: it may use every other crate, and no other crate uses it. How a machine is built and runs is told in
//! `axvm_machine`; here is only what makes a program of it.
//!
//! It is a library so that tests and fuzzing reach it; [`main`] is all that the program calls.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
mod consoles;
mod current;
mod doctor;
mod end;
pub mod error;
mod narrator;
mod notify;
pub mod pages;
mod panel;
mod remote;
mod run;
mod selftest;
mod serve;
pub mod settings;
mod signs;
mod speech;

use std::process::ExitCode;

use anyhow::Result;

use cli::{Cli, Command};
use error::ConfigError;

/// Runs `axvm` with the command line of this process; its exit code.
pub fn main() -> ExitCode {
    let code = Cli::read().map_err(Into::into).and_then(command).map(ExitCode::from).unwrap_or_else(|error| {
        speech::tell(chain(&error));
        ExitCode::from(error.downcast_ref().map_or(1, ConfigError::exit_code))
    });
    speech::finish();
    code
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
