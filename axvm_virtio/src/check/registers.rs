//! The check of one access to registers: is there one, may it be read or written, is the access as wide as it must be.
//!
//! ```text
//!   offset, width, direction --> table of the bus --> the rule that is broken, if one is
//! ```
//!
//! Spec: virtio 1.2, 4.2.2.2 "Driver Requirements: MMIO Device Register Layout", 4.1.3.1 and 4.1.4.3.2 for PCI.

use axvm_events::rules::Rule;

use super::{Direction, Findings, rules};

/// One access to the MMIO window, of `len` bytes; `direction`: of the register that begins there, if one does.
pub(crate) fn mmio(findings: &Findings<'_>, offset: u64, len: usize, direction: Option<Direction>, writes: bool) {
    let what = if writes { "write" } else { "read" };
    let rule = match direction {
        _ if len != 4 || !offset.is_multiple_of(4) => &rules::MMIO_WIDTH,
        None => &rules::MMIO_UNDEFINED,
        Some(Direction::Read) if writes => &rules::MMIO_WRITE_READ_ONLY,
        Some(Direction::Write) if !writes => &rules::MMIO_READ_WRITE_ONLY,
        Some(_) => return,
    };
    findings.broke(rule, || access(what, offset, len));
}

/// One access to the configuration space in the MMIO window.
pub(crate) fn mmio_config(findings: &Findings<'_>, offset: u64, len: usize) {
    if !matches!(len, 1 | 2 | 4) || !offset.is_multiple_of(len as u64) {
        findings.broke(&rules::MMIO_CONFIG_WIDTH, || access("access", offset, len));
    }
}

/// A write to InterruptACK, of which these bits are not defined.
pub(crate) fn mmio_ack(findings: &Findings<'_>, undefined: u32) {
    if undefined != 0 {
        findings.broke(&rules::MMIO_ACK_UNDEFINED, || format!("{undefined:#x} was written to InterruptACK"));
    }
}

/// A read of the common configuration; the field at `offset` has this width, 0 if none begins there.
pub(crate) fn pci_read(findings: &Findings<'_>, offset: u64, len: usize, width: usize) {
    if len != width {
        findings.broke(&rules::PCI_WIDTH, || access("read", offset, len));
    }
}

/// A write to the common configuration.
pub(crate) fn pci_write(findings: &Findings<'_>, offset: u64, data: &[u8], width: usize, kind: PciField) {
    let broke = |rule: &'static Rule| findings.broke(rule, || access("write", offset, data.len()));
    if data.len() != width {
        return broke(&rules::PCI_WIDTH);
    }
    let value = data.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    match kind {
        PciField::ReadOnly => broke(&rules::PCI_WRITE_READ_ONLY),
        PciField::QueueSize if !value.is_power_of_two() => {
            findings.broke(&rules::PCI_QUEUE_SIZE, || format!("queue_size was written with {value}"));
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
