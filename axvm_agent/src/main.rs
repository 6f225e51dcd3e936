//! `axvm-agent`: the program in a guest that runs commands for the host.
//!
//! ```text
//!   axvm-agent                       listens at the agent's port of the machine, or at its vsock port
//!   axvm-agent as first process      sets up the guest before, and connects to the host if that waits for it
//!    '-- axvm-agent session          one for each connection (its standard input): one command
//!         '-- axvm-agent terminal    only with a terminal: makes it the controlling one, becomes the command
//! ```
//!
//! A process for each connection: what one does or suffers is no other's, and the first process of a guest can wait for
//! all that end without taking a session's child from it.
//!
//! A client of the port may run anything as the agent's user, so only the host is answered.
#![deny(unsafe_code)]

mod command;
mod init;
mod listen;
mod output;
mod port;
mod session;
mod signals;
mod terminal;
mod vsock;

use std::ffi::OsString;
use std::process::ExitCode;

const USAGE: &str = "usage: axvm-agent [--unix PATH | --version]
Runs commands that `axvm exec` on the host asks for. Start it as root, once, at the guest's start.";

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&OsString> = words.iter().collect();
    let done = match words.as_slice() {
        // The kernel gives its first process words of its own.
        _ if rustix::process::getpid().is_init() => Err(init::first_process()),
        [] => listen::host(),
        [word] if *word == "session" => {
            signals::heed();
            session::serve()
        }
        [word, command @ ..] if *word == "terminal" && !command.is_empty() => Err(terminal::become_command(command)),
        [word, path] if *word == "--unix" => listen::unix(path),
        [word] if *word == "--version" => {
            println!("axvm-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("axvm-agent: {why}");
            ExitCode::FAILURE
        }
    }
}

/// An error in words.
type Error = Box<dyn std::error::Error>;
