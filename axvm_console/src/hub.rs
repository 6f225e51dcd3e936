//! The thread between the port and everyone at the host's end.
//!
//! ```text
//!                       +--> replay (64 KiB)
//!   port --> take ------+--> writer (stdout, file)        loses nothing: no next chunk before this one is written
//!                       +--> clients (sockets, pty)       a stuck one is left behind
//!   port <-- put <-- held <-- keyboard, clients           read one at a time, and only as far as the port has room
//! ```
//!
//! It sleeps in `poll` without a time limit, except while a client makes the guest wait, or the shell has the terminal.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axvm_socket::Socket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use crate::Port;
use crate::client::{BACKLOG_LIMIT, ConsoleClient, Kind, TICK};
use crate::input::Input;
use crate::keys::{Escape, help};
use crate::port::LIMIT;
use crate::pty::Pty;
use crate::shared::{Arrival, ConsoleShared};
use crate::terminal::Terminal;
use crate::writer::Writer;

/// Clients at once: those of a runaway script must not take the descriptors that the guest's devices need.
const CLIENT_LIMIT: usize = 64;
/// How often to look whether the shell gave the terminal back, or a descriptor came free for a client.
const PAUSE: Duration = Duration::from_secs(1);
/// How long output that follows other output waits for more of it.
const GATHER: Duration = Duration::from_millis(1);
/// How long the program on the pseudo-terminal has for the last output.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// All that has a part in the console.
pub struct Hub {
    pub port: Port,
    pub shared: Arc<ConsoleShared>,
    pub writer: Option<Writer>,
    pub keyboard: Option<Keyboard>,
    pub listener: Option<Socket>,
    pub pty: Option<Pty>,
    clients: Vec<ConsoleClient>,
    /// Typed, and not yet taken by the port.
    held: Input,
    /// Until then no client is accepted.
    full_until: Option<Instant>,
    /// When this round began: one time for all its questions.
    now: Instant,
    /// When output was shown last.
    shown: Option<Instant>,
}

/// Standard input.
pub struct Keyboard {
    pub fd: OwnedFd,
    /// If it is one: then some keys are AxVM's.
    pub terminal: Option<Arc<Terminal>>,
    /// Where to answer Ctrl-A h: with the output, if that is a terminal too.
    pub answers_in_output: bool,
    escape: Escape,
}

impl Keyboard {
    /// Keys from `fd`.
    pub fn new(fd: OwnedFd, terminal: Option<Arc<Terminal>>, answers_in_output: bool) -> Keyboard {
        Keyboard { fd, terminal, answers_in_output, escape: Escape::default() }
    }

    /// Whether it may be read now.
    fn is_ours(&self) -> bool {
        self.terminal.as_ref().is_none_or(|terminal| terminal.enter_unless_raw())
    }
}

/// What `poll` said something about.
#[derive(Clone, Copy)]
enum Source {
    Wake,
    Output,
    Written,
    Room,
    Keyboard,
    Listener,
    Pty,
    ConsoleClient(usize),
}

impl Hub {
    /// One without a client.
    pub fn new(port: Port, shared: Arc<ConsoleShared>) -> Hub {
        Hub {
            port,
            shared,
            writer: None,
            keyboard: None,
            listener: None,
            pty: None,
            clients: Vec::new(),
            held: Input::default(),
            full_until: None,
            now: Instant::now(),
            shown: None,
        }
    }

    /// Serves until the console is closed and all output has arrived, or is given up.
    pub fn run(mut self) {
        loop {
            let passed = self.now.elapsed();
            self.now += passed;
            // Asked before the last look around: clients and output that came before the end must be found.
            let closing = self.shared.closing.is_signalled();
            self.look_at_the_waited_for(passed, closing);
            for Arrival { stream, typed } in self.shared.arrivals() {
                self.adopt(stream, typed);
            }
            self.type_held();
            let shown = self.show_output();
            self.part_with_the_gone();
            if self.shared.given_up.is_signalled() || (closing && shown && self.all_have_read()) {
                break;
            }
            for (source, flags) in self.wait() {
                self.serve(source, flags);
            }
        }
        self.end();
    }

    fn all_have_read(&self) -> bool {
        !self.writer.as_ref().is_some_and(Writer::is_busy)
            && self.clients.iter().all(|client| client.hold_at_end().is_none())
    }

    fn end(mut self) {
        if !self.shared.given_up.is_signalled() {
            // A writer given up may never return from its write.
            self.writer.take().into_iter().for_each(Writer::finish);
            let attached = self.clients.iter().any(|client| client.kind == Kind::Pty);
            self.pty.iter().filter(|_| attached).for_each(|pty| pty.drain(DRAIN_LIMIT));
        }
    }

    fn adopt(&mut self, stream: UnixStream, typed: Vec<u8>) {
        if stream.set_nonblocking(true).is_ok() {
            self.attach(Kind::Socket, Arc::new(stream.into()), typed);
        }
    }

