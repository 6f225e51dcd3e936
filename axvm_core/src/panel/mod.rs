//! The machine as the control socket sees it, across resets.
//!
//! ```text
//!   thread api --Control--> Panel --> the machine of the moment: power switch, gate, balloon, chips
//! ```

mod examine;
mod trace;
mod words;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axvm_api::types::{self, MachineState};
use axvm_api::{Attach, Control, ControlError};
use axvm_boot::plan::{VirtioKind, disk_name};
use axvm_console::{Attacher, Port};
use axvm_devices::StopReason;
use axvm_machine::{Addition, Additions, BALLOON, Card, Machine, PauseError, Resources, SlotError};
use axvm_memory::GuestRam;
use axvm_virtio::balloon::Target;
use axvm_virtio::block::DiskImage;
use axvm_virtio::limiter::RateLimit;
use axvm_virtio::net::{Link, LinkKind, NetConfig, NetHandle, Offloads};
use axvm_virtio::vsock::VsockHost;

use crate::config::Config;
use crate::consoles::Consoles;
use crate::current::Current;
use crate::debug::Debugger;
use crate::explain::Explainer;
use crate::network::{self, Cards};
use crate::rates;
use crate::trace::Recorder;
use crate::virtio_check::Check;

pub use self::trace::NO_RECORDER;

/// How far back "lately" looks at least, for the rate of exits.
const LATELY: Duration = Duration::from_millis(100);

/// How long a pause or a resume waits for the host before it gives the client an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a request waits for the next start of the guest.
const NEXT_START: Duration = Duration::from_secs(1);

const BETWEEN: &str = "The machine is between two starts; try again in a moment";

/// What the control socket works on.
pub struct Panel {
    facts: Facts,
    ram: Arc<GuestRam>,
    images: Vec<Arc<DiskImage>>,
    additions: Additions,
    vcpus: u16,
    cards: Cards,
    vsock: Option<VsockHost>,
    attacher: Attacher,
    com1: Port,
    started: Instant,
    current: Arc<Current>,
    counted: Mutex<Counted>,
    explainer: Arc<Explainer>,
    dump: Arc<Mutex<types::DumpStatus>>,
    debugger: Arc<Debugger>,
    check: Check,
    recorder: Arc<Recorder>,
}

/// What is around the machines of this process.
pub struct Around {
    /// The machine of the moment.
    pub current: Arc<Current>,
    /// Who explains it.
    pub explainer: Arc<Explainer>,
    /// Who records it.
    pub recorder: Arc<Recorder>,
    /// Who debugs it.
    pub debugger: Arc<Debugger>,
}

/// A look at the exits.
struct Counted {
    at: Instant,
    total: u64,
    per_second: f64,
}

/// What does not change while AxVM runs.
struct Facts {
    name: String,
    console: String,
    config: types::VmConfig,
    disks: Vec<types::Disk>,
    agent_port: Option<PathBuf>,
}

impl Panel {
    /// A panel for the machines of this process.
    pub fn new(config: &Config, resources: &Resources, consoles: &Consoles, around: Around) -> Panel {
        let Around { current, explainer, recorder, debugger } = around;
        let disks = config.machine.disks.iter().enumerate().map(|(n, disk)| types::Disk {
            name: disk_name(n),
            path: disk.path.clone(),
            read_only: disk.read_only,
            ephemeral: disk.ephemeral,
            size: 0,
            rate: None,
            full: None,
        });
        let cards = Cards::new(&config.settings.net, resources.nets());
        let facts = Facts {
            name: config.name.clone(),
            console: consoles.places(),
            config: words::describe(config, &cards),
            disks: disks.collect(),
            agent_port: config.agent_port.clone(),
        };
        let started = Instant::now();
        let counted = Mutex::new(Counted { at: started, total: 0, per_second: 0.0 });
        let attacher = consoles.for_people();
        let com1 = consoles.ports().com1;
        let (ram, images) = (Arc::clone(resources.ram()), resources.disks().to_vec());
        let vsock = resources.vsock().map(|(_, host)| host.clone());
        let additions = resources.additions().clone();
        let vcpus = config.machine.topology.count().min(4) as u16;
        Panel {
            facts,
            ram,
            images,
            additions,
            vcpus,
            cards,
            vsock,
            attacher,
            com1,
            started,
            current,
            counted,
            explainer,
            dump: Arc::default(),
            debugger,
            check: Check::default(),
            recorder,
        }
    }

