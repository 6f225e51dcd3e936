//! Where the guest's console goes, as the user says it: `stdio`, `file=PATH`, `pty`, `unix=PATH` or `none`.
//!
//! ```text
//!   --console file=log            --FromStr-->
//!   console = "file=log"          --serde---->  BackEnd::File("log")
//! ```

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The host's end of a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackEnd {
    /// AxVM's own standard input and output.
    Stdio,
    /// Output to the end of this file; no input.
    File(PathBuf),
    /// A new pseudo-terminal, for a terminal program to open.
    Pty,
    /// A Unix socket at this path, for any number of clients at once.
    Unix(PathBuf),
    /// Nowhere; clients may still be attached while the guest runs.
    None,
}

/// A text that names no back end. The option or key that it was given for tells the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown; say stdio, file=PATH, pty, unix=PATH or none")]
pub struct UnknownBackEnd;

impl FromStr for BackEnd {
    type Err = UnknownBackEnd;

    fn from_str(text: &str) -> Result<BackEnd, UnknownBackEnd> {
        match text.split_once('=') {
            Some((_, "")) => Err(UnknownBackEnd),
            Some(("file", path)) => Ok(BackEnd::File(path.into())),
            Some(("unix", path)) => Ok(BackEnd::Unix(path.into())),
            None if text == "stdio" => Ok(BackEnd::Stdio),
            None if text == "pty" => Ok(BackEnd::Pty),
            None if text == "none" => Ok(BackEnd::None),
            _ => Err(UnknownBackEnd),
        }
    }
}

impl fmt::Display for BackEnd {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackEnd::Stdio => to.write_str("stdio"),
            BackEnd::File(path) => write!(to, "file={}", path.display()),
            BackEnd::Pty => to.write_str("pty"),
            BackEnd::Unix(path) => write!(to, "unix={}", path.display()),
            BackEnd::None => to.write_str("none"),
        }
    }
}

impl Serialize for BackEnd {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackEnd {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<BackEnd, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|why: UnknownBackEnd| D::Error::custom(format_args!("{text:?}: {why}")))
    }
}

impl JsonSchema for BackEnd {
    fn schema_name() -> Cow<'static, str> {
        "BackEnd".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_again() {
        for text in ["stdio", "file=/tmp/a=b", "pty", "unix=console.sock", "none"] {
            let back_end: BackEnd = text.parse().unwrap();
            assert_eq!(back_end.to_string(), text);
            assert_eq!(serde_json::to_value(&back_end).unwrap(), text);
            assert_eq!(serde_json::from_value::<BackEnd>(text.into()).unwrap(), back_end);
        }
    }

    #[test]
    fn an_unknown_form_names_the_known_ones() {
        for text in ["", "tty", "file", "file=", "unix", "unix=", "pty=/dev/pts/1", "Stdio"] {
            let error = text.parse::<BackEnd>().unwrap_err().to_string();
            assert!(error.contains("file=PATH"), "{error}");
            let error = serde_json::from_value::<BackEnd>(text.into()).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("file=PATH"), "{error}");
        }
    }
}
