//! What carries the frames on the host: an open descriptor, and how frames lie in its bytes.
//!
//! ```text
//!   Tap        | header 12 | frame |       a read or a write each
//!   Stream     | length 4, big-endian | frame | length 4 | frame | ..       cut anywhere by a read, or by a full pipe
//!   Datagram   | frame |                   a datagram each
//!
//!   descriptor --read--> inbox  | length | frame | length | frame | part of a fr..   --> ring
//!   ring --> outbox | prefix | frame | --one call--> descriptor
//!                       '-- what a full stream did not take stays, and goes first once it takes more
//! ```
//!
//! The inbox has the form of a stream for all three kinds, so that a frame without a buffer is simply not taken out.
//! Frame and length leave in one call: some peers (passt) lose a frame that comes in several pieces.
//!
//! A frame that was begun on a stream is finished, whatever the guest does meanwhile, or the peer would take the next
//! frame for its end. So both boxes belong to the link, and outlive the device: a reset of the guest, or a pause.
//! A saved state has whole frames only: another connection begins with a whole frame.
//!
//! Source: tun(4) in Linux `Documentation/networking/tuntap.rst`; unix(7), recv(2), send(2).
//! Left out: who opens it, and who opens it again after its end; offloads of a tap.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketType, sockopt::socket_type};
use thiserror::Error;

use super::header::HEADER_LEN;
use crate::state::Frame;

/// Shortest frame: two addresses and a type.
pub const MIN_FRAME: usize = 14;
/// Longest frame: addresses, type, a VLAN tag, and the longest IP packet.
pub const MAX_FRAME: usize = 14 + 4 + 65535;

/// Bytes of the length in a stream.
const LENGTH: usize = 4;
/// Bytes that may wait for the guest: more than one frame with header or length, fewer than three.
const INBOX: usize = 128 << 10;

/// How frames lie in the bytes of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A tap with a 12-byte virtio header before each frame (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR; TUNSETVNETHDRSZ 12).
    Tap,
    /// A stream socket of QEMU's and passt's form: a length of four bytes, big-endian, before each frame.
    Stream,
    /// A connected datagram socket: each datagram is a frame.
    Datagram,
}

/// What a datagram socket says, once for each datagram sent, of a peer that is not there, perhaps not yet.
const ABSENT: [Errno; 4] = [Errno::CONNREFUSED, Errno::CONNRESET, Errno::HOSTUNREACH, Errno::NETUNREACH];

/// An open link.
#[derive(Debug)]
pub struct Link {
    kind: LinkKind,
    descriptor: OwnedFd,
}

impl Link {
    /// A link over an open `descriptor`, which becomes non-blocking.
    pub fn new(kind: LinkKind, descriptor: OwnedFd) -> io::Result<Link> {
        let wanted = match kind {
            LinkKind::Tap => None,
            LinkKind::Stream => Some(SocketType::STREAM),
            LinkKind::Datagram => Some(SocketType::DGRAM),
        };
        if wanted.is_some_and(|wanted| socket_type(&descriptor) != Ok(wanted)) {
            let message = format!("The descriptor of a network link is not the socket that was said ({kind:?})");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let flags = fcntl_getfl(&descriptor)?;
        fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        Ok(Link { kind, descriptor })
    }

    fn read(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| rustix::io::read(&self.descriptor, &mut *bytes))
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| match self.kind {
            LinkKind::Tap => rustix::io::write(&self.descriptor, bytes),
            // The peer's end is an error, not a signal.
            LinkKind::Stream | LinkKind::Datagram => rustix::net::send(&self.descriptor, bytes, SendFlags::NOSIGNAL),
        })
    }

    /// Whether the link is of no use after this error. Of a stream any may have cut a frame; a tap's is gone.
    fn is_broken_by(&self, error: Errno) -> bool {
        match self.kind {
            LinkKind::Stream => true,
            LinkKind::Tap => error == Errno::BADFD,
            LinkKind::Datagram => false,
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Why a link is of no use any more.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum LinkError {
    #[error("its other end closed it")]
    Closed,
    #[error("its other end announced a frame of {0} bytes, at most {MAX_FRAME} are possible")]
    TooLong(usize),
    #[error("the host cannot use it any more: {0}")]
    Host(Errno),
}

/// What became of one look for a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// A frame of this length is at the front of the inbox.
    Frame(usize),
    /// Something came that is no frame, and was dropped.
    Dropped,
    /// Something came; look again.
    More,
    /// Nothing is there now.
    Nothing,
}

/// What became of one frame to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// It is gone, or all that is left of it is in the outbox.
    Sent,
    /// The link takes nothing now, and has nothing of it.
    Later,
    /// The host refused it.
    Refused(Errno),
}

