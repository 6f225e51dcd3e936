//! What a machine stands on, and what outlives its resets: steps 1 and 2 of the recipe.
//!
//! ```text
//!   Resources   /dev/kvm, RAM, disk images with their locks, kernel files, links of network cards
//!      |  build: steps 3 to 9  <---------------------------+
//!      '--> Machine --> runs until it stops --> a reset? --+ RAM cleared
//! ```
//!
//! Once they are open no other file is needed: a sandbox may close.

use std::sync::Arc;
use std::time::Instant;

use axvm_events::{Event, Events};
use axvm_kvm::{Kvm, Teardown};
use axvm_memory::GuestRam;
use axvm_virtio::agent_port::AgentPortHost;
use axvm_virtio::block::DiskImage;
use axvm_virtio::net::{NetConfig, NetHandle};
use axvm_virtio::vsock::VsockHost;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::image::Image;
use crate::slots::Additions;
use crate::{Machine, MachineError, MachineSpec};

/// The host's side of a machine, open and ready.
pub struct Resources {
    pub(crate) kvm: Arc<Kvm>,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) disks: Vec<Arc<DiskImage>>,
    pub(crate) kernel: Arc<Image>,
    pub(crate) initrd: Option<Arc<Image>>,
    pub(crate) nets: Vec<(NetConfig, NetHandle)>,
    pub(crate) vsock: Option<(u32, VsockHost)>,
    pub(crate) additions: Additions,
    pub(crate) agent_port: Option<AgentPortHost>,
    pub(crate) events: Events,
    teardown: Option<Teardown>,
}

impl Resources {
    /// Opens everything that `spec` names. What the host cannot give is an error here, before anything runs.
    pub fn open(spec: &MachineSpec, events: Events) -> Result<Resources, MachineError> {
        for message in spec.contradictions() {
            events.warn(|| Event::Warning { from: "--append", message });
        }
        if let Some(message) = spec.bus_chosen() {
            events.warn(|| Event::Warning { from: "--bus", message });
        }
        let mut steps = Steps::start(&events);
        let (kvm, count) = (Kvm::open(), spec.topology.count());
        let limit = kvm.as_ref().map_or(u32::MAX, |kvm| kvm.capabilities().max_vcpus);
        if count > limit {
            return Err(MachineError::Vcpus { count, limit });
        }
        // Before the error of opening: it may be for want of a descriptor.
        ensure_descriptors(spec)?;
        let kvm = Arc::new(kvm?);
        steps.done("kvm", || format!("up to {limit} vCPUs"));

        let ram = GuestRam::allocate(&spec.memory)?;
        steps.done("ram", || {
            let regions = ram.regions().map(|region| format!("{}..{:#x}", region.gpa, region.gpa.0 + region.len));
            format!("{} MiB at {}", ram.size() >> 20, regions.collect::<Vec<_>>().join(" and "))
        });

        let disks = spec.disks.iter().map(DiskImage::open).collect::<Result<Vec<_>, _>>()?;
        let on_pci = spec.plan()?.has_pci();
        for (number, disk) in disks.iter().enumerate() {
            if let Err(error) = disk.open_engines(spec.disk_queues(number, on_pci)) {
                let path = disk.path().display();
                let message = format!(
                    "no io_uring for disk image {path}: {error}; its requests wait for one another (engine=sync). \
                     sysctl kernel.io_uring_disabled says whether this host allows it, and a container may not"
                );
                events.warn(|| Event::Warning { from: "--disk", message });
            }
        }
        steps.done("disks", || format!("{} opened and locked", disks.len()));

        let kernel = Arc::new(Image::kernel(&spec.kernel)?);
        let initrd = Image::initrd(spec.initrd.as_deref(), spec.initrd_after.as_ref())?.map(Arc::new);
        let teardown = Teardown::open();
        Ok(Resources {
            kernel,
            initrd,
            nets: Vec::new(),
            vsock: None,
            agent_port: None,
            additions: Additions::default(),
            kvm,
            ram,
            disks,
            events,
            teardown,
        })
    }