    /// The same, that says what drivers broke.
    pub fn with_check(self, check: &Check) -> Panel {
        Panel { check: check.clone(), ..self }
    }

    /// What lets gdb at these machines.
    pub fn debugger(&self) -> &Arc<Debugger> {
        &self.debugger
    }

    fn machine(&self) -> Result<Arc<Machine>, ControlError> {
        self.current.wait_for_machine(NEXT_START).ok_or_else(|| ControlError::from(BETWEEN))
    }

    /// Something that needs the guest's help; a paused guest cannot give it.
    fn awake(&self) -> Result<Arc<Machine>, ControlError> {
        let machine = self.machine()?;
        match machine.is_paused() {
            true => Err("The machine is paused and cannot react; resume it first".into()),
            false => Ok(machine),
        }
    }

    fn with_balloon<T>(&self, act: impl FnOnce(&Target) -> Result<T, ControlError>) -> Result<T, ControlError> {
        let machine = self.machine()?;
        let balloon = machine.balloon().ok_or_else(|| {
            ControlError::from(
                "The machine has no balloon: its memory was taken for good \
                 (--prealloc, --lock or --hugepages 2M or 1G); start it without these",
            )
        })?;
        act(balloon)
    }

    fn disks(&self, machine: Option<&Machine>) -> Vec<types::Disk> {
        let mut disks = self.facts.disks.clone();
        for (disk, image) in disks.iter_mut().zip(&self.images) {
            disk.size = image.size();
            disk.rate = rates::told(image.rate());
        }
        disks.extend(self.additions.all().into_iter().filter_map(|Addition { part, card }| match card {
            Card::Disk(image, _) => Some(types::Disk {
                name: part.name.to_string(),
                path: image.path().to_owned(),
                read_only: image.read_only(),
                ephemeral: image.is_ephemeral(),
                size: image.size(),
                rate: rates::told(image.rate()),
                full: None,
            }),
            Card::Net(..) => None,
        }));
        let handles = machine.iter().flat_map(|machine| machine.inventory().disks());
        for (name, handle) in handles {
            let Some(disk) = disks.iter_mut().find(|disk| *disk.name == *name) else { continue };
            disk.full = handle.full().map(|full| types::FullStorage {
                action: full.action.into(),
                path: full.path,
                error: full.error,
                free: full.free,
            });
        }
        disks
    }

    /// Puts a card into a slot, whose name is to be `name`.
    fn plug(&self, name: &str, card: Card) -> Result<types::Added, ControlError> {
        let part = self.awake()?.plug(name, card).map_err(refused)?;
        let place = part.places.first().map(ToString::to_string).unwrap_or_default();
        let place = place.strip_prefix("pci ").and_then(|place| place.split(',').next()).unwrap_or_default().to_owned();
        Ok(types::Added { name: part.name.to_string(), place })
    }

    /// The names of the cards that were added and are there.
    fn added_cards(&self) -> Vec<String> {
        let additions = self.additions.all().into_iter();
        let cards = additions.filter(|addition| matches!(addition.card, Card::Net(..)));
        cards.map(|addition| addition.part.name.to_string()).collect()
    }

    fn vsock(&self) -> Option<types::VsockStatus> {
        let types::Vsock { guest_cid, uds_path } = self.facts.config.vsock.clone()?;
        let connections = self.vsock.as_ref().map_or(0, VsockHost::connections);
        Some(types::VsockStatus { guest_cid, uds_path, connections })
    }

    fn exits(&self, per_vcpu: Vec<u64>) -> types::Exits {
        let total: u64 = per_vcpu.iter().sum();
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = counted.at.elapsed();
        if elapsed >= LATELY {
            // After a reset they count from 0 again.
            let since = total.checked_sub(counted.total).unwrap_or(total);
            *counted = Counted { at: Instant::now(), total, per_second: since as f64 / elapsed.as_secs_f64() };
        }
        types::Exits { per_vcpu, total, per_second: counted.per_second }
    }
}

