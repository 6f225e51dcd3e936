//! One connection as a state machine: events in, packets and bytes out. It knows no descriptor and no ring.
//!
//! ```text
//!   guest: REQUEST --> Dialing ---- the host's program took it: RESPONSE ----.
//!                         '-------- it did not, or 2 s: RST                  v
//!   client: CONNECT -> Requested -- guest: RESPONSE; "OK <port>" to client -> Open --> RST, from either side
//!                         '-------- guest: RST, or 2 s                       data and half-closes, both ways
//! ```
//!
//! What the guest must be told is a few bits, so a flood of questions is one answer. Bytes for the host wait here, at
//! most [`BUFFER`](super::credit::BUFFER); bytes for the guest stay in the host's socket until the guest has a buffer.
//!
//! Spec: virtio 1.2, 5.10.6.4 to 5.10.6.6, "Receive and Transmit", "Stream Sockets".

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::credit::{BUFFER, Credit};
use super::packet::{Header, NEITHER, NO_RECEIVE, NO_SEND, Op};

/// How long an answer may take: the guest's, a connector's, that of a host that must take the last bytes.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Room for bytes that an idle connection keeps.
const KEPT: usize = 4096;

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest wants it; the host's side is not connected yet.
    Dialing,
    /// A client wants it; the guest has not answered.
    Requested,
    /// Both have it.
    Open,
}

/// What becomes of a connection after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It goes on.
    Keep,
    /// It ends, and the guest is told by RST.
    Reset,
    /// The same: it sent more than there is space for.
    Overrun,
    /// It ends, and the guest knows.
    Drop,
}

/// What the guest must be told.
#[derive(Debug, Default)]
struct Pending {
    request: bool,
    response: bool,
    credit: bool,
    ask_credit: bool,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    phase: Phase,
    deadline: Option<Instant>,
    credit: Credit,
    pending: Pending,
    /// Bytes for the host.
    output: VecDeque<u8>,
    /// How many of them at the front are our own, so that the guest has no credit to get for them.
    own: usize,
    /// Shutdown flags of the guest.
    guest_over: u32,
    /// Those of them that the host's socket knows.
    host_knows: u32,
    /// Our shutdown flags: what the host does no more.
    host_over: u32,
    /// Those of them that the guest knows.
    guest_knows: u32,
    /// The guest was asked for credit, and has said nothing since.
    asked: bool,
}

impl Connection {
    /// The guest asks for it.
    pub(super) fn dialing(request: &Header, now: Instant) -> Connection {
        let mut connection = Connection::new(Phase::Dialing, now);
        connection.credit.learn(request.buf_alloc, request.fwd_cnt);
        connection
    }

    /// A client asks for it.
    pub(super) fn requested(now: Instant) -> Connection {
        let mut connection = Connection::new(Phase::Requested, now);
        connection.pending.request = true;
        connection
    }

    fn new(phase: Phase, now: Instant) -> Connection {
        Connection {
            phase,
            deadline: Some(now + PATIENCE),
            credit: Credit::default(),
            pending: Pending::default(),
            output: VecDeque::new(),
            own: 0,
            guest_over: 0,
            host_knows: 0,
            host_over: 0,
            guest_knows: 0,
            asked: false,
        }
    }

    /// The host's program took the connection that the guest asked for.
    pub(super) fn connected(&mut self) {
        (self.phase, self.deadline, self.pending.response) = (Phase::Open, None, true);
    }

    /// A packet of the guest. `payload` has `header.len` bytes, unless that is more than could be taken.
    pub(super) fn packet(&mut self, header: &Header, payload: &[u8], host_port: u32, now: Instant) -> Outcome {
        let Some(op) = header.op() else { return Outcome::Reset };
        self.credit.learn(header.buf_alloc, header.fwd_cnt);
        self.asked = false;
        match (self.phase, op) {
            (_, Op::Rst) => return Outcome::Drop,
            (Phase::Requested, Op::Response) => {
                let answer = format!("OK {host_port}\n");
                (self.phase, self.deadline, self.own) = (Phase::Open, None, answer.len());
                self.output.extend(answer.as_bytes());
            }
            (Phase::Open, Op::Rw) => return self.receive(header.len, payload),
            (Phase::Open, Op::CreditUpdate) => {}
            (Phase::Open, Op::CreditRequest) => self.pending.credit = true,
            (Phase::Open, Op::Shutdown) => {
                self.guest_over |= header.flags & NEITHER;
                if self.guest_over == NEITHER {
                    self.deadline = Some(now + PATIENCE);
                }
            }
            _ => return Outcome::Reset,
        }
        Outcome::Keep
    }

