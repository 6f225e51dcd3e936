//! The common configuration: what MMIO has as registers of 32 bits, in fields of their natural width.
//!
//! ```text
//!   0x00  device_feature_select, device_feature | 0x08 driver_feature_select, driver_feature
//!   0x10  msix_config, num_queues, status (8), generation (8)
//!   0x16  queue_select | size, msix_vector, enable, notify_off | 0x20 desc, driver, device (64 each)
//!   0x38  notify_data, queue_reset
//! ```
//!
//! A field is read and written whole; addresses also in halves. Other accesses read as zero and write nothing.
//!
//! Spec: virtio 1.2, 4.1.4.3 "Common configuration structure layout".
//! Left out: queue_notify_data, which has a meaning with NOTIF_CONFIG_DATA only.

use crate::check::{self, PciField};
use crate::claim::Area;
use crate::signals::Line;
use crate::transport::{Registers, Transport};
use crate::vectors::{Cause, VectorMap};

/// Length in bytes.
pub(super) const LEN: u64 = 0x3c;

/// Fields, named as in the specification.
mod field {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub(super) const NUM_QUEUES: u64 = 0x12;
    pub(super) const DEVICE_STATUS: u64 = 0x14;
    pub(super) const CONFIG_GENERATION: u64 = 0x15;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(super) const QUEUE_DESC: u64 = 0x20;
    pub(super) const QUEUE_DEVICE_END: u64 = 0x38;
    pub(super) const QUEUE_RESET: u64 = 0x3a;
}
use field::*;

/// Fields as 4.1.4.3 names them; addresses, whose halves are written alone, by what they begin.
pub(super) fn name(offset: u64) -> Option<&'static str> {
    Some(match offset {
        DEVICE_FEATURE_SELECT => "device_feature_select",
        DEVICE_FEATURE => "device_feature",
        DRIVER_FEATURE_SELECT => "driver_feature_select",
        DRIVER_FEATURE => "driver_feature",
        CONFIG_MSIX_VECTOR => "config_msix_vector",
        NUM_QUEUES => "num_queues",
        DEVICE_STATUS => "device_status",
        CONFIG_GENERATION => "config_generation",
        QUEUE_SELECT => "queue_select",
        QUEUE_SIZE => "queue_size",
        QUEUE_MSIX_VECTOR => "queue_msix_vector",
        QUEUE_ENABLE => "queue_enable",
        QUEUE_NOTIFY_OFF => "queue_notify_off",
        QUEUE_RESET => "queue_reset",
        QUEUE_DESC..QUEUE_DEVICE_END => {
            ["queue_desc", "queue_driver", "queue_device"][((offset - QUEUE_DESC) / 8) as usize]
        }
        _ => return None,
    })
}

/// The driver reads. `data` arrives zeroed.
pub(super) fn read(transport: &Transport, offset: u64, data: &mut [u8]) {
    let registers = &mut *transport.lock();
    if let Some(findings) = transport.signals().findings() {
        check::pci_read(&findings, offset, data.len(), natural(offset, data.len()));
    }
    let value = match (offset, data.len()) {
        (QUEUE_DESC..QUEUE_DEVICE_END, 4 | 8) => {
            let area = area(offset);
            area.map_or(0, |(area, high)| registers.core.queue_address(registers.select.queue, area) >> (32 * high))
        }
        (offset, len) if len == width(offset) => get(transport, registers, offset).into(),
        _ => return,
    };
    data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
}

/// The driver writes.
pub(super) fn write(transport: &Transport, offset: u64, data: &[u8]) {
    let mut bytes = [0; 8];
    bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    let value = u64::from_le_bytes(bytes);
    let registers = &mut *transport.lock();
    if let Some(findings) = transport.signals().findings() {
        check::pci_write(&findings, offset, data, natural(offset, data.len()), kind(offset));
    }
    match (offset, data.len()) {
        (QUEUE_DESC..QUEUE_DEVICE_END, 4 | 8) => {
            let Some((area, high)) = area(offset) else { return };
            let queue = registers.select.queue;
            registers.core.set_queue_address(queue, area, high != 0, value as u32);
            if data.len() == 8 && high == 0 {
                registers.core.set_queue_address(queue, area, true, (value >> 32) as u32);
            }
        }
        (offset, len) if len == width(offset) => set(transport, registers, offset, value as u32),
        _ => {}
    }
}

