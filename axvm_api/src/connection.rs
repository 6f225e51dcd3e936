//! One client's socket: moves bytes between it and its [`Session`], and knows when to give up.
//!
//! ```text
//!   socket --read, a piece a turn--> Session --write what the socket takes--> socket
//! ```
//!
//! Between turns a client is in one of four phases:
//!
//! ```text
//!   Idle <---------------------> Busy (30 s) --last answer is sent--> Lingers (1 s)
//!     request begun, answer waits  |                                    |
//!                                  '--time is over--> Over <------------'
//! ```
//!
//! Nothing here waits. A turn serves one request at most, so that a client that floods waits for the others.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use crate::http::Response;
use crate::session::{Api, DESCRIPTOR_LIMIT, Session};

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
    /// The client will send no more; it may still read.
    input_ended: bool,
    phase: Phase,
    last_input: Instant,
}

/// What client and server owe each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing: a silent client may stay.
    Idle,
    /// The client the rest of a request, or to take an answer, until then.
    Busy { until: Instant },
    /// The last answer is sent: the client may read it until then.
    Lingers { until: Instant },
    /// The client's time was up.
    Over,
}

/// What a turn brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    /// Nothing moved.
    Nothing,
    /// Some bytes went out.
    Part,
    /// A request was served, or all bytes went out: there may be more to do at once.
    All,
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
        Ok(Connection { stream, session, input_ended: false, phase: Phase::Idle, last_input: now })
    }

    /// Says a last word. It stays until the client had time to read that: some take a socket that is closed at once for
    /// one without a listener.
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
        match self.phase {
            Phase::Busy { until } | Phase::Lingers { until } => Some(until),
            Phase::Idle | Phase::Over => None,
        }
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
        let served = self.session.advance(api);
        let sent = self.write()?;
        let moved = if served { Moved::All } else { sent };
        if let Some((attach, typed)) = self.session.take_console() {
            self.stream.set_nonblocking(false)?;
            attach(self.stream.try_clone()?, typed);
            return Ok(Next::Close);
        }
        self.watch_time(now, moved);
        let hung_up = ready.intersects(PollFlags::HUP | PollFlags::ERR) && !ready.contains(PollFlags::IN);
        let has_all = self.session.output().is_empty() && !self.session.is_stream();
        Ok(match moved {
            _ if self.phase == Phase::Over => Next::Close,
            Moved::All => Next::Again,
            _ if hung_up || self.input_ended && has_all => Next::Close,
            Moved::Nothing | Moved::Part => Next::Wait,
        })
    }

    fn read(&mut self, now: Instant) -> io::Result<()> {
        let mut piece = [0; PIECE];
        let room = self.session.room().min(PIECE);
        if room == 0 || self.input_ended {
            return Ok(());
        }
        let mut descriptors = Vec::new();
        let read = receive(&self.stream, &mut piece[..room], &mut descriptors);
        let lost = read.as_ref().is_ok_and(|(_, lost)| *lost);
        self.session.receive_descriptors(descriptors, lost);
        match retry(read.map(|(len, _)| len))? {
            Some(0) => self.input_ended = true,
            Some(len) => {
                self.session.receive(&piece[..len]);
                self.last_input = now;
            }
            None => {}
        }
        Ok(())
    }

    /// Sends what the socket takes.
    fn write(&mut self) -> io::Result<Moved> {
        let waiting = self.session.output().len();
        if waiting == 0 {
            return Ok(Moved::Nothing);
        }
        let len = retry(self.stream.write(self.session.output()))?.unwrap_or(0);
        self.session.sent(len);
        Ok(match len {
            0 => Moved::Nothing,
            // Room for more answers or events, if there are any.
            _ if len == waiting => Moved::All,
            _ => Moved::Part,
        })
    }

    /// Goes to the phase that this turn led to; acts when its time is over.
    fn watch_time(&mut self, now: Instant, moved: Moved) {
        let has_all = self.session.output().is_empty();
        self.phase = match self.phase {
            Phase::Lingers { until } => Phase::Lingers { until },
            _ if self.session.has_ended() && has_all => {
                _ = self.stream.shutdown(Shutdown::Write);
                Phase::Lingers { until: now + LINGER }
            }
            _ if !self.session.is_unfinished() && (has_all || self.session.is_stream()) => Phase::Idle,
            Phase::Busy { until } if moved == Moved::Nothing => Phase::Busy { until },
            _ => Phase::Busy { until: now + PATIENCE },
        };
        if self.deadline().is_some_and(|until| until <= now) {
            self.phase = self.when_late();
        }
    }

    /// A request that is late gets an answer; a client that takes no answer gets no more.
    fn when_late(&mut self) -> Phase {
        if !self.session.is_unfinished() || !self.session.output().is_empty() {
            return Phase::Over;
        }
        self.session.end(&Response::fault(408, "The request did not arrive within 30 seconds"));
        Phase::Idle
    }

    /// The last turn of all: what is ready to be said is said, if the client takes it now.
    pub(crate) fn finish(&mut self, api: &Api) {
        self.session.advance(api);
        self.session.finish();
        _ = self.write();
    }
}

/// Bytes, and the descriptors that came with them: no others are in a read. How many bytes, and whether descriptors were
/// lost.
fn receive(stream: &UnixStream, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<(usize, bool)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok((message.bytes, message.flags.contains(ReturnFlags::CTRUNC)))
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
    use std::io::Read;
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

        fn received(&mut self) -> String {
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
        assert_eq!(both.received(), "");
        both.turn(30);
        both.turn(30);
        assert!(both.received().starts_with("HTTP/1.1 408 "));
        both.client.write_all(b"G").unwrap();
        assert_eq!(both.turn(31), Next::Close);
    }

    #[test]
    fn a_silent_client_between_requests_may_stay() {
        let mut both = connected();
        both.client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        both.turn(0);
        both.turn(0);
        assert!(both.received().starts_with("HTTP/1.1 200 "));
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
