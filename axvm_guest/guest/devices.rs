//! A proof for each virtio device that is there.
//!
//! ```text
//!   devices, in order --kind--> block, console, rng, balloon, vsock, net --> a line of the report
//! ```
//!
//! Spec: virtio 1.2, 5.3 "Console Device", 5.4 "Entropy Device", 5.5 "Traditional Memory Balloon Device".

use crate::cpu::{read, write};
use crate::report::{Line, Verdict, prove};
use crate::virtio::{Buffer, Device, Queue, devices, kind, register::CONFIG};
use crate::{card, disk, start_info, vsock};

/// Proves each device that is there.
pub fn prove_all() {
    for device in devices() {
        match device.kind {
            kind::BLOCK => prove("virtio-block", |line| disk::block(device, line)),
            kind::CONSOLE => prove("virtio-console", |line| console(device, line)),
            kind::RNG => prove("virtio-rng", |line| rng(device, line)),
            kind::BALLOON => prove("virtio-balloon", |line| balloon(device, line)),
            kind::VSOCK => {
                prove("virtio-vsock", |line| vsock::prove(device, start_info::option("echo").is_some(), line))
            }
            kind::NET => prove("virtio-net", |line| card::prove(device, start_info::option("loop").is_some(), line)),
            other => prove("virtio-unknown", |line| {
                line.text(" type ").decimal(other.into());
                line.absent()
            }),
        }
    }
}

/// Two reads of 64 bytes are neither constant nor equal.
pub fn rng(device: Device, line: &mut Line) -> Verdict {
    device.start(0, 1, line)?;
    let queue = Queue::of(device, 0);
    let [one, two] = [queue.room(), queue.room() + 64];
    for address in [one, two] {
        let len = queue.ask(&[Buffer { address, len: 64, device_writes: true }], line)?;
        line.check(len > 0 && len <= 64, "no bytes, or more than were asked for")?;
    }
    let words = |at: u64| (at..at + 64).step_by(8).map(read::<u64>);
    line.check(!words(one).eq(words(two)), "two reads are equal")?;
    line.check(words(one).any(|word| word != read::<u64>(one)), "constant")
}

/// Gives 16 pages and takes them back.
pub fn balloon(device: Device, line: &mut Line) -> Verdict {
    device.start(0, 2, line)?;
    line.text(" target ").decimal(device.read(CONFIG).into()).text(" pages");
    for number in [0, 1] {
        let queue = Queue::of(device, number);
        for page in 0..16 {
            write(queue.room() + page * 4, 0xc00 + page as u32); // 12 MiB and on
        }
        queue.ask(&[Buffer { address: queue.room(), len: 64, device_writes: false }], line)?;
    }
    write(12 << 20, 1_u64);
    line.check(read::<u64>(12 << 20) == 1, "a page that came back does not hold a write")?;
    line.text(", 16 pages given and taken back");
    Ok(())
}

/// Transmits a line on port 0.
pub fn console(device: Device, line: &mut Line) -> Verdict {
    device.start(0, 2, line)?;
    let queue = Queue::of(device, 1);
    let words = b"AXVM says hello on hvc0\n";
    for (at, &byte) in (queue.room()..).zip(words) {
        write(at, byte);
    }
    queue.ask(&[Buffer { address: queue.room(), len: words.len() as u32, device_writes: false }], line)?;
    Ok(())
}
