//! virtio over PCI: a function whose BAR holds the registers, and whose interrupts are MSI-X.
//!
//! ```text
//!   BAR 0, 32 KiB                                  capability
//!   0x0000  common configuration                   1 common
//!   0x1000  ISR status: reading clears it          3 ISR
//!   0x2000  configuration space of the device      4 device
//!   0x3000  doorbells, 4 bytes for each queue      2 notify (ioeventfd: no exit)
//!   0x4000  MSI-X table                            MSI-X
//!   0x7000  MSI-X pending bits
//!           all of it through configuration space  5 PCI access
//! ```
//!
//! The function itself, its configuration space and MSI-X are `axvm_devices::pci`'s; here is what virtio puts in.
//!
//! Spec: virtio 1.2, 4.1 "Virtio Over PCI Bus".
//! Left out: the legacy interface (4.1.4.10) and with it transitional ids; INTx, so that a driver without MSI-X must poll;
//! NOTIFICATION_DATA; shared memory regions.

mod common;

use std::io;
use std::sync::Arc;

use axvm_devices::pci::{Capability, ConfigSpace, Identity, Msix, PciFunction, PciFunctionParts};
use axvm_devices::{BusDevice, RegisterNames};
use axvm_events::Events;
use axvm_memory::GuestRam;

use crate::device::{DeviceId, VirtioDevice};
use crate::signals::Line;
use crate::transport::Transport;
use crate::vectors::VectorMap;

/// Length of the BAR in bytes.
pub const BAR_LEN: u64 = 0x8000;

const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const CONFIG: u64 = 0x2000;
const DOORBELLS: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x7000;
/// Bytes between two doorbells.
const DOORBELL_STRIDE: u64 = 4;

/// Vendor of every virtio device.
const VENDOR: u16 = 0x1af4;
/// Device ids: this and the kind of the device.
const FIRST_DEVICE: u16 = 0x1040;
/// Of a device without the legacy interface.
const REVISION: u8 = 1;
/// Capability: of the vendor, whose first byte behind the pointer is its length.
const VENDOR_SPECIFIC: u8 = 0x09;
/// Where the length of the PCI access capability ends: behind 4 bytes of data.
const WINDOW_LEN: usize = 20;

/// Where the doorbell of `queue` is in the BAR: where an ioeventfd goes, for a write of any length and value.
pub fn doorbell(queue: u16) -> u64 {
    DOORBELLS + u64::from(queue) * DOORBELL_STRIDE
}

/// Vectors of a device with so many queues: one for each, and one for its configuration.
pub fn vector_count(queues: usize) -> usize {
    queues + 1
}

/// Puts `device` behind a function that interrupts by `msix`. `name` is for people and thread names, such as `vda`.
pub fn transport(
    name: &str,
    device: Box<dyn VirtioDevice>,
    ram: Arc<GuestRam>,
    msix: &Arc<Msix>,
    events: Events,
) -> io::Result<Transport> {
    let line = Line::Msix(VectorMap::new(device.queue_sizes().len(), Arc::clone(msix)));
    Transport::new(name, device, ram, line, events)
}

/// The function of a [`transport`], with its BAR at `base`. `on_move` is told where the BAR goes, for the doorbells.
pub fn function(
    transport: &Arc<Transport>,
    msix: Arc<Msix>,
    base: u64,
    on_move: impl Fn(Option<u64>, Option<u64>) + Send + Sync + 'static,
) -> PciFunction {
    let id = transport.id();
    let device = FIRST_DEVICE + id as u16;
    let identity =
        Identity { vendor: VENDOR, device, class: class(id), revision: REVISION, subsystem: (VENDOR, device) };
    let mut config = ConfigSpace::new(identity).with_bar(base, BAR_LEN);
    let doorbells = DOORBELL_STRIDE * u64::from(transport.queue_count());
    config.add(&structure(1, COMMON, common::LEN, &[]));
    config.add(&structure(2, DOORBELLS, doorbells, &(DOORBELL_STRIDE as u32).to_le_bytes()));
    config.add(&structure(3, ISR, 1, &[]));
    config.add(&structure(4, CONFIG, DOORBELLS - CONFIG, &[]));
    let window = config.add(&access());
    PciFunction::new(PciFunctionParts {
        config,
        bar_len: BAR_LEN,
        window: Some(window),
        registers: Arc::new(BarRegisters(Arc::clone(transport))),
        msix,
        msix_table: MSIX_TABLE,
        msix_pending: MSIX_PENDING,
        on_move: Box::new(on_move),
    })
}

/// Base class, subclass and interface, as other devices of the kind have them.
fn class(id: DeviceId) -> u32 {
    match id {
        // Network controller, Ethernet.
        DeviceId::Net => 0x02_0000,
        // Mass storage, other.
        DeviceId::Block => 0x01_8000,
        // Communication, other.
        DeviceId::Console | DeviceId::Vsock => 0x07_8000,
        // No class.
        DeviceId::Entropy | DeviceId::Balloon => 0xff_0000,
    }
}

/// Where a structure of the registers is (4.1.4 "Virtio Structure PCI Capabilities").
fn structure(kind: u8, offset: u64, len: u64, more: &[u8]) -> Capability {
    let all = 16 + more.len();
    let mut body = vec![all as u8, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(more);
    Capability { id: VENDOR_SPECIFIC, body, writable: Vec::new() }
}

/// The way to the BAR through the configuration space, where the guest writes BAR, offset, length and data.
fn access() -> Capability {
    let capability = structure(5, 0, 0, &[0; 4]);
    let mut writable = vec![0; WINDOW_LEN - 2];
    writable[2] = 0xff;
    writable[6..].fill(0xff);
    Capability { writable, ..capability }
}

/// The registers at the beginning of the BAR.
struct BarRegisters(Arc<Transport>);

impl BusDevice for BarRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            COMMON..ISR => common::read(&self.0, offset, data),
            ISR => data[0] = self.0.signals().take_interrupts() as u8,
            CONFIG..DOORBELLS => self.0.lock().core.read_config(offset - CONFIG, data),
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match offset {
            COMMON..ISR => common::write(&self.0, offset, data),
            CONFIG..DOORBELLS => self.0.lock().core.write_config(offset - CONFIG, data),
            DOORBELLS.. => self.0.kicked(((offset - DOORBELLS) / DOORBELL_STRIDE) as usize),
            _ => {}
        }
    }

    fn registers(&self) -> RegisterNames {
        |offset, _| match offset {
            COMMON..ISR => common::name(offset),
            ISR => Some("ISR status"),
            DOORBELLS..MSIX_TABLE => Some("QueueNotify"),
            _ => None,
        }
    }
}