impl Control for Panel {
    fn status(&self) -> Result<types::Status, ControlError> {
        let machine = self.current.machine();
        let backing =
            self.ram.backing().map_err(|error| ControlError(format!("Cannot read /proc/self/smaps: {error}")))?;
        let state = match &machine {
            None => MachineState::NotStarted,
            Some(machine) if machine.is_paused() => MachineState::Paused,
            Some(_) => MachineState::Running,
        };
        let resident =
            types::Resident { small: backing.small, huge_2m: backing.thp + backing.huge_2m, huge_1g: backing.huge_1g };
        Ok(types::Status {
            name: self.facts.name.clone(),
            pid: std::process::id(),
            state,
            paused_s: machine.as_ref().and_then(|machine| machine.paused_since()).map(|at| at.elapsed().as_secs_f64()),
            uptime_s: self.started.elapsed().as_secs_f64(),
            cpus: self.facts.config.machine_config.vcpu_count,
            memory: types::Memory { size: self.ram.size(), resident },
            disks: self.disks(machine.as_deref()),
            parts: machine.iter().flat_map(|machine| words::parts(machine)).collect(),
            networks: {
                self.cards.keep(&self.added_cards());
                self.cards.status()
            },
            vsock: self.vsock(),
            slots: machine.as_ref().and_then(|machine| machine.inventory().slots()).map(|slots| {
                let (count, free) = slots.count();
                types::SlotCount { count, free }
            }),
            agent_port: self.facts.agent_port.clone(),
            virtio_check: self.check.broken(),
            busy: machine.as_ref().map(words::busy).unwrap_or_default(),
            exits: self.exits(machine.map(|machine| machine.exits()).unwrap_or_default()),
            console: self.facts.console.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
        })
    }

    fn explain(&self) -> Result<types::Explanation, ControlError> {
        let report = self.explainer.report(&*self.machine()?);
        let report = report.ok_or_else(|| ControlError::from("The machine is on its way to an end"))?;
        Ok(words::explanation(report))
    }

    fn inspect(&self, walk: Option<&str>) -> Result<types::Inspection, ControlError> {
        self.inspection(walk)
    }

    fn registers(&self) -> Result<Vec<types::VcpuRegisters>, ControlError> {
        self.vcpu_registers()
    }

    fn memory(&self, space: &str, address: &str, len: &str) -> Result<types::MemoryContents, ControlError> {
        self.memory_contents(space, address, len)
    }

    fn symbols(&self) -> Result<types::GuestSymbols, ControlError> {
        self.guest_symbols()
    }

    fn dump(&self, descriptors: Vec<OwnedFd>) -> Result<(), ControlError> {
        self.begin_dump(descriptors)
    }

    fn debug(&self, descriptors: Vec<OwnedFd>) -> Result<(), ControlError> {
        self.machine()?;
        Debugger::begin(&self.debugger, descriptors).map_err(ControlError)
    }

    fn dump_status(&self) -> Result<types::DumpStatus, ControlError> {
        Ok(axvm_sync::lock(&self.dump).clone())
    }

    fn trace(&self, request: &types::TraceRequest, descriptors: Vec<OwnedFd>) -> Result<(), ControlError> {
        self.change_trace(request, descriptors)
    }

    fn tracing(&self) -> Result<types::TraceStatus, ControlError> {
        Ok(self.trace_status())
    }

    fn config(&self) -> Result<types::VmConfig, ControlError> {
        let mut config = self.facts.config.clone();
        config.balloon = self.balloon().ok();
        config.boot_source.boot_args = self.current.machine().map(|machine| machine.command_line().into());
        Ok(config)
    }

    fn pause(&self) -> Result<(), ControlError> {
        let deadline = Instant::now() + PATIENCE;
        let mut machine = self.machine()?;
        loop {
            match machine.pause(deadline) {
                Ok(()) => return Ok(()),
                // A guest that resets when it should be paused is paused in its next start.
                Err(PauseError::Stopping) => {
                    let next = self.current.wait_for_next(&machine, NEXT_START).filter(|_| Instant::now() < deadline);
                    machine = next.ok_or_else(|| ControlError::from(BETWEEN))?;
                }
                Err(error) => return Err(ControlError(error.to_string())),
            }
        }
    }

