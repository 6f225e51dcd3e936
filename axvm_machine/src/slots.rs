//! The slots of PCI's bus: disks and network cards that come and go while the guest runs.
//!
//! ```text
//!   user: add ---> Slots::plug: vectors, function, doorbells --> controller: up --> guest looks at the slot
//!   user: remove -> Slots::ask ------------------------------> controller: down -> guest's driver lets go
//!   guest: _EJ0 --> off the bus, workers asked to stop       on the vCPU's thread: no wait
//!                      '--> attention --> main: Slots::tidy  workers joined, irqfds and routes given back, file closed
//! ```
//!
//! Buses, windows and ports are those of the start: a device comes and goes inside of them. What was added is kept in the
//! [`Resources`](crate::Resources), as a card stays in its slot over a reset.
//!
//! Left out: devices of the start, which stay; devices that are more than one function.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use axvm_boot::plan::{Kind, Part, Place, Plan, VirtioKind};
use axvm_devices::pci::{PciFunction, PciHotplug};
use axvm_devices::{BusDevice, Irq, RegisterNames};
use axvm_events::{Event, Events};
use axvm_kvm::Vm;
use axvm_memory::GuestRam;
use axvm_sync::{EventFd, lock};
use axvm_virtio::block::{Block, DiskHandle, DiskImage};
use axvm_virtio::device::VirtioDevice;
use axvm_virtio::net::{Net, NetConfig, NetHandle};
use axvm_virtio::{StillBusy, Transport};
use thiserror::Error;

use crate::pci::{PciWiring, Wired};
use crate::{MachineError, Resources};

/// How long a device that has gone is waited for at a time.
const MOMENT: Duration = Duration::from_millis(20);

/// What comes into a slot, open and ready.
#[derive(Clone)]
pub enum Card {
    /// A disk with so many queues.
    Disk(Arc<DiskImage>, u16),
    /// A network card with its link.
    Net(NetConfig, NetHandle),
}

/// Devices of a kind, by their number.
pub type NumberedKind = fn(usize) -> VirtioKind;

impl Card {
    fn kind(&self) -> NumberedKind {
        match self {
            Card::Disk(..) => VirtioKind::Block,
            Card::Net(..) => VirtioKind::Net,
        }
    }
}

/// A card in its slot.
#[derive(Clone)]
pub struct Addition {
    /// What it is called, and where it is.
    pub part: Part,
    /// What it is.
    pub card: Card,
}

/// What was added to a machine and is still there.
#[derive(Clone, Default)]
pub struct Additions(Arc<Mutex<Vec<Addition>>>);

impl Additions {
    /// All of them, in the order in which they came.
    pub fn all(&self) -> Vec<Addition> {
        lock(&self.0).clone()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        lock(&self.0).len()
    }

    fn push(&self, addition: Addition) {
        lock(&self.0).push(addition);
    }

    fn forget(&self, name: &str) {
        lock(&self.0).retain(|addition| &*addition.part.name != name);
    }
}

/// A device cannot come or go.
#[derive(Debug, Error)]
pub enum SlotError {
    /// No bus for it.
    #[error("Devices come and go on PCI only, and those of this machine are on MMIO; start it with --bus pci")]
    Mmio,
    /// No way to tell the guest.
    #[error(
        "The bus of this machine has no slots where devices come and go: they need --acpi full, and a device number that \
         is free at the start"
    )]
    NoSlots,
    /// No room.
    #[error("All {0} slots are taken; remove a device that was added before")]
    Full(usize),
    /// Another client was faster, or this one counts otherwise.
    #[error("The next device of this kind is {next}, not {name}; name that one")]
    NotNext {
        /// Its name.
        next: String,
        /// The one that was given.
        name: String,
    },
    /// The guest cannot react.
    #[error("The machine is paused and cannot react; resume it first")]
    NotRunning,
    /// It is not in a slot.
    #[error("{name} cannot be removed: {}", .added.told())]
    NotAdded {
        /// What was named.
        name: String,
        /// What could have been.
        added: Names,
    },
    /// The host refuses something.
    #[error(transparent)]
    Host(#[from] MachineError),
}

/// Names of devices, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(pub Vec<String>);

impl Names {
    fn told(&self) -> String {
        match self.0.is_empty() {
            true => "what was there at the start stays, and nothing was added since".into(),
            false => format!("what was there at the start stays; added were {}", self.0.join(", ")),
        }
    }
}

/// The slots of a machine.
pub struct Slots {
    controller: PciHotplug,
    /// Numbers of the devices that may come.
    numbers: Vec<u8>,
    /// The names of what stays.
    names: Vec<Arc<str>>,
    wiring: PciWiring,
    vm: Arc<Vm>,
    ram: Arc<GuestRam>,
    events: Events,
    additions: Additions,
    /// Signalled when there is something to tidy up; and disks call with it.
    attention: Arc<EventFd>,
    devices: Mutex<Devices>,
}

