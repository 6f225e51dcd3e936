//! What a disk is to be: on the command line, in a settings file, and where the image is opened.
//!
//! ```text
//!   --disk path=root.img,ro,serial=DISK7    --FromStr-->              --DiskImage::open-->
//!   [[disk]] path = "root.img" ro = true    --serde---->  DiskConfig
//! ```

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;
use std::{fmt, ops};

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::limiter::{RateError, RateLimit};

/// The unit of the protocol, whatever the block size is, in bytes.
pub(super) const SECTOR: u64 = 512;

/// Length of the identity string of a disk (virtio 1.2, 5.2.6), in bytes.
pub(super) const SERIAL_LEN: usize = 20;

/// Logical block sizes that a disk may have, in bytes.
pub(super) const BLOCK_SIZES: [u32; 2] = [512, 4096];
/// Most queues of a disk.
const MAX_QUEUES: u16 = 16;

/// When the guest is told that a disk has written. Its text is what command line, settings file and schema say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// When the host's kernel has it; on the medium after the guest's flush
    // The driver may choose otherwise, in both modes.
    #[default]
    WriteBack,
    /// When it is on the medium
    WriteThrough,
}

impl Cache {
    /// Every mode.
    pub const ALL: [Cache; 2] = [Cache::WriteBack, Cache::WriteThrough];

    fn is_default(&self) -> bool {
        *self == Cache::default()
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

impl FromStr for Cache {
    type Err = DiskConfigError;

    fn from_str(text: &str) -> Result<Cache, DiskConfigError> {
        let known = Cache::ALL.into_iter().find(|cache| cache.to_string() == text);
        known.ok_or_else(|| DiskConfigError::Cache(text.to_owned()))
    }
}

/// What happens when the host has no room for what the guest writes. Its text is what command line, settings file and
/// schema say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    /// The request is kept and the machine pauses; resumed, it tries again
    #[default]
    Pause,
    /// The guest gets an I/O error
    Report,
}

impl OnFull {
    /// Every choice.
    pub const ALL: [OnFull; 2] = [OnFull::Pause, OnFull::Report];

    fn is_default(&self) -> bool {
        *self == OnFull::default()
    }
}

impl fmt::Display for OnFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OnFull::Pause => "pause",
            OnFull::Report => "report",
        })
    }
}

impl FromStr for OnFull {
    type Err = DiskConfigError;

    fn from_str(text: &str) -> Result<OnFull, DiskConfigError> {
        let known = OnFull::ALL.into_iter().find(|choice| choice.to_string() == text);
        known.ok_or_else(|| DiskConfigError::OnFull(text.to_owned()))
    }
}

/// How transfers reach the image. Its text is what command line, settings file and schema say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// What is faster: io_uring for a direct disk and for a block device, else sync
    #[default]
    Auto,
    /// One after the other, each by a system call that waits
    Sync,
    /// As many at a time as the guest asks for, by an io_uring
    IoUring,
}

impl Engine {
    /// Every engine.
    pub const ALL: [Engine; 3] = [Engine::Auto, Engine::Sync, Engine::IoUring];

    fn is_default(&self) -> bool {
        *self == Engine::default()
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::Auto => "auto",
            Engine::Sync => "sync",
            Engine::IoUring => "io_uring",
        })
    }
}

impl FromStr for Engine {
    type Err = DiskConfigError;

    fn from_str(text: &str) -> Result<Engine, DiskConfigError> {
        let known = Engine::ALL.into_iter().find(|engine| engine.to_string() == text);
        known.ok_or_else(|| DiskConfigError::Engine(text.to_owned()))
    }
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Byte n of the image is byte n of the disk
    Raw,
}

