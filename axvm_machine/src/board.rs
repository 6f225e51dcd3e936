//! The board: makes each part of the plan and wires it, then ends.
//!
//! ```text
//!   plan: kind, places, line
//!           |      |      '--> an eventfd that KVM listens to (irqfd)
//!           |      '---------> a slot of the port bus or the MMIO bus
//!           '----------------> a chip, or a virtio device with a doorbell for each queue (ioeventfd),
//!                              on a bus of MMIO windows or on that of PCI
//!
//!   finish --> two frozen buses, and the inventory
//! ```
//!
//! It decides nothing: every address and every line is the plan's. A part that it does not know does not compile.

use std::sync::Arc;

use axvm_arch::Gpa;
use axvm_boot::plan::{Kind, Part, Place, Plan, VirtioKind};
use axvm_devices::pci::Bridge;
use axvm_devices::{
    AcpiPm, Bus, BusBuilder, BusDevice, DebugConsole, DebugExit, I8042, Irq, LevelIrq, PanicAnswer, PciHost, Pvpanic,
    Rtc, StopSwitch, Uart16550,
};
use axvm_kvm::Vm;
use axvm_sync::EventFd;
use axvm_virtio::Transport;
use axvm_virtio::agent_port::AgentPort;
use axvm_virtio::balloon::Balloon;
use axvm_virtio::block::Block;
use axvm_virtio::console::Console;
use axvm_virtio::device::VirtioDevice;
use axvm_virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use axvm_virtio::net::Net;
use axvm_virtio::rng::Rng;
use axvm_virtio::vsock::Vsock;

use crate::inventory::{Chip, Inventory, Item};
use crate::pci::PciWiring;
use crate::slots::{Slots, SlotsParts};
use crate::spec::BALLOON;
use crate::{MachineError, MachineSpec, Ports, Resources};

/// A machine under construction.
pub(crate) struct Board<'a> {
    vm: &'a Arc<Vm>,
    resources: &'a Resources,
    stop: &'a Arc<StopSwitch>,
    attention: &'a Arc<EventFd>,
    consoles: &'a Ports,
    spec: &'a MachineSpec,
    ports: BusBuilder,
    mmio: BusBuilder,
    /// On a machine with that bus, from its host on.
    pci: Option<PciWiring>,
    inventory: Vec<Item>,
}

