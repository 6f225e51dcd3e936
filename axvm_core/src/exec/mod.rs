//! `axvm exec`: a command in a guest, as if it ran here: streams apart, its exit code, a terminal where there is one.
//!
//! ```text
//!   machine --status--> socket of its vsock, or agent's port --connect--> the guest's agent <--conversation--> this process's streams
//! ```
//!
//! | exit code | meaning |
//! |---|---|
//! | the command's | it ended by itself |
//! | 128+n | signal n ended it, or this program |
//! | 127, 126 | the guest has no such program, or cannot run it |
//! | 125 | AxVM's own failure: no machine, no agent, the guest is gone; a message says which |
//!
//! The protocol is in `axvm_exec`, the guest's side in `axvm_agent`.

mod connect;
mod conversation;
mod leave;
pub mod machine;

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use axvm_api::Client;
use axvm_api::types::Status;
use axvm_console::Terminal;
use axvm_exec::{Outcome, Request};

use crate::cli::ExecArgs;
use crate::error::ConfigError;
use crate::remote;
use crate::serve::Signals;
use crate::speech::tell;
use conversation::Conversation;
pub use conversation::Ended;

/// How long an agent has to answer, if nothing else is said.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks for a machine that is about to start.
const PAUSE: Duration = Duration::from_millis(50);
/// The exit code of AxVM's own failures.
pub const FAILED: u8 = 125;
/// SIGPIPE.
const BROKEN_PIPE: u8 = 13;

/// Runs the command; its exit code, or an error that is AxVM's own.
pub fn exec(args: &ExecArgs) -> Result<u8> {
    let surroundings = args.environment.iter().map(|word| pair(word)).collect::<Result<Vec<_>, _>>()?;
    let patience = args.wait.map_or(PATIENCE, |seconds| Duration::from_secs(seconds.into()));
    let until = Instant::now() + patience;
    let socket = match (&args.socket, &args.machine) {
        (Some(socket), _) => socket.clone(),
        (None, Some(machine)) => socket_of(machine, args.wait.map(|_| until))?,
        (None, None) => bail!("No machine is named"),
    };
    let terminal = if args.no_terminal { None } else { terminal() };
    let request = request(&args.command, args.directory.as_deref(), surroundings, terminal.is_some())?;
    // Those of this program, from now on for the command.
    let signals = Signals::catch().context("Cannot catch signals")?;
    let stream = connect::to_agent(&socket, until, patience)?;
    axvm_sandbox::on_crash(axvm_console::restore_terminal_in_handler);
    let ended = Conversation::new(stream, terminal.clone())?.hold(&request, &signals);
    if let Some(terminal) = terminal {
        terminal.leave();
    }
    code(ended?)
}

/// The vsock of a machine that runs, or will by `until`.
fn socket_of(machine: &OsStr, until: Option<Instant>) -> Result<PathBuf> {
    let ask = || -> Result<Status> { Ok(Client::connect(&remote::find(machine)?)?.get("/status")?) };
    let status = loop {
        match ask() {
            Err(_) if until.is_some_and(|until| Instant::now() < until) => thread::sleep(PAUSE),
            answer => break answer?,
        }
    };
    let none = || {
        format!(
            "The machine {} has no vsock, by which commands reach it: start it with --vsock or --agent-port",
            status.name
        )
    };
    status.agent_port.or(status.vsock.map(|vsock| vsock.uds_path)).with_context(none)
}

/// The terminal that this program was started at: what is typed and what is shown.
pub fn terminal() -> Option<Arc<Terminal>> {
    if io::stdout().is_terminal() { Terminal::new(io::stdin().as_fd()) } else { None }
}

/// What the agent is asked for.
pub fn request(
    command: &[OsString],
    directory: Option<&OsStr>,
    mut environment: Vec<OsString>,
    has_terminal: bool,
) -> Result<Request> {
    if has_terminal && let Some(kind) = std::env::var_os("TERM") {
        environment.insert(0, [OsStr::new("TERM="), &kind].into_iter().collect());
    }
    let request = Request {
        terminal: has_terminal.then(conversation::size),
        directory: directory.unwrap_or_default().to_owned(),
        arguments: command.to_vec(),
        environment,
    };
    if request.arguments.first().is_none_or(|program| program.is_empty()) {
        return Err(ConfigError::words("--", "the command's name is empty; write -- COMMAND ARGS").into());
    }
    if !request.fits() {
        return Err(ConfigError::words("--", "the command is too long: 1 MiB is the limit; send a file instead").into());
    }
    Ok(request)
}

/// `NAME=VALUE` as it is, `NAME` with the value that it has here.
fn pair(word: &OsStr) -> Result<OsString, ConfigError> {
    let text = word.as_encoded_bytes();
    match text.iter().position(|&byte| byte == b'=') {
        Some(0) => Err(ConfigError::option("--env", word.display(), "there is no name before the =")),
        Some(_) => Ok(word.to_owned()),
        None => {
            let value = std::env::var_os(word).ok_or_else(|| {
                let why = "there is no such variable here; write NAME=VALUE";
                ConfigError::option("--env", word.display(), why)
            })?;
            Ok([word, OsStr::new("="), &value].into_iter().collect())
        }
    }
}

/// What is said about an end, and its exit code.
pub fn code(ended: Ended) -> Result<u8> {
    Ok(match ended {
        Ended::Outcome(outcome) => outcome.exit_code(),
        Ended::Refused(refusal, text) => {
            tell(text);
            refusal.exit_code()
        }
        Ended::BySignal(signal) => Outcome::Signal(signal).exit_code(),
        Ended::NoReader => Outcome::Signal(BROKEN_PIPE).exit_code(),
        Ended::Left => {
            tell("Left the command by Ctrl-]; it was told to hang up");
            FAILED
        }
        Ended::Gone => bail!(
            "The guest went away while the command ran: it was powered off or reset, or its agent was ended; \
             its console may tell more"
        ),
        Ended::Lies(error) => bail!("The guest's agent is none, or of another AxVM: {error}"),
    })
}
