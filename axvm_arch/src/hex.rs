//! Bytes whose meaning an architecture defines, written so that a person can read them.
//!
//! ```text
//!   7f 03 00 (x 22) 80 1f 00 00 ff ff 00 ...      in memory
//!   "7f03 0*22 801f 0*2 ffff 0*4064"               as text: pairs of hex digits, and runs of zero bytes
//! ```
//!
//! An XSAVE area or a page of APIC registers is thousands of bytes, most of them zero: as text it is a line or two.
//!
//! No specification: the notation is AxVM's own. Left out: runs of anything but zero.

use std::fmt::{self, Write};
use std::num::ParseIntError;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The shortest run of zero bytes that is written as a run.
const SHORTEST_RUN: usize = 4;

/// Bytes that show themselves as hexadecimal text.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HexBytes(pub Vec<u8>);

impl HexBytes {
    /// The most bytes that text may stand for: a run is short to write and long to hold.
    pub const MAX_LEN: usize = 16 << 20;
}

/// Text is not bytes in this notation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotHex {
    word: String,
}

impl fmt::Display for NotHex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let max = HexBytes::MAX_LEN;
        write!(
            f,
            "{:?} is neither pairs of hex digits nor a run of zeroes such as 0*22, or it makes more than {max} bytes",
            self.word
        )
    }
}

impl std::error::Error for NotHex {}

impl fmt::Display for HexBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &self.0[..];
        let mut gap = "";
        while !rest.is_empty() {
            let zeroes = leading_zeroes(rest);
            f.write_str(gap)?;
            gap = " ";
            let len = if zeroes >= SHORTEST_RUN {
                write!(f, "0*{zeroes}")?;
                zeroes
            } else {
                let len = (0..rest.len()).find(|&at| leading_zeroes(&rest[at..]) >= SHORTEST_RUN).unwrap_or(rest.len());
                rest[..len].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                len
            };
            rest = &rest[len..];
        }
        Ok(())
    }
}

/// How many zero bytes `bytes` starts with.
fn leading_zeroes(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|&&byte| byte == 0).count()
}

impl FromStr for HexBytes {
    type Err = NotHex;

    fn from_str(text: &str) -> Result<HexBytes, NotHex> {
        let mut bytes = Vec::new();
        for word in text.split_ascii_whitespace() {
            let fault = || NotHex { word: word.chars().take(32).collect() };
            let more = match word.strip_prefix("0*") {
                Some(count) => Run::Zeroes(count.parse().map_err(|_: ParseIntError| fault())?),
                None => Run::Bytes(pairs(word).ok_or_else(fault)?),
            };
            let len = bytes.len().checked_add(more.len()).filter(|&len| len <= HexBytes::MAX_LEN).ok_or_else(fault)?;
            match more {
                Run::Zeroes(_) => bytes.resize(len, 0),
                Run::Bytes(some) => bytes.extend(some),
            }
        }
        Ok(HexBytes(bytes))
    }
}

/// What one word stands for.
enum Run {
    Zeroes(usize),
    Bytes(Vec<u8>),
}

impl Run {
    fn len(&self) -> usize {
        match self {
            Run::Zeroes(count) => *count,
            Run::Bytes(bytes) => bytes.len(),
        }
    }
}

/// The bytes of pairs of hex digits.
fn pairs(word: &str) -> Option<Vec<u8>> {
    let digit = |&byte: &u8| char::from(byte).to_digit(16).map(|value| value as u8);
    let (pairs, rest) = word.as_bytes().as_chunks::<2>();
    let byte = |[high, low]: &[u8; 2]| Some(digit(high)? << 4 | digit(low)?);
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

impl fmt::Debug for HexBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())?;
        if !self.0.is_empty() {
            f.write_str(": ")?;
            fmt::Display::fmt(self, f)?;
        }
        Ok(())
    }
}

impl Serialize for HexBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::new();
        write!(text, "{self}").map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for HexBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HexBytes, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn zeroes_are_counted_and_the_rest_is_pairs() {
        let bytes = HexBytes([&[0x7f, 0x03][..], &[0; 22], &[0x80, 0, 0, 0, 0x1f], &[0; 4]].concat());
        assert_eq!(bytes.to_string(), "7f03 0*22 800000001f 0*4");
        assert_eq!(format!("{bytes:?}"), "33 bytes: 7f03 0*22 800000001f 0*4");
        assert_eq!(format!("{:?}", HexBytes::default()), "0 bytes");
        assert_eq!(serde_json::to_string(&bytes).unwrap(), "\"7f03 0*22 800000001f 0*4\"");
    }

    #[test]
    fn other_text_is_refused_by_its_word() {
        for (text, word) in
            [("7", "7"), ("7f 0x", "0x"), ("0*-1", "0*-1"), ("0*", "0*"), ("0*99999999 00", "0*99999999"), ("é", "é")]
        {
            let error = text.parse::<HexBytes>().unwrap_err();
            assert_eq!(error, NotHex { word: word.into() }, "{text}");
        }
        assert!(serde_json::from_str::<HexBytes>("\"xy\"").unwrap_err().to_string().contains("pairs of hex digits"));
    }

    #[test]
    fn text_cannot_make_more_bytes_than_the_limit() {
        let max = HexBytes::MAX_LEN;
        assert_eq!(format!("0*{max}").parse::<HexBytes>().unwrap().0.len(), max);
        assert!(format!("0*{max} 01").parse::<HexBytes>().is_err());
        assert!(format!("01 0*{}", usize::MAX).parse::<HexBytes>().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..200)) {
            let bytes = HexBytes(bytes);
            prop_assert_eq!(bytes.to_string().parse::<HexBytes>().unwrap(), bytes);
        }
    }
}