/// One disk: its image, and how the guest may use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table: [[disk]] with path = \"disk.img\"")]
pub struct DiskConfig {
    /// The image, raw, or a block device.
    #[serde(deserialize_with = "named")]
    pub path: PathBuf,
    /// The guest may only read it.
    #[serde(rename = "ro", default, skip_serializing_if = "ops::Not::not")]
    pub read_only: bool,
    /// The guest may write, and the image is not changed: what it writes is gone when AxVM ends.
    #[serde(default, skip_serializing_if = "ops::Not::not")]
    pub ephemeral: bool,
    /// Past the host's page cache (O_DIRECT): what the guest caches is not cached twice.
    #[serde(default, skip_serializing_if = "ops::Not::not")]
    pub direct: bool,
    /// Serial number that the guest reads: up to 20 bytes.
    #[serde(default, deserialize_with = "fitting", skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// When the guest is told that the disk has written.
    #[serde(default, skip_serializing_if = "Cache::is_default")]
    pub cache: Cache,
    /// What the image is, whatever it looks like [default: raw, if it does not look like another format]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Logical block size in bytes, 512 or 4096 [default: a block device's own, 512 for a file]
    #[serde(rename = "block", default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// What happens when the host has no room for what the guest writes.
    #[serde(rename = "on-full", default, skip_serializing_if = "OnFull::is_default")]
    pub on_full: OnFull,
    /// What it may do in a time: bytes (10M/s), operations (1000ops/s), or both (10M/s:1000ops/s) [default: none]
    #[serde(default, skip_serializing_if = "RateLimit::is_none")]
    pub rate: RateLimit,
    /// How transfers reach the image.
    #[serde(default, skip_serializing_if = "Engine::is_default")]
    pub engine: Engine,
    /// Queues, each with a thread of its own, 1 to 16 [default: on PCI as many as vCPUs, 4 at most; else 1]
    #[serde(default, deserialize_with = "possible_queues", skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
}

impl DiskConfig {
    /// A writable disk with the usual settings.
    pub fn new(path: impl Into<PathBuf>) -> DiskConfig {
        let (path, cache, on_full, engine) = (path.into(), Cache::default(), OnFull::default(), Engine::default());
        let (read_only, ephemeral, direct, rate) = (false, false, false, RateLimit::default());
        let (serial, format, block_size, queues) = Default::default();
        DiskConfig {
            path,
            read_only,
            ephemeral,
            direct,
            serial,
            cache,
            format,
            block_size,
            on_full,
            rate,
            engine,
            queues,
        }
    }

    /// Whether what the guest writes gets into the image.
    pub(super) fn changes_image(&self) -> bool {
        !self.read_only && !self.ephemeral
    }
}

/// Words that are no disk.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DiskConfigError {
    /// No image.
    #[error("no file named; write --disk FILE or --disk path=FILE")]
    NoFile,
    /// A cache mode that AxVM does not have.
    #[error("cache={0} is unknown; use writeback or writethrough")]
    Cache(String),
    /// A choice that there is not.
    #[error("on-full={0} is unknown; use pause or report")]
    OnFull(String),
    /// An engine that there is not.
    #[error("engine={0} is unknown; use auto, sync or io_uring")]
    Engine(String),
    /// A format that AxVM cannot read.
    #[error("format={0} is unknown; AxVM takes raw images (format=raw): qemu-img convert -O raw makes one")]
    Format(String),
    /// A block size that AxVM does not offer.
    #[error("block={0} is no block size of a disk; use 512 or 4096")]
    Block(String),
    /// Not so many queues.
    #[error("queues={0} is no number of queues; use 1 to {MAX_QUEUES}, not more than there are vCPUs to be of use")]
    Queues(String),
    /// A rate limit that is none.
    #[error("rate={0}")]
    Rate(RateError),
    /// A serial number that is too long, and its length in bytes.
    #[error("serial= has {0} bytes; virtio-blk has room for 20")]
    Serial(usize),
    /// A word that says nothing about disks.
    #[error(
        "option '{0}' is unknown; there are path=FILE, ro, ephemeral, direct, serial=TEXT, cache=writeback|writethrough, \
         format=raw, block=512|4096, on-full=pause|report, rate=BYTES/s:OPSops/s, engine=auto|sync|io_uring, queues=N; a comma in a name is written twice"
    )]
    Unknown(String),
}

/// Cuts the value of an option with parts at its commas; two of them are one that belongs to a part.
pub fn parts(words: &[u8]) -> Vec<Vec<u8>> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), words.iter().copied().peekable());
    while let Some(byte) = bytes.next() {
        if byte == b',' && bytes.next_if_eq(&b',').is_none() {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(byte);
        }
    }
    parts.push(part);
    parts
}

/// The opposite, for one part.
fn escaped(part: impl fmt::Display) -> String {
    part.to_string().replace(',', ",,")
}

/// `FILE` or `path=FILE`, and `ro`, `ephemeral`, `direct`, `serial=TEXT`, `cache=MODE`, `format=raw`, `block=SIZE`,
/// `on-full=CHOICE`, `rate=RATE`, `engine=ENGINE`, `queues=N`, with commas between them; a comma in a name is written twice. All but the name is text.
impl TryFrom<&OsStr> for DiskConfig {
    type Error = DiskConfigError;