    /// Plugs the cables in: a link for each network card of `spec`, in their order. They stay over resets.
    pub fn plug(&mut self, spec: &MachineSpec, links: impl IntoIterator<Item = NetHandle>) {
        self.nets = spec.nets.iter().copied().zip(links).collect();
    }

    /// The links that are plugged in, net0's first.
    pub fn nets(&self) -> &[(NetConfig, NetHandle)] {
        &self.nets
    }

    /// Gives the socket device of `spec` its host's end, which stays over resets.
    pub fn connect(&mut self, spec: &MachineSpec, host: VsockHost) {
        self.vsock = spec.vsock.map(|cid| (cid, host));
    }

    /// Gives the port of the guest's agent its host's end, which stays over resets.
    pub fn connect_agent(&mut self, host: AgentPortHost) {
        self.agent_port = Some(host);
    }

    /// The guest's address at its socket device, and the host's end of that.
    pub fn vsock(&self) -> Option<&(u32, VsockHost)> {
        self.vsock.as_ref()
    }

    /// What was added while the machine ran. It stays over resets, until it is removed.
    pub fn additions(&self) -> &Additions {
        &self.additions
    }

    /// The kernel and the initrd, to look into.
    pub fn images(&self) -> (Arc<Image>, Option<Arc<Image>>) {
        (Arc::clone(&self.kernel), self.initrd.clone())
    }

    /// The host's KVM.
    pub fn kvm(&self) -> &Arc<Kvm> {
        &self.kvm
    }

    /// Guest RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The disk images, /dev/vda first.
    pub fn disks(&self) -> &[Arc<DiskImage>] {
        &self.disks
    }

    /// Where events go.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The process is about to end, and `machine` was its last: what only the kernel has of it ends later.
    pub fn leave(&self, machine: &Machine) {
        self.teardown.iter().for_each(|teardown| teardown.hold(machine.vm()));
    }

    /// Zeroes what the last guest left, before the next one starts.
    pub fn clear(&self) -> Result<(), MachineError> {
        Ok(self.ram.clear()?)
    }
}

/// Makes sure that the machine may open as many files as it needs: a device that starts must not fail for want of one.
fn ensure_descriptors(spec: &MachineSpec) -> Result<(), MachineError> {
    // Two for a vCPU, up to seven for a disk or a network card and five for each more of its queues; the rest is for
    // the other devices, consoles and clients.
    let on_pci = spec.plan()?.has_pci();
    let cards = spec.disks.len() + spec.nets.len();
    let queues: u64 = (0..spec.disks.len()).map(|disk| u64::from(spec.disk_queues(disk, on_pci))).sum();
    let vsock = spec.vsock.map_or(0, |_| VsockHost::DESCRIPTORS);
    let needed = 100 + 2 * u64::from(spec.topology.count()) + 7 * cards as u64 + 5 * queues + vsock;
    // Devices that come while it runs: those that find no room are refused then.
    let wanted = needed + if on_pci { 31 * (6 + 4 * 4) } else { 0 };
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    if let Some(limit) = limit.maximum.filter(|&maximum| maximum < needed) {
        return Err(MachineError::OpenFiles { needed, limit });
    }
    let current = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..limit })
        .map_err(|error| MachineError::RaiseOpenFiles { needed, source: error.into() })
}

/// Reports each finished step, with its time, as an event.
pub(crate) struct Steps<'a> {
    events: &'a Events,
    since: Instant,
}

impl<'a> Steps<'a> {
    pub(crate) fn start(events: &'a Events) -> Steps<'a> {
        Steps { events, since: Instant::now() }
    }

    pub(crate) fn done(&mut self, what: &'static str, detail: impl FnOnce() -> String) {
        let took = self.since.elapsed();
        self.events.emit(|| Event::BootStep { what, detail: detail(), took });
        self.since = Instant::now();
    }
}
