//! From what was said ([`Settings`]) to what will be done ([`Config`]): completed by defaults, and checked as a whole.
//!
//! ```text
//!   Settings  each value is possible by itself, many are missing
//!   Config    the machine and its ends: each value is there, and they go together
//! ```
//!
//! Every error here names the option, what was wrong with it, and what would be right.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use axvm_api::Registry;
use axvm_arch::cpuid::Topology;
use axvm_boot::acpi::Acpi;
use axvm_boot::bus::Bus;
use axvm_console::BackEnd;
use axvm_machine::{KernelSource, MachineSpec, without_mmio};
use axvm_memory::RamConfig;
use axvm_virtio::block::DiskConfig;
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::agent;
use crate::cli::RunArgs;
use crate::error::ConfigError;
use crate::network;
use crate::settings::{Cpus, IoPort, Memory, Name, OnPanic, OnReboot, Pins, Settings, Vsock};

/// Everything that defines a run of AxVM: the machine, and what this program does around it. Files are named, not yet
/// opened.
#[derive(Debug)]
pub struct Config {
    /// What `axvm ps` and `axvm ctl` call the machine.
    pub name: String,
    /// No kernel was named: files were taken by their usual names.
    pub by_default: bool,
    /// The machine itself.
    pub machine: MachineSpec,
    /// Where the serial console goes.
    pub console: BackEnd,
    /// Where the virtio console goes, if there is one.
    pub virtio_console: Option<BackEnd>,
    /// Where the debug console goes, if there is one.
    pub debug_console: Option<BackEnd>,
    /// The socket by which programs of the host reach the guest, if it has a socket device: an absolute path.
    pub vsock: Option<PathBuf>,
    /// The socket of the agent's port, if there is one: an absolute path.
    pub agent_port: Option<PathBuf>,
    /// The command that the guest runs instead of its init; empty: its init.
    pub command: Vec<OsString>,
    /// What was said, for all that needs no completion and no check.
    pub settings: Settings,
}

impl Config {
    /// Reads the file that the arguments name, if any; completes and checks all that was said.
    pub fn from_args(args: RunArgs) -> Result<Config, ConfigError> {
        let command = args.command.clone();
        let settings = args.settings()?;
        if command.is_empty() {
            return Config::from_settings(settings);
        }
        let mut config = Config::from_settings(for_command(settings)?)?;
        config.machine.initrd_after = Some(agent::archive()?.into());
        config.command = command;
        Ok(config)
    }

    /// Completes and checks what was said.
    pub fn from_settings(settings: Settings) -> Result<Config, ConfigError> {
        let said = settings.clone();
        let by_default = said.kernel.is_none();
        let found = |name: &str| by_default.then(|| find(name)).flatten();
        let kernel = said.kernel.or_else(|| found("bzImage")).ok_or(ConfigError::NoKernel)?;
        let file = kernel.file_name().unwrap_or_default().to_string_lossy();
        let name = said.name.unwrap_or_else(|| Name::from_file(&file)).to_string();
        let mut disks = said.disk;
        if disks.is_empty() {
            disks.extend(found("disk.img").map(DiskConfig::new));
        }
        let topology = topology(said.cpus)?;
        let pins = host_cpus(said.pin, &topology)?;
        let (virtio_console, debug_console) = (said.virtio_console, said.debugcon);
        let console = main_console(said.console, [&virtio_console, &debug_console]);
        let ends = [
            ("--console", Some(&console)),
            ("--virtio-console", virtio_console.as_ref()),
            ("--debugcon", debug_console.as_ref()),
        ];
        check_ends(ends, settings.api_sock.as_deref())?;
        let vsock = said.vsock.as_ref().map(vsock_path);
        check_vsock(vsock.as_deref(), ends, settings.api_sock.as_deref())?;
        let agent_port = said.agent_port.map(|path| std::path::absolute(&path).unwrap_or(path));
        check_agent_port(agent_port.as_deref(), vsock.as_deref(), ends, settings.api_sock.as_deref())?;
        let nets = network::cards(&settings.net, &name);
        network::check(&settings.net, &nets).map_err(|(said, why)| ConfigError::option("--net", said, why))?;
        let machine = MachineSpec {
            initrd: said.initrd.or_else(|| found("initrd.img")),
            append: settings.append(),
            entry: said.entry,
            topology,
            cpu: settings.cpu(),
            pins,
            memory: memory(&settings.memory)?,
            acpi: acpi(&settings)?,
            bus: settings.bus(),
            kernel_lacks_mmio: if settings.bus() == Bus::Auto { without_mmio(&kernel) } else { None },
            disks,
            entropy_rate: said.entropy_rate.unwrap_or_default(),
            virtio_console: virtio_console.is_some(),
            // hvc0 is the kernel's console if there is one and the UART goes nowhere.
            kernel_uses_virtio_console: console == BackEnd::None
                && virtio_console.as_ref().is_some_and(|end| *end != BackEnd::None),
            nets,
            vsock: said.vsock.map(|vsock| vsock.cid),
            agent_port: agent_port.is_some(),
            panic_stops: settings.on_panic() != OnPanic::Continue,
            debug_exit: said.debug_exit.map(|IoPort(first)| first),
            debug_console: debug_console.is_some(),
            kicks_exit: settings.trace_kicks(),
            ..MachineSpec::new(KernelSource::File(kernel))
        };
        machine.plan()?;
        Ok(Config {
            name,
            by_default,
            machine,
            console,
            virtio_console,
            debug_console,
            vsock,
            agent_port,
            command: Vec::new(),
            settings,
        })
    }
}