    fn receive(&mut self, len: u32, payload: &[u8]) -> Outcome {
        let lies = payload.len() as u64 != u64::from(len);
        if lies || self.guest_over & NO_SEND != 0 {
            return Outcome::Reset;
        }
        if !self.credit.receive(len) {
            return Outcome::Overrun;
        }
        self.output.extend(payload);
        Outcome::Keep
    }

    /// Bytes for the host; not all of them, if they lie in two pieces.
    pub(super) fn output(&self) -> &[u8] {
        self.output.as_slices().0
    }

    /// The host took so many bytes.
    pub(super) fn written(&mut self, count: usize, now: Instant) {
        self.output.drain(..count);
        let own = count.min(self.own);
        self.own -= own;
        self.credit.forward((count - own) as u32);
        if self.output.is_empty() && self.output.capacity() > KEPT {
            self.output = VecDeque::new();
        }
        // A host that is slow, but takes its last bytes, gets them.
        if self.guest_over == NEITHER && count > 0 {
            self.deadline = Some(now + PATIENCE);
        }
    }

    /// How many bytes of the host the guest can take now.
    pub(super) fn room(&self) -> u32 {
        match self.is_reading() {
            true => self.credit.room().min(BUFFER),
            false => 0,
        }
    }

    /// Whether the host may still have bytes for the guest.
    pub(super) fn is_reading(&self) -> bool {
        self.phase == Phase::Open && self.host_over & NO_SEND == 0 && self.guest_over & NO_RECEIVE == 0
    }

    /// Whether nothing but its end can come from the host, and that is not known yet.
    pub(super) fn awaits_end(&self) -> bool {
        self.phase == Phase::Open && !self.is_reading() && self.host_over != NEITHER
    }

    /// So many bytes of the host go to the guest, in one packet.
    pub(super) fn sent(&mut self, count: u32) -> (Op, u32) {
        self.credit.send(count);
        if self.credit.room() == 0 && !self.asked {
            (self.asked, self.pending.ask_credit) = (true, true);
        }
        (Op::Rw, 0)
    }

    /// The host sends no more.
    pub(super) fn host_ended(&mut self) {
        self.host_over |= NO_SEND;
    }

    /// The host is gone.
    pub(super) fn host_gone(&mut self) {
        self.host_over = NEITHER;
    }

    /// What of the guest's shutdown flags the host's socket must be told now: `NO_SEND` after the last byte.
    pub(super) fn tell_host(&mut self) -> u32 {
        let ready = if self.output.is_empty() { NEITHER } else { NO_RECEIVE };
        let news = self.guest_over & !self.host_knows & ready;
        self.host_knows |= news;
        news
    }

    /// Whether [`Connection::next`] has a packet.
    pub(super) fn has_packet(&self) -> bool {
        let Pending { request, response, credit, ask_credit } = self.pending;
        request || response || credit || ask_credit || self.credit.owes_update() || self.host_over != self.guest_knows
    }

