//! The program around the machine: what the user says, one life of a process, and what it says back.
//!
//! ```text
//!   said:       cli --> settings <-- vm.toml         what was typed, or filed
//!                          |
//!               config <---'                         what will be done: a MachineSpec, and its surroundings
//!                 |
//!   done:       run, selftest --> axvm_machine       one guest after another
//!                 |    serve, current                the main thread meanwhile; the machine of the moment
//!                 |--> consoles, control, notify     terminals and sockets; the API; the service manager
//!                 |--> network                       the other ends of network cards
//!                 '--> vsock                         the socket device's end, and a process that connects for it
//!   elsewhere:  remote --> axvm_api                  machines of other processes: axvm ctl, axvm ps
//!               exec   --> axvm_exec                 commands in their guests; agent, what answers there
//!   printed:    pages, completions                   about AxVM
//!               doctor, report --> axvm_inspect      about the host; about a machine that was traced
//!               inspect --> axvm_inspect             about a machine that does not run
//!               speech, narrator, error              how answers, events and mistakes are said
//! ```
//!
//! Floor 6: it may use every other crate, and no other crate uses it. How a machine is built and runs is told in
//! `axvm_machine`; here is only what makes a program of it.
//!
//! It is a library so that tests and fuzzing reach it; [`main`] is all that the program calls.
#![forbid(unsafe_code)]

mod agent;
mod agent_port;
pub mod cli;
mod completions;
pub mod config;
mod consoles;
mod current;
mod debug;
mod doctor;
mod end;
pub mod error;
mod exec;
mod explain;
mod inspect;
mod lint;
mod narrator;
mod network;
mod notify;
mod opened;
pub mod pages;
mod panel;
mod rates;
mod reception;
mod remote;
mod report;
mod run;
mod selftest;
mod serve;
pub mod settings;
mod signs;
mod speech;
mod trace;
mod virtio_check;
mod vsock;

use std::process::ExitCode;

use anyhow::Result;
use axvm_memory::heap::Heap;

use cli::{Cli, Command};
use error::ConfigError;

#[global_allocator]
static HEAP: Heap = Heap;

/// Runs `axvm` with the command line of this process; its exit code.
pub fn main() -> ExitCode {
    speech::begin();
    let asked = vsock::serve_if_asked().unwrap_or_else(|| Cli::read().map_err(Into::into).and_then(command));
    let code = asked.map(ExitCode::from).unwrap_or_else(|error| {
        speech::tell(chain(&error));
        ExitCode::from(failure(&error))
    });
    speech::finish();
    code
}

/// The exit code of an error. Where a command of the guest has the others, AxVM's own failures have one.
fn failure(error: &anyhow::Error) -> u8 {
    match Cli::is_for_guest(std::env::args_os().skip(1)) {
        true => exec::FAILED,
        false => error.downcast_ref().map_or(1, ConfigError::exit_code),
    }
}

/// Does what was asked for; the exit code.
fn command(cli: Cli) -> Result<u8> {
    match cli.command {
        Some(Command::Run(args)) => run::run(args),
        Some(Command::Ctl(args)) => remote::ctl(&args),
        Some(Command::Exec(args)) => exec::exec(&args),
        Some(Command::Agent(args)) => agent::agent(&args).map_err(Into::into),
        Some(Command::Net(args)) => network::net(&args.action),
        Some(Command::Ps(args)) => remote::ps(&args),
        Some(Command::Selftest(args)) => selftest::selftest(&args),
        Some(Command::Gdb(args)) => remote::gdb(&args),
        Some(Command::Report(args)) => report::report(&args),
        Some(Command::Doctor(args)) => doctor::doctor(&args),
        Some(Command::Inspect(args)) => inspect::inspect(args),
        Some(Command::Config(args)) => pages::config(args).map_err(Into::into),
        Some(Command::Completions(args)) => completions::completions(&args).map_err(Into::into),
        Some(Command::Man(args)) => pages::man(&args).map_err(Into::into),
        None => run::run(cli.run),
    }
}

/// An error and its causes on one line: what was tried, why it failed, what to do. A cause that its parent already tells
/// is not repeated.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            let what = remedy(&text);
            text.insert_str(what, &format!(": {cause}"));
        }
    }
    text
}

/// Where in an error's words begins what to do: after a semicolon, or as a sentence of its own; else their end.
fn remedy(text: &str) -> usize {
    let sentence = |at: &usize| text[at + 2..].starts_with(|letter: char| letter.is_uppercase());
    let sentence = text.match_indices(". ").map(|(at, _)| at).find(sentence);
    text.find("; ").into_iter().chain(sentence).min().unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::chain;

    #[test]
    fn a_cause_comes_before_what_to_do() {
        let told = |words: &[&'static str]| {
            let inner = anyhow::Error::msg(words[words.len() - 1]);
            chain(&words[..words.len() - 1].iter().rev().fold(inner, |error, word| error.context(*word)))
        };
        assert_eq!(told(&["Cannot open f; try g", "no file"]), "Cannot open f: no file; try g");
        assert_eq!(told(&["Cannot open e.g. f. Try g; or h", "no file"]), "Cannot open e.g. f: no file. Try g; or h");
        assert_eq!(
            told(&["Cannot boot", "Cannot open f; try g", "no file"]),
            "Cannot boot: Cannot open f: no file; try g"
        );
        assert_eq!(told(&["Cannot open f: no file; try g", "no file"]), "Cannot open f: no file; try g");
    }
}
