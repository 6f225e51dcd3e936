//! Options with parts: CPUs, memory, disks. Each is a table in the file.

use std::path::PathBuf;
use std::str::FromStr;

use axvm_arch::cpuid::Topology;
use axvm_memory::PageSize;
use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::text;
use super::value::{Serial, Size};
use crate::cli::CacheArg;

/// `--cpus`: vCPUs and how they are grouped. What is left out of the grouping follows from the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table: [cpus] with count = 4")]
pub struct Cpus {
    /// Number of vCPUs.
    #[schemars(range(min = 1))]
    pub count: u32,
    /// Sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sockets: Option<u32>,
    /// Cores in a socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// Threads in a core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
}

impl Cpus {
    /// The complete grouping, if there is one.
    pub fn topology(&self) -> Result<Topology, String> {
        let count = self.count;
        if count == 0 {
            return Err("a machine needs at least one vCPU".into());
        }
        for (key, value) in [("sockets", self.sockets), ("cores", self.cores), ("threads", self.threads)] {
            if value.is_some_and(|value| !(1..=1 << 16).contains(&value)) {
                return Err(format!("{key}= needs a number from 1"));
            }
        }
        let (threads, known_sockets) = (self.threads.unwrap_or(1), self.sockets.unwrap_or(1));
        // First cores per socket, then sockets.
        let cores = self.cores.unwrap_or_else(|| (count / threads / known_sockets).max(1));
        let sockets = self.sockets.unwrap_or_else(|| (count / threads / cores).max(1));
        let product = u64::from(sockets) * u64::from(cores) * u64::from(threads);
        if product != u64::from(count) {
            return Err(format!(
                "{sockets} sockets x {cores} cores x {threads} threads make {product} vCPUs, not {count}"
            ));
        }
        Ok(Topology { sockets, cores, threads })
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Cpus, String> {
        let mut parts = text.split(',');
        let count = parts.next().unwrap_or_default();
        let count = count.parse().map_err(|_| format!("'{count}' is not a number of vCPUs; try --cpus 4"))?;
        let mut cpus = Cpus { count, sockets: None, cores: None, threads: None };
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let slot = match key {
                "sockets" => &mut cpus.sockets,
                "cores" => &mut cpus.cores,
                "threads" => &mut cpus.threads,
                _ => return Err(format!("'{key}' is unknown; use sockets=, cores=, threads=")),
            };
            *slot = Some(value.parse().map_err(|_| format!("{key}= needs a number from 1"))?);
        }
        cpus.topology().map(|_| cpus)
    }
}

/// Reads `[cpus]`, and refuses a grouping that can not be.
pub fn possible_cpus<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Cpus>, D::Error> {
    let cpus = Cpus::deserialize(from)?;
    cpus.topology().map_err(|why| D::Error::custom(format_args!("[cpus]: {why}")))?;
    Ok(Some(cpus))
}

/// `--memory`, `--hugepages`, `--prealloc`, `--lock`: guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "a table: [memory] with size = \"4G\"")]
pub struct Memory {
    /// Size with K, M, G or T: 512M, 4G.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub size: Option<Size>,
    /// A memory file that other processes can map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<bool>,
    /// Pages behind guest RAM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<PageSize>,
    /// Take all of it from the host before the guest starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prealloc: Option<bool>,
    /// The host never swaps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<bool>,
}

impl Memory {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Memory::default()
    }

    /// This where it says something, `below` where it does not. Size and sharing are one option.
    pub fn over(self, below: Memory) -> Memory {
        let (size, shared) =
            if self.size.is_some() { (self.size, self.shared) } else { (below.size, self.shared.or(below.shared)) };
        Memory {
            size,
            shared,
            hugepages: self.hugepages.or(below.hugepages),
            prealloc: self.prealloc.or(below.prealloc),
            lock: self.lock.or(below.lock),
        }
    }
}

