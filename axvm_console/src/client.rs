//! A client, which watches the console and may type: a socket's other end, or a program on the pseudo-terminal.
//!
//! ```text
//!   replay, live output --> backlog --> the client, as fast as it reads
//! ```
//!
//! A backlog of 64 KiB holds the guest back, so that a client that reads loses nothing; but not for long after the
//! client stopped reading. Such a client is dropped when its backlog passes 1 MiB.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::port::LIMIT;

/// A larger backlog than this costs a client that does not read its connection.
pub const BACKLOG_LIMIT: usize = 1 << 20;

/// How long a client may stand still before the guest no longer waits for it.
const PATIENCE: Duration = Duration::from_millis(100);

/// What is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A socket.
    Socket,
    /// The pseudo-terminal; it cannot be dropped, so the guest's latest output takes the place of its backlog.
    Pty,
}

/// One of them. Its descriptor does not block.
pub struct Client {
    /// What is at the other end.
    pub kind: Kind,
    fd: Arc<OwnedFd>,
    backlog: VecDeque<u8>,
    /// When it last took something, or had taken all.
    progress: Instant,
    /// It will type no more.
    typed_all: bool,
    /// It will read no more.
    hung_up: bool,
}

impl Client {
    /// A client that shall first see `replay`.
    pub fn new(kind: Kind, fd: Arc<OwnedFd>, replay: VecDeque<u8>) -> Client {
        Client { kind, fd, backlog: replay, progress: Instant::now(), typed_all: false, hung_up: false }
    }

    /// Shows it more.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.backlog.is_empty() {
            self.progress = Instant::now();
        }
        if !self.hung_up {
            self.backlog.extend(bytes);
            self.flush();
        }
    }

    /// Forgets what it has not read, and shows it `replay` instead.
    pub fn start_over(&mut self, replay: VecDeque<u8>) {
        self.backlog = replay;
    }

    /// Gives it as much as it takes.
    pub fn flush(&mut self) {
        while !self.backlog.is_empty() {
            match rustix::io::write(&self.fd, self.backlog.as_slices().0) {
                Ok(count) => {
                    self.backlog.drain(..count);
                    self.progress = Instant::now();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.hang_up(),
            }
        }
    }

    /// What it typed, up to the length of `buffer`.
    pub fn read<'a>(&mut self, buffer: &'a mut [u8]) -> &'a [u8] {
        match rustix::io::read(&self.fd, &mut *buffer) {
            Ok(0) => self.typed_all = true,
            Ok(count) => return &buffer[..count],
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.drop_it(),
        }
        &[]
    }

    /// It reads no more. What it typed before still counts.
    pub fn hang_up(&mut self) {
        self.backlog.clear();
        self.hung_up = true;
    }

    /// Ends the connection.
    pub fn drop_it(&mut self) {
        self.typed_all = true;
        self.hang_up();
    }

    /// Whether nothing connects it with the console any more.
    pub fn is_gone(&self) -> bool {
        self.hung_up && self.typed_all
    }

    /// Bytes it has not read.
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// How long, from `now`, a backlog beyond `limit` is still waited for; none if it is not.
    pub fn wait(&self, now: Instant, limit: usize, patience: Duration) -> Option<Duration> {
        let stood_still = now.saturating_duration_since(self.progress);
        patience.checked_sub(stood_still).filter(|left| self.backlog.len() > limit && !left.is_zero())
    }

    /// How long, from `now`, the guest waits for it.
    pub fn hold(&self, now: Instant) -> Option<Duration> {
        self.wait(now, LIMIT, PATIENCE)
    }

    /// What to poll it for, if its typing is `welcome`; none if it would only tell again that it hung up.
    pub fn interest(&self, welcome: bool) -> Option<PollFlags> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, welcome && !self.typed_all);
        flags.set(PollFlags::OUT, !self.backlog.is_empty());
        (welcome || !self.hung_up).then_some(flags)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
