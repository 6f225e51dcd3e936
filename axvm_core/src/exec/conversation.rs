//! One command's conversation: between this process's streams and the agent. One loop that waits for all, and for none
//! alone.
//!
//! ```text
//!   stdin --as much as was granted--> to_send --> agent
//!   signals, window size ---------------^
//!   stdout, stderr <-- showing <-- agent           nothing is read from it while that waits for its reader
//! ```
//!
//! Streams of the process stay as they are (blocking: they are shared with others), and are used when they are ready: 4
//! KiB at once, which a pipe that is ready takes.
//!
//! Source: pipe(7), PIPE_BUF; termios(3).

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use axvm_console::Terminal;
use axvm_exec::{CHUNK, FromGuest, FromHost, HostEnd, Outcome, ProtocolError, Refusal, Request, Size};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read, write};
use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};

use super::leave::Leave;
use crate::serve::Signals;

/// What a pipe or terminal that is ready takes, or gives, at once.
const AT_ONCE: usize = 4096;
/// No more input is read while so much waits for the guest.
const ENOUGH: usize = 64 << 10;
/// No signal: the guest is off.
pub const GUEST_IS_OFF: i32 = 0;
/// So many signals that ask for an end are the command's; the next one is ours.
const PATIENT: usize = 2;

/// Where signals come from.
pub trait Arrivals {
    /// Readable when one has arrived.
    fn readable(&self) -> BorrowedFd<'_>;
    /// Takes those that have arrived.
    fn arrived(&self) -> Vec<i32>;
}

impl Arrivals for Signals {
    fn readable(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn arrived(&self) -> Vec<i32> {
        Signals::arrived(self)
    }
}

/// How a conversation ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// As the command did.
    Outcome(Outcome),
    /// Before the command ran, and why.
    Refused(Refusal, String),
    /// By a signal to this process.
    BySignal(u8),
    /// Output has no reader any more.
    NoReader,
    /// By the user's keys.
    Left,
    /// By the guest, in the middle.
    Gone,
    /// By a guest that broke the rules.
    Lies(ProtocolError),
}

/// Output on its way to its reader.
struct Showing {
    to_stderr: bool,
    bytes: Vec<u8>,
    shown: usize,
}

/// A conversation.
pub struct Conversation {
    stream: UnixStream,
    end: HostEnd,
    to_send: Vec<u8>,
    showing: Option<Showing>,
    /// What follows when all is shown.
    ended: Option<Ended>,
    input_ended: bool,
    input_is_terminal: bool,
    terminal: Option<Arc<Terminal>>,
    leave: Leave,
    /// Signals so far that ask for an end.
    asked: usize,
    /// The agent has answered: the command runs.
    runs: bool,
}

/// What is ready.
struct Ready {
    stream: bool,
    input: bool,
    output: bool,
    signals: bool,
}

impl Conversation {
    /// With the agent at the other end of `stream`; with a terminal, the command has one.
    pub fn new(stream: UnixStream, terminal: Option<Arc<Terminal>>) -> Result<Conversation> {
        stream.set_nonblocking(true).context("Cannot talk to the agent")?;
        let mut to_send = Vec::new();
        HostEnd::hello(&mut to_send);
        Ok(Conversation {
            stream,
            end: HostEnd::default(),
            to_send,
            showing: None,
            ended: None,
            input_ended: false,
            input_is_terminal: io::stdin().is_terminal(),
            terminal,
            leave: Leave::default(),
            asked: 0,
            runs: false,
        })
    }

    /// Holds it to its end.
    ///
    /// A signal 0 says that the guest is off: what it left in the stream is its last.
    pub fn hold(mut self, request: &Request, signals: &dyn Arrivals) -> Result<Ended> {
        FromHost::Request(request.clone()).encode(&mut self.to_send);
        loop {
            if self.showing.is_none()
                && let Some(ended) = self.understand()
            {
                return Ok(ended);
            }
            let ready = self.wait(signals.readable()).context("Cannot wait for the agent")?;
            if ready.signals
                && let Some(ended) = self.obey(&signals.arrived())
            {
                return Ok(ended);
            }
            if ready.output
                && let Some(ended) = self.show()
            {
                return Ok(ended);
            }
            if ready.input
                && let Some(ended) = self.take_input()
            {
                return Ok(ended);
            }
            self.send();
            if ready.stream {
                self.receive();
            }
        }
    }

    /// Takes messages until one has something to show, or none is left; gives how it ended once all is shown.
    fn understand(&mut self) -> Option<Ended> {
        while self.showing.is_none() {
            let (to_stderr, bytes) = match self.end.message() {
                Ok(Some(FromGuest::Stdout(bytes))) => (false, bytes),
                Ok(Some(FromGuest::Stderr(bytes))) => (true, bytes),
                Ok(Some(FromGuest::Grant(_))) => {
                    if !std::mem::replace(&mut self.runs, true) {
                        self.terminal.iter().for_each(|terminal| _ = terminal.enter());
                    }
                    continue;
                }
                Ok(Some(FromGuest::Exit(outcome))) => return Some(Ended::Outcome(outcome)),
                Ok(Some(FromGuest::Refused(refusal, text))) => return Some(Ended::Refused(refusal, text.to_owned())),
                Ok(None) => return self.ended.take(),
                Err(error) => return Some(Ended::Lies(error)),
            };
            if !bytes.is_empty() {
                self.showing = Some(Showing { to_stderr, bytes: bytes.to_vec(), shown: 0 });
            }
        }
        None
    }

