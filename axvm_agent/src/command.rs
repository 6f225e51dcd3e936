//! Starting a command: with a terminal or with three pipes, in a process group of its own.
//!
//! ```text
//!   pipes      stdin <-- session --> stdout, stderr      three pipes
//!   terminal   session <--> pseudo-terminal <--> axvm-agent terminal PROGRAM, which becomes the program
//! ```
//!
//! The session's side of each stream does not block.
//!
//! Source: pty(7), pipe(7).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;

use axvm_exec::{Outcome, Refusal, Request, Size};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetpgrp, tcsetwinsize};

use crate::Error;

/// Where programs are looked for if the agent was not told.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that runs.
pub struct Running {
    child: Child,
    /// Its input, until there is no more; with a terminal the same as its output.
    pub stdin: Option<OwnedFd>,
    /// Its output, until it has ended.
    pub stdout: Option<OwnedFd>,
    /// Its errors, until they have ended; with a terminal there are none.
    pub stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    /// Readable, at its end, when the command has ended.
    ended: OwnedFd,
}

/// Starts what is wanted; or says why not, as the host is told.
pub fn start(request: &Request) -> Result<Running, (Refusal, String)> {
    if !request.directory.is_empty() {
        let directory = fs::read_dir(&request.directory).map(drop);
        directory.map_err(|error| {
            (Refusal::Other, format!("Cannot go to directory {}: {error}", request.directory.display()))
        })?;
    }
    let started = match request.terminal {
        Some(size) => with_terminal(request, size, open_terminal().map_err(no_terminal)?),
        None => with_pipes(request),
    };
    started.map_err(|error| refusal(&error, request))
}

fn refusal(error: &io::Error, request: &Request) -> (Refusal, String) {
    let program = request.arguments.first().map(|program| program.display().to_string()).unwrap_or_default();
    match error.kind() {
        ErrorKind::NotFound => (Refusal::NotFound, format!("There is no program {program} in the guest")),
        ErrorKind::PermissionDenied => {
            (Refusal::CannotRun, format!("The guest cannot run {program}: {error}; is it a program (chmod +x)?"))
        }
        _ => (Refusal::CannotRun, format!("The guest cannot run {program}: {error}")),
    }
}

fn no_terminal(error: io::Error) -> (Refusal, String) {
    let why = "does it have /dev/pts (mount -t devpts devpts /dev/pts)?";
    (Refusal::Other, format!("The guest has no terminal to give: {error}; {why}"))
}

fn with_pipes(request: &Request) -> io::Result<Running> {
    let (program, arguments) = request.arguments.split_first().ok_or(ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = surroundings(&mut command, request).spawn()?;
    let stdin = child.stdin.take().map(OwnedFd::from);
    let stdout = child.stdout.take().map(OwnedFd::from);
    let stderr = child.stderr.take().map(OwnedFd::from);
    [&stdin, &stdout, &stderr].into_iter().flatten().try_for_each(unblock)?;
    let ended = watch(&child)?;
    Ok(Running { child, stdin, stdout, stderr, terminal: None, ended })
}

/// A new terminal: our end, and the command's.
fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = openpt(flags)?;
    grantpt(&terminal)?;
    unlockpt(&terminal)?;
    let inside = ioctl_tiocgptpeer(&terminal, flags)?;
    Ok((terminal, inside))
}

fn with_terminal(request: &Request, size: Size, ends: (OwnedFd, OwnedFd)) -> io::Result<Running> {
    let (terminal, inside) = ends;
    resize(&terminal, size);
    let (report, told) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("terminal").args(&request.arguments);
    command.stdin(inside.try_clone()?).stdout(inside).stderr(told);
    let mut child = surroundings(&mut command, request).spawn()?;
    // Its copies of our ends must go, or neither report nor terminal would ever end.
    drop(command);
    let mut error = Vec::new();
    File::from(report).read_to_end(&mut error)?;
    if let Some(&error) = error.first_chunk() {
        _ = child.wait();
        return Err(io::Error::from_raw_os_error(i32::from_le_bytes(error)));
    }
    unblock(&terminal)?;
    let ended = watch(&child)?;
    let (stdin, stdout) = (Some(terminal.try_clone()?), Some(terminal.try_clone()?));
    Ok(Running { child, stdin, stdout, stderr: None, terminal: Some(terminal), ended })
}

/// Where it runs, and what it finds in its environment.
fn surroundings<'a>(command: &'a mut Command, request: &Request) -> &'a mut Command {
    let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if given("PATH").is_none() {
        command.env("PATH", PATH);
    }
    // The kernel gives its first process HOME=/.
    if given("HOME").is_none_or(|home| home == "/") && fs::exists("/root").unwrap_or(false) {
        command.env("HOME", "/root");
    }
    for pair in &request.environment {
        let bytes = pair.as_encoded_bytes();
        let at = bytes.iter().position(|&byte| byte == b'=').unwrap_or(bytes.len());
        let (name, value) = (&bytes[..at], bytes.get(at + 1..).unwrap_or_default());
        command.env(os(name), os(value));
    }
    if !request.directory.is_empty() {
        command.current_dir(&request.directory);
    }
    command
}

fn os(bytes: &[u8]) -> &OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

/// Something that becomes readable when `child` has ended, and leaves it to be waited for.
#[allow(clippy::disallowed_methods, reason = "a guest has no roles of AxVM's threads")]
fn watch(child: &Child) -> io::Result<OwnedFd> {
    let (ended, end) = pipe_with(PipeFlags::CLOEXEC)?;
    let pid = pid(child);
    thread::Builder::new().name("watch".into()).spawn(move || {
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(pid), ended), Err(rustix::io::Errno::INTR)) {}
        drop(end);
    })?;
    Ok(ended)
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn unblock(fd: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

fn resize(terminal: &OwnedFd, size: Size) {
    let size = Winsize { ws_col: size.columns, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 };
    // A terminal whose command is gone has no size.
    _ = tcsetwinsize(terminal, size);
}

impl Running {
    /// To wait for: readable when the command has ended.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Whether it has a terminal.
    pub fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Tells the terminal, if there is one.
    pub fn resize(&self, size: Size) {
        if let Some(terminal) = &self.terminal {
            resize(terminal, size);
        }
    }

    /// Sends a signal: to what is in the foreground of the terminal, or to the command and what it started.
    pub fn signal(&self, number: u8) {
        let own = pid(&self.child);
        let group = self.terminal.as_ref().and_then(|terminal| tcgetpgrp(terminal).ok()).unwrap_or(own);
        // Those of real time have no name, and no program that is started like this waits for them.
        if let Some(signal) = Signal::from_named_raw(number.into()) {
            _ = kill_process_group(group, signal);
        }
    }

    /// How it ended; it has.
    pub fn outcome(&mut self) -> Result<Outcome, Error> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait()?;
        Ok(match status.code() {
            Some(code) => Outcome::Code(code as u8),
            None => Outcome::Signal(status.signal().unwrap_or(0) as u8),
        })
    }
}