    fn resume(&self) -> Result<(), ControlError> {
        self.machine()?.resume(Instant::now() + PATIENCE).map_err(|error| ControlError(error.to_string()))
    }

    fn power_button(&self) -> Result<(), ControlError> {
        match self.awake()?.press_power_button() {
            true => Ok(()),
            false => Err("The machine has no power button: it runs without ACPI (--acpi off). \
                          To end it without asking the guest: axvm ctl MACHINE stop"
                .into()),
        }
    }

    fn nmi(&self) -> Result<(), ControlError> {
        match self.awake()?.nmi() {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(ControlError(format!("KVM does not take an NMI: {error}"))),
            None => {
                Err("The machine's first vCPU does not come to take it: what it asked the host for takes long, or \
                         the machine is stopping; try again"
                    .into())
            }
        }
    }

    fn serial_break(&self) -> Result<(), ControlError> {
        self.awake()?;
        self.com1.put_break();
        Ok(())
    }

    fn reset(&self) -> Result<(), ControlError> {
        // Between two starts it is being reset already.
        if let Some(machine) = self.current.machine() {
            machine.stop_switch().insist(StopReason::Reset("control socket"));
        }
        Ok(())
    }

    fn stop(&self) -> Result<(), ControlError> {
        self.current.request_stop(StopReason::Quit);
        Ok(())
    }

    fn balloon(&self) -> Result<types::Balloon, ControlError> {
        self.with_balloon(|balloon| {
            Ok(types::Balloon {
                amount_mib: balloon.mib(),
                deflate_on_oom: BALLOON.deflate_on_oom,
                stats_polling_interval_s: balloon.statistics_interval().as_secs() as u32,
                free_page_reporting: BALLOON.free_page_reporting,
            })
        })
    }

    fn set_balloon(&self, amount_mib: u32) -> Result<(), ControlError> {
        self.with_balloon(|balloon| balloon.set_mib(amount_mib).map_err(|error| ControlError(error.to_string())))
    }

    fn update_drive(&self, update: &types::DriveUpdate) -> Result<(), ControlError> {
        let name = &update.drive_id;
        let disks = self.disks(None);
        let Some(disk) = disks.iter().find(|disk| disk.name == *name) else {
            let names: Vec<&str> = disks.iter().map(|disk| &*disk.name).collect();
            return Err(match names.is_empty() {
                true => format!("There is no disk {name}: this machine has none").into(),
                false => format!("There is no disk {name}; this machine has {}", names.join(", ")).into(),
            });
        };
        if update.path_on_host.as_ref().is_some_and(|path| *path != disk.path) {
            let path = disk.path.display();
            return Err(format!(
                "A disk keeps its image while the machine runs: {name} has {path}. Leave path_on_host out to have that \
                 looked at again"
            )
            .into());
        }
        let machine = self.machine()?;
        let handle = machine.inventory().disks().find(|(part, _)| **part == **name);
        let (_, handle) = handle.ok_or_else(|| ControlError::from(BETWEEN))?;
        if let Some(rate) = &update.rate_limiter {
            handle.set_rate(rates::updated(handle.rate(), rate));
        }
        match update.rate_limiter.is_none() || update.path_on_host.is_some() {
            true => handle.resize().map_err(|error| ControlError(error.to_string())),
            false => Ok(()),
        }
    }

    fn add_drive(&self, drive: &types::NewDrive, descriptors: Vec<OwnedFd>) -> Result<types::Added, ControlError> {
        if descriptors.is_empty() {
            return Err(format!(
                "The open image of {} must come with the request (SCM_RIGHTS), for this process opens no file any more: \
                 axvm ctl MACHINE disk add {} does that. What is there from the start is said before: --disk of axvm run",
                drive.drive_id,
                drive.path_on_host.display()
            )
            .into());
        }
        // First whether it can come: a machine without slots has no use for descriptors, and its sandbox no calls.
        self.awake()?.check_next(VirtioKind::Block, &drive.drive_id).map_err(refused)?;
        let config = words::disk_config(drive)?;
        let image = DiskImage::adopt(&config, descriptors).map_err(|error| ControlError(whole(&error)))?;
        self.plug(&drive.drive_id, Card::Disk(image, drive.queues.unwrap_or(self.vcpus)))
    }

