//! `axvm-agent session`: one connection, one command. One loop, which waits for all of them at once and for none alone.
//!
//! ```text
//!   connection --Stdin--> input (64 KiB granted) --> stdin
//!              --Signal, Resize------------------->  the command
//!              <--output (64 KiB) <----------------  stdout, stderr     read while there is room only
//!              <--Exit <---------------------------  its end, once its output is out
//! ```
//!
//! The host that goes away hangs up: the command gets SIGHUP, as if its terminal were gone.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use axvm_exec::{CHUNK, FromGuest, FromHost, GuestEnd, Request, WINDOW};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, fcntl_dupfd_cloexec, read, write};
use rustix::process::Signal;
use rustix::stdio::stdin;

use crate::Error;
use crate::command::{self, Running};
use crate::output::Output;

/// How long the host may take for its request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the host may take to close when all was said.
const LAST: Duration = Duration::from_secs(2);
/// How long a terminal whose command has ended may be silent before it has: what was written to it takes a way.
const LINGER: Duration = Duration::from_millis(100);
/// What a keyboard sends for the end of input.
const END_OF_INPUT: u8 = 4;

/// Serves the connection that is standard input.
pub fn serve() -> Result<(), Error> {
    let connection = fcntl_dupfd_cloexec(stdin(), 3)?;
    fcntl_setfl(&connection, fcntl_getfl(&connection)? | OFlags::NONBLOCK)?;
    let mut session = Session {
        connection,
        end: GuestEnd::default(),
        output: Output::default(),
        input: Vec::new(),
        input_ended: false,
    };
    GuestEnd::hello(session.output.add());
    let Some(request) = session.request()? else { return Ok(()) };
    match command::start(&request) {
        Ok(mut running) => match session.run(&mut running) {
            Ok(true) => session.finish(),
            Ok(false) => {
                hang_up(&running);
                Ok(())
            }
            Err(error) => {
                hang_up(&running);
                Err(error)
            }
        },
        Err((why, text)) => {
            FromGuest::Refused(why, &text).encode(session.output.add());
            session.finish()
        }
    }
}

struct Session {
    connection: OwnedFd,
    end: GuestEnd,
    output: Output,
    /// For the command.
    input: Vec<u8>,
    input_ended: bool,
}

/// What is ready.
struct Ready {
    connection: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    ended: bool,
    none: bool,
}

