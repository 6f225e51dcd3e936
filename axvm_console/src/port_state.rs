//! What waits in a [`Port`](crate::Port), as a value.
//!
//! ```text
//!   {"output": "login: ", "input": "ro", "lost": 0, "size": {"columns": 80, "rows": 25}}
//! ```
//!
//! Consoles carry text, so bytes are written as text: byte n is the character with number n, which is Latin-1.
//!
//! Spec: Unicode 15.0, "C0 Controls and Basic Latin", "C1 Controls and Latin-1 Supplement", for that numbering.
//! Left out: who is attached at the other end; a new host end attaches anew.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Characters that fit on the screen; zero when it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// Bytes on their way between a device and the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortState {
    /// What the guest sent and the host has not taken.
    #[serde(with = "latin1")]
    pub output: Vec<u8>,
    /// What the host put in and the guest has not read.
    #[serde(with = "latin1")]
    pub input: Vec<u8>,
    /// Breaks on a serial line, each before the byte of the input with this number; ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub breaks: Vec<usize>,
    /// Bytes of output that found no place.
    pub lost: u64,
    /// The size of the screen that the guest was told.
    pub size: Size,
}

/// A state holds more than a port.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("The saved state of a console's port cannot be restored: {field} is {found} bytes, and may be {limit}")]
pub struct PortStateError {
    /// Which of the queues.
    pub field: &'static str,
    /// Its length in bytes.
    pub found: usize,
    /// The most it can hold.
    pub limit: usize,
}

impl PortState {
    /// Refuses queues that are longer than a port's.
    pub(crate) fn check(&self, most_output: usize, most_input: usize) -> Result<(), PortStateError> {
        let (input, breaks) = (self.input.len(), &self.breaks);
        let disordered = breaks.windows(2).any(|pair| pair[0] > pair[1]);
        let last_break = if disordered { usize::MAX } else { breaks.last().copied().unwrap_or(0) };
        let found = [
            ("output", self.output.len(), most_output),
            ("input", input + breaks.len(), most_input),
            ("breaks", last_break, input),
        ];
        match found.into_iter().find(|(_, found, limit)| found > limit) {
            Some((field, found, limit)) => Err(PortStateError { field, found, limit }),
            None => Ok(()),
        }
    }
}

/// Bytes as the characters with their numbers.
mod latin1 {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&bytes.iter().map(|&byte| char::from(byte)).collect::<String>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let byte = |letter| u8::try_from(letter).map_err(|_| D::Error::custom(format!("{letter:?} is no byte")));
        text.chars().map(byte).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back_and_text_is_readable() {
        let state =
            PortState { output: (0..=255).collect(), input: b"ls -l\r".to_vec(), lost: 3, ..Default::default() };
        let text = serde_json::to_string(&state).unwrap();
        assert!(text.contains(r#""input":"ls -l\r","lost":3"#), "{text}");
        assert_eq!(serde_json::from_str::<PortState>(&text).unwrap(), state);
    }

    #[test]
    fn a_letter_that_is_no_byte_is_refused() {
        let text = r#"{"output":"€","input":"","lost":0,"size":{"columns":0,"rows":0}}"#;
        let error = serde_json::from_str::<PortState>(text).unwrap_err().to_string();
        assert!(error.contains("'€' is no byte"), "{error}");
    }
}
