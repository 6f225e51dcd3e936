//! The recipe: from a [`Config`] to a machine, in nine steps.
//!
//! ```text
//!   Host   what outlives a reset: /dev/kvm, RAM, disk images, consoles
//!   build  steps 3 to 9: a new VM in the same host  <--+
//!   run    the main thread serves until the stop       | reset, with --on-reboot restart
//!          switch has a reason, then stops it all -----+--> exit code
//! ```
//!
//! A reset is a new machine on the same RAM and disks: nothing of the old one can leak into it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use axvm_arch::registers::CpuState;
use axvm_boot::{acpi, command_line, cpu, linux};
use axvm_devices::StopSwitch;
use axvm_events::{Event, Events};
use axvm_kvm::{Kvm, KvmVcpu, VcpuSetup, Vm};
use axvm_memory::GuestRam;
use axvm_virtio::balloon::{Balloon, BalloonConfig};
use axvm_virtio::block::{Block, Cache, DiskConfig, DiskImage};
use axvm_virtio::rng::Rng;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::board::Board;
use crate::cli::{CpuArg, EntryArg};
use crate::config::Config;
use crate::consoles::Consoles;
use crate::gate::{Gate, Order};
use crate::image::Image;
use crate::machine::Parts;
use crate::vcpu::Shared;

/// A balloon gives back when the guest needs it, and hears what the guest does not use.
pub const BALLOON: BalloonConfig = BalloonConfig { deflate_on_oom: true, free_page_reporting: true };

/// What a machine stands on, and what outlives its resets.
pub struct Host {
    kernel: Image,
    initrd: Option<Image>,
    kvm: Kvm,
    ram: Arc<GuestRam>,
    disks: Vec<Arc<DiskImage>>,
    events: Events,
}

impl Host {
    /// Steps 1 and 2: the kernel's half, RAM, and the disk images with their locks. Afterwards all files are open.
    /// A kernel that is `embedded` in this program stands for that of the settings.
    pub fn open(config: &Config, embedded: Option<&'static [u8]>, events: Events) -> Result<Host> {
        let mut steps = Steps::start(&events);
        let (kvm, count) = (Kvm::open(), config.topology.count());
        let limit = kvm.as_ref().map_or(u32::MAX, |kvm| kvm.capabilities().max_vcpus);
        ensure!(count <= limit, "--cpus {count}: KVM on this host runs at most {limit} vCPUs in one machine");
        // Before the error of opening: it may be for want of a descriptor.
        ensure_descriptors(config)?;
        let kvm = kvm?;
        steps.done("kvm", || format!("up to {limit} vCPUs"));

        let ram = GuestRam::allocate(&config.memory)?;
        steps.done("ram", || {
            let regions = ram.regions().map(|r| format!("{}..{:#x}", r.gpa, r.gpa.0 + r.len));
            format!("{} MiB at {}", ram.size() >> 20, regions.collect::<Vec<_>>().join(" and "))
        });

        let open = |disk: &crate::config::DiskArg| {
            Ok(DiskImage::open(&DiskConfig {
                read_only: disk.read_only,
                serial: disk.serial.clone(),
                cache: if disk.write_through { Cache::WriteThrough } else { Cache::WriteBack },
                ..DiskConfig::new(&disk.path)
            })?)
        };
        let disks = config.disks.iter().map(open).collect::<Result<Vec<_>>>()?;
        steps.done("disks", || format!("{} opened and locked", disks.len()));

        let kernel = match embedded {
            Some(bytes) => Image::Embedded(bytes),
            None => Image::open(&config.kernel, "--kernel")?,
        };
        let initrd = config.initrd.as_deref().map(|path| Image::open(path, "--initrd")).transpose()?;
        Ok(Host { kernel, initrd, kvm, ram, disks, events })
    }

    /// Guest RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Where its events go.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Zeroes what the last guest left, before the next one starts.
    pub fn clear(&self) -> Result<()> {
        Ok(self.ram.clear()?)
    }

