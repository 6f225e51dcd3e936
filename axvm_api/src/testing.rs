//! A machine that does not exist, for tests and fuzzing: it notes what it is asked.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use axvm_sandbox::Role;
use axvm_sync::lock;

use crate::control::{Attach, Control, ControlError};
use crate::types::{
    Added, Balloon, BalloonStatistics, BootSource, CacheType, Disk, Drive, DriveUpdate, DumpState, DumpStatus, Exits,
    Explanation, GuestSymbols, HugePages, Inspection, LikelyCause, LinkState, MachineConfig, MachineState, Memory,
    MemoryContents, NetworkInterface, NetworkStatus, NetworkUpdate, NewDrive, NewNetwork, RateLimiter, Removal,
    Resident, Status, TraceRequest, TraceState, TraceStatus, VcpuRegisters, VmConfig, Vsock, VsockStatus,
};

/// A machine that notes what it is asked.
#[derive(Debug, Default)]
pub struct FakeMachine {
    asked: Mutex<Vec<String>>,
}

impl FakeMachine {
    /// What it was asked since the last call of this.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.asked))
    }

    fn note(&self, what: impl Into<String>) -> Result<(), ControlError> {
        lock(&self.asked).push(what.into());
        Ok(())
    }
}

/// A card of this machine.
fn network() -> NetworkStatus {
    let interface = NetworkInterface {
        iface_id: "net0".into(),
        host_dev_name: "tap0".into(),
        guest_mac: Some("02:00:00:00:00:01".into()),
        mtu: None,
    };
    let (link, queue_pairs, forwards) = (LinkState::Up, 1, Vec::new());
    let (to_guest, from_guest) = Default::default();
    let (rx_rate, tx_rate) = Default::default();
    NetworkStatus { interface, link, queue_pairs, rx_rate, tx_rate, forwards, to_guest, from_guest }
}

impl Control for FakeMachine {
    fn status(&self) -> Result<Status, ControlError> {
        let resident = Resident { small: 4096, huge_2m: 2 << 20, huge_1g: 0 };
        Ok(Status {
            name: "fake".into(),
            pid: std::process::id(),
            state: MachineState::Running,
            uptime_s: 1.5,
            paused_s: None,
            cpus: 2,
            memory: Memory { size: 128 << 20, resident },
            disks: vec![Disk {
                name: "vda".into(),
                path: "/disk.img".into(),
                read_only: true,
                ephemeral: false,
                size: 1 << 20,
                rate: None,
                full: None,
            }],
            networks: vec![network()],
            parts: Vec::new(),
            vsock: Some(VsockStatus { guest_cid: 3, uds_path: "/v".into(), connections: 2 }),
            slots: None,
            agent_port: None,
            busy: Vec::new(),
            virtio_check: None,
            exits: Exits { per_vcpu: vec![1, 2], total: 3, per_second: 0.5 },
            console: "stdio".into(),
            version: "0.0.0".into(),
        })
    }

    fn registers(&self) -> Result<Vec<VcpuRegisters>, ControlError> {
        self.note("registers")?;
        let registers = [("rip".to_owned(), "0x1000".to_owned())].into();
        let (state, text, meanings) = ("halted".into(), "RIP 0x1000\n".into(), String::new());
        Ok(vec![VcpuRegisters { vcpu: 0, state, function: None, registers, text, meanings }])
    }

    fn memory(&self, space: &str, address: &str, len: &str) -> Result<MemoryContents, ControlError> {
        self.note(format!("memory {space} {address} {len}"))?;
        Ok(MemoryContents { address: 16, bytes: "f4eb".into(), end: None, walk: String::new(), bits: 64 })
    }

    fn symbols(&self) -> Result<GuestSymbols, ControlError> {
        self.note("symbols")?;
        Ok(GuestSymbols { slide: "0x0".into(), map: "0000000000001000 T start\n".into() })
    }

    fn dump(&self, descriptors: Vec<OwnedFd>) -> Result<(), ControlError> {
        self.note(format!("dump into {} descriptors", descriptors.len()))
    }

    fn debug(&self, descriptors: Vec<OwnedFd>) -> Result<(), ControlError> {
        self.note(format!("gdb at {} descriptors", descriptors.len()))
    }

    fn dump_status(&self) -> Result<DumpStatus, ControlError> {
        Ok(DumpStatus { state: DumpState::Writing, done: 1 << 20, total: 2 << 20, error: None })
    }

    fn explain(&self) -> Result<Explanation, ControlError> {
        let (lines, devices, console, last_exits) = Default::default();
        let causes = vec![LikelyCause { what: "No sign of a fault".into(), remedy: "look at the console".into() }];
        let vcpus = vec!["vCPU 0: halted".into()];
        Ok(Explanation { quiet_seconds: 3, causes, vcpus, last_exits, lines, devices, console, text: "What\n".into() })
    }