    fn add_network(&self, card: &types::NewNetwork, descriptors: Vec<OwnedFd>) -> Result<types::Added, ControlError> {
        if descriptors.is_empty() {
            return Err(format!(
                "The open cable of {} must come with the request (SCM_RIGHTS), for this process opens none any more: \
                 axvm ctl MACHINE net add {} does that. What is there from the start is said before: --net of axvm run",
                card.iface_id, card.host_dev_name
            )
            .into());
        }
        self.awake()?.check_next(VirtioKind::Net, &card.iface_id).map_err(refused)?;
        let mac = match &card.guest_mac {
            Some(words) => words.parse().map_err(|error| ControlError(format!("guest_mac: {error}")))?,
            None => network::usual_mac(&self.facts.name, &card.iface_id),
        };
        let (kind, offers) = (card.cable, |word: &str| card.offloads.iter().any(|offered| offered == word));
        let kind = match kind {
            types::CableKind::Tap => LinkKind::Tap,
            types::CableKind::Stream => LinkKind::Stream,
            types::CableKind::Datagram => LinkKind::Datagram,
        };
        let offloads = Offloads {
            checksum: offers("checksum"),
            tso4: offers("tso4"),
            tso6: offers("tso6"),
            ecn: offers("ecn"),
            uso: offers("uso"),
        };
        let link = Link::adopt(kind, descriptors, offloads).and_then(NetHandle::new);
        let handle =
            link.map_err(|error| ControlError(format!("Cannot make the link of {}: {error}", card.iface_id)))?;
        let rate =
            |update: Option<types::RateLimiter>| rates::updated(RateLimit::default(), &update.unwrap_or_default());
        handle.set_rx_rate(rate(card.rx_rate_limiter));
        handle.set_tx_rate(rate(card.tx_rate_limiter));
        let config = NetConfig { mac: mac.0, mtu: card.mtu };
        self.cards.keep(&self.added_cards());
        let added = self.plug(&card.iface_id, Card::Net(config, handle.clone()))?;
        let interface = types::NetworkInterface {
            iface_id: added.name.clone(),
            host_dev_name: card.host_dev_name.clone(),
            guest_mac: Some(mac.to_string()),
            mtu: card.mtu,
        };
        self.cards.add(interface, card.forwards.clone(), handle);
        Ok(added)
    }

    fn remove(&self, removal: &types::Removal) -> Result<(), ControlError> {
        self.awake()?.unplug(&removal.id, removal.force).map_err(refused)
    }

    fn update_network(&self, update: &types::NetworkUpdate) -> Result<(), ControlError> {
        self.cards.update(update)
    }

    fn balloon_statistics(&self) -> Result<types::BalloonStatistics, ControlError> {
        self.with_balloon(|balloon| {
            if balloon.statistics_interval().is_zero() {
                return Err("The guest is not asked for statistics; PATCH /balloon/statistics \
                            {\"stats_polling_interval_s\": 1} has it asked every second"
                    .into());
            }
            let said = balloon.statistics().map(|report| report.statistics).unwrap_or_default();
            Ok(types::BalloonStatistics {
                target_pages: balloon.pages().into(),
                actual_pages: balloon.actual_pages().into(),
                target_mib: balloon.mib().into(),
                actual_mib: balloon.actual_mib().into(),
                swap_in: said.swap_in,
                swap_out: said.swap_out,
                major_faults: said.major_faults,
                minor_faults: said.minor_faults,
                free_memory: said.free_memory,
                total_memory: said.total_memory,
                available_memory: said.available_memory,
                disk_caches: said.disk_caches,
                hugetlb_allocations: said.hugetlb_allocations,
                hugetlb_failures: said.hugetlb_failures,
            })
        })
    }

    fn set_statistics_interval(&self, seconds: u32) -> Result<(), ControlError> {
        self.with_balloon(|balloon| {
            balloon.set_statistics_interval(Duration::from_secs(seconds.into()));
            Ok(())
        })
    }

    fn attach_console(&self) -> Result<Attach, ControlError> {
        let attacher = self.attacher.clone();
        Ok(Box::new(move |stream, typed| attacher.attach(stream, typed)))
    }
}

fn refused(error: SlotError) -> ControlError {
    ControlError(whole(&error))
}

/// An error with its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
