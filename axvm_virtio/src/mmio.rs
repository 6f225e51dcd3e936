//! virtio over MMIO: a window of 32-bit registers, and the configuration space behind it.
//!
//! ```text
//!   0x000  magic, version, ids, features     \
//!   0x030  one queue at a time: QueueSel      |  aligned 32-bit accesses only
//!   0x050  QueueNotify (ioeventfd: no exit)   |
//!   0x060  interrupts, 0x070 status           |
//!   0x080  addresses of the selected queue   /
//!   0x100  configuration space of the device: 8, 16, 32, 64 bits
//! ```
//!
//! A thin decoder: what the registers mean is in `transport`.
//!
//! Spec: virtio 1.2, 4.2.2 "MMIO Device Register Layout", version 2.
//! Left out: the legacy interface (4.2.4); shared memory regions (no device has one).

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use axvm_devices::{BusDevice, Irq, RegisterNames};
use axvm_events::Events;
use axvm_memory::GuestRam;

use crate::check::{self, Direction};
use crate::claim::Area;
use crate::device::VirtioDevice;
use crate::signals::{INTERRUPTS, Line};
use crate::transport::{Registers, Selectors, Transport};

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "AxVM", little-endian. The field is free for the maker of the device.
const VENDOR: u32 = u32::from_le_bytes(*b"AxVM");

/// Register offsets, named as in table 4.1.
mod reg {
    pub(super) const MAGIC_VALUE: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00c;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_NUM_MAX: u64 = 0x034;
    pub(super) const QUEUE_NUM: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(super) const SHM_SEL: u64 = 0x0ac;
    pub(super) const SHM_LEN_LOW: u64 = 0x0b0;
    pub(super) const SHM_LEN_HIGH: u64 = 0x0b4;
    pub(super) const SHM_BASE_LOW: u64 = 0x0b8;
    pub(super) const SHM_BASE_HIGH: u64 = 0x0bc;
    pub(super) const QUEUE_RESET: u64 = 0x0c0;
    pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(super) const CONFIG: u64 = 0x100;
}

/// Registers as table 4.1 names them.
#[rustfmt::skip]
const NAMES: &[(u64, &str)] = &[
    (reg::MAGIC_VALUE, "MagicValue"), (reg::VERSION, "Version"), (reg::DEVICE_ID, "DeviceID"),
    (reg::VENDOR_ID, "VendorID"), (reg::DEVICE_FEATURES, "DeviceFeatures"),
    (reg::DEVICE_FEATURES_SEL, "DeviceFeaturesSel"), (reg::DRIVER_FEATURES, "DriverFeatures"),
    (reg::DRIVER_FEATURES_SEL, "DriverFeaturesSel"), (reg::QUEUE_SEL, "QueueSel"),
    (reg::QUEUE_NUM_MAX, "QueueNumMax"), (reg::QUEUE_NUM, "QueueNum"), (reg::QUEUE_READY, "QueueReady"),
    (reg::QUEUE_NOTIFY, "QueueNotify"), (reg::INTERRUPT_STATUS, "InterruptStatus"),
    (reg::INTERRUPT_ACK, "InterruptACK"), (reg::STATUS, "Status"), (reg::QUEUE_DESC_LOW, "QueueDescLow"),
    (reg::QUEUE_DESC_HIGH, "QueueDescHigh"), (reg::QUEUE_DRIVER_LOW, "QueueDriverLow"),
    (reg::QUEUE_DRIVER_HIGH, "QueueDriverHigh"), (reg::QUEUE_DEVICE_LOW, "QueueDeviceLow"),
    (reg::QUEUE_DEVICE_HIGH, "QueueDeviceHigh"), (reg::SHM_LEN_LOW, "SHMLenLow"), (reg::SHM_LEN_HIGH, "SHMLenHigh"),
    (reg::SHM_BASE_LOW, "SHMBaseLow"), (reg::SHM_BASE_HIGH, "SHMBaseHigh"), (reg::QUEUE_RESET, "QueueReset"),
    (reg::CONFIG_GENERATION, "ConfigGeneration"),
];

/// The direction of the register at `offset`, as in table 4.1; `None` if none begins there.
fn direction(offset: u64) -> Option<Direction> {
    match offset {
        reg::QUEUE_READY | reg::STATUS | reg::QUEUE_RESET => Some(Direction::Both),
        reg::DEVICE_FEATURES_SEL | reg::DRIVER_FEATURES..=reg::QUEUE_SEL | reg::QUEUE_NUM => Some(Direction::Write),
        reg::QUEUE_NOTIFY | reg::INTERRUPT_ACK | reg::SHM_SEL => Some(Direction::Write),
        reg::QUEUE_DESC_LOW..=reg::QUEUE_DEVICE_HIGH => Some(Direction::Write),
        _ => Some(Direction::Read),
    }
    .filter(|_| offset == reg::SHM_SEL || NAMES.iter().any(|(register, _)| *register == offset))
}