/// Bytes of the field at `offset`; 0 if none begins there.
fn width(offset: u64) -> usize {
    match offset {
        DEVICE_FEATURE_SELECT | DEVICE_FEATURE | DRIVER_FEATURE_SELECT | DRIVER_FEATURE => 4,
        DEVICE_STATUS | CONFIG_GENERATION => 1,
        CONFIG_MSIX_VECTOR | NUM_QUEUES | QUEUE_SELECT | QUEUE_SIZE | QUEUE_MSIX_VECTOR => 2,
        QUEUE_ENABLE | QUEUE_NOTIFY_OFF | QUEUE_RESET => 2,
        _ => 0,
    }
}

/// The width that an access of `len` bytes at `offset` must have: addresses may also be accessed in halves.
fn natural(offset: u64, len: usize) -> usize {
    match offset {
        QUEUE_DESC..QUEUE_DEVICE_END if len == 8 && offset.is_multiple_of(8) => 8,
        QUEUE_DESC..QUEUE_DEVICE_END if offset.is_multiple_of(4) => 4,
        offset => width(offset),
    }
}

/// What the check of a write must know of the field at `offset`.
fn kind(offset: u64) -> PciField {
    match offset {
        DEVICE_FEATURE | NUM_QUEUES | CONFIG_GENERATION | QUEUE_NOTIFY_OFF => PciField::ReadOnly,
        QUEUE_SIZE => PciField::QueueSize,
        QUEUE_ENABLE => PciField::QueueEnable,
        _ => PciField::Other,
    }
}

/// Which address, and which half of it.
fn area(offset: u64) -> Option<(Area, u32)> {
    let area = match (offset - QUEUE_DESC) / 8 {
        0 => Area::Descriptors,
        1 => Area::Driver,
        _ => Area::Device,
    };
    offset.is_multiple_of(4).then_some((area, (offset / 4 % 2) as u32))
}

fn get(transport: &Transport, Registers { core, select }: &mut Registers, offset: u64) -> u32 {
    let queue = select.queue;
    let exists = core.queue_max(queue) != 0;
    match offset {
        DEVICE_FEATURE_SELECT => select.device_features,
        DEVICE_FEATURE => core.offered(select.device_features),
        DRIVER_FEATURE_SELECT => select.driver_features,
        DRIVER_FEATURE => core.accepted_half(select.driver_features),
        CONFIG_MSIX_VECTOR => vectors(transport).map_or(0, |vectors| vectors.get(Cause::Config).into()),
        NUM_QUEUES => transport.queue_count().into(),
        DEVICE_STATUS => core.read_status(),
        CONFIG_GENERATION => core.config_generation() & 0xff,
        QUEUE_SELECT => queue,
        QUEUE_SIZE => core.queue_size(queue),
        QUEUE_MSIX_VECTOR => vectors(transport).map_or(0, |vectors| vectors.get(Cause::Queue(queue as u16)).into()),
        QUEUE_ENABLE => core.queue_ready(queue).into(),
        QUEUE_NOTIFY_OFF if exists => queue,
        // A queue reset is over before the driver can look.
        _ => 0,
    }
}

fn set(transport: &Transport, Registers { core, select }: &mut Registers, offset: u64, value: u32) {
    let queue = select.queue;
    match offset {
        DEVICE_FEATURE_SELECT => select.device_features = value,
        DRIVER_FEATURE_SELECT => select.driver_features = value,
        DRIVER_FEATURE => core.accept(select.driver_features, value),
        CONFIG_MSIX_VECTOR => vectors(transport).into_iter().for_each(|map| map.set(Cause::Config, value as u16)),
        DEVICE_STATUS => core.write_status(value),
        QUEUE_SELECT => select.queue = value,
        QUEUE_SIZE => core.set_queue_size(queue, value),
        QUEUE_MSIX_VECTOR => {
            vectors(transport).into_iter().for_each(|map| map.set(Cause::Queue(queue as u16), value as u16));
        }
        // Zero is no value that a driver may write (4.1.4.3.2).
        QUEUE_ENABLE if value == 1 => core.set_queue_ready(queue, true),
        QUEUE_RESET if value == 1 => core.reset_queue(queue),
        // Read-only fields.
        _ => {}
    }
}

fn vectors(transport: &Transport) -> Option<&VectorMap> {
    match transport.signals().line() {
        Line::Msix(vectors) => Some(vectors),
        Line::Edge(_) => None,
    }
}
