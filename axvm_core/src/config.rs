//! From what was said ([`Settings`]) to what will be done ([`Config`]): completed by defaults, and checked as a whole.
//!
//! ```text
//!   Settings  each value is possible by itself, many are missing
//!   Config    each value is there, and they go together
//! ```
//!
//! Every error here names the option, what was wrong with it, and what would be right.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use axvm_arch::cpuid::Topology;
use axvm_arch::layout;
use axvm_console::BackEnd;
use axvm_memory::{PageSize, RamConfig};

use crate::cli::{CacheArg, CpuArg, EntryArg, OnReboot, RunArgs};
pub use crate::error::ConfigError;
use crate::settings::{Cpus, Disk, Memory, Name, Settings, Size};

/// Everything that defines a machine. Files are named, not yet opened.
#[derive(Debug)]
pub struct Config {
    /// What `axvm ps` and `axvm ctl` call it.
    pub name: String,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// Nobody named a kernel: files were taken by their usual names.
    pub by_default: bool,
    /// The initial RAM disk's file.
    pub initrd: Option<PathBuf>,
    /// Disks, /dev/vda first.
    pub disks: Vec<DiskArg>,
    /// vCPUs and their grouping.
    pub topology: Topology,
    /// Guest RAM.
    pub memory: RamConfig,
    /// Added to the kernel command line.
    pub append: String,
    /// Where the CPU starts, if not where the kernel's format says.
    pub entry: Option<EntryArg>,
    /// The CPU model.
    pub cpu: CpuArg,
    /// Host CPU of each vCPU; empty: the scheduler decides.
    pub pins: Vec<usize>,
    /// Whether there are ACPI tables.
    pub acpi: bool,
    /// Where the serial console goes.
    pub console: BackEnd,
    /// Where the virtio console goes, if there is one.
    pub virtio_console: Option<BackEnd>,
    /// Path of the control socket.
    pub api_sock: Option<PathBuf>,
    /// Whether AxVM is confined.
    pub sandbox: bool,
    /// What a reset does.
    pub on_reboot: OnReboot,
    /// Whether to tell what happens.
    pub verbose: bool,
    /// How long a guest has to power off after a first signal.
    pub grace: Duration,
}

/// One `--disk`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskArg {
    /// The image.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Its serial number, up to 20 bytes.
    pub serial: Option<String>,
    /// Whether a write ends on the medium.
    pub write_through: bool,
}

impl Config {
    /// Reads the file that the arguments name, if any; completes and checks all that was said.
    pub fn from_args(args: RunArgs) -> Result<Config, ConfigError> {
        Config::from_settings(Settings::gather(&args)?)
    }

    /// Completes and checks what was said.
    pub fn from_settings(said: Settings) -> Result<Config, ConfigError> {
        let by_default = said.kernel.is_none();
        let found = |name: &str| by_default.then(|| find(name)).flatten();
        let kernel = said.kernel.or_else(|| found("bzImage")).ok_or(ConfigError::NoKernel)?;
        let mut disks: Vec<DiskArg> = said.disk.into_iter().map(DiskArg::from).collect();
        if disks.is_empty() {
            disks.extend(found("disk.img").map(|path| DiskArg { path, ..DiskArg::default() }));
        }
        let acpi = !said.no_acpi.unwrap_or(false);
        check_disk_count(disks.len(), acpi, said.virtio_console.is_some())?;
        let topology = topology(said.cpus)?;
        let pins = match said.pin {
            Some(pins) => pins.each(topology.count()).map_err(|why| ConfigError::option("--pin", pins, why))?,
            None => Vec::new(),
        };
        let virtio_console = said.virtio_console.map(|end| end.0);
        let console = main_console(said.console.map(|end| end.0), virtio_console.as_ref());
        check_ends(&console, virtio_console.as_ref(), said.api_sock.as_deref())?;
        let file = kernel.file_name().unwrap_or_default().to_string_lossy();
        Ok(Config {
            name: said.name.unwrap_or_else(|| Name::from_file(&file)).to_string(),
            by_default,
            initrd: said.initrd.or_else(|| found("initrd.img")),
            kernel,
            disks,
            topology,
            memory: memory(&said.memory)?,
            append: said.append.unwrap_or_default(),
            entry: said.entry,
            cpu: said.cpu.unwrap_or(CpuArg::Host),
            pins,
            acpi,
            console,
            virtio_console,
            api_sock: said.api_sock,
            sandbox: said.sandbox.unwrap_or(true),
            on_reboot: said.on_reboot.unwrap_or(OnReboot::Restart),
            verbose: said.verbose.unwrap_or(false),
            grace: Duration::from_secs(said.grace.unwrap_or(10).into()),
        })
    }

    /// Whether pages that the guest does not use may go back to the host: not if they were taken for good.
    pub fn memory_can_return(&self) -> bool {
        let RamConfig { pages, prealloc, lock, .. } = self.memory;
        matches!(pages, PageSize::Thp | PageSize::Small) && !prealloc && !lock
    }

    /// Whether the kernel's console is hvc0: there is one, and the UART goes nowhere.
    pub fn console_is_virtio(&self) -> bool {
        self.console == BackEnd::None && self.virtio_console.as_ref().is_some_and(|end| *end != BackEnd::None)
    }
}

impl From<Disk> for DiskArg {
    fn from(disk: Disk) -> DiskArg {
        DiskArg {
            path: disk.path,
            read_only: disk.ro,
            serial: disk.serial.map(|serial| serial.0),
            write_through: disk.cache == Some(CacheArg::Writethrough),
        }
    }
}

