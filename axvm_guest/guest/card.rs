//! A network card in the hand of the command interpreter: frames as they are typed, and as they come.
//!
//! ```text
//!   send LEN: typed bytes --> | header, zeroes | frame | --transmitq (1)-->
//!   take MS:  hex on the console <-- one of 8 buffers <--receiveq (0)--
//! ```
//!
//! What the frames say is the business of the test that types them. Without MRG_RXBUF: each frame lies in one buffer.
//! Spec: virtio 1.2, 5.1 "Network Device".

use crate::clock;
use crate::cpu::{self, read, write};
use crate::report::{Fault, Line, Verdict};
use crate::virtio::{self, Buffer, Device, QUEUE_LEN, Queue, kind, register};

/// Features (5.1.3).
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const STATUS: u64 = 1 << 16;
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
        let card = Card::on(device, answer).ok()?;
        answer.text("mac ");
        card.mac().into_iter().flat_map(digits).for_each(|digit| answer.byte(digit));
        let mtu = device.read(register::CONFIG + 8) >> 16;
        answer.text(" link ").decimal(card.link()).text(" mtu ").decimal(mtu.into()).text(" ");
        Some(card)
    }

    /// Starts the device, with buffers for frames.
    fn on(device: Device, line: &mut Line) -> Result<Card, Fault> {
        device.start(MTU | MAC | STATUS, 2, line)?;
        let queue = Queue::of(device, 0);
        for number in 0..QUEUE_LEN {
            let address = queue.room() + u64::from(number) * BUFFER_LEN;
            queue.describe(number, Buffer { address, len: BUFFER_LEN as u32, device_writes: true }, None);
            queue.offer(number);
        }
        Ok(Card { device, taken: 0 })
    }

    fn mac(self) -> [u8; 6] {
        let [low, high] = [0, 4].map(|at| self.device.read(register::CONFIG + at).to_le_bytes());
        [low[0], low[1], low[2], low[3], high[0], high[1]]
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

/// A frame is taken; and where the cable's other end is plugged into the card itself, it comes back.
pub fn prove(device: Device, loops: bool, line: &mut Line) -> Verdict {
    let mut card = Card::on(device, line)?;
    line.check(card.link() == 1, "the link is down")?;
    let frame = Queue::of(device, 1).room() + 0x5800;
    for at in (0..64).step_by(8) {
        write(frame + at, cpu::rdtsc().wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    for (at, byte) in (6..).zip(card.mac().into_iter().chain([0x88, 0xb5])) {
        write(frame + at, byte);
    }
    line.text(" ");
    card.send((frame, 64), line)?;
    let is_it = |at: u64| (0..64).step_by(8).all(|offset| read::<u64>(at + offset) == read(frame + offset));
    // What was sent before a reset may come first.
    let mut comes_back = || (0..64).any(|_| card.take(2000).is_some_and(|(at, len)| len == 64 && is_it(at)));
    line.check(!loops || comes_back(), "it did not come back")?;
    line.text(if loops { "and taken back" } else { "" });
    Ok(())
}