impl Session {
    /// What the host wants; none if it went away.
    fn request(&mut self) -> Result<Option<Request>, Error> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(FromHost::Request(request)) = self.end.message()? {
                return Ok(Some(request));
            }
            // A client that only looked whether an agent is there has gone.
            if self.output.send(&self.connection).is_err() {
                return Ok(None);
            }
            if !self.is_readable(until)? {
                return Err("The host says nothing".into());
            }
            if !self.receive()? {
                return Ok(None);
            }
        }
    }

    /// Until the command has ended (true), or the host has gone.
    fn run(&mut self, running: &mut Running) -> Result<bool, Error> {
        self.end.grant(WINDOW, self.output.add());
        let mut ended = false;
        loop {
            if self.output.send(&self.connection).is_err() {
                return Ok(false);
            }
            let ready = self.wait(running, ended)?;
            ended |= ready.ended;
            if ready.connection && !self.obey(running)? {
                return Ok(false);
            }
            if ready.stdin {
                self.feed(running);
            }
            let mut buffer = [0; CHUNK];
            if ready.stdout {
                take(&mut running.stdout, &mut buffer, |bytes| FromGuest::Stdout(bytes).encode(self.output.add()));
            }
            if ready.stderr {
                take(&mut running.stderr, &mut buffer, |bytes| FromGuest::Stderr(bytes).encode(self.output.add()));
            }
            let is_silent = ready.none || (!running.has_terminal() && !ready.stdout && !ready.stderr);
            let is_out = running.stdout.is_none() && running.stderr.is_none();
            if ended && (is_out || (is_silent && self.output.has_room())) {
                FromGuest::Exit(running.outcome()?).encode(self.output.add());
                return Ok(true);
            }
        }
    }

    /// Waits for something to do. What has `ended` may be silent for a moment only.
    fn wait(&self, running: &Running, ended: bool) -> Result<Ready, Error> {
        let has_room = self.output.has_room();
        let connection = if self.output.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let wanted = [
            (Some(self.connection.as_fd()), connection),
            (running.stdin.as_ref().filter(|_| self.has_input()).map(AsFd::as_fd), PollFlags::OUT),
            (running.stdout.as_ref().filter(|_| has_room).map(AsFd::as_fd), PollFlags::IN),
            (running.stderr.as_ref().filter(|_| has_room).map(AsFd::as_fd), PollFlags::IN),
            (Some(running.ended()).filter(|_| !ended), PollFlags::IN),
        ];
        let limit = match ended && has_room {
            true if running.has_terminal() => Some(LINGER),
            true => Some(Duration::ZERO),
            false => None,
        };
        let polled = wanted.iter().filter_map(|(fd, flags)| Some(PollFd::from_borrowed_fd((*fd)?, *flags)));
        let mut polled: Vec<_> = polled.collect();
        let count = wait(&mut polled, limit)?;
        let mut found = polled.iter().map(|fd| !fd.revents().is_empty());
        let [connection, stdin, stdout, stderr, ended] =
            wanted.map(|(fd, _)| fd.is_some() && found.next().unwrap_or(false));
        Ok(Ready { connection, stdin, stdout, stderr, ended, none: count == 0 })
    }

    fn has_input(&self) -> bool {
        !self.input.is_empty() || self.input_ended
    }

    /// Does what the host says; false if it has gone.
    fn obey(&mut self, running: &Running) -> Result<bool, Error> {
        if !self.receive()? {
            return Ok(false);
        }
        while let Some(message) = self.end.message()? {
            match message {
                FromHost::Stdin(bytes) => self.input.extend_from_slice(bytes),
                FromHost::StdinEnd => self.input_ended = true,
                FromHost::Resize(size) => running.resize(size),
                FromHost::Signal(number) => running.signal(number),
                FromHost::Request(_) => {}
            }
        }
        Ok(true)
    }

    /// Takes what arrived; false if that was the end.
    fn receive(&mut self) -> Result<bool, Error> {
        let mut buffer = [0; CHUNK];
        match read(&self.connection, &mut buffer) {
            Ok(0) | Err(Errno::CONNRESET | Errno::PIPE) => Ok(false),
            Ok(count) => {
                self.end.receive(&buffer[..count]);
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the command what it takes, and lets the host send as much again.
    fn feed(&mut self, running: &mut Running) {
        let Some(stdin) = &running.stdin else { return };
        if !self.input.is_empty() {
            match write(stdin, &self.input) {
                Ok(count) => {
                    self.input.drain(..count);
                    self.end.grant(count as u32, self.output.add());
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                // It reads no more.
                Err(_) => running.stdin = None,
            }
        } else if self.input_ended {
            if running.has_terminal() {
                _ = write(stdin, &[END_OF_INPUT]);
            }
            running.stdin = None;
        }
    }

    /// Sends what is left, and waits for the host to close: a guest that powers off must not take it along.
    fn finish(&mut self) -> Result<(), Error> {
        let mut until = None;
        loop {
            self.output.send(&self.connection)?;
            if self.output.is_empty() {
                let until = *until.get_or_insert_with(|| Instant::now() + LAST);
                if !self.is_readable(until)? || !self.receive()? {
                    return Ok(());
                }
                while self.end.message()?.is_some() {}
            } else {
                wait(&mut [PollFd::new(&self.connection, PollFlags::OUT)], None)?;
            }
        }
    }

    fn is_readable(&self, until: Instant) -> Result<bool, Error> {
        let left = until.saturating_duration_since(Instant::now());
        let flags = if self.output.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        Ok(wait(&mut [PollFd::new(&self.connection, flags)], Some(left))? > 0)
    }
}

/// poll, until one is ready or the time is over.
fn wait(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> rustix::io::Result<usize> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    loop {
        match poll(fds, limit.as_ref()) {
            Err(Errno::INTR) => {}
            ready => return ready,
        }
    }
}

/// Reads once from a stream that is ready, and closes it at its end.
fn take(stream: &mut Option<OwnedFd>, buffer: &mut [u8], mut add: impl FnMut(&[u8])) {
    let Some(fd) = stream else { return };
    match read(fd, &mut *buffer) {
        Ok(count) if count > 0 => add(&buffer[..count]),
        Err(Errno::AGAIN | Errno::INTR) => {}
        // A terminal whose last user is gone says EIO.
        _ => *stream = None,
    }
}

/// What a terminal does that goes away.
fn hang_up(running: &Running) {
    running.signal(Signal::HUP.as_raw() as u8);
    running.signal(Signal::CONT.as_raw() as u8);
}