/// Offset of QueueNotify: where an ioeventfd goes, matching the queue's number in 32 bits.
pub const QUEUE_NOTIFY: u64 = reg::QUEUE_NOTIFY;

/// A virtio device behind a window of registers.
pub struct MmioTransport(Arc<Transport>);

impl MmioTransport {
    /// Puts `device` behind registers. `name` is for people and thread names, such as `vda`.
    pub fn new(
        name: &str,
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        irq: Irq,
        events: Events,
    ) -> io::Result<MmioTransport> {
        Transport::new(name, device, ram, Line::Edge(irq), events).map(Arc::new).map(MmioTransport)
    }

    /// Looks at an access, if rules are checked.
    fn check(&self, offset: u64, len: usize, written: Option<&[u8]>) {
        let Some(findings) = self.signals().findings() else { return };
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            return check::mmio_config(&findings, offset, len);
        }
        check::mmio(&findings, offset, len, direction(offset), written.is_some());
        if let (reg::INTERRUPT_ACK, Some(&[a, b, c, d])) = (offset, written) {
            check::mmio_ack(&findings, u32::from_le_bytes([a, b, c, d]) & !INTERRUPTS);
        }
    }

    /// The part that knows no bus.
    pub fn transport(&self) -> &Arc<Transport> {
        &self.0
    }
}

impl Deref for MmioTransport {
    type Target = Transport;

    fn deref(&self) -> &Transport {
        &self.0
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.check(offset, data.len(), None);
        data.fill(0);
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.lock().core.read_config(offset, data);
        } else if data.len() == 4 {
            let value = match offset {
                reg::INTERRUPT_STATUS => self.signals().interrupt_status(),
                _ => read(&mut self.lock(), offset),
            };
            data.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.check(offset, data.len(), Some(data));
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.lock().core.write_config(offset, data);
        } else if let Ok(bytes) = data.try_into() {
            let value = u32::from_le_bytes(bytes);
            match offset {
                reg::QUEUE_NOTIFY => self.kicked(value as usize),
                reg::INTERRUPT_ACK => self.signals().acknowledge(value),
                _ => write(&mut self.lock(), offset, value),
            }
        }
    }

    fn registers(&self) -> RegisterNames {
        |offset, _| NAMES.iter().find(|(register, _)| *register == offset).map(|(_, name)| *name)
    }
}

fn read(Registers { core, select }: &mut Registers, offset: u64) -> u32 {
    match offset {
        reg::MAGIC_VALUE => MAGIC,
        reg::VERSION => VERSION,
        reg::DEVICE_ID => core.device().id() as u32,
        reg::VENDOR_ID => VENDOR,
        reg::DEVICE_FEATURES => core.offered(select.device_features),
        reg::QUEUE_NUM_MAX => core.queue_max(select.queue),
        reg::QUEUE_READY => core.queue_ready(select.queue).into(),
        reg::STATUS => core.read_status(),
        // All ones: no such region.
        reg::SHM_LEN_LOW | reg::SHM_LEN_HIGH | reg::SHM_BASE_LOW | reg::SHM_BASE_HIGH => u32::MAX,
        // A queue reset is over before the driver can look.
        reg::QUEUE_RESET => 0,
        reg::CONFIG_GENERATION => core.config_generation(),
        // Write-only registers, gaps, unaligned accesses.
        _ => 0,
    }
}

fn write(Registers { core, select }: &mut Registers, offset: u64, value: u32) {
    let Selectors { queue, driver_features, .. } = *select;
    match offset {
        reg::DEVICE_FEATURES_SEL => select.device_features = value,
        reg::DRIVER_FEATURES => core.accept(driver_features, value),
        reg::DRIVER_FEATURES_SEL => select.driver_features = value,
        reg::QUEUE_SEL => select.queue = value,
        reg::QUEUE_NUM => core.set_queue_size(queue, value),
        reg::QUEUE_READY => core.set_queue_ready(queue, value & 1 != 0),
        reg::STATUS => core.write_status(value),
        reg::QUEUE_DESC_LOW => core.set_queue_address(queue, Area::Descriptors, false, value),
        reg::QUEUE_DESC_HIGH => core.set_queue_address(queue, Area::Descriptors, true, value),
        reg::QUEUE_DRIVER_LOW => core.set_queue_address(queue, Area::Driver, false, value),
        reg::QUEUE_DRIVER_HIGH => core.set_queue_address(queue, Area::Driver, true, value),
        reg::QUEUE_DEVICE_LOW => core.set_queue_address(queue, Area::Device, false, value),
        reg::QUEUE_DEVICE_HIGH => core.set_queue_address(queue, Area::Device, true, value),
        reg::QUEUE_RESET if value & 1 != 0 => core.reset_queue(queue),
        // Read-only registers, gaps, unaligned accesses; SHMSel, for there is no region to select.
        _ => {}
    }
}