/// What a machine for one command needs beside what was said: a vsock, the agent as first process, and this process's
/// streams for the command.
fn for_command(mut settings: Settings) -> Result<Settings, ConfigError> {
    let ends = [
        ("--console", &settings.console),
        ("--virtio-console", &settings.virtio_console),
        ("--debugcon", &settings.debugcon),
    ];
    if let Some((option, _)) = ends.into_iter().find(|(_, end)| **end == Some(BackEnd::Stdio)) {
        let why =
            "the command after -- has standard input and output; send this elsewhere: file=PATH, pty or unix=PATH";
        return Err(ConfigError::option(option, BackEnd::Stdio, why));
    }
    settings.console.get_or_insert(BackEnd::None);
    if settings.agent_port.is_none() {
        settings.vsock.get_or_insert_default();
    }
    settings.on_reboot.get_or_insert(OnReboot::End);
    settings.append = Some(format!("rdinit={} {}", agent::PATH, settings.append()).trim_end().to_owned());
    Ok(settings)
}

/// `name` in the current directory or the one above: users start in `axvm_core`, files lie in the root.
fn find(name: &str) -> Option<PathBuf> {
    [Path::new(".").join(name), Path::new("..").join(name)].into_iter().find(|path| path.exists())
}

/// What --acpi says, or its old name.
fn acpi(said: &Settings) -> Result<Acpi, ConfigError> {
    match (said.acpi, said.no_acpi) {
        (Some(acpi @ (Acpi::Full | Acpi::Cpus)), Some(true)) => {
            Err(ConfigError::option("--acpi", acpi, "--no-acpi says off; give one of them"))
        }
        (Some(Acpi::Off), Some(false)) => {
            Err(ConfigError::option("--acpi", Acpi::Off, "--no-acpi=off says full; give one of them"))
        }
        (None, Some(true)) => Ok(Acpi::Off),
        _ => Ok(said.acpi()),
    }
}

fn topology(cpus: Option<Cpus>) -> Result<Topology, ConfigError> {
    match cpus {
        Some(cpus) => cpus.topology().map_err(|why| ConfigError::option("--cpus", cpus.count, why)),
        None => Ok(Topology::flat(thread::available_parallelism().map_or(1, |count| count.get() as u32))),
    }
}

/// The host CPU of each vCPU; none without --pin.
fn host_cpus(pins: Option<Pins>, topology: &Topology) -> Result<Vec<usize>, ConfigError> {
    match pins {
        Some(pins) => {
            let each =
                pins.each(topology.count()).and_then(|cpus| online(&cpus).and_then(|()| allowed(&cpus)).map(|()| cpus));
            each.map_err(|why| ConfigError::option("--pin", pins, why))
        }
        None => Ok(Vec::new()),
    }
}