    /// Lets a client in. What clients have typed waits with them, so it is as bounded as they are: one that has left and
    /// whose typing the guest has not read is kept until another one needs its place.
    fn attach(&mut self, kind: Kind, fd: Arc<OwnedFd>, typed: Vec<u8>) {
        if self.clients.len() >= CLIENT_LIMIT
            && let Some(left) = self.clients.iter().position(ConsoleClient::has_left)
        {
            self.clients.remove(left);
        }
        if self.clients.len() >= CLIENT_LIMIT {
            (self.shared.hooks.on_warning)(format!(
                "More than {CLIENT_LIMIT} console clients: the new one is sent away"
            ));
            return;
        }
        self.clients.push(ConsoleClient::new(kind, fd, typed, self.shared.replay().bytes()));
    }

    /// Whether output has to wait in the port.
    fn holds(&self) -> bool {
        self.writer.as_ref().is_some_and(Writer::is_busy) || self.clients.iter().any(|client| client.hold().is_some())
    }

    /// Takes what the port has and shows it to everyone; false if that has to wait.
    fn show_output(&mut self) -> bool {
        if self.holds() {
            return false;
        }
        let mut chunk = Vec::new();
        if self.port.take(&mut chunk) > 0 {
            self.shown = Some(self.now);
            self.leave_the_stuck_behind();
            self.shared.replay().push(&chunk);
            self.clients.iter_mut().for_each(|client| client.push(&chunk));
            if let Some(writer) = &mut self.writer {
                writer.send(chunk);
            }
        }
        true
    }

    /// Clients for which the guest, or the end, waited since the last round.
    fn look_at_the_waited_for(&mut self, passed: Duration, closing: bool) {
        let waited_for =
            |client: &&mut ConsoleClient| client.hold().is_some() || closing && client.hold_at_end().is_some();
        self.clients.iter_mut().filter(waited_for).for_each(|client| client.waited_for(passed));
    }

    /// Those that the guest no longer waits for, and that are too far behind.
    fn leave_the_stuck_behind(&mut self) {
        for client in self.clients.iter_mut().filter(|client| client.backlog() > BACKLOG_LIMIT) {
            let unread = client.backlog();
            let what = match client.kind {
                Kind::Socket => "disconnected it",
                Kind::Pty => "it will see the last 64 KiB",
            };
            (self.shared.hooks.on_warning)(format!("A console client left {unread} bytes unread: {what}"));
            match client.kind {
                Kind::Socket => client.drop_it(),
                Kind::Pty => client.start_over(self.shared.replay().bytes()),
            }
        }
    }

    fn part_with_the_gone(&mut self) {
        let pty_was_left = self.clients.iter().any(|client| client.kind == Kind::Pty && client.is_gone());
        self.clients.retain(|client| !client.is_gone());
        if pty_was_left {
            self.look_at_pty();
        }
    }

    fn look_at_pty(&mut self) {
        let Some(pty) = &self.pty else { return };
        let known = self.clients.iter().any(|client| client.kind == Kind::Pty);
        if pty.is_attached() && !known {
            self.attach(Kind::Pty, pty.master(), Vec::new());
        }
    }

    /// Sleeps until something happens; what it was.
    fn wait(&self) -> Vec<(Source, PollFlags)> {
        let keyboard_is_ours = self.keyboard.as_ref().is_none_or(Keyboard::is_ours);
        let (sources, mut fds): (Vec<_>, Vec<_>) = self.watched(keyboard_is_ours).into_iter().unzip();
        sleep(&mut fds, self.time_limit(keyboard_is_ours));
        let flags = fds.iter().map(PollFd::revents);
        sources.into_iter().zip(flags).filter(|(_, flags)| !flags.is_empty()).collect()
    }

    /// What is worth waking up for now.
    fn watched(&self, keyboard_is_ours: bool) -> Vec<(Source, PollFd<'_>)> {
        let mut watched = Vec::new();
        let mut watch = |source, fd, flags| watched.push((source, PollFd::from_borrowed_fd(fd, flags)));
        let welcome = self.held.is_empty();
        watch(Source::Wake, self.shared.wake.as_fd(), PollFlags::IN);
        if let Some(fd) = self.writer.as_ref().and_then(Writer::waits_for) {
            watch(Source::Written, fd, PollFlags::OUT);
        }
        if !self.holds() {
            watch(Source::Output, self.port.output_ready().as_fd(), PollFlags::IN);
        }
        if !welcome {
            watch(Source::Room, self.port.input_room().as_fd(), PollFlags::IN);
        }
        if let Some(keyboard) = self.keyboard.as_ref().filter(|_| welcome && keyboard_is_ours) {
            watch(Source::Keyboard, keyboard.fd.as_fd(), PollFlags::IN);
        }
        if let Some(listener) = self.listener.as_ref().filter(|_| self.closed_for().is_none()) {
            watch(Source::Listener, listener.as_fd(), PollFlags::IN);
        }
        if let Some(pty) = &self.pty {
            watch(Source::Pty, pty.as_fd(), PollFlags::IN);
        }
        for (index, client) in self.clients.iter().enumerate() {
            if let Some(flags) = client.interest(welcome) {
                watch(Source::ConsoleClient(index), client.as_fd(), flags);
            }
        }
        watched
    }

