//! The inventory: every part of a machine that this program provides, by name.
//!
//! ```text
//!   Inventory   i8042  "ACPI PM1a"  "ACPI timer"  RTC  COM1  pvpanic  "PCI host"  vda  rng  balloon ...
//!                 |         |             |        |    |       |         |        |    |     |
//!   pause, resume, stop, status: one walk over all of them, an exhaustive match in each step
//! ```
//!
//! A new kind of chip that forgets one of the walks does not compile.

use std::sync::Arc;
use std::time::Instant;

use axvm_boot::plan::Part;
use axvm_devices::{AcpiPm, BusDevice, DebugConsole, DebugExit, I8042, PciHost, PmTimer, Pvpanic, Rtc, Uart16550};
use axvm_virtio::balloon::Target;
use axvm_virtio::block::{DiskHandle, FullStorage};
use axvm_virtio::net::NetHandle;
use axvm_virtio::{Busy, StillBusy, Transport};

use crate::slots::Slots;

/// All parts of a machine, in the order of the plan.
pub struct Inventory {
    items: Vec<Item>,
}

/// One part in its machine: where it sits, and what it is.
pub struct Item {
    /// Its name, kind, places and line.
    pub part: Part,
    /// The thing itself.
    pub chip: Chip,
}

/// A chip or a device in its machine.
#[derive(Clone)]
pub enum Chip {
    /// The serial port.
    Uart(Arc<Uart16550>),
    /// The clock.
    Rtc(Arc<Rtc>),
    /// The keyboard controller.
    I8042(Arc<I8042>),
    /// The power management registers.
    AcpiPm(Arc<AcpiPm>),
    /// The power management timer.
    PmTimer(Arc<PmTimer>),
    /// The panic notifier.
    Pvpanic(Arc<Pvpanic>),
    /// The configuration ports of PCI.
    PciHost(Arc<PciHost>),
    /// The slots of PCI, with what is in them.
    Slots(Arc<Slots>),
    /// The debug-exit port.
    DebugExit(Arc<DebugExit>),
    /// The debug console.
    DebugConsole(Arc<DebugConsole>),
    /// A virtio device behind its transport.
    Virtio(Arc<Transport>),
    /// A disk, with the handle that says what it waits for.
    Disk(Arc<Transport>, DiskHandle),
    /// A balloon, with the handle that sets its size.
    Balloon(Arc<Transport>, Target),
    /// A network card, with its link.
    Net(Arc<Transport>, NetHandle),
}

impl Chip {
    /// The chip as its bus sees it; the registers of a virtio device are its bus's.
    pub(crate) fn device(&self) -> Option<Arc<dyn BusDevice>> {
        Some(match self {
            Chip::Uart(chip) => chip.clone(),
            Chip::Rtc(chip) => chip.clone(),
            Chip::I8042(chip) => chip.clone(),
            Chip::AcpiPm(chip) => chip.clone(),
            Chip::PmTimer(chip) => chip.clone(),
            Chip::Pvpanic(chip) => chip.clone(),
            Chip::PciHost(chip) => chip.clone(),
            Chip::Slots(slots) => slots.clone(),
            Chip::DebugExit(chip) => chip.clone(),
            Chip::DebugConsole(chip) => chip.clone(),
            Chip::Virtio(_) | Chip::Disk(..) | Chip::Balloon(..) | Chip::Net(..) => return None,
        })
    }

    /// What in it acts by itself. Each kind by name: a new one must say so.
    fn engine(&self) -> Engine<'_> {
        match self {
            Chip::Virtio(transport) | Chip::Disk(transport, _) => Engine::Threads(transport),
            Chip::Balloon(transport, _) | Chip::Net(transport, _) => Engine::Threads(transport),
            Chip::Slots(slots) => Engine::Slots(slots),
            // They act only when a vCPU or the main thread calls them.
            Chip::Uart(_) | Chip::Rtc(_) | Chip::I8042(_) | Chip::AcpiPm(_) | Chip::PmTimer(_) => Engine::None,
            Chip::Pvpanic(_) | Chip::PciHost(_) | Chip::DebugExit(_) | Chip::DebugConsole(_) => Engine::None,
        }
    }

    /// Asks it to come to rest, and waits for nothing: a pause or a stop follows.
    fn begin_stop(&self) {
        match self.engine() {
            Engine::Threads(transport) => transport.begin_stop(),
            Engine::Slots(slots) => slots.transports().iter().for_each(|transport| transport.begin_stop()),
            Engine::None => {}
        }
    }

    /// Holds it still; no vCPU runs.
    fn pause(&self, deadline: Instant) -> Result<(), StillBusy> {
        match self.engine() {
            Engine::Threads(transport) => transport.pause(deadline),
            Engine::Slots(slots) => slots.each(|transport| transport.pause(deadline)),
            Engine::None => Ok(()),
        }
    }

    /// Lets it go on.
    fn resume(&self, deadline: Instant) -> Result<(), StillBusy> {
        match self.engine() {
            Engine::Threads(transport) => transport.resume(deadline),
            Engine::Slots(slots) => slots.each(|transport| transport.resume(deadline)),
            Engine::None => Ok(()),
        }
    }

    /// Ends it: every request that it took is completed, or back in its ring.
    fn stop(&self, deadline: Instant) -> Result<(), StillBusy> {
        match self.engine() {
            Engine::Threads(transport) => transport.stop(deadline),
            Engine::Slots(slots) => slots.each(|transport| transport.stop(deadline)),
            Engine::None => Ok(()),
        }
    }

    /// What it has in the host now. Waits for nothing.
    fn busy(&self) -> Vec<Busy> {
        match self.engine() {
            Engine::Threads(transport) => transport.busy(),
            Engine::Slots(slots) => slots.transports().iter().flat_map(|transport| transport.busy()).collect(),
            Engine::None => Vec::new(),
        }
    }
}