/// Whether this host has all of these CPUs now. Where it does not tell, the vCPUs' threads will.
fn online(cpus: &[usize]) -> Result<(), String> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let Ok(known) = text.trim().parse::<Pins>() else { return Ok(()) };
    match cpus.iter().find(|&&cpu| !known.contains(cpu)) {
        Some(cpu) => Err(format!("this host has no CPU {cpu} online; it has {known}")),
        None => Ok(()),
    }
}

/// Whether this process may run on all of them. Only trying tells: what `taskset` chose may be left, a cpuset may not.
fn allowed(cpus: &[usize]) -> Result<(), String> {
    let Ok(before) = sched_getaffinity(None) else { return Ok(()) };
    let is_refused = |cpu: &&usize| {
        let mut only = CpuSet::new();
        only.set(**cpu);
        sched_setaffinity(None, &only) == Err(Errno::INVAL)
    };
    let refused = cpus.iter().find(is_refused);
    // What was possible before is possible again.
    let _ = sched_setaffinity(None, &before);
    match refused {
        Some(cpu) => {
            let may: Vec<String> =
                (0..CpuSet::MAX_CPU).filter(|&cpu| before.is_set(cpu)).map(|cpu| cpu.to_string()).collect();
            Err(format!(
                "this process may not run on CPU {cpu}: a cpuset (of a container or a service) keeps it on CPUs {}; \
                 name those, or widen it",
                may.join(",")
            ))
        }
        None => Ok(()),
    }
}

fn memory(said: &Memory) -> Result<RamConfig, ConfigError> {
    let (size, pages) = (said.size(), said.hugepages());
    if let Some(pool) = pages.pool()
        && !size.0.is_multiple_of(pool.bytes())
    {
        let why = format!("not made of {pages} pages (--hugepages); give a multiple of {pages}, or take smaller pages");
        return Err(ConfigError::option("--memory", size, why));
    }
    Ok(RamConfig { size: size.0, pages, shared: said.shared(), prealloc: said.prealloc(), lock: said.lock() })
}

/// The terminal belongs to another console if that asked for it and the UART did not.
fn main_console(said: Option<BackEnd>, others: [&Option<BackEnd>; 2]) -> BackEnd {
    let is_taken = others.into_iter().flatten().any(|end| *end == BackEnd::Stdio);
    said.unwrap_or(if is_taken { BackEnd::None } else { BackEnd::Stdio })
}