    /// When to look around although nothing happened; mostly never.
    fn time_limit(&self, keyboard_is_ours: bool) -> Option<Duration> {
        let closing = self.shared.closing.is_signalled();
        let last = |client: &ConsoleClient| if closing { client.hold_at_end() } else { None };
        let clients = self.clients.iter().flat_map(|client| [client.hold(), last(client)]).flatten();
        let clients = clients.map(|left| left.min(TICK));
        let keyboard = (!keyboard_is_ours).then_some(PAUSE);
        clients.chain(keyboard).chain(self.closed_for()).min()
    }

    /// How long no client is accepted yet.
    fn closed_for(&self) -> Option<Duration> {
        self.full_until?.checked_duration_since(self.now)
    }

    fn serve(&mut self, source: Source, flags: PollFlags) {
        match source {
            Source::Wake => drop(self.shared.wake.take()),
            Source::Written => self.writer.iter_mut().for_each(Writer::flush),
            // The loop moves bytes each time around.
            Source::Output => self.gather(),
            Source::Room => {}
            Source::Keyboard => self.read_keyboard(),
            Source::Listener => self.accept(),
            Source::Pty => self.look_at_pty(),
            Source::ConsoleClient(index) => self.serve_client(index, flags),
        }
    }

    /// A UART gives one byte at a time: waking twice for each would cost the guest more than a moment's delay. What comes
    /// after a silence, such as the echo of a key, is shown at once.
    fn gather(&self) {
        let left = self.shown.and_then(|shown| GATHER.checked_sub(shown.elapsed()));
        if let Some(left) = left.filter(|_| self.port.room() > LIMIT / 2) {
            std::thread::sleep(left);
        }
    }

    fn serve_client(&mut self, index: usize, flags: PollFlags) {
        let client = &mut self.clients[index];
        if flags.contains(PollFlags::OUT) {
            client.flush();
        }
        if flags.intersects(PollFlags::HUP | PollFlags::ERR) {
            client.hang_up();
        }
        if self.held.is_empty() && flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            let mut buffer = [0; 4096];
            let typed = client.read(&mut buffer);
            self.held.extend(typed);
            self.type_held();
        }
    }

    fn read_keyboard(&mut self) {
        let Some(keyboard) = self.keyboard.as_mut().filter(|keyboard| keyboard.is_ours()) else { return };
        if !self.held.is_empty() {
            return;
        }
        let mut buffer = [0; 4096];
        let bytes = match rustix::io::read(&keyboard.fd, &mut buffer) {
            Ok(count @ 1..) => &buffer[..count],
            Err(Errno::INTR | Errno::AGAIN) => return,
            // The end of a pipe or file, or a terminal that hung up.
            Ok(_) | Err(_) => {
                self.keyboard = None;
                return;
            }
        };
        if keyboard.terminal.is_none() {
            self.held.extend(bytes);
        } else {
            let mut typed = keyboard.escape.sort(bytes);
            typed.input.move_to(&mut self.held, usize::MAX);
            if typed.help {
                let hooks = &self.shared.hooks;
                let words = help(hooks.quit, hooks.has_break);
                match self.writer.as_mut().filter(|_| keyboard.answers_in_output) {
                    // A line for each key: a terminal of 80 columns breaks none of them.
                    Some(writer) => {
                        let lines = words.replace(", ", ",\r\n      ");
                        writer.send(format!("\r\naxvm: {lines}\r\n").into_bytes());
                    }
                    None => (hooks.on_help)(words),
                }
            }
            typed.keys.into_iter().for_each(&self.shared.hooks.on_key);
        }
        self.type_held();
    }

    /// Types what is held, then what clients brought along, as far as the port has room.
    fn type_held(&mut self) {
        loop {
            self.port.put_input(&mut self.held);
            if !self.held.is_empty() {
                return;
            }
            let mut early = self.clients.iter_mut().map(ConsoleClient::take_early);
            let Some(early) = early.find(|early| !early.is_empty()) else { return };
            self.held.extend(&early);
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(fd) => self.attach(Kind::Socket, Arc::new(fd), Vec::new()),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => {
                (self.shared.hooks.on_warning)(format!("Cannot let a console client in: {error}"));
                self.full_until = Some(Instant::now() + PAUSE);
            }
        }
    }
}

/// Polls, for `limit` at most. Interrupted, it finds nothing.
fn sleep(fds: &mut [PollFd<'_>], limit: Option<Duration>) {
    // Rounded up, so that a limit has passed when the wait ends.
    let limit = limit.and_then(|limit| Timespec::try_from(limit + Duration::from_millis(1)).ok());
    if poll(fds, limit.as_ref()).is_err() {
        fds.iter_mut().for_each(PollFd::clear_revents);
    }
}
