//! Frames on their way, between one descriptor of a link and the rings of one queue pair.
//!
//! ```text
//!   descriptor --read--> inbox  | length | frame | length | frame | part of a fr..   --> ring
//!   ring --> outbox | prefix | frame | --one call--> descriptor
//!                       '-- what a full stream did not take stays, and goes first once it takes more
//!
//!   of a tap, the inbox has a header before each frame:   | length 4 | header 12 | frame |
//!             and a frame to it goes past the outbox:     ring --one call--> descriptor
//! ```
//!
//! The inbox has the form of a stream for all kinds of links, so that a frame without a buffer is simply not taken out.
//! Frame and length leave in one call: some peers (passt) lose a frame that comes in several pieces.
//!
//! A frame that was begun on a stream is finished, whatever the guest does meanwhile, or the peer would take the next
//! frame for its end. So both boxes belong to the link, and outlive the device: a reset of the guest, or a pause.
//! A saved state has whole frames only: another connection begins with a whole frame.
//!
//! Source: QEMU, "-netdev stream"; passt(1), `--fd`.

use axvm_memory::{GuestRam, GuestRange};
use axvm_tap::Offloads;
use rustix::io::Errno;

use super::header::{FrameHeader, HEADER_LEN};
use super::link::{LinkEnd, LinkError, LinkKind, MAX_FRAME, MIN_FRAME};
use crate::state::Frame;

/// Bytes of the length in a stream.
const LENGTH: usize = 4;
/// Bytes that may wait for the guest: more than one frame with header or length, fewer than three.
const INBOX: usize = 128 << 10;

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

/// Bytes on their way.
#[derive(Debug)]
pub(super) struct Boxes {
    inbox: Inbox,
    outbox: Outbox,
    /// The descriptor is in use: a queue of a tap that is not may not be touched.
    pub(super) attached: bool,
}

impl Boxes {
    /// Empty ones, for a link of this kind.
    pub(super) fn new(kind: LinkKind) -> Boxes {
        let head = if kind == LinkKind::Tap { HEADER_LEN } else { 0 };
        let inbox = Inbox { bytes: vec![0; INBOX], start: 0, end: 0, head };
        Boxes { inbox, outbox: Outbox::default(), attached: true }
    }

