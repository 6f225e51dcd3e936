//! From what was said ([`RunArgs`]) to what will be done ([`Config`]): parsed, checked, complete.
//!
//! Every error here names the option, what was wrong with it, and what would be right.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use axvm_arch::cpuid::Topology;
use axvm_arch::layout;
use axvm_memory::{PageSize, RamConfig};
use thiserror::Error;

use crate::cli::{CpuArg, EntryArg, HugePages, OnReboot, RunArgs};

/// Everything that defines a machine. Files are named, not yet opened.
#[derive(Debug)]
pub struct Config {
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    pub disks: Vec<DiskArg>,
    pub topology: Topology,
    pub memory: RamConfig,
    pub append: String,
    pub entry: Option<EntryArg>,
    pub cpu: CpuArg,
    /// Host CPU of each vCPU; empty: the scheduler decides.
    pub pins: Vec<usize>,
    pub acpi: bool,
    pub on_reboot: OnReboot,
    pub verbose: bool,
    /// How long a guest has to power off after a first signal.
    pub grace: Duration,
}

/// One `--disk`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskArg {
    pub path: PathBuf,
    pub read_only: bool,
    pub serial: Option<String>,
    pub write_through: bool,
}

/// The command line asks for something that can not be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error(
        "No kernel: neither ./bzImage nor ../bzImage exists. Name one with --kernel FILE, \
         or let `cargo xtask boot` fetch a stock kernel"
    )]
    NoKernel,
    #[error("--memory {0}: not a size; write a number with K, M or G, such as 512M or 4G (and ,shared if wanted)")]
    Size(String),
    #[error("--cpus {text}: {why}")]
    Cpus { text: String, why: String },
    #[error("--pin {text}: {why}")]
    Pin { text: String, why: String },
    #[error("--disk {text}: {why}")]
    Disk { text: String, why: String },
    #[error("{count} disks: {limit} is the most this machine has interrupt lines for{hint}")]
    TooManyDisks { count: usize, limit: usize, hint: &'static str },
}

impl Config {
    /// Completes and checks the arguments.
    pub fn from_args(args: RunArgs) -> Result<Config, ConfigError> {
        let by_default = args.kernel.is_none();
        let found = |name: &str| by_default.then(|| find(name)).flatten();
        let kernel = args.kernel.or_else(|| found("bzImage")).ok_or(ConfigError::NoKernel)?;
        let mut disks = args.disks.iter().map(|text| parse_disk(text)).collect::<Result<Vec<_>, _>>()?;
        if disks.is_empty() {
            disks.extend(found("disk.img").map(|path| DiskArg { path, ..DiskArg::default() }));
        }
        check_disk_count(disks.len(), !args.no_acpi)?;
        let topology = parse_cpus(args.cpus.as_deref())?;
        Ok(Config {
            kernel,
            initrd: args.initrd.or_else(|| found("initrd.img")),
            disks,
            topology,
            memory: parse_memory(&args.memory, args.hugepages, args.prealloc, args.lock)?,
            append: args.append,
            entry: args.entry,
            cpu: args.cpu,
            pins: args.pin.map(|text| parse_pins(&text, topology.count())).transpose()?.unwrap_or_default(),
            acpi: !args.no_acpi,
            on_reboot: args.on_reboot,
            verbose: args.verbose,
            grace: Duration::from_secs(args.grace.into()),
        })
    }
}

impl Config {
    /// Whether pages that the guest does not use may go back to the host: not if they were taken for good.
    pub fn memory_can_return(&self) -> bool {
        let RamConfig { pages, prealloc, lock, .. } = self.memory;
        matches!(pages, PageSize::Thp | PageSize::Small) && !prealloc && !lock
    }
}

/// `name` in the current directory or the one above: users start in `axvm_core`, files lie in the root.
fn find(name: &str) -> Option<PathBuf> {
    [Path::new(".").join(name), Path::new("..").join(name)].into_iter().find(|path| path.exists())
}

