//! What defines a machine, as a value: nothing is opened, nothing is placed yet.
//!
//! ```text
//!   settings, API, another program --> MachineSpec --plan()--> Plan
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use axvm_arch::cpuid::Topology;
use axvm_boot::acpi::Acpi;
use axvm_boot::bus::Bus;
use axvm_boot::contradiction::contradictions;
use axvm_boot::cpu::CpuModel;
use axvm_boot::linux::Entry;
use axvm_boot::plan::{Plan, PlanError, VirtioKind};
use axvm_memory::{PageSize, RamConfig};
use axvm_virtio::balloon::BalloonConfig;
use axvm_virtio::block::DiskConfig;
use axvm_virtio::limiter::RateLimit;
use axvm_virtio::net::NetConfig;

/// A balloon gives back when the guest needs it, and is told what the guest does not use.
pub const BALLOON: BalloonConfig = BalloonConfig { deflate_on_oom: true, free_page_reporting: true };

/// Everything that defines a machine. Files are named, not yet opened.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// The guest's kernel.
    pub kernel: KernelSource,
    /// The initial RAM disk's file.
    pub initrd: Option<PathBuf>,
    /// An archive that is unpacked after it, and over it.
    pub initrd_after: Option<Arc<[u8]>>,
    /// Added to the kernel command line after the defaults.
    pub append: String,
    /// Where the first CPU starts; `None`: where the kernel's format says.
    pub entry: Option<Entry>,
    /// vCPUs and their grouping.
    pub topology: Topology,
    /// The CPU model.
    pub cpu: CpuModel,
    /// Host CPU of each vCPU; empty: the host's scheduler decides.
    pub pins: Vec<usize>,
    /// Guest RAM.
    pub memory: RamConfig,
    /// What the ACPI tables tell.
    pub acpi: Acpi,
    /// Which bus the virtio devices are on.
    pub bus: Bus,
    /// What proves that the kernel has a driver for PCI and none for MMIO, if that is known: see
    /// [`without_mmio`](crate::without_mmio).
    pub kernel_lacks_mmio: Option<PathBuf>,
    /// Disks, /dev/vda first.
    pub disks: Vec<DiskConfig>,
    /// What the entropy device gives in a time.
    pub entropy_rate: RateLimit,
    /// Whether there is a virtio console beside the serial port.
    pub virtio_console: bool,
    /// Whether the kernel's own console is that one.
    pub kernel_uses_virtio_console: bool,
    /// Network cards, net0 first. Their links are given to [`Resources::plug`](crate::Resources::plug).
    pub nets: Vec<NetConfig>,
    /// The guest's address (CID) at its socket device, if it has one. The host's end of that is given to
    /// [`Resources::connect`](crate::Resources::connect).
    pub vsock: Option<u32>,
    /// Whether there is a port for the guest's agent. Its end on the host is given to
    /// [`Resources::connect_agent`](crate::Resources::connect_agent).
    pub agent_port: bool,
    /// Whether a panic of the guest's kernel stops the machine; otherwise it is told, and the guest goes on.
    pub panic_stops: bool,
    /// The first port of debug exit, if there is one.
    pub debug_exit: Option<u16>,
    /// Whether there is a debug console.
    pub debug_console: bool,
    /// Whether its vCPUs wait before the first instruction, for a debugger, until a
    /// [`Machine::resume`](crate::Machine::resume).
    pub stopped: bool,
    /// Whether a driver's kick is an exit like any other, for one who wants to see it.
    pub kicks_exit: bool,
}

/// Where a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelSource {
    /// A file: bzImage or ELF vmlinux.
    File(PathBuf),
    /// Part of this program.
    Embedded(&'static [u8]),
}

impl MachineSpec {
    /// A machine for `kernel` with one vCPU, 512 MiB of RAM, and no disk.
    pub fn new(kernel: KernelSource) -> MachineSpec {
        MachineSpec {
            kernel,
            initrd: None,
            initrd_after: None,
            append: String::new(),
            entry: None,
            topology: Topology::flat(1),
            cpu: CpuModel::default(),
            pins: Vec::new(),
            memory: RamConfig::new(512 << 20),
            acpi: Acpi::Full,
            bus: Bus::Auto,
            kernel_lacks_mmio: None,
            disks: Vec::new(),
            entropy_rate: RateLimit::default(),
            virtio_console: false,
            kernel_uses_virtio_console: false,
            nets: Vec::new(),
            vsock: None,
            agent_port: false,
            panic_stops: true,
            debug_exit: None,
            debug_console: false,
            stopped: false,
            kicks_exit: false,
        }
    }

