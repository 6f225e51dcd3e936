//! The check of one access to registers: is there one, may it be read or written, is the access as wide as it must be.
//!
//! ```text
//!   offset, width, direction --> table of the bus --> the rule that is broken, if one is
//! ```
//!
//! Spec: virtio 1.2, 4.2.2.2 "Driver Requirements: MMIO Device Register Layout", 4.1.3.1 and 4.1.4.3.2 for PCI.

use axvm_events::rules::Rule;

use super::rules;
use crate::mmio::{Direction, direction};
use crate::signals::{DeviceSignals, INTERRUPTS};

/// A read of the MMIO window; `config`: its configuration space begins there.
pub(crate) fn mmio_read(signals: &DeviceSignals, offset: u64, len: usize, config: u64) {
    mmio(signals, offset, len, config, Direction::Write, "read");
}

/// A write to the MMIO window.
pub(crate) fn mmio_write(signals: &DeviceSignals, offset: u64, data: &[u8], config: u64, ack: u64) {
    mmio(signals, offset, data.len(), config, Direction::Read, "write");
    if let (true, Ok(bytes)) = (offset == ack, data.try_into()) {
        let bits = u32::from_le_bytes(bytes);
        if bits & !INTERRUPTS != 0 {
            signals.broke(&rules::MMIO_ACK_UNDEFINED, || format!("{bits:#x} was written to InterruptACK"));
        }
    }
}

/// `forbidden`: the direction of registers that such an access must not touch.
fn mmio(signals: &DeviceSignals, offset: u64, len: usize, config: u64, forbidden: Direction, what: &str) {
    let aligned = len != 0 && offset.is_multiple_of(len as u64);
    if offset >= config {
        if !aligned || len > 4 {
            signals.broke(&rules::MMIO_CONFIG_WIDTH, || access(what, offset - config, len));
        }
        return;
    }
    if !aligned || len != 4 {
        return signals.broke(&rules::MMIO_WIDTH, || access(what, offset, len));
    }
    let rule = match direction(offset) {
        None => &rules::MMIO_UNDEFINED,
        Some(direction) if direction == forbidden && what == "write" => &rules::MMIO_WRITE_READ_ONLY,
        Some(direction) if direction == forbidden => &rules::MMIO_READ_WRITE_ONLY,
        Some(_) => return,
    };
    signals.broke(rule, || access(what, offset, len));
}

/// A read of the common configuration; the field at `offset` has this width, 0 if none begins there.
pub(crate) fn pci_read(signals: &DeviceSignals, offset: u64, len: usize, width: usize) {
    if len != width {
        signals.broke(&rules::PCI_WIDTH, || access("read", offset, len));
    }
}

/// A write to the common configuration.
pub(crate) fn pci_write(signals: &DeviceSignals, offset: u64, data: &[u8], width: usize, kind: PciField) {
    let broke = |rule: &'static Rule| signals.broke(rule, || access("write", offset, data.len()));
    if data.len() != width {
        return broke(&rules::PCI_WIDTH);
    }
    let value = data.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    match kind {
        PciField::ReadOnly => broke(&rules::PCI_WRITE_READ_ONLY),
        PciField::QueueSize if !value.is_power_of_two() => {
            signals.broke(&rules::PCI_QUEUE_SIZE, || format!("queue_size was written with {value}"));
        }
        PciField::QueueEnable if value == 0 => broke(&rules::PCI_ENABLE_ZERO),
        _ => {}
    }
}

/// What the check of a write must know of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PciField {
    /// The driver must not write it.
    ReadOnly,
    /// queue_size.
    QueueSize,
    /// queue_enable.
    QueueEnable,
    /// Any other.
    Other,
}

fn access(what: &str, offset: u64, len: usize) -> String {
    format!("{what} of {len} bytes at {offset:#x}")
}
