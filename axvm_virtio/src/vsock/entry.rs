//! A connection with its socket: what the state machine says is done, and what the socket says is told to it.
//!
//! ```text
//!   Connection --output, shutdown flags--> socket --data, end, error--> Connection
//! ```
//!
//! Source: unix(7), poll(2), send(2), shutdown(2).

use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::connection::Connection;
use super::packet::{NEITHER, NO_RECEIVE, Op};

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Alive,
    /// It ends, and the guest is told by RST.
    Over,
}

/// A connection and its socket.
pub(super) struct Entry {
    pub(super) connection: Connection,
    /// None while the host's side is being made.
    pub(super) stream: Option<UnixStream>,
    /// Tells it from an earlier one of the same name.
    pub(super) serial: u64,
    /// The socket may have bytes for the guest.
    readable: bool,
}

impl Entry {
    pub(super) fn new(connection: Connection, stream: Option<UnixStream>, serial: u64) -> Entry {
        Entry { connection, stream, serial, readable: false }
    }

    /// The host's side is there.
    pub(super) fn connect(&mut self, stream: UnixStream) {
        self.stream = Some(stream);
        self.connection.connected();
    }

    /// For what to wait at the socket; `None`: not at all, as nothing it says can be used now. Its end is always
    /// reported, so it is waited for only where it is news.
    pub(super) fn interest(&self, dry: bool) -> Option<PollFlags> {
        self.stream.as_ref()?;
        let mut flags = PollFlags::empty();
        if !self.connection.output().is_empty() {
            flags |= PollFlags::OUT;
        }
        if self.connection.room() > 0 && !dry {
            flags |= PollFlags::IN;
        }
        (!flags.is_empty() || self.connection.awaits_end()).then_some(flags)
    }

    /// The socket is ready for something.
    pub(super) fn serve_host(&mut self, now: Instant) -> Standing {
        self.readable = true;
        if self.connection.awaits_end() && self.stream.as_ref().is_some_and(has_hung_up) {
            self.connection.host_gone();
        }
        self.flush(now)
    }

    /// Writes what there is room for.
    pub(super) fn flush(&mut self, now: Instant) -> Standing {
        let Some(stream) = &self.stream else { return Standing::Alive };
        while !self.connection.output().is_empty() {
            match send(stream, self.connection.output(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => self.connection.written(count, now),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return Standing::Over,
            }
        }
        self.settle()
    }

    /// Passes half-closes on, and says whether anything is left to do.
    pub(super) fn settle(&mut self) -> Standing {
        let how = match self.connection.tell_host() {
            0 => None,
            NEITHER => Some(Shutdown::Both),
            NO_RECEIVE => Some(Shutdown::Read),
            _ => Some(Shutdown::Write),
        };
        if let (Some(stream), Some(how)) = (&self.stream, how) {
            // Refused only by a socket whose other end is gone, which is found otherwise.
            let _ = shutdown(stream, how);
        }
        if self.connection.is_over() { Standing::Over } else { Standing::Alive }
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn may_send(&self) -> bool {
        self.connection.has_packet() || self.readable && self.connection.room() > 0
    }

    /// The next packet: operation, flags, and count of bytes in `data`. An error ends the connection.
    pub(super) fn next_packet(&mut self, data: &mut [u8], now: Instant) -> Result<Option<(Op, u32, u32)>, Errno> {
        if !self.connection.has_packet()
            && let Some(count) = self.read(data)?
        {
            let (op, flags) = self.connection.sent(count);
            return Ok(Some((op, flags, count)));
        }
        Ok(self.connection.next(now).map(|(op, flags)| (op, flags, 0)))
    }

    /// Reads what the guest has room for; `None`: there is nothing now, or never again.
    fn read(&mut self, data: &mut [u8]) -> Result<Option<u32>, Errno> {
        let room = data.len().min(self.connection.room() as usize);
        let Some(stream) = self.stream.as_ref().filter(|_| self.readable && room > 0) else { return Ok(None) };
        loop {
            match read(stream, &mut data[..room]) {
                Ok(0) => {
                    self.readable = false;
                    self.connection.host_ended();
                    return Ok(None);
                }
                Ok(count) => {
                    self.readable = count == room;
                    return Ok(Some(count as u32));
                }
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return Ok(None);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether the other end is closed both ways.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}