/// No two of the machine's ends may be one.
fn check_ends(ends: [(&'static str, Option<&BackEnd>); 3], api: Option<&Path>) -> Result<(), ConfigError> {
    let ends: Vec<_> = ends.into_iter().filter_map(|(option, end)| Some((option, end?))).collect();
    for (number, &(option, end)) in ends.iter().enumerate() {
        let is_same = |other: &BackEnd| end == other || end.path().is_some_and(|path| Some(path) == other.path());
        if let Some((other, _)) = ends[..number].iter().find(|(_, other)| is_same(other))
            && !matches!(end, BackEnd::None | BackEnd::Pty)
        {
            let why = format!("{other} goes there too; send one elsewhere: file=PATH, pty, unix=PATH or none");
            return Err(ConfigError::option(option, end, why));
        }
        if let (Some(path), Some(api)) = (end.path(), api)
            && path == api
        {
            let why = "a console has this path too; give each a path of its own";
            return Err(ConfigError::option("--api-sock", api.display(), why));
        }
    }
    Ok(())
}

/// What --vsock says; or beside the control socket by which `axvm ps` finds the machine. Relative ones start where AxVM
/// does: other programs are told of it.
fn vsock_path(said: &Vsock) -> PathBuf {
    let usual = || Registry::of_user().default_vsock(std::process::id());
    let path = said.socket.clone().unwrap_or_else(usual);
    std::path::absolute(&path).unwrap_or(path)
}

/// The socket of the socket device is for nothing else.
fn check_vsock(
    socket: Option<&Path>,
    ends: [(&'static str, Option<&BackEnd>); 3],
    api: Option<&Path>,
) -> Result<(), ConfigError> {
    let Some(socket) = socket else { return Ok(()) };
    match at_path(socket, ends, api) {
        Some(option) => {
            let why = format!("{option} has this path too; give each a path of its own");
            Err(ConfigError::option("--vsock", format_args!("socket={}", socket.display()), why))
        }
        None => Ok(()),
    }
}

/// Nor is that of the agent's port.
fn check_agent_port(
    socket: Option<&Path>,
    vsock: Option<&Path>,
    ends: [(&'static str, Option<&BackEnd>); 3],
    api: Option<&Path>,
) -> Result<(), ConfigError> {
    let Some(socket) = socket else { return Ok(()) };
    match at_path(socket, ends, api).or((vsock == Some(socket)).then_some("--vsock")) {
        Some(option) => {
            let why = format!("{option} has this path too; give each a path of its own");
            Err(ConfigError::option("--agent-port", socket.display(), why))
        }
        None => Ok(()),
    }
}

/// The option that names this path, too.
fn at_path(socket: &Path, ends: [(&'static str, Option<&BackEnd>); 3], api: Option<&Path>) -> Option<&'static str> {
    let is_at = |path: &Path, socket: &Path| std::path::absolute(path).is_ok_and(|path| path == socket);
    let ends = ends.into_iter().filter_map(|(option, end)| Some((option, end?.path()?)));
    let (option, _) = ends.chain(api.map(|path| ("--api-sock", path))).find(|(_, path)| is_at(path, socket))?;
    Some(option)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Size;
    use axvm_memory::PageSize;

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
    fn the_old_name_of_acpi_says_the_same_and_contradicts_nothing() {
        let said = |acpi, no_acpi| acpi_of(&Settings { acpi, no_acpi, ..Settings::default() });
        fn acpi_of(said: &Settings) -> Result<Acpi, String> {
            acpi(said).map_err(|error| error.to_string())
        }
        assert_eq!((said(None, None), said(None, Some(false))), (Ok(Acpi::Full), Ok(Acpi::Full)));
        assert_eq!((said(None, Some(true)), said(Some(Acpi::Off), Some(true))), (Ok(Acpi::Off), Ok(Acpi::Off)));
        assert_eq!(
            (said(Some(Acpi::Cpus), None), said(Some(Acpi::Cpus), Some(false))),
            (Ok(Acpi::Cpus), Ok(Acpi::Cpus))
        );
        assert_eq!(
            said(Some(Acpi::Cpus), Some(true)).unwrap_err(),
            "--acpi cpus: --no-acpi says off; give one of them"
        );
        assert!(said(Some(Acpi::Off), Some(false)).is_err());
    }

    #[test]
    fn one_console_has_the_terminal() {
        use BackEnd::{None as Nowhere, Pty, Stdio};
        assert_eq!(main_console(None, [&None, &None]), Stdio);
        assert_eq!(main_console(None, [&Some(Stdio), &None]), Nowhere);
        assert_eq!(main_console(None, [&None, &Some(Stdio)]), Nowhere);
        assert_eq!(main_console(None, [&Some(Pty), &None]), Stdio);
        assert_eq!(main_console(Some(Stdio), [&Some(Stdio), &None]), Stdio);
        let check = |console, virtio, debug, api: Option<&str>| {
            let ends = [("--console", Some(console)), ("--virtio-console", virtio), ("--debugcon", debug)];
            check_ends(ends, api.map(Path::new)).map_err(|error| error.to_string())
        };
        assert!(check(&Stdio, Some(&Stdio), None, None).is_err());
        assert!(check(&Pty, Some(&Pty), Some(&Pty), None).is_ok());
        let socket = BackEnd::Unix("a.sock".into());
        assert!(check(&socket, None, None, Some("a.sock")).is_err());
        let error = check(&Stdio, Some(&socket), Some(&socket), None).unwrap_err();
        assert!(error.starts_with("--debugcon unix=a.sock: --virtio-console goes there too"), "{error}");
    }
}
