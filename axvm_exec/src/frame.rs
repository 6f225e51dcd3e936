//! Frames: how messages lie in a stream of bytes, and how they are found there again.
//!
//! ```text
//!   "axexec" | version u16              once, first
//!   kind u8 | length u32 | payload      again and again; numbers are little-endian
//! ```
//!
//! The agent is built from this, too, and often: so errors are written out, without a macro crate.

use std::fmt;

/// The newest version of the protocol that is spoken here.
pub const VERSION: u16 = 1;
/// What a stream begins with.
const MAGIC: &[u8; 6] = b"axexec";
const HELLO_LEN: usize = MAGIC.len() + 2;
const HEAD_LEN: usize = 5;

/// What the other side must not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// No hello of this protocol.
    Magic,
    /// Version 0.
    Version,
    /// A kind that this side never gets.
    Kind(u8),
    /// More bytes than a frame of its kind may have.
    Length {
        /// Of the frame.
        kind: u8,
        /// Of its payload, as announced.
        len: u32,
    },
    /// A payload that says nothing.
    Payload(u8),
    /// A frame that may not come now.
    Order(u8),
    /// More input than was granted.
    Grant,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::Magic => write!(to, "it does not speak AxVM's protocol for commands"),
            ProtocolError::Version => write!(to, "it speaks no version of AxVM's protocol for commands"),
            ProtocolError::Kind(kind) => write!(to, "it sent a frame of unknown kind {kind}"),
            ProtocolError::Length { kind, len } => {
                write!(to, "it sent a frame of kind {kind} with {len} bytes, which are too many")
            }
            ProtocolError::Payload(kind) => write!(to, "it sent a frame of kind {kind} that cannot be understood"),
            ProtocolError::Order(kind) => write!(to, "it sent a frame of kind {kind} at the wrong time"),
            ProtocolError::Grant => write!(to, "it sent more input than was granted"),
        }
    }
}

impl std::error::Error for ProtocolError {}

/// A frame, as it lies in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub kind: u8,
    pub payload: &'a [u8],
}

/// Adds the hello of a side that speaks [`VERSION`].
pub(crate) fn hello(to: &mut Vec<u8>) {
    to.extend_from_slice(MAGIC);
    to.extend_from_slice(&VERSION.to_le_bytes());
}

/// Adds a frame; `fill` adds its payload.
pub(crate) fn frame(to: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    to.push(kind);
    to.extend_from_slice(&[0; 4]);
    fill(to);
    let len = u32::try_from(to.len() - start - HEAD_LEN).unwrap_or(u32::MAX);
    if let Some(place) = to.get_mut(start + 1..start + HEAD_LEN) {
        place.copy_from_slice(&len.to_le_bytes());
    }
}

/// Finds frames in what arrives, in whatever pieces.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    bytes: Vec<u8>,
    /// What is before was taken.
    start: usize,
    greeted: bool,
}

impl Decoder {
    /// Takes what arrived.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes that are kept: less than a frame, if all frames were taken.
    pub fn kept(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// The next frame, once all of it is there. `limit` tells the most bytes of a kind, and which kinds there are.
    pub fn next(&mut self, limit: fn(u8) -> Option<u32>) -> Result<Option<Frame<'_>>, ProtocolError> {
        if !self.greeted && !self.greet()? {
            return Ok(None);
        }
        let Some(&[kind, a, b, c, d]) = self.rest().first_chunk::<HEAD_LEN>() else { return Ok(None) };
        let len = u32::from_le_bytes([a, b, c, d]);
        if len > limit(kind).ok_or(ProtocolError::Kind(kind))? {
            return Err(ProtocolError::Length { kind, len });
        }
        let from = self.start + HEAD_LEN;
        let end = from + len as usize;
        if self.bytes.len() < end {
            return Ok(None);
        }
        self.start = end;
        Ok(self.bytes.get(from..end).map(|payload| Frame { kind, payload }))
    }

    /// Takes the hello, if all of it is there.
    fn greet(&mut self) -> Result<bool, ProtocolError> {
        let rest = self.rest();
        let known = rest.len().min(MAGIC.len());
        if rest.get(..known) != MAGIC.get(..known) {
            return Err(ProtocolError::Magic);
        }
        let Some(&[.., low, high]) = rest.first_chunk::<HELLO_LEN>() else { return Ok(false) };
        // Later versions must be able to speak this one; there is no earlier one.
        if u16::from_le_bytes([low, high]) == 0 {
            return Err(ProtocolError::Version);
        }
        self.start += HELLO_LEN;
        self.greeted = true;
        Ok(true)
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(kind: u8) -> Option<u32> {
        (kind == 1).then_some(4)
    }

    #[test]
    fn frames_are_found_in_any_pieces() {
        let mut stream = Vec::new();
        hello(&mut stream);
        frame(&mut stream, 1, |to| to.extend_from_slice(b"abcd"));
        frame(&mut stream, 1, |_| {});
        for piece in 1..=stream.len() {
            let (mut decoder, mut found) = (Decoder::default(), Vec::new());
            for bytes in stream.chunks(piece) {
                decoder.receive(bytes);
                while let Some(frame) = decoder.next(any).unwrap() {
                    found.push(frame.payload.to_vec());
                }
            }
            assert_eq!(found, [b"abcd".to_vec(), Vec::new()], "pieces of {piece}");
            assert_eq!(decoder.kept(), 0);
        }
    }

    #[test]
    fn what_is_no_hello_is_refused_by_its_first_wrong_byte() {
        let first = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.receive(bytes);
            decoder.next(any).map(|frame| frame.is_some())
        };
        assert_eq!(first(b"SSH-2.0"), Err(ProtocolError::Magic));
        assert_eq!(first(b"axe"), Ok(false));
        assert_eq!(first(b"axexec\0\0"), Err(ProtocolError::Version));
        assert_eq!(first(b"axexec\xff\xff\x01\0\0\0\0"), Ok(true), "a later version speaks this one, too");
    }

    #[test]
    fn a_length_is_refused_before_its_bytes_come() {
        let head = |kind: u8, len: u32| {
            let mut decoder = Decoder::default();
            decoder.receive(b"axexec\x01\0");
            decoder.receive(&[&[kind][..], &len.to_le_bytes()].concat());
            decoder.next(any).map(|frame| frame.is_some())
        };
        assert_eq!(head(1, 5), Err(ProtocolError::Length { kind: 1, len: 5 }));
        assert_eq!(head(1, u32::MAX), Err(ProtocolError::Length { kind: 1, len: u32::MAX }));
        assert_eq!(head(2, 0), Err(ProtocolError::Kind(2)));
        assert_eq!(head(1, 4), Ok(false));
    }
}