/// The part of a chip that acts while no one calls it.
enum Engine<'a> {
    /// Threads behind a transport.
    Threads(&'a Transport),
    /// Those of what is in the slots, or on its way out.
    Slots(&'a Slots),
    None,
}

impl Inventory {
    pub(crate) fn new(items: Vec<Item>) -> Inventory {
        Inventory { items }
    }

    /// Every part.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The clock, for the thread that serves its timer.
    pub(crate) fn rtc(&self) -> Option<&Rtc> {
        self.chips().find_map(|chip| if let Chip::Rtc(rtc) = chip { Some(&**rtc) } else { None })
    }

    /// The power management registers, with the power button.
    pub(crate) fn acpi_pm(&self) -> Option<&AcpiPm> {
        self.chips().find_map(|chip| if let Chip::AcpiPm(pm) = chip { Some(&**pm) } else { None })
    }

    /// The balloon's handle, if the machine has one.
    pub(crate) fn balloon(&self) -> Option<&Target> {
        self.chips().find_map(|chip| if let Chip::Balloon(_, target) = chip { Some(target) } else { None })
    }

    /// The slots of PCI, if the machine has some.
    pub fn slots(&self) -> Option<&Slots> {
        self.chips().find_map(|chip| if let Chip::Slots(slots) = chip { Some(&**slots) } else { None })
    }

    /// The disks by name, with their handles: those of the start, /dev/vda first, then those that were added.
    pub fn disks(&self) -> impl Iterator<Item = (Arc<str>, DiskHandle)> {
        let fixed = self.items.iter().filter_map(|item| match &item.chip {
            Chip::Disk(_, handle) => Some((Arc::clone(&item.part.name), handle.clone())),
            _ => None,
        });
        fixed.chain(self.slots().map(Slots::disks).unwrap_or_default())
    }

    /// Whether a request of a disk waits for room on the host.
    pub(crate) fn is_full(&self) -> bool {
        self.disks().any(|(_, disk)| disk.full().is_some())
    }

    /// The disks with such a request that the user was not told of.
    pub(crate) fn newly_full(&self) -> impl Iterator<Item = (Arc<str>, FullStorage)> {
        self.disks().filter_map(|(name, disk)| Some((name, disk.newly_full()?)))
    }

    /// Asks every part to come to rest, and waits for none.
    pub(crate) fn begin_stop(&self) {
        self.chips().for_each(Chip::begin_stop);
    }

    /// Holds every part still. All are asked before the first is waited for.
    pub(crate) fn pause(&self, deadline: Instant) -> Result<(), StillBusy> {
        self.begin_stop();
        first_error(self.chips().map(|chip| chip.pause(deadline)))
    }

    /// Lets every part go on.
    pub(crate) fn resume(&self, deadline: Instant) -> Result<(), StillBusy> {
        first_error(self.chips().map(|chip| chip.resume(deadline)))
    }

    /// Ends every part. All are asked before the first is waited for.
    pub(crate) fn stop(&self, deadline: Instant) -> Result<(), StillBusy> {
        self.begin_stop();
        first_error(self.chips().map(|chip| chip.stop(deadline)))
    }

    /// The threads with a request in the host, and since when. Waits for nothing.
    pub fn busy(&self) -> Vec<Busy> {
        self.chips().flat_map(Chip::busy).collect()
    }

    fn chips(&self) -> impl Iterator<Item = &Chip> {
        self.items.iter().map(|item| &item.chip)
    }
}

/// The first error, after every one of `results` was asked for.
fn first_error<E>(results: impl Iterator<Item = Result<(), E>>) -> Result<(), E> {
    results.fold(Ok(()), Result::and)
}
