//! Slots of PCI: what a guest's ACPI code does when a disk comes or is to go, without the AML.
//!
//! ```text
//!   up, down: read, write back    there: write a bit to eject a device
//! ```
//!
//! The registers are AxVM's own (`axvm_devices::pci::PciHotplug`).

use crate::cpu::{input, output, write};
use crate::disk;
use crate::report::{Line, Verdict};
use crate::virtio::{self, Buffer, Device, Queue, kind};

const UP: u16 = 0x610;
const DOWN: u16 = 0x614;
const THERE: u16 = 0x618;

/// Slots with a device that came, or is to go; none is told twice.
fn take(register: u16) -> u32 {
    let slots: u32 = input(register);
    output(register, slots);
    slots
}

/// Whether a slot has a new device; each is then proved as its kind is.
pub fn came(line: &mut Line) -> Option<Verdict> {
    let slots = take(UP);
    (slots != 0).then(|| {
        line.text("slots ").hex(slots.into());
        virtio::devices().filter(|device| device.kind == kind::BLOCK).try_for_each(|disk| disk::block(disk, line))
    })
}

/// Whether a device is to go; each is then ejected.
pub fn went(line: &mut Line) -> bool {
    let slots = take(DOWN);
    if slots != 0 {
        line.text("slots ").hex(slots.into()).text(" ");
        eject(slots);
    }
    slots != 0
}

/// Ejects whatever is in these slots.
pub fn eject(slots: u32) {
    output(THERE, slots);
}

/// Writes what it likes to all registers, so that all slots lose what they have.
pub fn storm(mut next: impl FnMut() -> u32) {
    for at in (UP..UP + 16).chain([THERE; 8]) {
        output(at, next());
        output(at, next() as u8);
        let _: u16 = input(at);
    }
}

/// Ejects the last disk with reads on their way to it.
pub fn yank(line: &mut Line) -> Verdict {
    let Some(disk) = virtio::devices().filter(|device| device.kind == kind::BLOCK).last() else { return line.absent() };
    disk.start(0, 1, line)?;
    let queue = Queue::of(disk, 0);
    let (header, data) = (queue.room(), queue.room() + 0x1000);
    write(header, 0_u64);
    write(header + 8, 0_u64);
    queue.describe(0, Buffer { address: header, len: 16, device_writes: false }, Some(1));
    queue.describe(1, Buffer { address: data, len: 4096, device_writes: true }, Some(2));
    queue.describe(2, Buffer { address: header + 16, len: 1, device_writes: true }, None);
    (0..7).for_each(|_| queue.offer(0));
    eject(u32::MAX);
    // Its driver goes on for a while: no device answers, nothing breaks.
    gone(disk);
    queue.offer(0);
    Ok(())
}

fn gone(disk: Device) {
    disk.write(virtio::register::STATUS, 0);
}
