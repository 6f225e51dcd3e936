//! A journal on the first disk: what is said to be flushed must be there, whatever ends the machine.
//!
//! ```text
//!   round n:  write n all over sector n * 9 --> flush --> "AXVM flushed n"
//!             read a sector near the disk's end        --> a failure: "AXVM refused n write 1 flush 0 read 0"
//! ```
//!
//! The numbers behind `refused` are the status bytes of virtio 1.2, 5.2.6. Each round takes a page of its own.

use crate::cpu::write;
use crate::disk::{FLUSH_REQUEST, IN, OUT, Request};
use crate::report::{Line, Verdict};
use crate::virtio::{self, Buffer, FLUSH, Queue, kind, register::CONFIG};

const STRIDE: u64 = 9;
const SECTOR: u32 = 512;

/// Writes `rounds` rounds, each a sector of the first disk.
pub fn keep(rounds: u64, line: &mut Line) -> Verdict {
    let Some(device) = virtio::devices().find(|device| device.kind == kind::BLOCK) else { return line.absent() };
    device.start(FLUSH, 1, line)?;
    let queue = Queue::of(device, 0);
    let sectors = u64::from(device.read(CONFIG));
    line.check(sectors > 0, "an empty disk")?;
    let [entry, back] = [1, 2].map(|page| queue.room() + page * 0x1000);
    let buffer = |address, device_writes| Some(Buffer { address, len: SECTOR, device_writes });
    for round in 1..=rounds {
        for at in (0..u64::from(SECTOR)).step_by(8) {
            write(entry + at, round);
        }
        let sector = round * STRIDE % sectors;
        let other = sectors - 1 - round % sectors;
        let mut ask = |command, sector, data| Request { command, sector, data }.ask(queue, line);
        let wrote = ask(OUT, sector, buffer(entry, false))?;
        let flushed = ask(FLUSH_REQUEST, 0, None)?;
        let got = ask(IN, other, buffer(back, true))?;
        say(round, [wrote, flushed, got]);
    }
    line.text(" ").decimal(rounds).text(" rounds");
    Ok(())
}

fn say(round: u64, [wrote, flushed, got]: [u8; 3]) {
    let mut line = Line::new();
    match [wrote, flushed, got] {
        [0, 0, 0] => line.text("AXVM flushed ").decimal(round),
        _ => {
            line.text("AXVM refused ").decimal(round).text(" write ").decimal(wrote.into());
            line.text(" flush ").decimal(flushed.into()).text(" read ").decimal(got.into())
        }
    };
    line.send();
}