    fn try_from(words: &OsStr) -> Result<DiskConfig, DiskConfigError> {
        const PATH: &str = "path";
        let mut disk = DiskConfig::new("");
        for (n, part) in parts(words.as_bytes()).into_iter().enumerate() {
            let text = String::from_utf8_lossy(&part).into_owned();
            match text.split_once('=') {
                Some((PATH, _)) => disk.path = OsStr::from_bytes(&part[PATH.len() + 1..]).into(),
                Some(("serial", value)) => disk.serial = Some(checked_serial(value.to_owned())?),
                Some(("cache", value)) => disk.cache = value.parse()?,
                Some(("on-full", value)) => disk.on_full = value.parse()?,
                Some(("engine", value)) => disk.engine = value.parse()?,
                Some(("queues", value)) => disk.queues = Some(queues(value)?),
                Some(("rate", value)) => disk.rate = value.parse().map_err(DiskConfigError::Rate)?,
                Some(("format", "raw")) => disk.format = Some(Format::Raw),
                Some(("format", value)) => return Err(DiskConfigError::Format(value.to_owned())),
                Some(("block", value)) => disk.block_size = Some(block_size(value)?),
                None if text == "ro" => disk.read_only = true,
                None if text == "ephemeral" => disk.ephemeral = true,
                None if text == "direct" => disk.direct = true,
                _ if n == 0 => disk.path = OsString::from_vec(part).into(),
                _ => return Err(DiskConfigError::Unknown(text)),
            }
        }
        if disk.path.as_os_str().is_empty() {
            return Err(DiskConfigError::NoFile);
        }
        Ok(disk)
    }
}

impl FromStr for DiskConfig {
    type Err = DiskConfigError;

    fn from_str(text: &str) -> Result<DiskConfig, DiskConfigError> {
        DiskConfig::try_from(OsStr::new(text))
    }
}

/// As on the command line, with what differs from the usual.
impl fmt::Display for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "path={}", escaped(self.path.display()))?;
        if self.read_only {
            f.write_str(",ro")?;
        }
        if self.ephemeral {
            f.write_str(",ephemeral")?;
        }
        if self.direct {
            f.write_str(",direct")?;
        }
        if let Some(serial) = &self.serial {
            write!(f, ",serial={}", escaped(serial))?;
        }
        if !self.cache.is_default() {
            write!(f, ",cache={}", self.cache)?;
        }
        if self.format.is_some() {
            f.write_str(",format=raw")?;
        }
        if let Some(size) = self.block_size {
            write!(f, ",block={size}")?;
        }
        if !self.on_full.is_default() {
            write!(f, ",on-full={}", self.on_full)?;
        }
        if !self.engine.is_default() {
            write!(f, ",engine={}", self.engine)?;
        }
        if let Some(queues) = self.queues {
            write!(f, ",queues={queues}")?;
        }
        match self.rate.is_none() {
            true => Ok(()),
            false => write!(f, ",rate={}", self.rate),
        }
    }
}

fn block_size(text: &str) -> Result<u32, DiskConfigError> {
    let size = text.parse().ok().filter(|size| BLOCK_SIZES.contains(size));
    size.ok_or_else(|| DiskConfigError::Block(text.to_owned()))
}

fn queues(text: &str) -> Result<u16, DiskConfigError> {
    let count = text.parse().ok().filter(|count| (1..=MAX_QUEUES).contains(count));
    count.ok_or_else(|| DiskConfigError::Queues(text.to_owned()))
}

fn possible_queues<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    let count = u16::deserialize(from)?;
    queues(&count.to_string()).map(Some).map_err(D::Error::custom)
}

fn checked_serial(serial: String) -> Result<String, DiskConfigError> {
    if serial.len() > SERIAL_LEN { Err(DiskConfigError::Serial(serial.len())) } else { Ok(serial) }
}

fn named<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(from)?;
    if path.as_os_str().is_empty() {
        return Err(D::Error::custom("no file named; write path = \"disk.img\""));
    }
    Ok(path)
}

