//! A client that watches the console and may type: a socket's other end, or a program on the pseudo-terminal.
//!
//! ```text
//!   replay, live output --> backlog --> the client, as fast as it reads
//!
//!   backlog      up to 64 KiB     up to 1 MiB            beyond
//!   the guest    runs             waits 100 ms at most   waits 2 s at most, then the client is dropped
//! ```
//!
//! So a client that reads, however slowly, loses nothing, and one that has stopped costs the guest two seconds once.
//! Patience is spent only by waiting: by what passed while the guest was held for this client and the client took
//! nothing, as the console's thread saw it. While that thread did not run (a busy or a stopped host), the client could
//! not be served, and mostly did not run either; no more than [`TICK`] of such a time counts.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::port::LIMIT;

/// A larger backlog than this costs a client that does not read its connection.
pub const BACKLOG_LIMIT: usize = 1 << 20;

/// How long a client may take nothing before the guest goes on without it.
const BRIEF: Duration = Duration::from_millis(100);
/// How long it may take nothing before it is dropped, or the end of the console no longer waits for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a client that is waited for is looked at: what passes between two looks counts no more than this.
pub const TICK: Duration = Duration::from_millis(100);

/// What is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A socket.
    Socket,
    /// The pseudo-terminal; it cannot be dropped, so the guest's latest output takes the place of its backlog.
    Pty,
}

/// One of them. Its descriptor does not block.
pub struct ConsoleClient {
    /// What is at the other end.
    pub kind: Kind,
    fd: Arc<OwnedFd>,
    /// What it sent before it came here, until there is room for it.
    early: Vec<u8>,
    backlog: VecDeque<u8>,
    /// How long it was waited for since it last took something, or had taken all.
    waited: Duration,
    /// It took something since the last look.
    took: bool,
    /// It will type no more.
    typed_all: bool,
    /// It will read no more.
    hung_up: bool,
}

impl ConsoleClient {
    /// A client that shall first see `replay`, and typed `early` already.
    pub fn new(kind: Kind, fd: Arc<OwnedFd>, early: Vec<u8>, replay: VecDeque<u8>) -> ConsoleClient {
        ConsoleClient {
            kind,
            fd,
            early,
            backlog: replay,
            waited: Duration::ZERO,
            took: false,
            typed_all: false,
            hung_up: false,
        }
    }

    /// Shows it more.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.backlog.is_empty() {
            self.waited = Duration::ZERO;
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
                    (self.waited, self.took) = (Duration::ZERO, true);
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
            Err(Errno::INTR) => {}
            // A pseudo-terminal that was left and is open again: who opened it is another client.
            Err(Errno::AGAIN) => self.typed_all |= self.hung_up && self.kind == Kind::Pty,
            Err(_) => {
                self.typed_all = true;
                self.hang_up();
            }
        }
        &[]
    }

    /// What it typed before it came here.
    pub fn take_early(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.early)
    }

    /// It reads no more. What it typed before still counts.
    pub fn hang_up(&mut self) {
        self.backlog.clear();
        self.hung_up = true;
    }

    /// It is no longer there to see what becomes of its typing. Its descriptor is asked, too: who comes in its place may be
    /// seen before its end is.
    pub fn has_left(&self) -> bool {
        let mut now = [PollFd::new(&self.fd, PollFlags::empty())];
        self.hung_up
            || poll(&mut now, Some(&Timespec::default())).is_ok_and(|_| now[0].revents().contains(PollFlags::HUP))
    }

    /// Ends the connection.
    pub fn drop_it(&mut self) {
        self.early.clear();
        self.typed_all = true;
        self.hang_up();
    }

    /// Whether nothing connects it with the console any more.
    pub fn is_gone(&self) -> bool {
        self.hung_up && self.typed_all && self.early.is_empty()
    }

    /// Bytes it has not read.
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Looks at it after it was waited for: it may take something now; if it has taken nothing, `passed` counts.
    pub fn waited_for(&mut self, passed: Duration) {
        self.flush();
        if !std::mem::take(&mut self.took) {
            self.waited += passed.min(TICK);
        }
    }

    /// How long the guest waits for it yet; none if it does not.
    pub fn hold(&self) -> Option<Duration> {
        match self.backlog.len() {
            behind if behind > BACKLOG_LIMIT => self.left_of(PATIENCE),
            behind if behind > LIMIT => self.left_of(BRIEF),
            _ => None,
        }
    }

    /// How long the end of the console waits for it yet; none if it does not.
    pub fn hold_at_end(&self) -> Option<Duration> {
        self.left_of(PATIENCE).filter(|_| !self.backlog.is_empty())
    }

    fn left_of(&self, patience: Duration) -> Option<Duration> {
        patience.checked_sub(self.waited).filter(|left| !left.is_zero())
    }

    /// What to poll it for, if its typing is `welcome`; none if it would only tell again that it hung up.
    pub fn interest(&self, welcome: bool) -> Option<PollFlags> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, welcome && !self.typed_all);
        flags.set(PollFlags::OUT, !self.backlog.is_empty());
        (welcome || !self.hung_up).then_some(flags)
    }
}

impl AsFd for ConsoleClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    /// A client with this many bytes that its socket does not hold, and its other end.
    fn behind(count: usize) -> (ConsoleClient, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut client = ConsoleClient::new(Kind::Socket, Arc::new(ours.into()), Vec::new(), VecDeque::new());
        while client.backlog() == 0 {
            client.push(&[b'x'; 64 << 10]);
        }
        client.push(&vec![b'x'; count - client.backlog()]);
        client.waited_for(Duration::ZERO);
        (client, theirs)
    }

    #[test]
    fn a_client_is_waited_for_as_its_backlog_says() {
        assert_eq!(behind(LIMIT).0.hold(), None);
        assert_eq!(behind(LIMIT + 1).0.hold(), Some(BRIEF));
        assert_eq!(behind(BACKLOG_LIMIT + 1).0.hold(), Some(PATIENCE));
        assert_eq!(behind(LIMIT).0.hold_at_end(), Some(PATIENCE));
    }

    #[test]
    fn a_client_that_stands_still_is_waited_for_no_longer_than_its_patience() {
        let (mut client, _theirs) = behind(BACKLOG_LIMIT + 1);
        for tick in 1..=20 {
            assert!(client.hold().is_some(), "tick {tick}");
            client.waited_for(TICK);
        }
        assert_eq!((client.hold(), client.hold_at_end()), (None, None));
    }

    #[test]
    fn a_client_that_takes_a_little_each_time_is_never_given_up() {
        let (mut client, mut theirs) = behind(4 * BACKLOG_LIMIT);
        let mut buffer = [0; 16 << 10];
        for _ in 0..8 {
            (0..15).for_each(|_| client.waited_for(TICK));
            let before = client.backlog();
            while client.backlog() == before {
                theirs.read_exact(&mut buffer).unwrap();
                client.flush();
            }
            assert_eq!(client.hold(), Some(PATIENCE));
        }
    }

    #[test]
    fn an_hour_in_which_the_console_did_not_run_counts_as_one_look() {
        let (mut client, _theirs) = behind(BACKLOG_LIMIT + 1);
        client.waited_for(Duration::from_secs(3600));
        assert_eq!(client.hold(), Some(PATIENCE - TICK));
    }
}
