//! A machine with our own guest, and what the guest says.
#![allow(dead_code, reason = "each test program uses a part")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::{Duration, Instant};

use axvm_arch::cpuid::Topology;
use axvm_boot::bus::Bus;
use axvm_console::Port;
use axvm_devices::StopReason;
use axvm_events::Events;
use axvm_machine::{KernelSource, Machine, MachineSpec, Ports, Resources, WaitOutcome};
use axvm_virtio::block::DiskConfig;
use axvm_virtio::net::{Link, LinkKind, NetConfig, NetHandle};
use axvm_virtio::vsock::{RemoteConnector, VsockHost};

/// Longer than any guest here needs, on a busy host too.
const LIMIT: Duration = Duration::from_secs(60);

/// Whether there is a KVM; where there is none it says so.
pub fn has_kvm() -> bool {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &opened {
        println!("skipped: /dev/kvm cannot be opened: {error}");
    }
    opened.is_ok()
}

/// A machine to be, its open files, and the outer ends of its consoles.
pub struct Lab {
    pub spec: MachineSpec,
    pub resources: Resources,
    pub ports: Ports,
}

impl Lab {
    /// A machine with every device, for the guest that these words make of ours.
    pub fn new(cpus: u32, words: &str) -> Lab {
        Lab::with_disk(cpus, words, |_| {})
    }

    /// The same, whose disk is another one.
    pub fn with_disk(cpus: u32, words: &str, change: impl FnOnce(&mut DiskConfig)) -> Lab {
        Lab::with(cpus, words, |spec| change(&mut spec.disks[0]))
    }

    /// The same, with its devices on PCI.
    pub fn on_pci(cpus: u32, words: &str) -> Lab {
        Lab::with(cpus, words, |spec| spec.bus = Bus::Pci)
    }

    fn with(cpus: u32, words: &str, change: impl FnOnce(&mut MachineSpec)) -> Lab {
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(1 << 20).unwrap();
        let mut spec = MachineSpec::new(KernelSource::Embedded(axvm_guest::selftest()));
        spec.topology = Topology::flat(cpus);
        spec.memory.size = 64 << 20;
        spec.append = words.into();
        spec.disks = vec![DiskConfig { serial: Some("SELFTEST".into()), ..DiskConfig::new(disk.path()) }];
        spec.virtio_console = true;
        spec.vsock = Some(3);
        (spec.debug_exit, spec.debug_console) = (Some(0xf4), true);
        change(&mut spec);
        spec.nets = vec![NetConfig { mac: [2, 0, 0, 0, 0, 1], mtu: Some(1500) }];
        let mut resources = Resources::open(&spec, Events::default()).unwrap();
        resources.plug(&spec, [looped()]);
        resources.connect(&spec, refusing_host());
        let ports = fresh_ports();
        // Open it stays; nothing is left to remove, which a sandbox would forbid.
        drop(disk);
        Lab { spec, resources, ports }
    }

    pub fn build(&self) -> Machine {
        self.resources.build(&self.spec, &self.ports).unwrap()
    }

    /// What the guest said since the last call.
    pub fn said(&self) -> String {
        let mut bytes = Vec::new();
        self.ports.com1.take(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the guest has said `words`; all that it said since the last call.
    pub fn wait_until_said(&self, machine: &Machine, words: &str) -> String {
        let (mut all, deadline) = (String::new(), Instant::now() + LIMIT);
        while !all.contains(words) {
            assert!(Instant::now() < deadline, "the guest did not say {words:?}: {all}");
            let left = Some(Duration::from_millis(100));
            machine.wait(&[self.ports.com1.output_ready().as_fd()], left).unwrap();
            all += &self.said();
        }
        all
    }
}

/// A cable that is plugged into itself; with `loop` among its words the guest wants its frames back.
fn looped() -> NetHandle {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("cable");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.connect(&path).unwrap();
    NetHandle::new(Link::new(LinkKind::Datagram, socket.into()).unwrap()).unwrap()
}

/// A host without clients, and without programs that a guest could connect to.
fn refusing_host() -> VsockHost {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("v")).unwrap();
    VsockHost::new(listener, RemoteConnector::pair().unwrap().0).unwrap()
}

/// Ports that nothing has come through yet.
pub fn fresh_ports() -> Ports {
    Ports { com1: Port::new().unwrap(), hvc0: Some(Port::new().unwrap()), debug: Some(Port::new().unwrap()) }
}

/// Serves `machine` until it has a reason to stop, and stops it.
pub fn end(machine: &Machine) -> StopReason {
    assert_eq!(machine.wait(&[], Some(LIMIT)).unwrap(), WaitOutcome::Stopped, "the guest does not end");
    let (reason, stopped) = machine.stop(soon());
    stopped.unwrap();
    reason
}

/// A deadline that no good machine misses.
pub fn soon() -> Instant {
    Instant::now() + LIMIT
}

/// Asserts that every proof of the self-test holds.
pub fn assert_proved(said: &str) {
    assert!(said.lines().any(|line| line.trim_end() == "AXVM end ok"), "{said}");
    assert!(!said.contains("FAILED"), "{said}");
}