    /// Who sits where in this machine; an error if there is no place for all.
    pub fn plan(&self) -> Result<Plan, PlanError> {
        // Disks first: their lines and names are a promise.
        let mut virtio: Vec<_> = (0..self.disks.len()).map(VirtioKind::Block).collect();
        // Randomness for a guest that has none yet.
        virtio.push(VirtioKind::Entropy);
        if self.memory_can_return() {
            virtio.push(VirtioKind::Balloon);
        }
        if self.virtio_console {
            virtio.push(VirtioKind::Console);
        }
        virtio.extend((0..self.nets.len()).map(VirtioKind::Net));
        if self.vsock.is_some() {
            virtio.push(VirtioKind::Vsock);
        }
        if self.agent_port {
            virtio.push(VirtioKind::AgentPort);
        }
        let on_pci = || Plan::on_pci(&virtio, self.acpi, self.memory.size);
        let plan = match self.bus {
            Bus::Mmio => Plan::new(&virtio, self.acpi),
            Bus::Pci => on_pci(),
            Bus::Auto => match Plan::new(&virtio, self.acpi) {
                // What is said of the lines helps more than what is said of the tables.
                Err(error @ PlanError::Lines { .. }) => on_pci().map_err(|_| error),
                mmio if self.kernel_lacks_mmio.is_some() => on_pci().or(mmio),
                mmio => mmio,
            },
        };
        plan?.with_debug(self.debug_exit, self.debug_console)
    }

    /// Why the devices are on PCI, if that was not asked for.
    pub fn bus_chosen(&self) -> Option<String> {
        let plan = self.plan().ok()?;
        let why = || match &self.kernel_lacks_mmio {
            Some(config) => format!("{} says that the kernel has no virtio-mmio, so devices", config.display()),
            None => format!("{} devices are more than there are interrupt lines, so they", plan.virtio().count()),
        };
        (self.bus == Bus::Auto && plan.has_pci()).then(|| format!("{} are on PCI; --bus pci says the same", why()))
    }

    /// What in the kernel command line contradicts this machine: one sentence for each such word.
    pub fn contradictions(&self) -> Vec<String> {
        let plan = self.plan();
        plan.map_or_else(|_| Vec::new(), |plan| contradictions(&plan, self.topology.count(), &self.append))
    }

    /// How many queues disk `number` has.
    pub(crate) fn disk_queues(&self, number: usize, on_pci: bool) -> u16 {
        let most = if on_pci { self.topology.count().min(4) as u16 } else { 1 };
        self.disks.get(number).and_then(|disk| disk.queues).unwrap_or(most)
    }

    /// Whether pages that the guest does not use may go back to the host: not if they were taken for good.
    pub fn memory_can_return(&self) -> bool {
        let RamConfig { pages, prealloc, lock, .. } = self.memory;
        matches!(pages, PageSize::Thp | PageSize::Small) && !prealloc && !lock
    }

    /// The local APIC id of each vCPU, ascending.
    pub fn apic_ids(&self) -> Vec<u32> {
        (0..self.topology.count()).map(|vcpu| self.topology.apic_id(vcpu)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_go_to_pci_when_they_must_or_are_told_to() {
        let mut spec = MachineSpec::new(KernelSource::Embedded(&[]));
        let has_pci = |spec: &MachineSpec| spec.plan().unwrap().has_pci();
        spec.disks = vec![DiskConfig::new("disk.img"); 12];
        assert!(!has_pci(&spec) && spec.bus_chosen().is_none());
        spec.disks = vec![DiskConfig::new("disk.img"); 64];
        assert!(has_pci(&spec) && spec.bus_chosen().unwrap().starts_with("66 devices are more than"));
        spec.acpi = Acpi::Cpus;
        assert!(matches!(spec.plan(), Err(PlanError::Lines { .. })), "PCI is not the way out there");
        (spec.bus, spec.acpi) = (Bus::Pci, Acpi::Off);
        assert!(has_pci(&spec) && spec.bus_chosen().is_none());
    }

    #[test]
    fn a_kernel_that_cannot_have_mmio_gets_pci_unless_it_is_told_otherwise() {
        let mut spec = MachineSpec::new(KernelSource::Embedded(&[]));
        spec.kernel_lacks_mmio = Some("/boot/config-9".into());
        assert!(spec.plan().unwrap().has_pci());
        let why = "/boot/config-9 says that the kernel has no virtio-mmio, so devices are on PCI";
        assert!(spec.bus_chosen().unwrap().starts_with(why));
        spec.bus = Bus::Mmio;
        assert!(!spec.plan().unwrap().has_pci() && spec.bus_chosen().is_none());
        // Where PCI cannot be, it is as it was before.
        (spec.bus, spec.acpi) = (Bus::Auto, Acpi::Cpus);
        assert!(!spec.plan().unwrap().has_pci() && spec.bus_chosen().is_none());
    }

    #[test]
    fn a_machine_without_a_balloon_has_its_line_for_a_disk() {
        let mut spec = MachineSpec::new(KernelSource::Embedded(&[]));
        spec.disks = vec![DiskConfig::new("disk.img"); 13];
        spec.bus = Bus::Mmio;
        let error = spec.plan().unwrap_err().to_string();
        assert!(error.contains("vdm, rng, balloon; this machine has 14"), "{error}");
        spec.memory.prealloc = true;
        let plan = spec.plan().unwrap();
        assert_eq!(plan.virtio().map(|(_, part)| &*part.name).last(), Some("rng"));
    }
}