fn fitting<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let serial = String::deserialize(from)?;
    let error = |why| D::Error::custom(format_args!("{serial:?}: {why}"));
    checked_serial(serial.clone()).map(Some).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_take_options_in_any_order() {
        let disk = DiskConfig { read_only: true, serial: Some("X1".into()), ..DiskConfig::new("a.img") };
        assert_eq!("a.img,ro,serial=X1".parse(), Ok(disk.clone()));
        assert_eq!(disk.to_string().parse(), Ok(disk.clone()));
        assert_eq!("ro,serial=X1,path=a.img".parse(), Ok(disk));
        assert_eq!("a.img,cache=writethrough".parse::<DiskConfig>().unwrap().cache, Cache::WriteThrough);
        for (text, word) in [
            ("a.img,rw", "'rw'"),
            ("", "no file"),
            ("ro", "no file"),
            ("a,serial=123456789012345678901", "20"),
            ("a,cache=none", "cache=none"),
            ("a,format=qcow2", "format=qcow2"),
            ("a,block=1024", "block=1024"),
            ("a,block=4K", "block=4K"),
            ("a,on-full=stop", "on-full=stop"),
            ("a,engine=aio", "engine=aio"),
            ("a,queues=0", "queues=0 is no number"),
            ("a,queues=17", "1 to 16"),
            ("a,rate=10", "10M/s"),
            ("a,rate=0/s", "none"),
        ] {
            let error = text.parse::<DiskConfig>().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_comma_in_a_name_is_written_twice() {
        let disk = DiskConfig { serial: Some("S,".into()), ..DiskConfig::new("a,b,,c.img") };
        assert_eq!("a,,b,,,,c.img,serial=S,,".parse(), Ok(disk.clone()));
        assert_eq!(disk.to_string().parse(), Ok(disk));
        assert_eq!("path=,,".parse(), Ok(DiskConfig::new(",")));
        assert_eq!("a,,,ro".parse(), Ok(DiskConfig { read_only: true, ..DiskConfig::new("a,") }));
        assert_eq!("a,b".parse::<DiskConfig>(), Err(DiskConfigError::Unknown("b".into())));
    }

    #[test]
    fn a_name_may_be_any_bytes_and_the_rest_is_text() {
        let disk = |words: &[u8]| DiskConfig::try_from(OsStr::from_bytes(words));
        let named = DiskConfig { read_only: true, ..DiskConfig::new(OsStr::from_bytes(b"a\xff,=\xfe")) };
        assert_eq!(disk(b"a\xff,,=\xfe,ro"), Ok(named.clone()));
        assert_eq!(disk(b"ro,path=a\xff,,=\xfe"), Ok(named));
        assert_eq!(disk(b"a,\xff"), Err(DiskConfigError::Unknown("\u{fffd}".into())));
    }

    #[test]
    fn a_choice_is_the_same_word_everywhere() {
        fn check<T: JsonSchema + Serialize + ToString>(choice: &T) {
            let word = choice.to_string();
            assert_eq!(serde_json::to_value(choice).unwrap(), word);
            assert!(schemars::schema_for!(T).as_value().to_string().contains(&format!("\"const\":\"{word}\"")));
        }
        for cache in Cache::ALL {
            assert_eq!(cache.to_string().parse(), Ok(cache));
            check(&cache);
        }
        for on_full in OnFull::ALL {
            assert_eq!(on_full.to_string().parse(), Ok(on_full));
            check(&on_full);
        }
        for engine in Engine::ALL {
            assert_eq!(engine.to_string().parse(), Ok(engine));
            check(&engine);
        }
    }

    #[test]
    fn a_table_has_the_words_of_the_option() {
        let disk: DiskConfig =
            "a.img,ro,serial=X1,cache=writethrough,format=raw,block=4096,on-full=report,ephemeral,direct,rate=10M/s:50ops/s,\
             engine=io_uring,queues=3"
                .parse()
                .unwrap();
        assert_eq!(disk.to_string().parse(), Ok(disk.clone()));
        let table = serde_json::json!({ "path": "a.img", "ro": true, "ephemeral": true, "direct": true, "serial": "X1",
            "cache": "writethrough", "format": "raw", "block": 4096, "on-full": "report",
            "rate": "10M/s:50ops/s", "engine": "io_uring", "queues": 3 });
        assert_eq!(serde_json::to_value(&disk).unwrap(), table);
        assert_eq!(serde_json::from_value::<DiskConfig>(table).unwrap(), disk);
        assert_eq!(serde_json::to_value(DiskConfig::new("a")).unwrap(), serde_json::json!({ "path": "a" }));
        for (table, word) in [
            (serde_json::json!({ "path": "" }), "no file"),
            (serde_json::json!({ "path": "a", "serial": "x".repeat(21) }), "has 21 bytes"),
            (serde_json::json!({ "path": "a", "queues": 0 }), "1 to 16"),
            (serde_json::json!({ "path": "a", "rate": "10" }), "10M/s"),
            (serde_json::json!({ "path": "a", "block_size": 4096 }), "unknown field"),
        ] {
            let error = serde_json::from_value::<DiskConfig>(table).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
