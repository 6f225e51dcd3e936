//! A disk: one request at a time, and the proof that it keeps what it is given.
//!
//! ```text
//!   | header 16: command, sector | data | status 1 |      three buffers of a chain, two without data
//! ```
//!
//! Spec: virtio 1.2, 5.2 "Block Device".

use crate::clock;
use crate::cpu::{self, read, write};
use crate::report::{Fault, Line, Verdict};
use crate::virtio::{Buffer, Device, FLUSH, Queue, READ_ONLY, devices, kind, register::CONFIG};

/// A request of 5.2.6.
pub struct Request {
    pub command: u32,
    pub sector: u64,
    pub data: Option<Buffer>,
}

impl Request {
    /// Gives its status byte.
    pub fn ask(self, queue: Queue, line: &mut Line) -> Result<u8, Fault> {
        let header = queue.room();
        write(header, u64::from(self.command));
        write(header + 8, self.sector);
        write(header + 16, 0xff_u8);
        let first = Buffer { address: header, len: 16, device_writes: false };
        let last = Buffer { address: header + 16, len: 1, device_writes: true };
        match self.data {
            Some(data) => queue.ask(&[first, data, last], line)?,
            None => queue.ask(&[first, last], line)?,
        };
        Ok(read(header + 16))
    }

    fn send(self, status: u8, queue: Queue, line: &mut Line, why: &str) -> Verdict {
        let got = self.ask(queue, line)?;
        line.check(got == status, why)
    }
}

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH_REQUEST: u32 = 4;
const GET_ID: u32 = 8;

/// Reads the last sectors, writes a pattern, flushes, verifies, writes the old content back; asks for the id.
pub fn block(device: Device, line: &mut Line) -> Verdict {
    let taken = device.start(READ_ONLY | FLUSH, 1, line)?;
    let queue = Queue::of(device, 0);
    let sectors = u64::from(device.read(CONFIG)) | u64::from(device.read(CONFIG + 4)) << 32;
    line.text(" ").decimal(sectors).text(" sectors");
    let len = 512 * sectors.min(2);
    let first = sectors - len / 512;
    let [old, new, back] = [1, 2, 3].map(|page| queue.room() + page * 0x1000);
    let buffer = |address, device_writes| Some(Buffer { address, len: len as u32, device_writes });
    line.check(len > 0, "an empty disk")?;
    let ask = |command, sector, data| Request { command, sector, data };
    ask(IN, first, buffer(old, true)).send(0, queue, line, "read fails")?;
    for at in (0..len).step_by(8) {
        write(new + at, at.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ cpu::rdtsc());
    }
    if taken & READ_ONLY != 0 {
        line.text(" read-only");
        // The standard forbids it to the device only.
        return ask(OUT, first, buffer(new, false)).send(1, queue, line, "a write to a read-only disk does not fail");
    }
    ask(OUT, first, buffer(new, false)).send(0, queue, line, "write fails")?;
    if taken & FLUSH != 0 {
        ask(FLUSH_REQUEST, 0, None).send(0, queue, line, "flush fails")?;
    }
    ask(IN, first, buffer(back, true)).send(0, queue, line, "second read fails")?;
    let same = (0..len).step_by(8).all(|at| read::<u64>(new + at) == read::<u64>(back + at));
    ask(OUT, first, buffer(old, false)).send(0, queue, line, "write of the old content fails")?;
    line.check(same, "reads back other data than was written")?;
    let id = Some(Buffer { address: back, len: 20, device_writes: true });
    ask(GET_ID, 0, id).send(0, queue, line, "GET_ID fails")?;
    line.text(" verified, id ");
    for byte in (back..back + 20).map(read::<u8>).take_while(u8::is_ascii_graphic) {
        line.byte(byte);
    }
    Ok(())
}

/// A read behind the end, which the standard forbids, fails.
pub fn behind_the_end(device: Device, line: &mut Line) -> Verdict {
    let sector = u64::from(device.read(CONFIG)) | u64::from(device.read(CONFIG + 4)) << 32;
    let queue = Queue::of(device, 0);
    let data = Some(Buffer { address: queue.room() + 0x1000, len: 512, device_writes: true });
    Request { command: IN, sector, data }.send(1, queue, line, "a read behind the end does not fail")
}

/// How long a request with its interrupt takes: the shortest of many, for the others met other programs of the host.
pub fn round_trip(device: Device, line: &mut Line) -> Verdict {
    const ROUNDS: u64 = 64;
    let (mut shortest, queue) = (u64::MAX, Queue::of(device, 0));
    for _ in 0..ROUNDS {
        let start = cpu::rdtsc();
        // Answered without a look at the image.
        let data = Some(Buffer { address: queue.room() + 0x1000, len: 20, device_writes: true });
        Request { command: GET_ID, sector: 0, data }.ask(queue, line)?;
        shortest = shortest.min(cpu::rdtsc().wrapping_sub(start));
    }
    let shortest = shortest / clock::tsc_per_microsecond();
    line.text(" ").decimal(shortest).text("us for a request and its interrupt");
    Ok(())
}

/// The same by a line.
pub fn interrupt(line: &mut Line) -> Verdict {
    let Some(device) = devices().find(|device| device.kind == kind::BLOCK) else { return line.absent() };
    device.start(FLUSH, 1, line)?;
    round_trip(device, line)
}