/// Bytes on their way, between a link and the rings.
#[derive(Debug)]
pub(super) struct Boxes {
    inbox: Inbox,
    outbox: Outbox,
}

impl Boxes {
    pub(super) fn new() -> Boxes {
        Boxes { inbox: Inbox { bytes: vec![0; INBOX], start: 0, end: 0 }, outbox: Outbox::default() }
    }

    /// Looks for a frame, with one read at most.
    pub(super) fn look(&mut self, link: &Link) -> Result<Input, LinkError> {
        match self.inbox.front() {
            Front::Frame(len) if len > MAX_FRAME => return Err(LinkError::TooLong(len)),
            Front::Frame(len) if len < MIN_FRAME => {
                self.inbox.take(len);
                return Ok(Input::Dropped);
            }
            Front::Frame(len) => return Ok(Input::Frame(len)),
            Front::Incomplete(len) if len > MAX_FRAME => return Err(LinkError::TooLong(len)),
            Front::Incomplete(_) => {}
        }
        let read = match link.kind {
            LinkKind::Stream => self.inbox.fill(link),
            LinkKind::Tap => self.inbox.fill_one(link, HEADER_LEN),
            LinkKind::Datagram => self.inbox.fill_one(link, 0),
        };
        match read {
            Ok(Filled::More) => Ok(Input::More),
            Ok(Filled::TooLong) => Ok(Input::Dropped),
            Ok(Filled::End) => Err(LinkError::Closed),
            Err(Errno::AGAIN) => Ok(Input::Nothing),
            Err(error) if link.kind == LinkKind::Datagram && ABSENT.contains(&error) => Ok(Input::More),
            Err(error) => Err(LinkError::Host(error)),
        }
    }

    /// The frame at the front, as [`Boxes::look`] gave its length.
    pub(super) fn frame(&self, len: usize) -> &[u8] {
        &self.inbox.bytes[self.inbox.start + LENGTH..][..len]
    }

    /// The frame at the front is done with.
    pub(super) fn take(&mut self, len: usize) {
        self.inbox.take(len);
    }

    /// Whether a frame waits for the guest.
    pub(super) fn has_frame(&self) -> bool {
        matches!(self.inbox.front(), Front::Frame(_))
    }

    /// Room for a header and a frame to send, `len` bytes together. Nothing is pending.
    pub(super) fn room(&mut self, len: usize) -> &mut [u8] {
        self.outbox.bytes.resize(len, 0);
        &mut self.outbox.bytes
    }

    /// Sends the frame that was put into [`Boxes::room`] behind its header.
    pub(super) fn send(&mut self, link: &Link) -> Result<Output, LinkError> {
        self.outbox.address(link.kind);
        let start = self.outbox.next;
        let result = self.outbox.push(link);
        if self.outbox.next == start {
            self.outbox.clear();
        }
        match result {
            Ok(()) => Ok(Output::Sent),
            Err(Errno::AGAIN) => Ok(Output::Later),
            Err(error) if link.is_broken_by(error) => Err(LinkError::Host(error)),
            Err(error) => Ok(Output::Refused(error)),
        }
    }

    /// What is in [`Boxes::room`] is not sent.
    pub(super) fn discard(&mut self) {
        self.outbox.clear();
    }

    /// Whether a frame is not sent whole.
    pub(super) fn is_pending(&self) -> bool {
        self.outbox.is_pending()
    }

    /// Sends what is left of a frame, or some of it.
    pub(super) fn flush(&mut self, link: &Link) -> Result<(), LinkError> {
        match self.outbox.is_pending().then(|| self.outbox.push(link)) {
            None | Some(Ok(()) | Err(Errno::AGAIN)) => Ok(()),
            Some(Err(error)) => {
                self.outbox.clear();
                if link.is_broken_by(error) { Err(LinkError::Host(error)) } else { Ok(()) }
            }
        }
    }

    /// The whole frames that wait for the guest.
    pub(super) fn received(&self) -> Vec<Frame> {
        let mut rest = &self.inbox.bytes[self.inbox.start..self.inbox.end];
        let mut frames = Vec::new();
        while let Some((frame, behind)) = split_frame(rest) {
            if (MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
                frames.push(Frame(frame.to_vec()));
            }
            rest = behind;
        }
        frames
    }

    /// The frame that is not sent whole; all of it.
    pub(super) fn unsent(&self) -> Option<Frame> {
        self.is_pending().then(|| Frame(self.outbox.bytes.get(HEADER_LEN..).unwrap_or_default().to_vec()))
    }

