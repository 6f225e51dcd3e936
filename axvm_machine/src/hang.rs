//! A guest that does not move, looked at: every vCPU is brought to the gate a few times, and all is noted that may tell why.
//!
//! ```text
//!   hold --RIPs--> let go --10 ms--> hold --RIPs--> ... --> hold --registers, APICs, IOAPIC--> let go
//!                                                    rings and registers of devices, while these go on
//!                                                    '--> HangReport (axvm_inspect)
//!   inspect: one hold --all of it, with clocks--> Xray
//! ```
//!
//! Source: KVM API, `KVM_GET_MP_STATE`, `KVM_GET_LAPIC`, `KVM_GET_IRQCHIP`.

use std::sync::Arc;
use std::time::Duration;

use axvm_arch::Gpa;
use axvm_boot::plan::{Kind, Part, VirtioKind};
use axvm_devices::pci::{MsixEntry, MsixRoute};
use axvm_inspect::hang::{DeviceFacts, HangFacts, HangReport, LineFacts, Look, Message, QueueFacts, Seen, VcpuFacts};
use axvm_inspect::snapshot::{Processor, Snapshot};
use axvm_inspect::symbols::Symbols;
use axvm_inspect::xray::{ClockFacts, LiveFacts, Xray};
use axvm_kvm::state::MpState;
use axvm_kvm::{KvmVcpu, Rest, VmState};
use axvm_memory::GuestRam;
use axvm_virtio::{Glance, QueueGlance, QueueInterrupt, Transport};

use crate::Machine;
use crate::inventory::Chip;

/// How often each vCPU is looked at: enough to tell a loop from work.
const LOOKS: usize = 5;
/// From one look to the next.
const BETWEEN: Duration = Duration::from_millis(10);

impl Machine {
    /// What its guest does, and why that may be no progress. `console`: the last lines that it wrote; `symbols`: its kernel's
    /// names. Holds its vCPUs for some milliseconds, several times; `None` if it is on its way to an end.
    pub fn look_into(&self, console: &[String], symbols: Option<&Symbols>) -> Option<HangReport> {
        let (quiet, paused, mut looks) = (self.quiet(), self.is_paused(), Vec::new());
        for _ in 0..LOOKS - 1 {
            let (now, all) = self.holding_those_who_come(|| self.look())?;
            looks.push(now);
            if !all || paused {
                break;
            }
            std::thread::sleep(BETWEEN);
        }
        let (moment, _) = self.holding_those_who_come(|| {
            looks.push(self.look());
            self.moment(&looks)
        })?;
        let devices = self.devices(quiet, paused);
        Some(moment.facts(&devices, self.command_line(), console, symbols).report())
    }

    /// All of it at one moment. Holds its vCPUs once, for a fraction of a millisecond each; `None` if it is on its way to an
    /// end.
    pub fn inspect(&self, view: &View<'_>) -> Option<Xray> {
        let (quiet, paused) = (self.quiet(), self.is_paused());
        let (moment, _) = self.holding_those_who_come(|| self.moment(&[self.look()]))?;
        let devices = self.devices(quiet, paused);
        let View { name, said, walks, console, symbols, ram } = *view;
        let regions: Vec<(u64, u64)> = ram.regions().map(|region| (region.gpa.0, region.len)).collect();
        Some(Xray::live(&LiveFacts {
            name,
            said,
            plan: self.plan(),
            ram: &regions,
            hang: moment.facts(&devices, self.command_line(), console, symbols),
            clocks: &self.clocks(&moment),
            walks,
            read: &|gpa: Gpa, bytes: &mut [u8]| ram.read(gpa, bytes).is_ok(),
        }))
    }

    /// What is held, as it stands; `looks`: where each vCPU was, the last time now.
    fn moment(&self, looks: &[Vec<Option<Look>>]) -> Moment {
        let vm = Arc::clone(self.vm());
        let (vm, tsc_khz) = self.visit_held(0, move |_| (vm.save().ok(), vm.tsc_khz())).unwrap_or_default();
        Moment { vcpus: (0..self.vcpu_count()).map(|index| self.see(index, looks)).collect(), vm, tsc_khz }
    }

    /// What goes on while vCPUs are held.
    fn devices(&self, quiet: Duration, paused: bool) -> Devices {
        let line = |part: &Part| Some(LineFacts { gsi: part.line?, name: part.name.to_string() });
        Devices {
            quiet,
            paused,
            lines: self.plan().parts().iter().filter_map(line).collect(),
            devices: self.device_facts(),
            busy: self.busy().into_iter().map(|busy| (busy.thread, busy.duration)).collect(),
        }
    }

    fn clocks(&self, moment: &Moment) -> ClockFacts {
        let pm_timer = self.inventory().items().iter().find_map(|item| match &item.chip {
            Chip::PmTimer(timer) => Some(Duration::from_nanos(timer.state().nanos)),
            _ => None,
        });
        let vm = moment.vm.as_ref();
        let kvmclock = vm.map(|vm| Duration::from_nanos(vm.clock_ns));
        ClockFacts { kvmclock, pit: vm.map(|vm| vm.pit), pm_timer, tsc_khz: moment.tsc_khz }
    }

    /// Where each vCPU is that is held.
    fn look(&self) -> Vec<Option<Look>> {
        let exits = self.exits();
        let look = |(index, exits): (u32, u64)| {
            let rip = self.visit_held(index, |vcpu| vcpu.state().map(|cpu| cpu.linear_rip()))?.ok()?;
            Some(Look { rip, exits })
        };
        (0..).zip(exits).map(look).collect()
    }

