//! A whole machine as a value: what a copy of it needs beside the guest's RAM and its disks.
//!
//! ```text
//!   Machine (paused) --save()--> SavedMachine --Resources::restore()--> Machine (paused)
//!
//!   save      ports, chips, devices -> irqfds flushed, VM -> each vCPU, from its own thread
//!   restore   each vCPU -> VM -> ports -> chips, devices       (why in this order: axvm_kvm::state)
//! ```
//!
//! What happens outside of a paused machine after it was saved (a key is pressed, the clock's alarm comes) is no part of
//! the value.
//!
//! No specification: the value is AxVM's own. Left out: files, versions, RAM, and the specification, which the caller has.

use std::sync::Arc;

use axvm_arch::registers::SystemRegisters;
use axvm_console::{Port, PortState, PortStateError};
use axvm_devices::pci::PciHotplugState;
use axvm_devices::{ChipStateError, PciHostState, Pm1State, PmTimerState, RtcState, UartState};
use axvm_kvm::{KvmError, KvmVcpu, VcpuState, Vm, VmState};
use axvm_virtio::Transport;
use axvm_virtio::state::{RestoreError, TransportState};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::inventory::{Chip, Inventory, Item};
use crate::slots::Slots;
use crate::{Machine, Ports};

/// Everything a paused machine is, but its RAM and its disks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedMachine {
    /// What the kernel was told.
    pub command_line: String,
    /// What waits in the UART's port.
    pub com1: PortState,
    /// What waits in the virtio console's, if there is one.
    pub hvc0: Option<PortState>,
    /// What waits in the debug console's, if there is one.
    pub debug: Option<PortState>,
    /// Every part of the inventory, in the order of the plan.
    pub parts: Vec<SavedPart>,
    /// Interrupt controllers, timer, clock.
    pub vm: VmState,
    /// The vCPUs, in the order of their numbers.
    pub vcpus: Vec<VcpuState>,
}

/// One part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedPart {
    /// Its name in the plan.
    pub name: String,
    /// What it knows.
    pub chip: ChipState,
}

/// What a chip or a device knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChipState {
    /// The serial port.
    Uart(UartState),
    /// The clock.
    Rtc(RtcState),
    /// The keyboard controller keeps nothing.
    I8042,
    /// The power management registers.
    AcpiPm(Pm1State),
    /// The power management timer.
    PmTimer(PmTimerState),
    /// The panic notifier keeps nothing.
    Pvpanic,
    /// The configuration ports of PCI.
    PciHost(PciHostState),
    /// The slots of PCI.
    Slots(SlotsState),
    /// The debug-exit port keeps nothing.
    DebugExit,
    /// The debug console keeps nothing.
    DebugConsole,
    /// A virtio device, the balloon included.
    Virtio(TransportState),
}

/// What the slots of a saved machine had in them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotsState {
    /// What the guest has not looked at.
    pub controller: PciHotplugState,
    /// The devices, in the order in which they came.
    pub devices: Vec<SlotState>,
}

/// A device in its slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotState {
    /// Its number on the bus.
    pub slot: u8,
    /// Its name.
    pub name: String,
    /// What it knows.
    pub virtio: TransportState,
}

/// A machine cannot be saved.
#[derive(Debug, Error)]
pub enum SaveError {
    /// It moves.
    #[error("Cannot save a machine that runs; pause it first")]
    NotPaused,
    /// The machine is to stop, and the reason waits until it is resumed.
    #[error(
        "Cannot save a machine whose guest has powered off, reset or crashed just before the pause; resume it first"
    )]
    Ended,
    /// What the guest wrote to a disk would stay behind.
    #[error(
        "Cannot save a machine with an ephemeral disk ({0}): what its guest wrote is in a temporary file, and gone with \
         this process. Start it without ephemeral, on a copy of the image"
    )]
    Ephemeral(String),
    /// The guest is a host.
    #[error(
        "Cannot save a machine whose guest uses virtualization itself (vCPU {0}; --cpu ...,nested=on): what a guest of the \
         guest is doing cannot be carried. End the guest's own machines and unload its kvm_intel or kvm_amd, or start the \
         machine with nested=off"
    )]
    Nested(usize),
    /// KVM does not give the state.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// A saved machine does not fit where it is to go on.