    /// Looks for a frame, with one read at most.
    pub(super) fn look(&mut self, link: &LinkEnd) -> Result<Input, LinkError> {
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
            LinkKind::Tap | LinkKind::Datagram => self.inbox.fill_one(link),
        };
        match read {
            Ok(Filled::More) => Ok(Input::More),
            Ok(Filled::NoFrame) => Ok(Input::Dropped),
            Ok(Filled::End) => Err(LinkError::Closed),
            Err(Errno::AGAIN) => Ok(Input::Nothing),
            Err(error) if link.is_passed_by(error) => Ok(Input::More),
            Err(error) => Err(LinkError::Host(error)),
        }
    }

    /// The frame at the front, as [`Boxes::look`] gave its length, and the header that came with it.
    pub(super) fn frame(&self, len: usize) -> (Option<FrameHeader>, &[u8]) {
        let Inbox { bytes, start, head, .. } = &self.inbox;
        let (header, frame) = bytes[start + LENGTH..][..head + len].split_at(*head);
        (header.first_chunk().map(FrameHeader::parse), frame)
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
        self.outbox.room(len)
    }

    /// Sends a frame that lies in `ranges` behind a header of the driver, without a copy: to a tap, which takes all or
    /// nothing, and of at most [`MESSAGE_RANGES`].
    pub(super) fn send_from(
        ram: &GuestRam,
        link: &LinkEnd,
        header: FrameHeader,
        ranges: &[GuestRange],
    ) -> Result<Output, LinkError> {
        let written = ram.write_message(link, &header.to_bytes(0), ranges, HEADER_LEN);
        outcome(link, written.map(drop).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }

    /// Sends the frame that was put into [`Boxes::room`] behind its header, which says this to a host that has one.
    pub(super) fn send(&mut self, link: &LinkEnd, header: FrameHeader) -> Result<Output, LinkError> {
        self.outbox.address(link.kind, header);
        let start = self.outbox.next;
        let result = self.outbox.push(link);
        if self.outbox.next == start {
            self.outbox.clear();
        }
        outcome(link, result)
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
    pub(super) fn flush(&mut self, link: &LinkEnd) -> Result<(), LinkError> {
        match self.outbox.is_pending().then(|| self.outbox.push(link)) {
            None | Some(Ok(()) | Err(Errno::AGAIN)) => Ok(()),
            Some(Err(error)) => {
                self.outbox.clear();
                if link.is_broken_by(error) { Err(LinkError::Host(error)) } else { Ok(()) }
            }
        }
    }

    /// The whole frames that wait for the guest, with the header of each if the link has headers.
    pub(super) fn received(&self) -> Vec<Frame> {
        let mut rest = &self.inbox.bytes[self.inbox.start..self.inbox.end];
        let mut frames = Vec::new();
        let head = self.inbox.head;
        while let Some((frame, behind)) = split_frame(rest) {
            if (head + MIN_FRAME..=head + MAX_FRAME).contains(&frame.len()) {
                frames.push(Frame([&[0; HEADER_LEN][head..], frame].concat()));
            }
            rest = behind;
        }
        frames
    }

    /// The frame that is not sent whole; all of it.
    pub(super) fn unsent(&self) -> Option<Frame> {
        self.is_pending().then(|| Frame(self.outbox.frame().to_vec()))
    }

    /// Whether these frames could have waited together.
    pub(super) fn can_hold(received: &[Frame]) -> bool {
        received.iter().map(|frame| (LENGTH + frame.0.len()).saturating_sub(HEADER_LEN)).sum::<usize>() <= INBOX
    }

    /// Takes the frames of a saved state, of which [`Boxes::can_hold`] is true. A box that has something is that of
    /// the same connection, which knows better.
    pub(super) fn restore(&mut self, link: &LinkEnd, received: &[Frame], unsent: Option<&Frame>) {
        if self.inbox.start == self.inbox.end {
            self.inbox.set(received);
        }
        if let Some(Frame(frame)) = unsent.filter(|_| !self.is_pending()) {
            self.room(HEADER_LEN + frame.len())[HEADER_LEN..].copy_from_slice(frame);
            self.outbox.address(link.kind, FrameHeader::PLAIN);
        }
    }
}

/// What became of a frame that was to be sent.
fn outcome(link: &LinkEnd, result: Result<(), Errno>) -> Result<Output, LinkError> {
    match result {
        Ok(()) => Ok(Output::Sent),
        Err(Errno::AGAIN) => Ok(Output::Later),
        Err(error) if link.is_broken_by(error) => Err(LinkError::Host(error)),
        Err(error) => Ok(Output::Refused(error)),
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
    /// What is too long for a frame, or too short for a header.
    NoFrame,
    End,
}

#[derive(Debug)]
struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes of a header before each frame.
    head: usize,
}

impl Inbox {
    fn front(&self) -> Front {
        let bytes = &self.bytes[self.start..self.end];
        let without_head = |len: usize| len.saturating_sub(self.head);
        match split_frame(bytes) {
            Some((frame, _)) => Front::Frame(without_head(frame.len())),
            None => Front::Incomplete(announced(bytes).map_or(0, |(len, _)| without_head(len))),
        }
    }

    fn take(&mut self, len: usize) {
        self.start += LENGTH + self.head + len;
    }

    /// Reads what there is room for. The start of a possible frame leaves room for the rest of it.
    fn fill(&mut self, link: &LinkEnd) -> Result<Filled, Errno> {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let count = link.read(&mut self.bytes[self.end..])?;
        self.end += count;
        Ok(if count == 0 { Filled::End } else { Filled::More })
    }

    /// Reads one frame, with the header before it.
    fn fill_one(&mut self, link: &LinkEnd) -> Result<Filled, Errno> {
        (self.start, self.end) = (0, 0);
        let count = link.read(&mut self.bytes[LENGTH..])?;
        if !(self.head..=self.head + MAX_FRAME).contains(&count) {
            return Ok(Filled::NoFrame);
        }
        self.bytes[..LENGTH].copy_from_slice(&(count as u32).to_be_bytes());
        self.end = LENGTH + count;
        Ok(Filled::More)
    }

    /// Frames, each behind a header. A link without headers cannot keep those whose header asks for something.
    fn set(&mut self, frames: &[Frame]) {
        (self.start, self.end) = (0, 0);
        let asks = |header: &[u8; HEADER_LEN]| FrameHeader::parse(header).for_guest(Offloads::NONE).is_none();
        for Frame(frame) in frames {
            if self.head == 0 && frame.first_chunk().is_none_or(asks) {
                continue;
            }
            let frame = &frame[HEADER_LEN - self.head..];
            let length = (frame.len() as u32).to_be_bytes();
            // Many short frames of a stream need more room with headers.
            self.bytes.resize(self.bytes.len().max(self.end + LENGTH + frame.len()), 0);
            for part in [&length[..], frame] {
                self.bytes[self.end..][..part.len()].copy_from_slice(part);
                self.end += part.len();
            }
        }
    }
}

#[derive(Debug, Default)]
struct Outbox {
    /// Twelve bytes, of which the last ones are what the link wants before a frame; the frame. It only grows.
    bytes: Vec<u8>,
    /// The first byte to send.
    next: usize,
    /// The end of the frame.
    end: usize,
}

impl Outbox {
    fn room(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.len() < len {
            self.bytes.resize(len, 0);
        }
        (self.next, self.end) = (0, len);
        &mut self.bytes[..len]
    }

    fn frame(&self) -> &[u8] {
        self.bytes.get(HEADER_LEN..self.end).unwrap_or_default()
    }

    fn is_pending(&self) -> bool {
        self.next < self.end
    }

    fn clear(&mut self) {
        self.next = self.end;
    }

    /// Puts before the frame what this kind of link wants there.
    fn address(&mut self, kind: LinkKind, header: FrameHeader) {
        let len = self.frame().len() as u32;
        let Some(prefix) = self.bytes.first_chunk_mut::<HEADER_LEN>() else { return };
        self.next = match kind {
            LinkKind::Tap => 0,
            LinkKind::Stream => HEADER_LEN - LENGTH,
            LinkKind::Datagram => HEADER_LEN,
        };
        match kind {
            LinkKind::Tap => *prefix = header.to_bytes(0),
            LinkKind::Stream => prefix[self.next..].copy_from_slice(&len.to_be_bytes()),
            LinkKind::Datagram => {}
        }
    }

    /// Sends what the link takes in one call.
    fn push(&mut self, link: &LinkEnd) -> Result<(), Errno> {
        let count = link.write(&self.bytes[self.next..self.end])?;
        self.next = match link.kind {
            LinkKind::Stream => self.next + count,
            LinkKind::Tap | LinkKind::Datagram => self.end,
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