impl<'a> Board<'a> {
    pub(crate) fn new(
        vm: &'a Arc<Vm>,
        resources: &'a Resources,
        stop: &'a Arc<StopSwitch>,
        attention: &'a Arc<EventFd>,
        consoles: &'a Ports,
        spec: &'a MachineSpec,
    ) -> Board<'a> {
        let (ports, mmio) = Default::default();
        Board { vm, resources, stop, attention, consoles, spec, ports, mmio, pci: None, inventory: Vec::new() }
    }

    /// Makes every part and puts it in its place.
    pub(crate) fn wire(&mut self, plan: &Plan) -> Result<(), MachineError> {
        plan.parts().iter().try_for_each(|part| self.wire_part(plan, part))
    }

    fn wire_part(&mut self, plan: &Plan, part: &Part) -> Result<(), MachineError> {
        let stop = || Arc::clone(self.stop);
        let chip = match part.kind {
            // KVM made them with the VM.
            Kind::Pic | Kind::Pit | Kind::IoApic | Kind::LocalApic => return Ok(()),
            Kind::Uart => Chip::Uart(Uart16550::new(self.line(part)?, self.consoles.com1.clone())),
            Kind::Rtc => Chip::Rtc(Arc::new(self.rtc(part)?)),
            Kind::I8042 => Chip::I8042(Arc::new(I8042::new(stop()))),
            Kind::AcpiPm => Chip::AcpiPm(Arc::new(AcpiPm::new(self.level_line(part)?, stop()))),
            Kind::PmTimer => Chip::PmTimer(Arc::default()),
            Kind::Pvpanic => Chip::Pvpanic(Arc::new(Pvpanic::new(stop(), self.panic_answer()))),
            Kind::PciHost => Chip::PciHost(self.pci_host(plan)?),
            Kind::PciHotplug => match self.slots(plan, part)? {
                Some(slots) => Chip::Slots(slots),
                None => return Ok(()),
            },
            // Views of the host, which has their state.
            Kind::PciEcam | Kind::PciWindow => return self.pci_view(part),
            Kind::DebugExit => Chip::DebugExit(Arc::new(DebugExit::new(stop()))),
            Kind::DebugConsole => {
                let port = self.consoles.debug.clone().ok_or(MachineError::NoPort)?;
                Chip::DebugConsole(Arc::new(DebugConsole::new(port)))
            }
            Kind::Virtio(kind) => self.virtio(part, kind)?,
        };
        if let Some(device) = chip.device() {
            self.plug(part, device)?;
        }
        self.inventory.push(Item { part: part.clone(), chip });
        Ok(())
    }

    /// Freezes the buses, ports first, and ends the board.
    pub(crate) fn finish(self) -> (Bus, Bus, Inventory) {
        (self.ports.finish(), self.mmio.finish(), Inventory::new(self.inventory))
    }

    /// The clock, whose alarm is told in the power management registers. The plan has these before it.
    fn rtc(&self, part: &Part) -> Result<Rtc, MachineError> {
        let pm = self.inventory.iter().find_map(|item| match &item.chip {
            Chip::AcpiPm(pm) => Some(Arc::clone(pm)),
            _ => None,
        });
        let on_alarm = move || pm.iter().for_each(|pm| pm.alarm());
        Rtc::new(self.line(part)?, on_alarm).map_err(MachineError::host("the RTC"))
    }

    /// The host of PCI; on a machine with virtio-mmio, nothing comes onto its bus.
    fn pci_host(&mut self, plan: &Plan) -> Result<Arc<PciHost>, MachineError> {
        let bridge = if plan.has_pci() { Bridge::Express } else { Bridge::Conventional };
        let host = Arc::new(PciHost::new(Arc::clone(self.stop), bridge));
        if plan.has_pci() {
            self.pci = Some(PciWiring::new(self.vm, &host, &self.resources.events, self.spec.kicks_exit)?);
        }
        Ok(host)
    }

    /// What the guest sees of the host elsewhere. The plan has the host before it.
    fn pci_view(&mut self, part: &Part) -> Result<(), MachineError> {
        let Some((pci, (base, len))) = self.pci.as_ref().zip(part.window()) else { return Ok(()) };
        let view = match part.kind {
            Kind::PciEcam => PciHost::ecam(pci.host()),
            _ => PciHost::window(pci.host(), base.0, len),
        };
        self.plug(part, view)
    }

    /// The slots of the bus, with what was added in them. The plan has the host before them.
    fn slots(&self, plan: &Plan, part: &Part) -> Result<Option<Arc<Slots>>, MachineError> {
        let Some(wiring) = self.pci.clone() else { return Ok(None) };
        let (line, vm, resources, attention) = (self.line(part)?, self.vm, self.resources, self.attention);
        Slots::new(SlotsParts { plan, line, wiring, vm, resources, attention }).map(Some)
    }

    fn panic_answer(&self) -> PanicAnswer {
        if self.spec.panic_stops { PanicAnswer::Stop } else { PanicAnswer::Note(self.resources.events.clone()) }
    }

    fn virtio(&mut self, part: &Part, kind: VirtioKind) -> Result<Chip, MachineError> {
        Ok(match kind {
            VirtioKind::Block(number) => {
                let image = Arc::clone(&self.resources.disks[number]);
                let queues = self.spec.disk_queues(number, self.pci.is_some());
                let block = Block::calling(image, Some(Arc::clone(self.attention))).with_queues(queues);
                let handle = block.handle();
                Chip::Disk(self.transport(part, Box::new(block))?, handle)
            }
            VirtioKind::Entropy => Chip::Virtio(self.transport(part, Box::new(Rng::limited(self.spec.entropy_rate)))?),
            VirtioKind::Balloon => {
                let balloon = Balloon::new(BALLOON);
                let target = balloon.target();
                Chip::Balloon(self.transport(part, Box::new(balloon))?, target)
            }
            VirtioKind::Console => {
                let port = self.consoles.hvc0.clone().ok_or(MachineError::NoPort)?;
                Chip::Virtio(self.transport(part, Box::new(Console::new(port)))?)
            }
            VirtioKind::Net(number) => {
                let (config, link) = self.resources.nets.get(number).cloned().ok_or(MachineError::NoLink(number))?;
                Chip::Net(self.transport(part, Box::new(Net::new(link.clone(), config)))?, link)
            }
            VirtioKind::Vsock => {
                let (cid, host) = self.resources.vsock.as_ref().ok_or(MachineError::NoVsockHost)?;
                Chip::Virtio(self.transport(part, Box::new(Vsock::new(*cid, host)))?)
            }
            VirtioKind::AgentPort => {
                let host = self.resources.agent_port.as_ref().ok_or(MachineError::NoAgentPortHost)?;
                Chip::Virtio(self.transport(part, Box::new(AgentPort::new(host)))?)
            }
        })
    }

    /// Puts a virtio device behind the registers of its bus, with a doorbell for each queue.
    fn transport(&mut self, part: &Part, device: Box<dyn VirtioDevice>) -> Result<Arc<Transport>, MachineError> {
        let Resources { ram, events, .. } = self.resources;
        if let Some(pci) = &self.pci {
            return Ok(pci.plug(self.vm, part, device, ram, events)?.transport);
        }
        let mmio = MmioTransport::new(&part.name, device, Arc::clone(ram), self.line(part)?, events.clone());
        let mmio = mmio.map_err(MachineError::host(&*part.name))?;
        let transport = Arc::clone(mmio.transport());
        if let Some((base, _)) = part.window().filter(|_| !self.spec.kicks_exit) {
            let doorbell = Gpa(base.0 + QUEUE_NOTIFY);
            for queue in 0..transport.queue_count() {
                self.vm.ioeventfd(doorbell, 4, Some(queue.into()), transport.kick(queue))?;
            }
        }
        self.plug(part, Arc::new(mmio))?;
        Ok(transport)
    }

    /// Puts a chip on the bus of each of its places.
    fn plug(&mut self, part: &Part, device: Arc<dyn BusDevice>) -> Result<(), MachineError> {
        for place in &part.places {
            let device = Arc::clone(&device);
            match *place {
                Place::Ports { first, count } => self.ports.plug(first.into(), count.into(), &*part.name, device)?,
                Place::Mmio { base, len } => self.mmio.plug(base.0, len, &*part.name, device)?,
                // It is found through the host.
                Place::Pci { .. } => {}
            }
        }
        Ok(())
    }

    /// The interrupt line of a part: an eventfd that KVM listens to.
    fn line(&self, part: &Part) -> Result<Irq, MachineError> {
        let irq = Irq::new().map_err(MachineError::host(format!("the interrupt line of {}", part.name)))?;
        if let Some(gsi) = part.line {
            self.vm.irqfd(gsi, irq.event_fd())?;
        }
        Ok(irq)
    }

    /// The same for a part that holds its line up.
    fn level_line(&self, part: &Part) -> Result<LevelIrq, MachineError> {
        let line = part.line.map(|gsi| self.vm.level_line(gsi)).transpose()?;
        Ok(LevelIrq::new(move |level| line.iter().for_each(|line| line.set(level))))
    }
}