/// `--disk`: one disk image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table: [[disk]] with path = \"disk.img\"")]
pub struct Disk {
    /// The image, raw, or a block device.
    #[serde(deserialize_with = "named")]
    pub path: PathBuf,
    /// The guest may only read it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ro: bool,
    /// Serial number that the guest reads: up to 20 bytes.
    #[serde(default, with = "text", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub serial: Option<Serial>,
    /// When the guest is told that the disk has written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheArg>,
}

fn named<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(from)?;
    if path.as_os_str().is_empty() {
        return Err(D::Error::custom("no file named; write path = \"disk.img\""));
    }
    Ok(path)
}

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Disk, String> {
        let mut disk = Disk::default();
        for (n, part) in text.split(',').enumerate() {
            match part.split_once('=') {
                Some(("path", value)) => disk.path = value.into(),
                Some(("serial", value)) => disk.serial = Some(value.parse()?),
                Some(("cache", "writeback")) => disk.cache = Some(CacheArg::Writeback),
                Some(("cache", "writethrough")) => disk.cache = Some(CacheArg::Writethrough),
                Some(("cache", value)) => {
                    return Err(format!("cache={value} is unknown; use writeback or writethrough"));
                }
                None if part == "ro" => disk.ro = true,
                _ if n == 0 => disk.path = part.into(),
                _ => {
                    return Err(format!(
                        "option '{part}' is unknown; there are path=FILE, ro, serial=TEXT, cache=writeback|writethrough"
                    ));
                }
            }
        }
        if disk.path.as_os_str().is_empty() {
            return Err("no file named; write --disk FILE or --disk path=FILE".into());
        }
        Ok(disk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topology_is_completed_from_what_is_given() {
        let parse = |text: &str| text.parse::<Cpus>().unwrap().topology().unwrap();
        assert_eq!(parse("20"), Topology::flat(20));
        assert_eq!(parse("20,sockets=2,cores=5,threads=2"), Topology { sockets: 2, cores: 5, threads: 2 });
        assert_eq!(parse("8,threads=2"), Topology { sockets: 1, cores: 4, threads: 2 });
        assert_eq!(parse("8,cores=2"), Topology { sockets: 4, cores: 2, threads: 1 });
        assert_eq!(parse("8,sockets=2"), Topology { sockets: 2, cores: 4, threads: 1 });
    }

    #[test]
    fn impossible_topologies_say_why() {
        for (text, word) in [
            ("0", "at least one"),
            ("x", "not a number"),
            ("20,sockets=3", "make 18"),
            ("4,cores=0", "from 1"),
            ("4,cores=", "from 1"),
            ("4,dies=2", "unknown"),
            ("4,sockets=65536,cores=65536,threads=65536", "vCPUs, not 4"),
        ] {
            let error = text.parse::<Cpus>().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn disks_take_options_in_any_order() {
        let disk = Disk { path: "a.img".into(), ro: true, serial: Some(Serial("X1".into())), cache: None };
        assert_eq!("a.img,ro,serial=X1".parse(), Ok(disk.clone()));
        assert_eq!("ro,serial=X1,path=a.img".parse(), Ok(disk));
        assert_eq!("a.img,cache=writethrough".parse::<Disk>().unwrap().cache, Some(CacheArg::Writethrough));
        for (text, word) in [
            ("a.img,rw", "'rw'"),
            ("", "no file"),
            ("ro", "no file"),
            ("a,serial=123456789012345678901", "20"),
            ("a,cache=none", "cache=none"),
        ] {
            let error = text.parse::<Disk>().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_size_on_the_command_line_decides_about_sharing_too() {
        let file = Memory { size: Some(Size(1 << 30)), shared: Some(true), lock: Some(true), ..Memory::default() };
        let said = Memory { size: Some(Size(2 << 30)), prealloc: Some(true), ..Memory::default() };
        assert_eq!(said.over(file), Memory { lock: Some(true), ..said });
        assert_eq!(Memory::default().over(file), file);
    }
}
