//! A device at a glance, while it runs: how far its driver has come, and where its rings stand.
//!
//! ```text
//!   avail:  flags | idx: offered | ring[size] | used_event     the driver's
//!   used:   flags | idx: returned | ring[size] | avail_event   the device's
//! ```
//!
//! The rings move while they are read: what is seen is true of a moment, and not all of it of the same one. Addresses are
//! claims of the driver; a ring that is no RAM is left out.
//!
//! Spec: virtio 1.2, 2.1 "Device Status Field", 2.7.6 "The Virtqueue Available Ring", 2.7.8 "The Virtqueue Used Ring".

use axvm_arch::Gpa;
use axvm_devices::pci::MsixRoute;

use super::Transport;
use crate::device::{DeviceId, feature};
use crate::signals::Line;

/// A device at a glance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glance {
    /// The device status field; none if a vCPU is at the registers just now, and waits there.
    pub status: Option<u32>,
    /// The interrupt status register.
    pub interrupt_status: u32,
    /// The queues that the driver has enabled.
    pub queues: Vec<QueueGlance>,
}

/// A queue at a glance. Indices count modulo 2^16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueGlance {
    /// Its number.
    pub index: u16,
    /// Number of descriptors.
    pub size: u16,
    /// Chains that the driver has offered.
    pub avail: u16,
    /// Chains that the device has returned.
    pub used: u16,
    /// What the driver wants to be told next; none without VIRTIO_F_EVENT_IDX.
    pub used_event: Option<u16>,
    /// A kick has come and was not taken.
    pub kicked: bool,
    /// Its buffers wait for what comes from outside of the guest.
    pub waits_for_input: bool,
    /// How it interrupts.
    pub interrupt: QueueInterrupt,
}

/// How a queue interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueInterrupt {
    /// By the device's line.
    Line,
    /// Not at all: its driver chose no vector.
    None,
    /// By a vector of MSI-X, with this number.
    Vector(u16, MsixRoute),
}

impl Transport {
    /// Looks at the device, and holds up no one.
    pub fn glance(&self) -> Glance {
        let interrupt_status = self.signals().interrupt_status();
        let Some(registers) = self.try_lock() else {
            return Glance { status: None, interrupt_status, queues: Vec::new() };
        };
        let core = &registers.core;
        let snapshots = (0..).zip(core.snapshots()).filter(|(_, queue)| queue.ready);
        let queues = snapshots.filter_map(|(index, queue)| {
            let word = |ring: Gpa, offset: u64| {
                let mut word = [0; 2];
                core.ram.read(Gpa(ring.0.checked_add(offset)?), &mut word).ok()?;
                Some(u16::from_le_bytes(word))
            };
            let layout = queue.layout;
            let used_event = match core.status.negotiated() & feature::EVENT_IDX {
                0 => None,
                _ => Some(word(layout.avail, 4 + 2 * u64::from(layout.size))?),
            };
            Some(QueueGlance {
                index,
                size: layout.size,
                avail: word(layout.avail, 2)?,
                used: word(layout.used, 2)?,
                used_event,
                kicked: queue.kicked,
                waits_for_input: waits_for_input(self.id(), index),
                interrupt: match self.signals().line() {
                    Line::Edge(_) => QueueInterrupt::Line,
                    Line::Msix(vectors) => vectors
                        .route(index)
                        .map_or(QueueInterrupt::None, |(number, route)| QueueInterrupt::Vector(number, route)),
                },
            })
        });
        Glance { status: Some(core.status()), interrupt_status, queues: queues.collect() }
    }
}

/// Whether the driver of such a device fills queue `index` with buffers for what may come.
fn waits_for_input(id: DeviceId, index: u16) -> bool {
    match id {
        // Frames, and bytes for a port, come in queues of even numbers; of a socket device events do, too.
        DeviceId::Net | DeviceId::Console | DeviceId::Vsock => index.is_multiple_of(2),
        // The statistics: the device keeps the buffer until it wants some.
        DeviceId::Balloon => index == 2,
        DeviceId::Block | DeviceId::Entropy => false,
    }
}
