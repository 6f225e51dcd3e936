//! Where the guest's console goes, as the user says it: `stdio`, `file=PATH`, `pty`, `unix=PATH` or `none`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

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

/// A back end that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Unknown console {0:?}: say stdio, file=PATH, pty, unix=PATH or none")]
pub struct UnknownBackEnd(String);

impl FromStr for BackEnd {
    type Err = UnknownBackEnd;

    fn from_str(text: &str) -> Result<BackEnd, UnknownBackEnd> {
        match text.split_once('=') {
            Some((_, "")) => Err(UnknownBackEnd(text.to_string())),
            Some(("file", path)) => Ok(BackEnd::File(path.into())),
            Some(("unix", path)) => Ok(BackEnd::Unix(path.into())),
            None if text == "stdio" => Ok(BackEnd::Stdio),
            None if text == "pty" => Ok(BackEnd::Pty),
            None if text == "none" => Ok(BackEnd::None),
            _ => Err(UnknownBackEnd(text.to_string())),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_again() {
        for text in ["stdio", "file=/tmp/a=b", "pty", "unix=console.sock", "none"] {
            assert_eq!(text.parse::<BackEnd>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_unknown_form_names_the_known_ones() {
        for text in ["", "tty", "file", "file=", "unix", "unix=", "pty=/dev/pts/1", "Stdio"] {
            let error = text.parse::<BackEnd>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("file=PATH"), "{error}");
        }
    }
}
