//! A frame of a network, as a value.
//!
//! ```text
//!   "ffffffffffff02000a0b0c0d0806.."     two hexadecimal digits for each byte, as tools that dump frames show it
//! ```
//!
//! No specification.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An Ethernet frame without its checksum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Frame(pub Vec<u8>);

/// A text is no frame.
#[derive(Debug, Error)]
#[error("A frame has two hexadecimal digits for each byte; the saved state is damaged")]
pub struct FrameError;

impl From<Frame> for String {
    fn from(Frame(bytes): Frame) -> String {
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            // A string takes all that is written.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

impl TryFrom<String> for Frame {
    type Error = FrameError;

    fn try_from(text: String) -> Result<Frame, FrameError> {
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(FrameError) };
        let digit = |letter| char::from(letter).to_digit(16);
        let byte = |[high, low]: &[u8; 2]| Some((digit(*high)? << 4 | digit(*low)?) as u8);
        pairs.iter().map(byte).collect::<Option<_>>().map(Frame).ok_or(FrameError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let frame = Frame((0..=255).collect());
        let text = serde_json::to_string(&frame).unwrap();
        assert!(text.starts_with(r#""000102"#) && text.ends_with(r#"feff""#), "{text}");
        assert_eq!(serde_json::from_str::<Frame>(&text).unwrap(), frame);
    }

    #[test]
    fn what_is_no_pair_of_digits_is_refused() {
        for text in ["0", "0g", "+1", "000", "é", "0x"] {
            assert!(Frame::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