fn check_disk_count(count: usize, acpi: bool) -> Result<(), ConfigError> {
    let lines = layout::gsi::VIRTIO.iter().filter(|&&gsi| acpi || gsi < 16).count();
    let limit = lines - OTHER_VIRTIO_DEVICES;
    let hint = if acpi { "" } else { " without ACPI" };
    if count > limit {
        return Err(ConfigError::TooManyDisks { count, limit, hint });
    }
    Ok(())
}

/// Virtio devices beside the disks: entropy, balloon.
const OTHER_VIRTIO_DEVICES: usize = 2;

/// A size in bytes: digits and an optional K, M or G (also KiB, MiB, GiB, kB ...); bare numbers are MiB.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" => 10,
        "" | "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn parse_memory(text: &str, pages: HugePages, prealloc: bool, lock: bool) -> Result<RamConfig, ConfigError> {
    let (size, shared) = match text.split_once(',') {
        Some((size, "shared")) => (size, true),
        _ => (text, false),
    };
    let size = parse_size(size).ok_or_else(|| ConfigError::Size(text.to_owned()))?;
    let pages = match pages {
        HugePages::Thp => PageSize::Thp,
        HugePages::Huge2M => PageSize::Huge2M,
        HugePages::Huge1G => PageSize::Huge1G,
        HugePages::Off => PageSize::Small,
    };
    Ok(RamConfig { size, pages, shared, prealloc, lock })
}

fn parse_cpus(text: Option<&str>) -> Result<Topology, ConfigError> {
    let Some(text) = text else {
        return Ok(Topology::flat(thread::available_parallelism().map_or(1, |count| count.get() as u32)));
    };
    let error = |why: String| ConfigError::Cpus { text: text.to_owned(), why };
    let mut parts = text.split(',');
    let count = parts.next().unwrap_or_default();
    let count: u32 = count.parse().map_err(|_| error(format!("'{count}' is not a number of vCPUs; try --cpus 4")))?;
    if count == 0 {
        return Err(error("a machine needs at least one vCPU".into()));
    }
    let (mut sockets, mut cores, mut threads) = (None, None, None);
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let slot = match key {
            "sockets" => &mut sockets,
            "cores" => &mut cores,
            "threads" => &mut threads,
            _ => return Err(error(format!("'{key}' is unknown; use sockets=, cores=, threads="))),
        };
        let value = value.parse().ok().filter(|&value: &u32| (1..=1 << 16).contains(&value));
        *slot = Some(value.ok_or_else(|| error(format!("{key}= needs a number from 1")))?);
    }
    let (threads, known_sockets) = (threads.unwrap_or(1), sockets.unwrap_or(1));
    // What was left out follows from the rest: first cores per socket, then sockets.
    let cores = cores.unwrap_or_else(|| (count / threads / known_sockets).max(1));
    let sockets = sockets.unwrap_or_else(|| (count / threads / cores).max(1));
    let product = u64::from(sockets) * u64::from(cores) * u64::from(threads);
    if product != u64::from(count) {
        return Err(error(format!(
            "{sockets} sockets x {cores} cores x {threads} threads make {product} vCPUs, not {count}"
        )));
    }
    Ok(Topology { sockets, cores, threads })
}

/// `0-9,20-29`: one host CPU per vCPU, in order.
fn parse_pins(text: &str, cpus: u32) -> Result<Vec<usize>, ConfigError> {
    let error = |why: String| ConfigError::Pin { text: text.to_owned(), why };
    let mut pins = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) if first <= last && last < MAX_HOST_CPUS => pins.extend(first..=last),
            _ => return Err(error(format!("'{part}' is no host CPU or range; write for example 0-3,8"))),
        }
    }
    if pins.len() != cpus as usize {
        return Err(error(format!("it names {} host CPUs for {cpus} vCPUs; give one for each", pins.len())));
    }
    Ok(pins)
}