    fn wait(&self, signals: BorrowedFd<'_>) -> io::Result<Ready> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let mut for_stream = PollFlags::empty();
        for_stream.set(PollFlags::IN, self.showing.is_none() && self.ended.is_none());
        for_stream.set(PollFlags::OUT, !self.to_send.is_empty());
        let output = self.showing.as_ref().map(|showing| match showing.to_stderr {
            true => stderr.as_fd(),
            false => stdout.as_fd(),
        });
        let wanted = [
            (Some(self.stream.as_fd()).filter(|_| !for_stream.is_empty()), for_stream),
            (self.wants_input().then(|| stdin.as_fd()), PollFlags::IN),
            (output, PollFlags::OUT),
            (Some(signals), PollFlags::IN),
        ];
        let polled = wanted.iter().filter_map(|(fd, flags)| Some(PollFd::from_borrowed_fd((*fd)?, *flags)));
        let mut polled: Vec<_> = polled.collect();
        while let Err(error) = poll(&mut polled, None) {
            if error != Errno::INTR {
                return Err(error.into());
            }
        }
        let mut found = polled.iter().map(|fd| !fd.revents().is_empty());
        let [stream, input, output, signals] = wanted.map(|(fd, _)| fd.is_some() && found.next().unwrap_or(false));
        Ok(Ready { stream, input, output, signals })
    }

    /// Whether input is to be read now. That of a terminal only in the foreground: else reading stops the process.
    fn wants_input(&self) -> bool {
        let may = self.runs && !self.input_ended && self.end.granted() > 0 && self.to_send.len() < ENOUGH;
        may && (!self.input_is_terminal || in_foreground())
    }

    fn take_input(&mut self) -> Option<Ended> {
        let room = usize::try_from(self.end.granted()).unwrap_or(CHUNK).min(CHUNK);
        let mut buffer = [0; CHUNK];
        match read(io::stdin(), &mut buffer[..room]) {
            Ok(count) if count > 0 => {
                let keys = &buffer[..count];
                FromHost::Stdin(keys).encode(&mut self.to_send);
                self.end.sent(count);
                let leaves = self.terminal.is_some() && self.leave.wants(keys, Instant::now());
                return leaves.then_some(Ended::Left);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Its end; what cannot be read has one, too.
            _ => {
                self.input_ended = true;
                FromHost::StdinEnd.encode(&mut self.to_send);
            }
        }
        None
    }

    /// Shows a piece of output.
    fn show(&mut self) -> Option<Ended> {
        let showing = self.showing.as_mut()?;
        let rest = &showing.bytes[showing.shown..];
        let piece = &rest[..rest.len().min(AT_ONCE)];
        let written = match showing.to_stderr {
            true => write(io::stderr(), piece),
            false => write(io::stdout(), piece),
        };
        match written {
            Ok(count) => showing.shown += count,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return Some(Ended::NoReader),
        }
        if showing.shown == showing.bytes.len() {
            self.showing = None;
        }
        None
    }

    /// Sends what the stream takes. That it breaks is seen where it is read.
    fn send(&mut self) {
        while !self.to_send.is_empty() {
            match write(&self.stream, &self.to_send) {
                Ok(count) => drop(self.to_send.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.to_send.clear(),
            }
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; CHUNK];
        match read(&self.stream, &mut buffer) {
            Ok(count) if count > 0 => self.end.receive(&buffer[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // What came before is understood first.
            _ => self.ended = Some(Ended::Gone),
        }
    }

    /// Takes all that is there; no more will come.
    fn drain(&mut self) {
        let mut buffer = [0; CHUNK];
        while let Ok(count @ 1..) = read(&self.stream, &mut buffer) {
            self.end.receive(&buffer[..count]);
        }
        self.ended = Some(Ended::Gone);
    }

    /// Passes signals on. What asks for an end once more than the command can mean is for this process.
    fn obey(&mut self, signals: &[i32]) -> Option<Ended> {
        for &signal in signals {
            match signal {
                GUEST_IS_OFF => self.drain(),
                SIGWINCH => self.resize(),
                SIGCONT => {
                    self.terminal.iter().for_each(|terminal| _ = terminal.enter());
                    self.resize();
                }
                _ => {
                    let asks = [SIGHUP, SIGINT, SIGQUIT, SIGTERM].contains(&signal);
                    self.asked += usize::from(asks);
                    let number = u8::try_from(signal).unwrap_or(0);
                    if !self.runs || self.asked > PATIENT {
                        return Some(Ended::BySignal(number));
                    }
                    FromHost::Signal(number).encode(&mut self.to_send);
                }
            }
        }
        None
    }

    fn resize(&mut self) {
        if self.terminal.is_some() && self.runs {
            FromHost::Resize(size()).encode(&mut self.to_send);
        }
    }
}

/// Whether this process may read the terminal that is standard input.
fn in_foreground() -> bool {
    !matches!(tcgetpgrp(io::stdin()), Ok(group) if group != getpgrp())
}

/// The size of the terminal that is standard output.
pub fn size() -> Size {
    let size = axvm_console::size(io::stdout());
    size.map_or(Size { columns: 80, rows: 24 }, |size| Size { columns: size.columns, rows: size.rows })
}