    /// Steps 3 to 9: a machine, ready to run.
    pub fn build(&self, config: &Config, consoles: &Consoles) -> Result<Parts> {
        let Host { kvm, ram, disks, events, .. } = self;
        let mut steps = Steps::start(events);
        let stop = Arc::new(StopSwitch::new().context("Cannot make the stop switch")?);

        // 3  The VM: memory slots, interrupt controllers, PIT.
        let vm = kvm.create_vm(ram)?;
        let apic_ids: Vec<u32> = (0..config.topology.count()).map(|n| config.topology.apic_id(n)).collect();
        if apic_ids.iter().any(|&id| id > 254) {
            vm.enable_x2apic_api()?;
        }
        steps.done("vm", || "memory slots, PIC, IOAPIC, local APICs, PIT".into());

        // 4, 5  The workbench and the PC's own chips.
        let mut board = Board::new(&vm, ram, &stop, events);
        let chips = board.plug_platform(consoles.com1().clone())?;

        // 6  Disks first: their lines and names are a promise.
        for (n, image) in disks.iter().enumerate() {
            board.plug_virtio(&disk_name(n), Box::new(Block::new(Arc::clone(image))))?;
        }

        // Randomness for a guest that has none yet; and memory that it does not need goes back to the host,
        // unless the user asked to keep all of it.
        board.plug_virtio("rng", Box::new(Rng::default()))?;
        let mut balloon = None;
        if config.memory_can_return() {
            let device = Balloon::new(BALLOON);
            balloon = Some(device.target());
            board.plug_virtio("balloon", Box::new(device))?;
        }

        if let Some(port) = consoles.hvc0() {
            board.plug_virtio("hvc0", Box::new(axvm_virtio::console::Console::new(port.clone())))?;
        }

        // 7  Frozen.
        let built = board.finish();
        steps.done("board", || {
            let slots = built.ports.slots().chain(built.mmio.slots());
            slots.map(|(base, _, name)| format!("{name} at {base:#x}")).collect::<Vec<_>>().join(", ")
        });

        // 8  Kernel, zero page, ACPI: the guest's memory at power-on.
        let start = self.place(config, &apic_ids, &built.windows)?;
        steps.done("boot", || describe(&start));
        steps.done("command line", || start.command_line.clone());

        // 9  vCPUs.
        let vcpus = self.create_vcpus(config, &vm, &apic_ids, &start.state)?;
        steps.done("vcpus", || format!("{} created, APIC ids up to {}", vcpus.len(), apic_ids[apic_ids.len() - 1]));

        let shared = Shared {
            ports: built.ports,
            mmio: built.mmio,
            stop,
            events: events.clone(),
            gate: Arc::new(Gate::new(Order::Run)),
        };
        Ok(Parts {
            chips,
            shared: Arc::new(shared),
            transports: built.transports,
            balloon,
            command_line: start.command_line,
            vcpus,
            vm,
        })
    }

    fn place(&self, config: &Config, apic_ids: &[u32], windows: &[acpi::VirtioWindow]) -> Result<linux::LinuxStart> {
        let rsdp = if config.acpi {
            let platform = acpi::Platform { apic_ids: apic_ids.to_vec(), virtio: windows.to_vec() };
            Some(acpi::build(&platform)?.place(&self.ram)?)
        } else {
            None
        };
        let defaults = command_line::DefaultLine {
            has_disk: !config.disks.is_empty(),
            root_read_only: config.disks.first().is_some_and(|disk| disk.read_only),
            virtio_console: config.console_is_virtio(),
            announce: if config.acpi { Vec::new() } else { windows.to_vec() },
        };
        let kernel = self.kernel.read()?;
        let initrd = self.initrd.as_ref().map(Image::read).transpose()?.map(Cow::into_owned);
        let linux = linux::LinuxConfig {
            command_line: command_line::build(&command_line::default_command_line(&defaults), &config.append),
            initrd,
            entry: match config.entry {
                Some(EntryArg::Bits32) => linux::Entry::Bits32,
                Some(EntryArg::Bits64) => linux::Entry::Bits64,
                Some(EntryArg::Pvh) => linux::Entry::Pvh,
                None if kernel.starts_with(b"\x7fELF") => linux::Entry::Pvh,
                None => linux::Entry::Bits32,
            },
        };
        linux::prepare(&self.ram, &kernel, &linux, rsdp).with_context(|| format!("Cannot boot {}", self.kernel.name()))
    }