#[derive(Default)]
struct Devices {
    there: Vec<Live>,
    /// Off the bus, and not yet at rest.
    leaving: Vec<Leaving>,
}

struct Live {
    slot: u8,
    part: Part,
    /// Of a disk.
    disk: Option<DiskHandle>,
    wired: Wired,
}

struct Leaving {
    live: Live,
    /// A vCPU may still have a handle on it.
    function: Arc<PciFunction>,
    forced: bool,
}

/// What slots are made with.
pub(crate) struct SlotsParts<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) line: Irq,
    pub(crate) wiring: PciWiring,
    pub(crate) vm: &'a Arc<Vm>,
    pub(crate) resources: &'a Resources,
    pub(crate) attention: &'a Arc<EventFd>,
}

impl Slots {
    /// The slots of `plan`, with what was added before a reset in them.
    pub(crate) fn new(parts: SlotsParts<'_>) -> Result<Arc<Slots>, MachineError> {
        let SlotsParts { plan, line, wiring, vm, resources, attention } = parts;
        let slots = Arc::new_cyclic(|weak: &Weak<Slots>| {
            let slots = Weak::clone(weak);
            let on_eject = move |slot| slots.upgrade().iter().for_each(|slots| slots.ejected(slot));
            Slots {
                controller: PciHotplug::new(line, on_eject),
                numbers: plan.slots(),
                names: plan.parts().iter().map(|part| Arc::clone(&part.name)).collect(),
                wiring,
                vm: Arc::clone(vm),
                ram: Arc::clone(resources.ram()),
                events: resources.events().clone(),
                additions: resources.additions().clone(),
                attention: Arc::clone(attention),
                devices: Mutex::default(),
            }
        });
        for addition in slots.additions.all() {
            let live = slots.wire(addition.part, addition.card)?;
            slots.controller.is_there(live.slot);
            lock(&slots.devices).there.push(live);
        }
        Ok(slots)
    }

    /// Puts a card into a free slot, the first of them, and tells the guest. `name` is the one that is [next](Slots::check_next).
    /// Where it is now.
    pub(crate) fn plug(&self, name: &str, card: Card) -> Result<Part, SlotError> {
        let mut devices = lock(&self.devices);
        let kind = self.next(&devices, card.kind(), name)?;
        let is_free = |slot: &&u8| {
            let leaving = devices.leaving.iter().map(|leaving| &leaving.live);
            devices.there.iter().chain(leaving).all(|live| live.slot != **slot)
        };
        // Not where a guest still has a driver of a device that was taken away, as long as there are others.
        let free = self.numbers.iter().filter(is_free).min_by_key(|&&slot| self.controller.is_asked(slot));
        let slot = *free.ok_or(SlotError::Full(self.numbers.len()))?;
        let places = vec![Plan::slot_place(slot)];
        let part = Part { name: kind.name().into(), kind: Kind::Virtio(kind), places, line: None };
        let live = self.wire(part.clone(), card.clone())?;
        devices.there.push(live);
        self.additions.push(Addition { part: part.clone(), card });
        self.events.emit(|| Event::DeviceAdded { device: Arc::clone(&part.name), place: part.places[0].to_string() });
        self.controller.added(slot);
        Ok(part)
    }

    /// Whether a card of this kind would be called `name` now: before it is made.
    pub(crate) fn check_next(&self, kind: NumberedKind, name: &str) -> Result<(), SlotError> {
        self.next(&lock(&self.devices), kind, name).map(|_| ())
    }

    /// Guests give the lowest free name, too.
    fn next(&self, devices: &Devices, kind: NumberedKind, name: &str) -> Result<VirtioKind, SlotError> {
        let added: Vec<_> = devices.there.iter().map(|live| &live.part.name).collect();
        let is_taken = |name: &str| self.names.iter().chain(added.iter().copied()).any(|other| **other == *name);
        let mut number = 0;
        while is_taken(&kind(number).name()) {
            number += 1;
        }
        match kind(number) {
            next if next.name() == name => Ok(next),
            next => Err(SlotError::NotNext { next: next.name(), name: name.into() }),
        }
    }

    /// Asks the guest to let go of a device; with `force` takes it away, whatever the guest says.
    pub(crate) fn unplug(&self, name: &str, force: bool) -> Result<(), SlotError> {
        let slot = lock(&self.devices).there.iter().find(|live| &*live.part.name == name).map(|live| live.slot);
        let Some(slot) = slot else {
            let added = lock(&self.devices).there.iter().map(|live| live.part.name.to_string()).collect();
            return Err(SlotError::NotAdded { name: name.into(), added: Names(added) });
        };
        if force {
            self.controller.taken(slot);
            self.take_off(slot, true);
        }
        // After a removal by force, too: the guest has a driver that waits for its device.
        self.controller.ask(slot);
        Ok(())
    }

    /// The guest ejects a slot.
    fn ejected(&self, slot: u8) {
        self.take_off(slot, false);
    }

