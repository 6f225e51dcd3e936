//! `--trace`: the file for the timeline, and how large it may become.
//!
//! ```text
//!   --trace boot.json,limit=1G    --FromStr-->
//!   trace = "boot.json,limit=1G"  --serde---->  TraceTo
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use axvm_console::FileLimit;

use super::setting::Value;
use super::text::is_text;

/// Between the path and its limit.
const LIMIT: &str = ",limit=";
/// What the programs that show such files can open.
const USUAL: u64 = 256 << 20;

/// Where the timeline goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceTo {
    /// The file, which is new or is overwritten.
    pub path: PathBuf,
    /// How large it may become; `None`: the usual.
    pub limit: Option<FileLimit>,
}

impl TraceTo {
    /// The limit in bytes.
    pub fn bytes(&self) -> u64 {
        self.limit.map_or(USUAL, |FileLimit(limit)| limit.unwrap_or(u64::MAX))
    }
}

impl Value for TraceTo {
    fn move_to(&mut self, directory: &Path) {
        self.path.move_to(directory);
    }
}

impl FromStr for TraceTo {
    type Err = String;

    fn from_str(text: &str) -> Result<TraceTo, String> {
        let (path, limit) = match text.rsplit_once(LIMIT) {
            Some((path, limit)) => (path, Some(limit.parse::<FileLimit>().map_err(|error| error.to_string())?)),
            None => (text, None),
        };
        match path {
            "" => Err("no file; say FILE or FILE,limit=256M".into()),
            path => Ok(TraceTo { path: path.into(), limit }),
        }
    }
}

impl fmt::Display for TraceTo {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}", self.path.display())?;
        self.limit.map_or(Ok(()), |limit| write!(to, "{LIMIT}{limit}"))
    }
}

is_text!(TraceTo);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_have_a_limit() {
        let parse = |text: &str| text.parse::<TraceTo>().unwrap();
        assert_eq!((parse("t.json").bytes(), parse("t.json,limit=1M").bytes()), (USUAL, 1 << 20));
        assert_eq!(parse("t.json,limit=none").bytes(), u64::MAX);
        for text in ["t.json", "a,b.json,limit=64M", "a,limit=1M,limit=none"] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_says_why() {
        for (text, word) in [("", "no file"), (",limit=1M", "no file"), ("t,limit=5", "say limit=64M")] {
            let error = text.parse::<TraceTo>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