    fn create_vcpus(&self, config: &Config, vm: &Vm, apic_ids: &[u32], start: &CpuState) -> Result<Vec<KvmVcpu>> {
        let capabilities = self.kvm.capabilities();
        let mut supported = self.kvm.supported_cpuid()?;
        // KVM leaves the processor's name empty; the guest sees the host's.
        if let Some(name) = crate::host::processor_name() {
            cpu::put_name(&mut supported, &name);
        }
        let msrs = cpu::msrs(&self.kvm.supported_msrs()?);
        let cpu_config = cpu::CpuConfig {
            template: match config.cpu {
                CpuArg::Host => cpu::CpuTemplate::Host,
                CpuArg::Ivybridge => cpu::CpuTemplate::IvyBridge,
            },
            tsc_deadline: capabilities.tsc_deadline,
            tsc_khz: vm.tsc_khz(),
        };
        let missing = cpu::missing_features(&supported, cpu_config.template);
        if !missing.is_empty() {
            self.events.warn(|| Event::Warning {
                from: "--cpu ivybridge",
                message: format!("this host lacks {}; the guest does without", missing.join(", ")),
            });
        }
        let create = |(n, &id): (usize, &u32)| {
            let cpuid = cpu::leaves(&supported, &config.topology, n as u32, &cpu_config);
            let bsp = n == 0;
            let setup = VcpuSetup { cpuid: &cpuid, msrs: &msrs, start: bsp.then_some(start), is_bsp: bsp };
            Ok(vm.create_vcpu(id, &setup)?)
        };
        apic_ids.iter().enumerate().map(create).collect()
    }
}

/// Makes sure that the machine may open as many files as it needs: a device that starts must not fail for want of one.
fn ensure_descriptors(config: &Config) -> Result<()> {
    // Two for a vCPU, up to six for a disk; the rest is for the other devices, consoles and clients.
    let needed = 100 + 2 * u64::from(config.topology.count()) + 6 * config.disks.len() as u64;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    ensure!(
        limit.maximum.is_none_or(|maximum| maximum >= needed),
        "This machine needs up to {needed} open files, and the host's limit is {}; raise it: ulimit -n {needed}",
        limit.maximum.unwrap_or_default()
    );
    setrlimit(Resource::Nofile, Rlimit { current: Some(needed), ..limit }).with_context(|| {
        format!("Cannot raise the limit of open files to {needed}; raise it before: ulimit -n {needed}")
    })
}

/// The name that Linux gives to disk number `n`.
pub fn disk_name(n: usize) -> String {
    format!("vd{}", char::from(b'a' + n as u8))
}

/// What was put where, for `-v`.
fn describe(start: &linux::LinuxStart) -> String {
    let initrd = start.initrd_at.map(|span| format!(", initrd at {span}")).unwrap_or_default();
    format!("{} at {}, entry {} at {:#x}{initrd}", start.kernel, start.kernel_at, start.entry, start.state.regs.rip)
}

/// Tells each finished step, with its time, to whoever listens.
struct Steps<'a> {
    events: &'a Events,
    since: Instant,
}

impl<'a> Steps<'a> {
    fn start(events: &'a Events) -> Steps<'a> {
        Steps { events, since: Instant::now() }
    }

    fn done(&mut self, what: &'static str, detail: impl FnOnce() -> String) {
        let took = self.since.elapsed();
        self.events.emit(|| Event::BootStep { what, detail: detail(), took });
        self.since = Instant::now();
    }
}