    /// Off the bus at once; what is left of it is tidied up by the main thread.
    fn take_off(&self, slot: u8, forced: bool) {
        let mut devices = lock(&self.devices);
        let Some(at) = devices.there.iter().position(|live| live.slot == slot) else { return };
        let Some(function) = self.wiring.host().remove(slot << 3) else { return };
        let live = devices.there.remove(at);
        live.wired.transport.begin_stop();
        self.additions.forget(&live.part.name);
        devices.leaving.push(Leaving { live, function, forced });
        self.attention.signal();
    }

    /// Gives back what devices had that have gone, as far as they are at rest. Whether some are not.
    pub(crate) fn tidy(&self) -> bool {
        let leaving: Vec<_> = {
            let devices = lock(&self.devices);
            devices
                .leaving
                .iter()
                .map(|leaving| (leaving.live.slot, Arc::clone(&leaving.live.wired.transport)))
                .collect()
        };
        for (slot, transport) in leaving {
            let at_rest = transport.stop(Instant::now() + MOMENT).is_ok();
            drop(transport);
            let gone = {
                let mut devices = lock(&self.devices);
                let is_over = |leaving: &Leaving| at_rest && Arc::strong_count(&leaving.function) == 1;
                let at = devices.leaving.iter().position(|leaving| leaving.live.slot == slot && is_over(leaving));
                at.map(|at| devices.leaving.remove(at))
            };
            if let Some(Leaving { live, function, forced }) = gone {
                // The way to the vectors, and to the doorbells, which the host was told of.
                drop(function);
                self.wiring.release(&self.vm, live.wired);
                let device = Arc::clone(&live.part.name);
                drop(live.disk);
                self.events.emit(|| Event::DeviceRemoved { device, forced });
            }
        }
        self.is_untidy()
    }

    /// Whether devices have gone that are not at rest.
    pub(crate) fn is_untidy(&self) -> bool {
        !lock(&self.devices).leaving.is_empty()
    }

    /// How many slots there are, and how many of them are empty.
    pub fn count(&self) -> (usize, usize) {
        (self.numbers.len(), self.numbers.len() - lock(&self.devices).there.len())
    }

    /// The disks in the slots.
    pub(crate) fn disks(&self) -> Vec<(Arc<str>, DiskHandle)> {
        let disk = |live: &Live| Some((Arc::clone(&live.part.name), live.disk.clone()?));
        lock(&self.devices).there.iter().filter_map(disk).collect()
    }

    /// What is in the slots: number, name, and the way to its state.
    pub(crate) fn there(&self) -> Vec<(u8, Arc<str>, Arc<Transport>)> {
        let there = |live: &Live| (live.slot, Arc::clone(&live.part.name), Arc::clone(&live.wired.transport));
        lock(&self.devices).there.iter().map(there).collect()
    }

    /// What tells the guest.
    pub(crate) fn controller(&self) -> &PciHotplug {
        &self.controller
    }

    /// The parts that are in the slots, or have left them and are not at rest.
    pub fn parts(&self) -> Vec<Part> {
        let devices = lock(&self.devices);
        let leaving = devices.leaving.iter().map(|leaving| &leaving.live);
        devices.there.iter().chain(leaving).map(|live| live.part.clone()).collect()
    }

    /// All that has threads, what leaves included.
    pub(crate) fn transports(&self) -> Vec<Arc<Transport>> {
        let devices = lock(&self.devices);
        let leaving = devices.leaving.iter().map(|leaving| &leaving.live);
        devices.there.iter().chain(leaving).map(|live| Arc::clone(&live.wired.transport)).collect()
    }

    /// Does something to each of them; the first error, after every one was asked.
    pub(crate) fn each(&self, act: impl Fn(&Transport) -> Result<(), StillBusy>) -> Result<(), StillBusy> {
        self.transports().iter().map(|transport| act(transport)).fold(Ok(()), Result::and)
    }

    /// Puts a card behind the function of its part. The guest is not told.
    fn wire(&self, part: Part, card: Card) -> Result<Live, MachineError> {
        let attention = Some(Arc::clone(&self.attention));
        let (device, disk): (Box<dyn VirtioDevice>, _) = match card {
            Card::Disk(image, queues) => {
                let block = Block::calling(image, attention).with_queues(queues);
                let handle = block.handle();
                (Box::new(block), Some(handle))
            }
            Card::Net(config, link) => (Box::new(Net::new(link, config)), None),
        };
        let wired = self.wiring.plug(&self.vm, &part, device, &self.ram, &self.events)?;
        let slot = part.places.iter().find_map(|place| match place {
            Place::Pci { devfn, .. } => Some(devfn >> 3),
            _ => None,
        });
        Ok(Live { slot: slot.unwrap_or(0), part, disk, wired })
    }
}

impl BusDevice for Slots {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.controller.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.controller.write(offset, data);
    }

    fn registers(&self) -> RegisterNames {
        self.controller.registers()
    }
}