/// Width of the kernel's default `cpu_set_t`.
const MAX_HOST_CPUS: usize = 1024;

fn parse_disk(text: &str) -> Result<DiskArg, ConfigError> {
    let error = |why: String| ConfigError::Disk { text: text.to_owned(), why };
    let mut disk = DiskArg::default();
    for (n, part) in text.split(',').enumerate() {
        match part.split_once('=') {
            Some(("path", value)) => disk.path = value.into(),
            Some(("serial", value)) if value.len() <= 20 => disk.serial = Some(value.into()),
            Some(("serial", value)) => {
                return Err(error(format!("serial= has {} bytes; virtio-blk has room for 20", value.len())));
            }
            Some(("cache", "writeback")) => disk.write_through = false,
            Some(("cache", "writethrough")) => disk.write_through = true,
            Some(("cache", value)) => {
                return Err(error(format!("cache={value} is unknown; use writeback or writethrough")));
            }
            None if part == "ro" => disk.read_only = true,
            _ if n == 0 => disk.path = part.into(),
            _ => {
                return Err(error(format!(
                    "option '{part}' is unknown; there are path=FILE, ro, serial=TEXT, cache=writeback|writethrough"
                )));
            }
        }
    }
    if disk.path.as_os_str().is_empty() {
        return Err(error("no file named; write --disk FILE or --disk path=FILE".into()));
    }
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_what_people_write() {
        for (text, bytes) in
            [("512M", 512 << 20), ("4G", 4 << 30), ("4GiB", 4 << 30), ("2048k", 2 << 20), ("128", 128 << 20)]
        {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "4X", "99999999999G", "4 G"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn memory_may_be_shared() {
        let parse = |text| parse_memory(text, HugePages::Thp, false, true);
        assert_eq!(parse("1G,shared"), Ok(RamConfig { shared: true, lock: true, ..RamConfig::new(1 << 30) }));
        assert_eq!(parse("1G"), Ok(RamConfig { lock: true, ..RamConfig::new(1 << 30) }));
        assert_eq!(parse("1G,private"), Err(ConfigError::Size("1G,private".into())));
    }

    #[test]
    fn topology_is_completed_from_what_is_given() {
        let parse = |text| parse_cpus(Some(text)).unwrap();
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
            ("4,dies=2", "unknown"),
            ("4,sockets=65536,cores=65536,threads=65536", "vCPUs, not 4"),
        ] {
            let error = parse_cpus(Some(text)).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(text), "{error}");
        }
    }

    #[test]
    fn pins_name_one_host_cpu_per_vcpu() {
        assert_eq!(parse_pins("0-2,8", 4).unwrap(), [0, 1, 2, 8]);
        for (text, word) in
            [("0-2", "3 host CPUs for 4"), ("a", "'a'"), ("3-1", "'3-1'"), ("", "''"), ("0-99999999", "0-99999999")]
        {
            let error = parse_pins(text, 4).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn disks_take_options_in_any_order() {
        let disk = DiskArg { path: "a.img".into(), read_only: true, serial: Some("X1".into()), write_through: false };
        assert_eq!(parse_disk("a.img,ro,serial=X1").unwrap(), disk);
        assert_eq!(parse_disk("ro,serial=X1,path=a.img").unwrap(), disk);
        assert!(parse_disk("a.img,cache=writethrough").unwrap().write_through);
        for (text, word) in [
            ("a.img,rw", "'rw'"),
            ("", "no file"),
            ("ro", "no file"),
            ("a,serial=123456789012345678901", "20"),
            ("a,cache=none", "cache=none"),
        ] {
            let error = parse_disk(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_disk_limit_depends_on_acpi() {
        assert!(check_disk_count(12, true).is_ok());
        assert!(check_disk_count(13, true).is_err());
        assert!(check_disk_count(4, false).is_ok());
        assert!(check_disk_count(5, false).unwrap_err().to_string().contains("without ACPI"));
    }
}