#[derive(Debug, Error)]
pub enum MismatchError {
    /// Other parts, or in another order.
    #[error("The saved machine has the parts {saved}, this one has {here}; give it the same devices")]
    Parts {
        /// Names of the saved parts.
        saved: String,
        /// Names of this machine's.
        here: String,
    },
    /// Other devices were added.
    #[error("To the saved machine {saved} was added, to this one {here}; add the same devices, in the same order")]
    Slots {
        /// Names of the devices in the slots of the saved machine.
        saved: String,
        /// Names of this machine's.
        here: String,
    },
    /// Another number of vCPUs.
    #[error("The saved machine has {saved} vCPUs, this one has {here}; give it as many")]
    Vcpus {
        /// How many were saved.
        saved: usize,
        /// How many there are.
        here: usize,
    },
    /// A part was another chip.
    #[error("The saved {0} is another kind of chip than this machine's")]
    Kind(String),
    /// A part refuses its state.
    #[error("Cannot restore {part}")]
    Part {
        /// Name of the part.
        part: String,
        /// Why.
        source: ChipStateError,
    },
    /// A virtio device refuses its state.
    #[error(transparent)]
    Virtio(#[from] RestoreError),
    /// A port refuses its state.
    #[error(transparent)]
    Port(#[from] PortStateError),
}

impl Machine {
    /// Everything this machine is; it must be paused, and stays so.
    pub fn save(&self) -> Result<SavedMachine, SaveError> {
        // Held until the end: no other thread lets the machine go on meanwhile.
        let _still = self.hold().ok_or(SaveError::NotPaused)?;
        // It is no part of what is saved: where the machine went on, its guest would wait for ever.
        if self.shared.stop.reason().is_some() {
            return Err(SaveError::Ended);
        }
        if let Some((name, _)) = self.inventory().disks().find(|(_, disk)| disk.is_ephemeral()) {
            return Err(SaveError::Ephemeral(name.to_string()));
        }
        let ports = self.ports();
        let state = |port: &Option<Port>| port.as_ref().map(Port::state);
        let (com1, hvc0, debug) = (ports.com1.state(), state(&ports.hvc0), state(&ports.debug));
        let parts = self.inventory().save().ok_or(SaveError::NotPaused)?;
        // Only threads of vCPUs may call KVM.
        let vm = Arc::clone(self.vm());
        let vm = self.visit_held(0, move |_| vm.save()).ok_or(SaveError::Ended)??;
        let vcpus = (0..self.vcpu_count()).map(|index| {
            let saved = self.visit_held(index, KvmVcpu::save).ok_or(SaveError::Ended)?;
            Ok(saved?)
        });
        let vcpus = vcpus.collect::<Result<Vec<_>, SaveError>>()?;
        let command_line = self.command_line().to_owned();
        refuse_hosts(vcpus.iter().map(|vcpu| &vcpu.system))?;
        Ok(SavedMachine { command_line, com1, hvc0, debug, parts, vm, vcpus })
    }
}

/// Refuses a machine with a vCPU that runs, or could at once run, a guest of the guest.
fn refuse_hosts<'a>(mut vcpus: impl Iterator<Item = &'a SystemRegisters>) -> Result<(), SaveError> {
    vcpus.position(SystemRegisters::virtualizes).map_or(Ok(()), |vcpu| Err(SaveError::Nested(vcpu)))
}

impl SavedMachine {
    /// Creates the vCPUs, then gives the VM its chips back.
    pub(crate) fn restore_vm(&self, vm: &Vm) -> Result<Vec<KvmVcpu>, KvmError> {
        let vcpus = self.vcpus.iter().map(|state| vm.restore_vcpu(state)).collect::<Result<_, _>>()?;
        vm.restore(&self.vm)?;
        Ok(vcpus)
    }

