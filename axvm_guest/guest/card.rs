//! A network card: in the hand of the command interpreter, frames as they are typed, and as they come; and its proof.
//!
//! ```text
//!   send LEN: typed bytes --> | header, zeroes | frame | --transmitq (1)-->
//!   take MS:  hex on the console <-- one of 8 buffers <--receiveq (0)--
//! ```
//!
//! What the frames say is the business of the test that types them; in the proof, of the host that sends them back. Without MRG_RXBUF: each frame lies in one buffer.
//! Spec: virtio 1.2, 5.1 "Network Device".

use crate::clock;
use crate::cpu::{read, write};
use crate::report::{Fault, Line, Verdict};
use crate::virtio::{self, Buffer, Device, QUEUE_LEN, Queue, kind, register};

/// Features (5.1.3).
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const STATUS: u64 = 1 << 16;
const CTRL_VQ: u64 = 1 << 17;
const CTRL_RX: u64 = 1 << 18;
/// Bytes before each frame (5.1.6).
const HEADER_LEN: u64 = 12;
/// Length of a buffer for a frame.
const BUFFER_LEN: u64 = 2048;

/// A byte as two hexadecimal digits.
pub fn digits(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)])
}

fn copy(from: u64, to: u64, len: u64) {
    for at in 0..len {
        write(to + at, read::<u8>(from + at));
    }
}

/// A card that is started.
#[derive(Clone, Copy)]
pub struct Card {
    device: Device,
    /// How many frames were taken.
    taken: u16,
}

impl Card {
    /// Starts card `number` of the machine; tells address, link and MTU.
    pub fn start(number: u64, answer: &mut Line) -> Option<Card> {
        let device = virtio::devices().filter(|device| device.kind == kind::NET).nth(number as usize)?;
        let card = Card::of(device, answer).ok()?;
        answer.text("mac ");
        let mac = [0, 4].map(|at| device.read(register::CONFIG + at).to_le_bytes());
        mac.as_flattened()[..6].iter().for_each(|&byte| digits(byte).into_iter().for_each(|digit| answer.byte(digit)));
        answer
            .text(" link ")
            .decimal(card.link())
            .text(" mtu ")
            .decimal((device.read(register::CONFIG + 8) >> 16).into());
        answer.text(" ");
        Some(card)
    }

    /// Starts `device`, and gives it buffers.
    fn of(device: Device, line: &mut Line) -> Result<Card, Fault> {
        device.start(MTU | MAC | STATUS | CTRL_VQ | CTRL_RX, 3, line)?;
        let queue = Queue::of(device, 0);
        for number in 0..QUEUE_LEN {
            let address = queue.room() + u64::from(number) * BUFFER_LEN;
            queue.describe(number, Buffer { address, len: BUFFER_LEN as u32, device_writes: true }, None);
            queue.offer(number);
        }
        Ok(Card { device, taken: 0 })
    }

    /// Whether the link is up: 1.
    pub fn link(self) -> u64 {
        self.device.acknowledge();
        (self.device.read(register::CONFIG + 4) >> 16).into()
    }

    /// Sends the frame that lies at `at`; it must be taken within 2 s.
    pub fn send(self, (at, len): (u64, u64), line: &mut Line) -> Verdict {
        let queue = Queue::of(self.device, 1);
        let len = len.min(0x5000);
        for at in 0..HEADER_LEN {
            write(queue.room() + at, 0_u8);
        }
        copy(at, queue.room() + HEADER_LEN, len);
        let buffer = Buffer { address: queue.room(), len: (HEADER_LEN + len) as u32, device_writes: false };
        queue.ask(&[buffer], line)?;
        line.text("sent ").decimal(len).text(" ");
        Ok(())
    }

    /// Waits so many milliseconds for a frame; where it lies until the next call, and its length.
    pub fn take(&mut self, milliseconds: u64) -> Option<(u64, u64)> {
        let queue = Queue::of(self.device, 0);
        if !clock::wait(milliseconds * 1000, || read::<u16>(queue.used() + 2) != self.taken) {
            return None;
        }
        let entry = queue.used() + 4 + u64::from(self.taken % QUEUE_LEN) * 8;
        let (number, len): (u32, u32) = (read(entry), read(entry + 4));
        self.taken = self.taken.wrapping_add(1);
        let len = u64::from(len).saturating_sub(HEADER_LEN).min(BUFFER_LEN);
        let buffer = queue.room() + u64::from(number) * BUFFER_LEN;
        // Out of the buffer, which goes back.
        let place = Queue::of(self.device, 1).room() + 0x6000;
        copy(buffer + HEADER_LEN, place, len);
        queue.offer(number as u16);
        Some((place, len))
    }
}

/// The lengths of the frames of the proof, and how long one may take there and back, in milliseconds.
const LENGTHS: [u64; 4] = [14, 60, 777, 1514];
const PATIENCE: u64 = 2000;

/// A command is answered; if frames come back (`loops`), they are whole.
pub fn prove(device: Device, loops: bool, line: &mut Line) -> Verdict {
    let mut card = Card::of(device, line)?;
    line.check(card.link() == 1, "the link is down")?;
    let control = Queue::of(device, 2);
    // VIRTIO_NET_CTRL_RX, PROMISC, on: its answer is 0.
    [0, 0, 1, 0xff].into_iter().zip(control.room()..).for_each(|(byte, at): (u8, u64)| write(at, byte));
    let answer = Buffer { address: control.room() + 3, len: 1, device_writes: true };
    control.ask(&[Buffer { address: control.room(), len: 3, device_writes: false }, answer], line)?;
    line.check(read::<u8>(answer.address) == 0, "a command is refused")?;
    if !loops {
        return Ok(());
    }
    let place = Queue::of(device, 1).room() + 0x4000;
    let content = |at: u64, len: u64| (at * 7 + len) as u8;
    for len in LENGTHS {
        (0..len).for_each(|at| write(place + at, content(at, len)));
        card.send((place, len), &mut Line::new())?;
        let is_it = |back: u64, got: u64| got == len && (0..len).all(|at| read::<u8>(back + at) == content(at, len));
        // What was sent before a reset may come first.
        let came = (0..QUEUE_LEN).any(|_| card.take(PATIENCE).is_some_and(|(back, got)| is_it(back, got)));
        line.check(came, "a frame did not come back as it was")?;
    }
    line.text(" frames of ").decimal(LENGTHS[0]).text(" to ").decimal(LENGTHS[3]).text(" bytes to a peer and back");
    Ok(())
}
