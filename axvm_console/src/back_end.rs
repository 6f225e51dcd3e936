//! Where the guest's console goes, as the user says it: `stdio`, `file=PATH[,limit=SIZE]`, `pty`, `unix=PATH` or `none`.
//!
//! ```text
//!   --console file=log,limit=1G            --FromStr-->
//!   console = "file=log,limit=1G"          --serde---->  BackEnd::File("log", FileLimit(Some(1 << 30)))
//! ```

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The host's end of a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackEnd {
    /// AxVM's own standard input and output.
    Stdio,
    /// Output to the end of this file, which starts over when it is as large as the limit; no input.
    File(PathBuf, FileLimit),
    /// A new pseudo-terminal, for a terminal program to open.
    Pty,
    /// A Unix socket at this path, for any number of clients at once.
    Unix(PathBuf),
    /// Nowhere; clients may still be attached while the guest runs.
    None,
}

impl BackEnd {
    /// The file or socket that it is.
    pub fn path(&self) -> Option<&Path> {
        match self {
            BackEnd::File(path, _) | BackEnd::Unix(path) => Some(path),
            BackEnd::Stdio | BackEnd::Pty | BackEnd::None => None,
        }
    }
}

/// How large a console file may become, in bytes, before it starts over; none for as large as the disk.
///
/// One older generation is kept beside it, so it and the file have at least that much of the latest output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLimit(pub Option<u64>);

impl FileLimit {
    /// The smallest: a generation shall hold a boot.
    pub const LEAST: u64 = 64 << 10;

    const UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
}

impl Default for FileLimit {
    /// 64 MiB: weeks of a quiet guest, and no harm to a disk from one that prints all day.
    fn default() -> FileLimit {
        FileLimit(Some(64 << 20))
    }
}

impl FromStr for FileLimit {
    type Err = BackEndError;

    fn from_str(text: &str) -> Result<FileLimit, BackEndError> {
        if text == "none" {
            return Ok(FileLimit(None));
        }
        let upper = text.to_ascii_uppercase();
        let (number, shift) = FileLimit::UNITS
            .iter()
            .find_map(|(unit, shift)| Some((upper.strip_suffix(unit)?, *shift)))
            .ok_or(BackEndError::Limit)?;
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        match bytes {
            Some(bytes) if bytes >= FileLimit::LEAST && i64::try_from(bytes).is_ok() => Ok(FileLimit(Some(bytes))),
            _ => Err(BackEndError::Limit),
        }
    }
}

impl fmt::Display for FileLimit {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(bytes) = self.0 else { return to.write_str("none") };
        let whole = FileLimit::UNITS.iter().find(|(_, shift)| bytes.is_multiple_of(1 << shift));
        let (unit, shift) = whole.copied().unwrap_or(("K", 10));
        write!(to, "{}{unit}", bytes >> shift)
    }
}

/// What is wrong with a text that should name a back end. The option or key that it was given for tells the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BackEndError {
    /// It names none.
    #[error("unknown; say stdio, file=PATH, pty, unix=PATH or none")]
    Unknown,
    /// A file's limit is none.
    #[error("no limit for a file; say limit=64M (a number with K, M, G or T, 64K at least) or limit=none")]
    Limit,
}

/// Between the path of a file and its limit.
const LIMIT: &str = ",limit=";

impl FromStr for BackEnd {
    type Err = BackEndError;

    fn from_str(text: &str) -> Result<BackEnd, BackEndError> {
        match text.split_once('=') {
            Some((_, "")) => Err(BackEndError::Unknown),
            Some(("file", rest)) => {
                let (path, limit) = match rest.rsplit_once(LIMIT) {
                    Some((path, limit)) => (path, limit.parse()?),
                    None => (rest, FileLimit::default()),
                };
                if path.is_empty() { Err(BackEndError::Unknown) } else { Ok(BackEnd::File(path.into(), limit)) }
            }
            Some(("unix", path)) => Ok(BackEnd::Unix(path.into())),
            None if text == "stdio" => Ok(BackEnd::Stdio),
            None if text == "pty" => Ok(BackEnd::Pty),
            None if text == "none" => Ok(BackEnd::None),
            _ => Err(BackEndError::Unknown),
        }
    }
}

impl fmt::Display for BackEnd {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackEnd::Stdio => to.write_str("stdio"),
            BackEnd::File(path, limit) => {
                let path = path.display().to_string();
                write!(to, "file={path}")?;
                // A path that itself looks like one with a limit is told apart by a second one.
                if *limit == FileLimit::default() && !path.contains(LIMIT) {
                    return Ok(());
                }
                write!(to, "{LIMIT}{limit}")
            }
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
        text.parse().map_err(|why: BackEndError| D::Error::custom(format_args!("{text:?}: {why}")))
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
        for text in [
            "stdio",
            "file=/tmp/a=b",
            "file=/tmp/a,b",
            "file=log,limit=1M",
            "file=log,limit=96K",
            "file=log,limit=none",
            "file=log,limit=1M,limit=64M",
            "pty",
            "unix=console.sock",
            "none",
        ] {
            let back_end: BackEnd = text.parse().unwrap();
            assert_eq!(back_end.to_string(), text);
            assert_eq!(serde_json::to_value(&back_end).unwrap(), text);
            assert_eq!(serde_json::from_value::<BackEnd>(text.into()).unwrap(), back_end);
        }
    }

    #[test]
    fn a_file_has_a_limit_unless_it_shall_have_none() {
        let limit = |text: &str| match text.parse() {
            Ok(BackEnd::File(_, limit)) => limit.0,
            other => panic!("{other:?}"),
        };
        assert_eq!(limit("file=log"), Some(64 << 20));
        assert_eq!(limit("file=log,limit=2g"), Some(2 << 30));
        assert_eq!(limit("file=log,limit=none"), None);
        for text in ["", "1", "0M", "63K", "64", "all", "1Q", "-1M", "99999999T", "8388608T"] {
            let error = format!("file=log,limit={text}").parse::<BackEnd>().unwrap_err();
            assert!(error.to_string().contains("limit=none"), "{text}: {error}");
        }
    }

    #[test]
    fn an_unknown_form_names_the_known_ones() {
        for text in ["", "tty", "file", "file=", "file=,limit=1M", "unix", "unix=", "pty=/dev/pts/1", "Stdio"] {
            let error = text.parse::<BackEnd>().unwrap_err().to_string();
            assert!(error.contains("file=PATH"), "{error}");
            let error = serde_json::from_value::<BackEnd>(text.into()).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("file=PATH"), "{error}");
        }
    }
}