    fn see(&self, index: u32, looks: &[Vec<Option<Look>>]) -> VcpuFacts {
        let own = |look: &Vec<Option<Look>>| look.get(index as usize).copied().flatten();
        let looks = looks.iter().filter_map(own).collect();
        let seen = self.visit_held(index, move |vcpu| see(vcpu, looks)).flatten();
        let exits = self.exits().get(index as usize).copied().unwrap_or_default();
        VcpuFacts { exits, seen, last_exits: self.last_exits(index) }
    }

    fn device_facts(&self) -> Vec<DeviceFacts> {
        let bus = if self.plan().has_pci() { "virtio_pci" } else { "virtio_mmio" };
        let mut devices = Vec::new();
        for item in self.inventory().items() {
            match &item.chip {
                Chip::Virtio(transport)
                | Chip::Disk(transport, _)
                | Chip::Balloon(transport, _)
                | Chip::Net(transport, _) => {
                    devices.extend(device(&item.part, transport, bus));
                }
                Chip::Slots(slots) => {
                    let parts = slots.parts();
                    let there = slots.there();
                    let named = there.iter().filter_map(|(_, name, transport)| {
                        Some((parts.iter().find(|part| part.name == *name)?, transport))
                    });
                    devices.extend(named.filter_map(|(part, transport)| device(part, transport, bus)));
                }
                _ => {}
            }
        }
        devices
    }
}

/// What else there is to say of a machine that is inspected.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// What it is called.
    pub name: &'a str,
    /// What was said of it, in words.
    pub said: &'a [(&'static str, String)],
    /// Linear addresses to be translated as the first vCPU has them.
    pub walks: &'a [u64],
    /// The last lines on its console.
    pub console: &'a [String],
    /// Its kernel's names.
    pub symbols: Option<&'a Symbols>,
    /// Its memory.
    pub ram: &'a GuestRam,
}

/// What was held at one moment.
struct Moment {
    vcpus: Vec<VcpuFacts>,
    vm: Option<VmState>,
    tsc_khz: Option<u32>,
}

/// What went on meanwhile.
struct Devices {
    quiet: Duration,
    paused: bool,
    lines: Vec<LineFacts>,
    devices: Vec<DeviceFacts>,
    busy: Vec<(String, Duration)>,
}

impl Moment {
    fn facts<'a>(
        &'a self,
        devices: &'a Devices,
        command_line: &'a str,
        console: &'a [String],
        symbols: Option<&'a Symbols>,
    ) -> HangFacts<'a> {
        let Devices { quiet, paused, lines, devices, busy } = devices;
        let (vcpus, ioapic) = (&self.vcpus, self.vm.as_ref().map(|vm| &vm.ioapic));
        let (quiet, paused) = (*quiet, *paused);
        HangFacts { quiet, paused, vcpus, ioapic, lines, devices, busy, console, command_line, symbols }
    }
}

/// All of a vCPU that stands still, or as much as KVM tells.
pub(crate) fn see(vcpu: &KvmVcpu, looks: Vec<Look>) -> Option<Seen> {
    if let Ok(state) = vcpu.save() {
        let (snapshot, processor) = (Snapshot::from(&state), Processor::of(&state.cpuid));
        return Some(Seen { mp_state: state.mp_state, snapshot, processor, lapic: Some(state.lapic), looks });
    }
    let mp_state = match vcpu.rest().ok()? {
        Rest::Awake => MpState::Runnable,
        Rest::Halted { .. } => MpState::Halted,
        Rest::NotStarted => MpState::Uninitialized,
    };
    let (snapshot, processor) = Snapshot::take(vcpu).ok()?;
    Some(Seen { mp_state, snapshot, processor, lapic: None, looks })
}

/// What a queue sends.
fn message(interrupt: QueueInterrupt) -> Message {
    match interrupt {
        QueueInterrupt::Line => Message::Line,
        QueueInterrupt::None => Message::None,
        QueueInterrupt::Vector(number, MsixRoute { entry: MsixEntry { address, data, .. }, is_kept, is_pending }) => {
            let destination = (address >> 12 & 0xff | (address >> 5 & 0x7f) << 8) as u32;
            Message::Msix { entry: number, vector: data as u8, destination, is_kept, is_pending }
        }
    }
}

fn device(part: &Part, transport: &Transport, bus: &'static str) -> Option<DeviceFacts> {
    let Kind::Virtio(kind) = part.kind else { return None };
    let driver = match kind {
        VirtioKind::Block(_) => "virtio_blk",
        VirtioKind::Entropy => "virtio_rng",
        VirtioKind::Balloon => "virtio_balloon",
        VirtioKind::Console | VirtioKind::AgentPort => "virtio_console",
        VirtioKind::Net(_) => "virtio_net",
        VirtioKind::Vsock => "vmw_vsock_virtio_transport",
    };
    let Glance { status, interrupt_status, queues } = transport.glance();
    let queue = |queue: QueueGlance| {
        let QueueGlance { index, size, avail, used, used_event, kicked, waits_for_input, interrupt } = queue;
        QueueFacts { index, size, avail, used, used_event, kicked, waits_for_input, message: message(interrupt) }
    };
    let queues = queues.into_iter().map(queue).collect();
    Some(DeviceFacts { name: part.name.to_string(), driver, bus, gsi: part.line, status, interrupt_status, queues })
}
