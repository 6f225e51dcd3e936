//! MSI-X of a disk on PCI: messages that are masked wait, and a BAR that moves takes registers and doorbells along.
//!
//! ```text
//!   mask, of the entry or the function --> request --> used, pending, no interrupt --> unmask --> interrupt
//! ```
//!
//! Spec: PCI Local Bus 3.0, 6.8.2 "MSI-X Capability and Table Structures"; virtio 1.2, 4.1 "Virtio Over PCI Bus".

use crate::cpu::{read, write};
use crate::disk::{self, FLUSH_REQUEST, Request};
use crate::pci::{self, BARS, ENABLE, FUNCTION_MASK, HIGH, MSIX_PENDING, MSIX_TABLE, STRIDE};
use crate::report::{Line, Verdict};
use crate::virtio::{Device, FLUSH, MQ, Queue, devices, kind};
use crate::{apic, clock, start_info};

/// A message takes no longer than that, in microseconds.
const ON_THE_WAY: u64 = 10_000;

/// A message that is masked is pending, then comes; registers and doorbells move with the BAR, above 4 GiB, too.
pub fn msix(line: &mut Line) -> Verdict {
    let Some(device) = devices().find(|device| device.kind == kind::BLOCK) else { return line.absent() };
    if !device.is_on_pci() {
        return line.absent();
    }
    let (function, vector, bar) = (device.function, device.vector(), device.base());
    disk::block(device, line)?;
    let flush = |queue: Queue, line: &mut Line| {
        let status = Request { command: FLUSH_REQUEST, sector: 0, data: None }.ask(queue, line)?;
        line.check(status == 0, "flush fails")
    };
    let queues = device.queues();
    device.start(FLUSH | MQ, queues, line)?;
    for number in 0..queues {
        flush(Queue::of(device, number), line)?;
    }
    line.text(", ").decimal(queues.into()).text(" queues");
    let queue = Queue::of(device, 0);
    let Some(msix) = function.msix() else { return line.failed("no MSI-X") };
    let is_pending = || read::<u32>(bar + MSIX_PENDING) & 1 != 0;
    for by_entry in [true, false] {
        // All queues have one vector: where the machine is carried over, each of them may interrupt without a reason.
        let entries = (0..u64::from(queues)).map(|number| bar + MSIX_TABLE + number * 16 + 12);
        let set = |masked: bool| match by_entry {
            true => entries.clone().for_each(|entry| write(entry, u32::from(masked))),
            false => function.write(msix, if masked { ENABLE | FUNCTION_MASK } else { ENABLE }),
        };
        set(true);
        // A message that was posted before still arrives.
        clock::wait(ON_THE_WAY, || false);
        let (used, came): (u16, u32) = (read(queue.used() + 2), apic::count(vector));
        queue.offer(0);
        let back = clock::wait(2_000_000, || read::<u16>(queue.used() + 2) != used);
        line.check(back, "waited 2 s for the chain to come back")?;
        line.check(clock::wait(2_000_000, is_pending), "waited 2 s for the pending bit")?;
        line.check(apic::count(vector) == came, "an interrupt that is masked came")?;
        set(false);
        line.check(clock::wait(2_000_000, || apic::count(vector) != came), "waited 2 s for what was pending")?;
        line.check(!is_pending(), "what has come is pending still")?;
    }
    // Numbers with the same vector, and a BAR elsewhere: the last is where the gigabyte above 4 GiB is seen.
    for number in [0x80, (HIGH - BARS) / STRIDE].map(|far| device.number + far) {
        function.move_to(start_info::through_window(pci::bar(number)));
        flush(Queue { device: Device { number, ..device }, ..queue }, line)?;
    }
    function.move_to(bar);
    line.text(", masked, moved;");
    disk::round_trip(device, line)
}
