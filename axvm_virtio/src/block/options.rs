//! What a user says about a disk: one type for the command line, settings files and programs.
//!
//! ```text
//!   disk.img,ro,serial=X1,cache=writethrough               command line: FromStr, Display
//!   { path = "disk.img", ro = true, serial = "X1", .. }    settings: serde, JSON Schema
//! ```
//!
//! Spec: virtio 1.2, 5.2.6 "Device Operation" (the identity string), 5.2.4 "Device configuration layout" (writeback).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

/// Length of the identity string of a disk (5.2.6), in bytes.
pub(super) const SERIAL_LEN: usize = 20;
/// Logical block size in bytes, if nothing else is said.
const USUAL_BLOCK_SIZE: u32 = 512;

/// When the guest is told that a disk has written. The driver may choose otherwise, if it can flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// When the host's kernel has it; on the medium after the guest's flush
    #[default]
    WriteBack,
    /// When it is on the medium
    WriteThrough,
}

impl FromStr for Cache {
    type Err = DiskOptionError;

    fn from_str(text: &str) -> Result<Cache, DiskOptionError> {
        match text {
            "writeback" => Ok(Cache::WriteBack),
            "writethrough" => Ok(Cache::WriteThrough),
            _ => Err(DiskOptionError::Cache(text.to_owned())),
        }
    }
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cache::WriteBack => "writeback",
            Cache::WriteThrough => "writethrough",
        })
    }
}

/// What to open, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table: [[disk]] with path = \"disk.img\"")]
pub struct DiskConfig {
    /// The image, raw, or a block device.
    #[serde(deserialize_with = "named")]
    pub path: PathBuf,
    /// The guest may only read it.
    #[serde(rename = "ro", default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Serial number that the guest reads: up to 20 bytes.
    #[serde(default, deserialize_with = "fitting", skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// When the guest is told that the disk has written.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub cache: Cache,
    /// Logical block size in bytes: 512 or 4096. For programs; no option of users.
    #[serde(skip, default = "usual_block_size")]
    pub block_size: u32,
}

impl DiskConfig {
    /// A writable disk with the usual settings.
    pub fn new(path: impl Into<PathBuf>) -> DiskConfig {
        let (path, cache) = (path.into(), Cache::default());
        DiskConfig { path, read_only: false, serial: None, cache, block_size: USUAL_BLOCK_SIZE }
    }
}

/// A part of a disk's description that is not one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DiskOptionError {
    /// No path, or an empty one.
    #[error("no file named; write --disk FILE or --disk path=FILE")]
    NoFile,
    /// Not a cache mode.
    #[error("cache={0} is unknown; use writeback or writethrough")]
    Cache(String),
    /// The serial number is too long.
    #[error("serial= has {0} bytes; virtio-blk has room for 20")]
    Serial(usize),
    /// Not an option.
    #[error("option '{0}' is unknown; there are path=FILE, ro, serial=TEXT, cache=writeback|writethrough")]
    Unknown(String),
}

impl FromStr for DiskConfig {
    type Err = DiskOptionError;

    fn from_str(text: &str) -> Result<DiskConfig, DiskOptionError> {
        let mut disk = DiskConfig::new("");
        for (n, part) in text.split(',').enumerate() {
            match part.split_once('=') {
                Some(("path", value)) => disk.path = value.into(),
                Some(("serial", value)) => disk.serial = Some(serial(value)?),
                Some(("cache", value)) => disk.cache = value.parse()?,
                None if part == "ro" => disk.read_only = true,
                _ if n == 0 => disk.path = part.into(),
                _ => return Err(DiskOptionError::Unknown(part.to_owned())),
            }
        }
        if disk.path.as_os_str().is_empty() { Err(DiskOptionError::NoFile) } else { Ok(disk) }
    }
}

/// As on the command line, with what differs from the usual.
impl fmt::Display for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "path={}", self.path.display())?;
        if self.read_only {
            f.write_str(",ro")?;
        }
        if let Some(serial) = &self.serial {
            write!(f, ",serial={serial}")?;
        }
        if is_usual(&self.cache) { Ok(()) } else { write!(f, ",cache={}", self.cache) }
    }
}

fn serial(text: &str) -> Result<String, DiskOptionError> {
    if text.len() > SERIAL_LEN { Err(DiskOptionError::Serial(text.len())) } else { Ok(text.to_owned()) }
}

fn fitting<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| serial(&text)).transpose().map_err(D::Error::custom)
}

fn named<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(from)?;
    if path.as_os_str().is_empty() {
        return Err(D::Error::custom("no file named; write path = \"disk.img\""));
    }
    Ok(path)
}

fn is_usual(cache: &Cache) -> bool {
    *cache == Cache::default()
}

fn usual_block_size() -> u32 {
    USUAL_BLOCK_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_and_a_settings_file_say_the_same() {
        let disk = DiskConfig {
            read_only: true,
            serial: Some("X1".into()),
            cache: Cache::WriteThrough,
            ..DiskConfig::new("a.img")
        };
        for text in ["a.img,ro,serial=X1,cache=writethrough", "ro,cache=writethrough,serial=X1,path=a.img"] {
            assert_eq!(text.parse(), Ok(disk.clone()));
        }
        assert_eq!(disk.to_string().parse(), Ok(disk.clone()));
        let json = r#"{"path":"a.img","ro":true,"serial":"X1","cache":"writethrough"}"#;
        assert_eq!(serde_json::from_str::<DiskConfig>(json).unwrap(), disk);
        assert_eq!(serde_json::to_string(&disk).unwrap(), json);
    }

    #[test]
    fn a_path_is_enough() {
        let disk = DiskConfig::new("a.img");
        assert_eq!("a.img".parse(), Ok(disk.clone()));
        assert_eq!(serde_json::from_str::<DiskConfig>(r#"{"path":"a.img"}"#).unwrap(), disk);
        assert_eq!(disk.to_string(), "path=a.img");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("", "no file"),
            ("ro", "no file"),
            ("a,rw", "'rw'"),
            ("a,size=3", "'size=3'"),
            ("a,cache=none", "cache=none"),
            ("a,serial=123456789012345678901", "21 bytes"),
        ] {
            let error = text.parse::<DiskConfig>().unwrap_err().to_string();
            assert!(error.contains(part), "{error:?} does not name {part:?}");
        }
        for text in [r#"{"path":""}"#, r#"{"ro":true}"#, r#"{"path":"a","serial":"123456789012345678901"}"#] {
            assert!(serde_json::from_str::<DiskConfig>(text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<DiskConfig>(r#"{"path":"a","cache":"none"}"#).is_err());
    }
}