    /// The next packet without data: its operation and flags.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Op, u32)> {
        let take = std::mem::take::<bool>;
        let op = if take(&mut self.pending.request) {
            Op::Request
        } else if take(&mut self.pending.response) {
            Op::Response
        } else if take(&mut self.pending.credit) || self.credit.owes_update() {
            Op::CreditUpdate
        } else if take(&mut self.pending.ask_credit) {
            Op::CreditRequest
        } else if self.host_over != self.guest_knows {
            self.guest_knows = self.host_over;
            if self.host_over == NEITHER {
                self.deadline = Some(now + PATIENCE);
            }
            return Some((Op::Shutdown, self.host_over));
        } else {
            return None;
        };
        Some((op, 0))
    }

    /// `buf_alloc` and `fwd_cnt` of the packet that goes out now.
    pub(super) fn tell_credit(&mut self) -> (u32, u32) {
        self.credit.tell()
    }

    /// Whether nothing can pass any more, either way, and both know: RST is the last packet.
    pub(super) fn is_over(&self) -> bool {
        let to_guest = self.guest_over & NO_RECEIVE != 0 || self.guest_knows & NO_SEND != 0;
        self.guest_over & NO_SEND != 0 && self.output.is_empty() && to_guest
    }

    /// When it ends, unless something happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(op: Op, flags: u32, len: u32) -> Header {
        Header { op: op as u16, flags, len, buf_alloc: BUFFER, ..Header::default() }
    }

    fn open(now: Instant) -> Connection {
        let mut connection = Connection::dialing(&header(Op::Request, 0, 0), now);
        connection.connected();
        assert_eq!(connection.next(now), Some((Op::Response, 0)));
        connection
    }

    #[test]
    fn an_answer_to_a_client_is_not_the_guests_credit() {
        let now = Instant::now();
        let mut connection = Connection::requested(now);
        assert_eq!((connection.next(now), connection.deadline()), (Some((Op::Request, 0)), Some(now + PATIENCE)));
        assert_eq!(connection.packet(&header(Op::Response, 0, 0), &[], 7, now), Outcome::Keep);
        assert_eq!(connection.packet(&header(Op::Rw, 0, 3), b"abc", 7, now), Outcome::Keep);
        assert_eq!((connection.output(), connection.deadline()), (b"OK 7\nabc".as_slice(), None));
        connection.written(4, now);
        assert_eq!(connection.tell_credit(), (BUFFER, 0));
        connection.written(3, now);
        assert_eq!(connection.tell_credit(), (BUFFER, 2));
    }

    #[test]
    fn a_host_that_takes_its_last_bytes_slowly_gets_them() {
        let mut now = Instant::now();
        let mut connection = open(now);
        assert_eq!(connection.packet(&header(Op::Rw, 0, 3), b"abc", 7, now), Outcome::Keep);
        assert_eq!(connection.packet(&header(Op::Shutdown, NEITHER, 0), &[], 7, now), Outcome::Keep);
        for _ in 0..3 {
            assert!(!connection.is_over());
            assert_eq!(connection.deadline(), Some(now + PATIENCE));
            now += PATIENCE / 2;
            connection.written(1, now);
        }
        assert!(connection.is_over());
    }

    #[test]
    fn the_host_is_told_of_a_half_close_after_the_last_byte_and_once() {
        let now = Instant::now();
        let mut connection = open(now);
        assert_eq!(connection.packet(&header(Op::Rw, 0, 1), b"a", 7, now), Outcome::Keep);
        assert_eq!(connection.packet(&header(Op::Shutdown, NEITHER, 0), &[], 7, now), Outcome::Keep);
        assert_eq!((connection.tell_host(), connection.tell_host()), (NO_RECEIVE, 0));
        connection.written(1, now);
        assert_eq!((connection.tell_host(), connection.tell_host()), (NO_SEND, 0));
    }

    #[test]
    fn data_after_the_guests_half_close_are_against_the_rules() {
        let now = Instant::now();
        let mut connection = open(now);
        assert_eq!(connection.packet(&header(Op::Shutdown, NO_RECEIVE, 0), &[], 7, now), Outcome::Keep);
        assert_eq!(connection.packet(&header(Op::Rw, 0, 1), b"a", 7, now), Outcome::Keep);
        assert_eq!(connection.packet(&header(Op::Shutdown, NO_SEND, 0), &[], 7, now), Outcome::Keep);
        assert_eq!(connection.packet(&header(Op::Rw, 0, 1), b"a", 7, now), Outcome::Reset);
    }

    #[test]
    fn a_close_of_the_host_is_told_once_and_waits_two_seconds() {
        let now = Instant::now();
        let mut connection = open(now);
        connection.host_ended();
        assert_eq!((connection.next(now), connection.next(now)), (Some((Op::Shutdown, NO_SEND)), None));
        assert!(connection.awaits_end() && connection.room() == 0 && connection.deadline().is_none());
        connection.host_gone();
        assert_eq!((connection.next(now), connection.next(now)), (Some((Op::Shutdown, NEITHER)), None));
        assert!(!connection.awaits_end() && connection.deadline() == Some(now + PATIENCE));
    }

    proptest! {
        #[test]
        fn any_packets_hold_no_more_than_they_may(
            packets in proptest::collection::vec((0_u16..9, 0_u32..4, 0_usize..70_000, any::<[u32; 2]>()), 1..80),
            dialing in any::<bool>(),
        ) {
            let now = Instant::now();
            let mut connection = if dialing { open(now) } else { Connection::requested(now) };
            let data = vec![0; 70_000];
            for (op, flags, len, [buf_alloc, fwd_cnt]) in packets {
                let header = Header { op, flags, len: len as u32, buf_alloc, fwd_cnt, ..Header::default() };
                if connection.packet(&header, &data[..len], u32::MAX, now) != Outcome::Keep {
                    break;
                }
                prop_assert!(connection.output.len() <= BUFFER as usize + connection.own);
                prop_assert!(connection.room() <= BUFFER);
                let count = connection.output().len().min(fwd_cnt as usize % 70_000);
                connection.written(count, now);
                // It never asks for more than a few packets without news.
                let said = std::iter::from_fn(|| {
                    let packet = connection.next(now);
                    connection.tell_credit();
                    packet
                });
                prop_assert!(said.take(10).count() < 5);
                prop_assert!(!connection.has_packet());
            }
        }
    }
}
