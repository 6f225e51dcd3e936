//! One client's socket: moves bytes between it and its [`Session`], and knows when to give up.
//!
//! ```text
//!   socket --read, a piece a turn--> Session --write what the socket takes--> socket
//! ```
//!
//! Nothing here waits. A turn serves one request at most, so that a client that floods waits for the others.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::http::Response;
use crate::session::{Api, Session};

/// How long a request may take to arrive, and an answer to be taken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long a client may go on sending after the last answer: closing at once would keep it from reading that.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes read in a turn.
const PIECE: usize = 16 << 10;

/// A client.
pub(crate) struct Connection {
    stream: UnixStream,
    session: Session,
    /// The client will send no more.
    input_ended: bool,
    /// The last answer is sent.
    lingers: bool,
    deadline: Option<Instant>,
    last_input: Instant,
}

/// What becomes of a connection after its turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait until the socket is ready.
    Wait,
    /// There is more to do at once.
    Again,
    /// Forget it.
    Close,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream, now: Instant) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        let session = Session::default();
        Ok(Connection { stream, session, input_ended: false, lingers: false, deadline: None, last_input: now })
    }

    /// Says a last word. It stays until the client had time to read that: some take a socket that is closed at once for
    /// one that nobody listens to.
    pub(crate) fn end(&mut self, response: &Response) {
        self.session.end(response);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> PollFlags {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, !self.input_ended && self.session.room() > 0);
        interest.set(PollFlags::OUT, !self.session.output().is_empty());
        interest
    }

    /// When to look even if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Since when it may be given up for another client; never while it is a stream of events.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        (!self.session.is_stream()).then_some(self.last_input)
    }

    /// Does what can be done now.
    pub(crate) fn turn(&mut self, ready: PollFlags, now: Instant, api: &Api) -> Next {
        self.try_turn(ready, now, api).unwrap_or(Next::Close)
    }

    fn try_turn(&mut self, ready: PollFlags, now: Instant, api: &Api) -> io::Result<Next> {
        if ready.intersects(PollFlags::IN | PollFlags::HUP) {
            self.read(now)?;
        }
        let more = self.session.advance(api);
        let waited = self.session.output().len();
        let sent = self.write()?;
        if let Some((attach, typed)) = self.session.take_console() {
            self.stream.set_nonblocking(false)?;
            attach(self.stream.try_clone()?, typed);
            return Ok(Next::Close);
        }
        self.watch_time(now, more || sent > 0);
        let hung_up = ready.intersects(PollFlags::HUP | PollFlags::ERR) && !ready.contains(PollFlags::IN);
        let nothing_left = self.session.output().is_empty() && !more && !self.session.is_stream();
        Ok(if self.input_ended && nothing_left || hung_up && !more {
            Next::Close
        } else if more || sent > 0 && sent == waited {
            // Room for more answers or events, if there are any.
            Next::Again
        } else {
            Next::Wait
        })
    }

    fn read(&mut self, now: Instant) -> io::Result<()> {
        let mut piece = [0; PIECE];
        let room = self.session.room().min(PIECE);
        if room == 0 || self.input_ended {
            return Ok(());
        }
        match retry(self.stream.read(&mut piece[..room]))? {
            Some(0) => self.input_ended = true,
            Some(len) => {
                self.session.receive(&piece[..len]);
                self.last_input = now;
            }
            None => {}
        }
        Ok(())
    }

    /// Sends what the socket takes; how much that was.
    fn write(&mut self) -> io::Result<usize> {
        if self.session.output().is_empty() {
            return Ok(0);
        }
        let len = retry(self.stream.write(self.session.output()))?.unwrap_or(0);
        self.session.sent(len);
        Ok(len)
    }

    /// Moves the deadline; acts when it has passed.
    fn watch_time(&mut self, now: Instant, progress: bool) {
        if self.session.has_ended() && self.session.output().is_empty() {
            if !self.lingers {
                self.lingers = true;
                self.deadline = Some(now + LINGER);
                _ = self.stream.shutdown(Shutdown::Write);
            }
        } else if !self.session.is_unfinished() && (self.session.output().is_empty() || self.session.is_stream()) {
            self.deadline = None;
        } else if self.deadline.is_none() || progress {
            self.deadline = Some(now + PATIENCE);
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        if self.session.is_unfinished() && self.session.output().is_empty() {
            self.deadline = None;
            self.session.end(&Response::fault(408, "The request did not arrive within 30 seconds"));
        } else {
            self.session = Session::default();
            self.input_ended = true;
        }
    }

    /// The last turn of all: what is ready to be said is said, if the client takes it now.
    pub(crate) fn farewell(&mut self, api: &Api) {
        self.session.advance(api);
        self.session.finish();
        _ = self.write();
    }
}

/// Nothing, if the socket is not ready.
fn retry(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(len) => Ok(Some(len)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::EventFeed;
    use crate::testing::FakeMachine;
    use std::sync::Arc;

    struct Both {
        api: Api,
        start: Instant,
        client: UnixStream,
        connection: Connection,
    }

    fn connected() -> Both {
        let api = Api::new(Arc::new(FakeMachine::default()), EventFeed::new().unwrap());
        let (client, server) = UnixStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        let start = Instant::now();
        Both { api, start, client, connection: Connection::new(server, start).unwrap() }
    }

    impl Both {
        fn turn(&mut self, seconds: u64) -> Next {
            let now = self.start + Duration::from_secs(seconds);
            self.connection.turn(PollFlags::IN, now, &self.api)
        }

        fn heard(&mut self) -> String {
            let mut bytes = [0; 4096];
            let len = self.client.read(&mut bytes).unwrap_or(0);
            String::from_utf8_lossy(&bytes[..len]).into_owned()
        }
    }

    #[test]
    fn a_request_that_does_not_end_is_given_up_however_slowly_it_drips() {
        let mut both = connected();
        for second in (0..30).step_by(5) {
            both.client.write_all(b"G").unwrap();
            assert_eq!(both.turn(second), Next::Wait);
        }
        assert_eq!(both.heard(), "");
        both.turn(30);
        both.turn(30);
        assert!(both.heard().starts_with("HTTP/1.1 408 "));
        both.client.write_all(b"G").unwrap();
        assert_eq!(both.turn(31), Next::Close);
    }

    #[test]
    fn a_silent_client_between_requests_may_stay() {
        let mut both = connected();
        both.client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        both.turn(0);
        both.turn(0);
        assert!(both.heard().starts_with("HTTP/1.1 200 "));
        assert_eq!((both.turn(3600), both.connection.deadline()), (Next::Wait, None));
    }

    #[test]
    fn a_client_that_takes_no_answers_is_given_up() {
        let mut both = connected();
        let mut sent = 0;
        while sent < 1000 && both.connection.session.output().len() < 8192 {
            _ = both.client.write(b"GET /openapi.json HTTP/1.1\r\n\r\n");
            both.turn(0);
            sent += 1;
        }
        assert!(sent < 1000, "the output is bounded by the socket and the session");
        assert_eq!(both.turn(29), Next::Wait);
        assert_eq!(both.turn(31), Next::Close);
    }
}