    /// Whether these frames could have waited together.
    pub(super) fn can_hold(received: &[Frame]) -> bool {
        received.iter().map(|frame| LENGTH + frame.0.len()).sum::<usize>() <= INBOX
    }

    /// Takes the frames of a saved state, of which [`Boxes::can_hold`] is true. A box that has something is that of
    /// the same connection, which knows better.
    pub(super) fn restore(&mut self, link: &Link, received: &[Frame], unsent: Option<&Frame>) {
        if self.inbox.start == self.inbox.end {
            self.inbox.set(received);
        }
        if let Some(Frame(frame)) = unsent.filter(|_| !self.is_pending()) {
            self.room(HEADER_LEN + frame.len())[HEADER_LEN..].copy_from_slice(frame);
            self.outbox.address(link.kind);
        }
    }
}

/// What is at the front of the inbox.
enum Front {
    /// A whole frame of this length.
    Frame(usize),
    /// Part of one that shall have this length; 0 if that is not known.
    Incomplete(usize),
}

/// What a read brought.
enum Filled {
    More,
    TooLong,
    End,
}

#[derive(Debug)]
struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    fn front(&self) -> Front {
        let bytes = &self.bytes[self.start..self.end];
        match split_frame(bytes) {
            Some((frame, _)) => Front::Frame(frame.len()),
            None => Front::Incomplete(announced(bytes).map_or(0, |(len, _)| len)),
        }
    }

    fn take(&mut self, len: usize) {
        self.start += LENGTH + len;
    }

    /// Reads what there is room for. The start of a possible frame leaves room for the rest of it.
    fn fill(&mut self, link: &Link) -> Result<Filled, Errno> {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let count = link.read(&mut self.bytes[self.end..])?;
        self.end += count;
        Ok(if count == 0 { Filled::End } else { Filled::More })
    }

    /// Reads one frame with `header` bytes before it, in whose place its length comes.
    fn fill_one(&mut self, link: &Link, header: usize) -> Result<Filled, Errno> {
        let frame_at = header.max(LENGTH);
        (self.start, self.end) = (0, 0);
        let count = link.read(&mut self.bytes[frame_at - header..])?;
        let len = count.saturating_sub(header);
        if len > MAX_FRAME {
            return Ok(Filled::TooLong);
        }
        (self.start, self.end) = (frame_at - LENGTH, frame_at + len);
        self.bytes[self.start..frame_at].copy_from_slice(&(len as u32).to_be_bytes());
        Ok(Filled::More)
    }

    fn set(&mut self, frames: &[Frame]) {
        (self.start, self.end) = (0, 0);
        for Frame(frame) in frames {
            let length = (frame.len() as u32).to_be_bytes();
            for part in [&length[..], frame] {
                self.bytes[self.end..][..part.len()].copy_from_slice(part);
                self.end += part.len();
            }
        }
    }
}

#[derive(Debug, Default)]
struct Outbox {
    /// Twelve bytes, of which the last ones are what the link wants before a frame; the frame.
    bytes: Vec<u8>,
    /// The first byte to send.
    next: usize,
}

impl Outbox {
    fn is_pending(&self) -> bool {
        self.next < self.bytes.len()
    }

    fn clear(&mut self) {
        self.next = self.bytes.len();
    }

    /// Puts before the frame what this kind of link wants there.
    fn address(&mut self, kind: LinkKind) {
        let len = self.bytes.len().saturating_sub(HEADER_LEN) as u32;
        let Some((header, _)) = self.bytes.split_first_chunk_mut::<HEADER_LEN>() else { return };
        *header = [0; HEADER_LEN];
        self.next = match kind {
            LinkKind::Tap => 0,
            LinkKind::Stream => HEADER_LEN - LENGTH,
            LinkKind::Datagram => HEADER_LEN,
        };
        if kind == LinkKind::Stream {
            header[self.next..].copy_from_slice(&len.to_be_bytes());
        }
    }

    /// Sends what the link takes in one call.
    fn push(&mut self, link: &Link) -> Result<(), Errno> {
        let count = link.write(&self.bytes[self.next..])?;
        self.next = match link.kind {
            LinkKind::Stream => self.next + count,
            LinkKind::Tap | LinkKind::Datagram => self.bytes.len(),
        };
        Ok(())
    }
}

/// The length at the start of a stream's frame, and what follows.
fn announced(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH>()?;
    Some((u32::from_be_bytes(*length) as usize, rest))
}

/// The first frame, if it is whole, and what follows.
fn split_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = announced(bytes)?;
    rest.split_at_checked(len)
}