    /// Fills ports and parts, which are fresh; the devices are paused afterwards.
    pub(crate) fn restore_parts(&self, ports: &Ports, inventory: &Inventory) -> Result<(), MismatchError> {
        let names = |names: &mut dyn Iterator<Item = &str>| names.collect::<Vec<_>>().join(", ");
        let saved = names(&mut self.parts.iter().map(|part| &*part.name));
        let here = names(&mut inventory.items().iter().map(|item| &*item.part.name));
        if saved != here {
            return Err(MismatchError::Parts { saved, here });
        }
        let pairs = || inventory.items().iter().zip(&self.parts);
        // Before the bus, which has as many functions as were added.
        for (item, saved) in pairs() {
            if let (Chip::Slots(slots), ChipState::Slots(state)) = (&item.chip, &saved.chip) {
                check_slots(slots, state)?;
            }
        }
        ports.com1.restore(self.com1.clone())?;
        for (port, state) in [(&ports.hvc0, &self.hvc0), (&ports.debug, &self.debug)] {
            if let (Some(port), Some(state)) = (port, state) {
                port.restore(state.clone())?;
            }
        }
        pairs().try_for_each(|(item, saved)| item.chip.restore(&saved.name, &saved.chip))
    }
}

/// What slots know; `None` while a device moves.
fn save_slots(slots: &Slots) -> Option<SlotsState> {
    let state = |(slot, name, transport): (u8, Arc<str>, Arc<Transport>)| {
        Some(SlotState { slot, name: name.to_string(), virtio: transport.state()? })
    };
    let devices = slots.there().into_iter().map(state).collect::<Option<_>>()?;
    Some(SlotsState { controller: slots.controller().state(), devices })
}

/// Whether the same devices are in `slots` as where `state` comes from.
fn check_slots(slots: &Slots, state: &SlotsState) -> Result<(), MismatchError> {
    let there = slots.there();
    let saved: Vec<_> = state.devices.iter().map(|device| (device.slot, &*device.name)).collect();
    let here: Vec<_> = there.iter().map(|(slot, name, _)| (*slot, &**name)).collect();
    if saved == here {
        return Ok(());
    }
    let told = |devices: Vec<(u8, &str)>| match devices.is_empty() {
        true => "nothing".to_owned(),
        false => devices.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(", "),
    };
    Err(MismatchError::Slots { saved: told(saved), here: told(here) })
}

/// Makes slots that were [checked](check_slots) what `state` says.
fn restore_slots(slots: &Slots, part: &str, state: &SlotsState) -> Result<(), MismatchError> {
    for ((_, _, transport), device) in slots.there().iter().zip(&state.devices) {
        transport.restore(&device.virtio)?;
    }
    let restored = slots.controller().restore(&state.controller);
    restored.map_err(|source| MismatchError::Part { part: part.to_owned(), source })
}

impl Inventory {
    /// What each part knows; `None` while one of them moves.
    fn save(&self) -> Option<Vec<SavedPart>> {
        let save = |item: &Item| Some(SavedPart { name: item.part.name.to_string(), chip: item.chip.save()? });
        self.items().iter().map(save).collect()
    }
}

impl Chip {
    /// What it knows; `None` while it moves.
    fn save(&self) -> Option<ChipState> {
        Some(match self {
            Chip::Uart(chip) => ChipState::Uart(chip.state()),
            Chip::Rtc(chip) => ChipState::Rtc(chip.state()),
            Chip::I8042(_) => ChipState::I8042,
            Chip::AcpiPm(chip) => ChipState::AcpiPm(chip.state()),
            Chip::PmTimer(chip) => ChipState::PmTimer(chip.state()),
            Chip::Pvpanic(_) => ChipState::Pvpanic,
            Chip::PciHost(chip) => ChipState::PciHost(chip.state()),
            Chip::Slots(slots) => ChipState::Slots(save_slots(slots)?),
            Chip::DebugExit(_) => ChipState::DebugExit,
            Chip::DebugConsole(_) => ChipState::DebugConsole,
            Chip::Virtio(transport) | Chip::Disk(transport, _) => ChipState::Virtio(transport.state()?),
            Chip::Balloon(transport, _) | Chip::Net(transport, _) => ChipState::Virtio(transport.state()?),
        })
    }

    /// Makes a fresh chip what `state` says.
    fn restore(&self, name: &str, state: &ChipState) -> Result<(), MismatchError> {
        let restored = match (self, state) {
            (Chip::Uart(chip), ChipState::Uart(state)) => chip.restore(state),
            (Chip::Rtc(chip), ChipState::Rtc(state)) => chip.restore(state),
            (Chip::AcpiPm(chip), ChipState::AcpiPm(state)) => chip.restore(state),
            (Chip::PmTimer(chip), ChipState::PmTimer(state)) => chip.restore(state),
            (Chip::PciHost(chip), ChipState::PciHost(state)) => chip.restore(state),
            (Chip::Slots(slots), ChipState::Slots(state)) => return restore_slots(slots, name, state),
            (Chip::I8042(_), ChipState::I8042)
            | (Chip::Pvpanic(_), ChipState::Pvpanic)
            | (Chip::DebugExit(_), ChipState::DebugExit)
            | (Chip::DebugConsole(_), ChipState::DebugConsole) => Ok(()),
            (
                Chip::Virtio(transport)
                | Chip::Disk(transport, _)
                | Chip::Balloon(transport, _)
                | Chip::Net(transport, _),
                ChipState::Virtio(state),
            ) => {
                return Ok(transport.restore(state)?);
            }
            // Each kind by name: a new one must say how it is restored.
            (
                Chip::Uart(_)
                | Chip::Rtc(_)
                | Chip::I8042(_)
                | Chip::AcpiPm(_)
                | Chip::PmTimer(_)
                | Chip::Pvpanic(_)
                | Chip::PciHost(_)
                | Chip::Slots(_)
                | Chip::DebugExit(_)
                | Chip::DebugConsole(_)
                | Chip::Virtio(_)
                | Chip::Disk(..)
                | Chip::Balloon(..)
                | Chip::Net(..),
                _,
            ) => return Err(MismatchError::Kind(name.to_owned())),
        };
        restored.map_err(|source| MismatchError::Part { part: name.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_arch::registers::{cr4, efer};

    #[test]
    fn a_machine_whose_guest_is_a_host_is_not_saved() {
        let idle = SystemRegisters { cr4: cr4::PAE, efer: efer::LME | efer::LMA, ..SystemRegisters::default() };
        let vmx = SystemRegisters { cr4: idle.cr4 | cr4::VMXE, ..idle };
        let svm = SystemRegisters { efer: idle.efer | efer::SVME, ..idle };
        assert!(refuse_hosts([idle, idle].iter()).is_ok());
        for host in [vmx, svm] {
            let why = refuse_hosts([idle, host].iter()).unwrap_err().to_string();
            assert!(
                why.contains("vCPU 1; --cpu ...,nested=on") && why.contains("End the guest's own machines"),
                "{why}"
            );
        }
    }
}