    fn inspect(&self, walk: Option<&str>) -> Result<Inspection, ControlError> {
        self.note(format!("inspect {}", walk.unwrap_or("no address")))?;
        let (version, name, sections, text) = (1, "web".into(), serde_json::json!([]), "Machine\n".into());
        Ok(Inspection { version, name, sections, text })
    }

    fn trace(&self, request: &TraceRequest, descriptors: Vec<OwnedFd>) -> Result<(), ControlError> {
        self.note(format!("trace {:?} of {} descriptors", request.action, descriptors.len()))
    }

    fn tracing(&self) -> Result<TraceStatus, ControlError> {
        Ok(TraceStatus { state: TraceState::Off, path_on_host: None, failed: None })
    }

    fn config(&self) -> Result<VmConfig, ControlError> {
        let drive = Drive {
            drive_id: "vda".into(),
            path_on_host: "/disk.img".into(),
            is_root_device: true,
            is_read_only: true,
            cache_type: CacheType::Writeback,
        };
        let (vcpu_count, mem_size_mib, huge_pages) = (2, 128, HugePages::Huge2M);
        Ok(VmConfig {
            boot_source: BootSource { kernel_image_path: "/bzImage".into(), ..BootSource::default() },
            drives: vec![drive],
            machine_config: MachineConfig { vcpu_count, mem_size_mib, huge_pages, ..MachineConfig::default() },
            network_interfaces: vec![network().interface],
            balloon: self.balloon().ok(),
            entropy: None,
            vsock: Some(Vsock { guest_cid: 3, uds_path: "v".into() }),
        })
    }

    fn pause(&self) -> Result<(), ControlError> {
        self.note("pause")
    }

    fn resume(&self) -> Result<(), ControlError> {
        self.note("resume")
    }

    fn power_button(&self) -> Result<(), ControlError> {
        self.note("power button")
    }

    fn nmi(&self) -> Result<(), ControlError> {
        self.note("NMI")
    }

    fn serial_break(&self) -> Result<(), ControlError> {
        self.note("BREAK")
    }

    fn reset(&self) -> Result<(), ControlError> {
        self.note("reset")
    }

    fn stop(&self) -> Result<(), ControlError> {
        self.note("stop")
    }

    fn balloon(&self) -> Result<Balloon, ControlError> {
        Ok(Balloon { amount_mib: 16, ..Balloon::default() })
    }

    fn set_balloon(&self, amount_mib: u32) -> Result<(), ControlError> {
        if amount_mib > 128 {
            return Err(format!("The balloon cannot take {amount_mib} MiB of 128; ask for less").into());
        }
        self.note(format!("balloon {amount_mib}"))
    }

    fn update_drive(&self, update: &DriveUpdate) -> Result<(), ControlError> {
        match update.rate_limiter {
            Some(rate) => self.note(format!("rate {:?}", rate.ops.map(|bucket| bucket.size))),
            None => self.note(format!("drive {}", update.drive_id)),
        }
    }

    fn add_drive(&self, drive: &NewDrive, descriptors: Vec<OwnedFd>) -> Result<Added, ControlError> {
        self.note(format!("add {} of {} descriptors", drive.drive_id, descriptors.len()))?;
        Ok(Added { name: drive.drive_id.clone(), place: "00:05.0".into() })
    }

    fn add_network(&self, network: &NewNetwork, descriptors: Vec<OwnedFd>) -> Result<Added, ControlError> {
        self.note(format!("add {} of {} descriptors", network.iface_id, descriptors.len()))?;
        Ok(Added { name: network.iface_id.clone(), place: "00:06.0".into() })
    }

    fn remove(&self, removal: &Removal) -> Result<(), ControlError> {
        self.note(format!("remove {}{}", removal.id, if removal.force { " by force" } else { "" }))
    }

    fn update_network(&self, update: &NetworkUpdate) -> Result<(), ControlError> {
        let size = |rate: Option<RateLimiter>| rate.and_then(|rate| rate.bandwidth).map(|bucket| bucket.size);
        match (size(update.rx_rate_limiter), size(update.tx_rate_limiter)) {
            (None, None) => self.note(format!("network {} {:?}", update.iface_id, update.link)),
            rates => self.note(format!("rates {rates:?}")),
        }
    }

    fn balloon_statistics(&self) -> Result<BalloonStatistics, ControlError> {
        Ok(BalloonStatistics { target_mib: 16, free_memory: Some(4096), ..BalloonStatistics::default() })
    }

    fn set_statistics_interval(&self, seconds: u32) -> Result<(), ControlError> {
        self.note(format!("statistics every {seconds}"))
    }

    fn attach_console(&self) -> Result<Attach, ControlError> {
        self.note("console")?;
        Ok(Box::new(|mut stream, typed| {
            // Says what was typed already, then echoes.
            _ = stream.write_all(&[b"typed: ", typed.as_slice(), b"\n"].concat());
            _ = axvm_sandbox::spawn(Role::Console, "echo", move || std::io::copy(&mut &stream, &mut &stream));
        }))
    }
}