/// `name` in the current directory or the one above: users start in `axvm_core`, files lie in the root.
fn find(name: &str) -> Option<PathBuf> {
    [Path::new(".").join(name), Path::new("..").join(name)].into_iter().find(|path| path.exists())
}

fn check_disk_count(count: usize, acpi: bool, virtio_console: bool) -> Result<(), ConfigError> {
    let lines = layout::gsi::VIRTIO.iter().filter(|&&gsi| acpi || gsi < 16).count();
    let limit = lines - OTHER_VIRTIO_DEVICES - usize::from(virtio_console);
    let hint = match (acpi, virtio_console) {
        (true, false) => "",
        (true, true) => " beside a virtio console",
        (false, false) => " without ACPI",
        (false, true) => " without ACPI and beside a virtio console",
    };
    if count > limit {
        return Err(ConfigError::TooManyDisks { count, limit, hint });
    }
    Ok(())
}

/// Virtio devices beside disks and console: entropy, balloon.
const OTHER_VIRTIO_DEVICES: usize = 2;

fn topology(cpus: Option<Cpus>) -> Result<Topology, ConfigError> {
    match cpus {
        Some(cpus) => cpus.topology().map_err(|why| ConfigError::option("--cpus", cpus.count, why)),
        None => Ok(Topology::flat(thread::available_parallelism().map_or(1, |count| count.get() as u32))),
    }
}

const DEFAULT_SIZE: Size = Size(512 << 20);

fn memory(said: &Memory) -> Result<RamConfig, ConfigError> {
    let size = said.size.unwrap_or(DEFAULT_SIZE);
    let pages = said.hugepages.unwrap_or_default();
    if pages.unit().is_some_and(|unit| !size.0.is_multiple_of(unit)) {
        let why = format!("not made of {pages} pages (--hugepages); give a multiple of {pages}, or take smaller pages");
        return Err(ConfigError::option("--memory", size, why));
    }
    let on = |switch: Option<bool>| switch.unwrap_or(false);
    Ok(RamConfig { size: size.0, pages, shared: on(said.shared), prealloc: on(said.prealloc), lock: on(said.lock) })
}

/// The terminal belongs to the virtio console if that asked for it and the UART did not.
fn main_console(said: Option<BackEnd>, virtio: Option<&BackEnd>) -> BackEnd {
    let otherwise = if virtio == Some(&BackEnd::Stdio) { BackEnd::None } else { BackEnd::Stdio };
    said.unwrap_or(otherwise)
}

/// No two of the machine's ends may be one.
fn check_ends(console: &BackEnd, virtio: Option<&BackEnd>, api: Option<&Path>) -> Result<(), ConfigError> {
    if let Some(end) = virtio.filter(|&end| end == console)
        && !matches!(end, BackEnd::None | BackEnd::Pty)
    {
        let why = "--console goes there too; send one elsewhere: file=PATH, pty, unix=PATH or none";
        return Err(ConfigError::option("--virtio-console", end, why));
    }
    for end in [Some(console), virtio].into_iter().flatten() {
        if let (BackEnd::Unix(path) | BackEnd::File(path), Some(api)) = (end, api)
            && path == api
        {
            let why = "a console has this path too; give each a path of its own";
            return Err(ConfigError::option("--api-sock", api.display(), why));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_small_and_plain_by_default() {
        assert_eq!(memory(&Memory::default()).unwrap(), RamConfig::new(512 << 20));
        let said = Memory { shared: Some(true), lock: Some(true), size: Some(Size(1 << 30)), ..Memory::default() };
        assert_eq!(memory(&said).unwrap(), RamConfig { shared: true, lock: true, ..RamConfig::new(1 << 30) });
    }

    #[test]
    fn memory_has_to_be_made_of_the_pages_asked_for() {
        let said =
            |mib: u64, pages| Memory { size: Some(Size(mib << 20)), hugepages: Some(pages), ..Memory::default() };
        assert!(memory(&said(513, PageSize::Small)).is_ok());
        assert!(memory(&said(514, PageSize::Huge2M)).is_ok());
        let error = memory(&said(513, PageSize::Huge2M)).unwrap_err().to_string();
        assert!(error.contains("--memory 513M") && error.contains("multiple of 2M"), "{error}");
        assert!(memory(&said(514, PageSize::Huge1G)).is_err());
    }

    #[test]
    fn the_disk_limit_depends_on_what_else_takes_lines() {
        assert!(check_disk_count(12, true, false).is_ok());
        assert!(check_disk_count(13, true, false).is_err());
        assert!(check_disk_count(12, true, true).unwrap_err().to_string().contains("virtio console"));
        assert!(check_disk_count(4, false, false).is_ok());
        assert!(check_disk_count(5, false, false).unwrap_err().to_string().contains("without ACPI"));
    }

    #[test]
    fn one_console_has_the_terminal() {
        use BackEnd::{None as Nowhere, Pty, Stdio};
        assert_eq!(main_console(None, None), Stdio);
        assert_eq!(main_console(None, Some(&Stdio)), Nowhere);
        assert_eq!(main_console(None, Some(&Pty)), Stdio);
        assert_eq!(main_console(Some(Stdio), Some(&Stdio)), Stdio);
        assert!(check_ends(&Stdio, Some(&Stdio), None).is_err());
        assert!(check_ends(&Pty, Some(&Pty), None).is_ok());
        let socket = BackEnd::Unix("a.sock".into());
        assert!(check_ends(&socket, None, Some(Path::new("a.sock"))).is_err());
    }
}
