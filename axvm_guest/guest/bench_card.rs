//! The bench guest's network card: frames to the host, frames from the host, and packets that the host sends back.
//!
//! ```text
//!   send      one frame, described `depth` times and offered again and again; with HOST_TSO4 one of 64 KiB that the host cuts
//!   receive   256 buffers; all that comes counts
//!   echo      UDP to 192.0.2.1:7 --> asleep --> the answer
//! ```
//!
//! The frames that only count go to a station that is not there, so that the host's kernel takes and drops them.
//! Spec: virtio 1.2, 5.1 "Network Device"; RFC 768, 791, 9293.

use crate::Phase;
use crate::bench_bus::Device;
use crate::bench_ring::{EVENT_IDX, Part, Ring};
use crate::cpu::{read, write};

/// Features (5.1.3).
const CSUM: u64 = 1;
const MAC: u64 = 1 << 5;
const HOST_TSO4: u64 = 1 << 11;
/// Before each frame (5.1.6).
const HEADER_LEN: u64 = 12;
/// Areas of its queues: behind those of a disk.
const AREA: u16 = 8;
const BUFFERS: u64 = 96 << 20;
const BUFFER_LEN: u32 = 2048;
const FRAME: u64 = 100 << 20;
/// What one frame without help may have.
const PLAIN_LEN: u32 = 1514;

#[derive(Clone, Copy)]
pub struct Card {
    receive: Ring,
    send: Ring,
    cuts: bool,
}

impl Card {
    /// Starts a card, which wakes the guest for what it receives, or does not.
    pub fn start(device: Device, wakes: bool) -> Option<Card> {
        let taken = device.start(EVENT_IDX | CSUM | MAC | HOST_TSO4)?;
        let mut receive = Ring::place(device, 0, AREA, taken, wakes)?;
        let send = Ring::place(device, 1, AREA + 1, taken, false)?;
        if !device.ready() {
            return None;
        }
        for number in 0..receive.len {
            let address = BUFFERS + u64::from(number) * u64::from(BUFFER_LEN);
            receive.describe(number, &[Part { address, len: BUFFER_LEN, device_writes: true }]);
            receive.offer(number);
        }
        receive.publish(0);
        Some(Card { receive, send, cuts: taken & HOST_TSO4 != 0 })
    }

    /// Whether it sends frames so long.
    pub fn takes(&self, len: u32) -> bool {
        len <= PLAIN_LEN || self.cuts
    }

    /// Sends frames. False: one was lost.
    pub fn send(&mut self, phase: &Phase) -> bool {
        write_frame(phase.len, 6, [2, 0, 0, 0, 0, 9]);
        let depth = (phase.depth as u16).min(self.send.len);
        let part = Part { address: FRAME, len: HEADER_LEN as u32 + phase.len, device_writes: false };
        (0..depth).for_each(|slot| self.send.describe(slot, &[part]));
        let (mut sent, mut done, before) = (0, 0, self.send.avail);
        for slot in (0..depth).take(phase.count as usize) {
            self.send.offer(slot);
            sent += 1;
        }
        self.send.publish(before);
        while done < phase.count {
            if !self.send.wait() {
                return false;
            }
            let before = self.send.avail;
            while let Some((slot, _)) = self.send.take() {
                done += 1;
                if sent < phase.count {
                    self.send.offer(slot);
                    sent += 1;
                }
            }
            self.send.publish(before);
        }
        true
    }

    /// Receives frames. False: none comes any more.
    pub fn receive(&mut self, count: u32) -> bool {
        let mut done = 0;
        while done < count {
            if !self.receive.wait() {
                return false;
            }
            let before = self.receive.avail;
            while let Some((slot, _)) = self.receive.take() {
                self.receive.offer(slot);
                done += 1;
            }
            self.receive.publish(before);
        }
        true
    }

    /// Sends packets, each when the one before has come back. False: one did not.
    pub fn echo(&mut self, phase: &Phase) -> bool {
        write_frame(phase.len, 17, [2, 0, 0, 0, 0, 1]);
        let part = Part { address: FRAME, len: HEADER_LEN as u32 + phase.len, device_writes: false };
        self.send.describe(0, &[part]);
        (0..phase.count).all(|_| {
            while self.send.take().is_some() {}
            let before = self.send.avail;
            self.send.offer(0);
            self.send.publish(before);
            self.answer(phase.len)
        })
    }

    /// Waits for an IPv4 packet of this length.
    fn answer(&mut self, len: u32) -> bool {
        loop {
            if !self.receive.wait() {
                return false;
            }
            let (before, mut came) = (self.receive.avail, false);
            while let Some((slot, got)) = self.receive.take() {
                let kind = BUFFERS + u64::from(slot) * u64::from(BUFFER_LEN) + HEADER_LEN + 12;
                came |= got == HEADER_LEN as u32 + len && read::<[u8; 2]>(kind) == [8, 0];
                self.receive.offer(slot);
            }
            self.receive.publish(before);
            if came {
                return true;
            }
        }
    }
}

/// A frame of this length with IPv4, and TCP (6) or UDP (17) in it, behind its header.
fn write_frame(len: u32, protocol: u8, to: [u8; 6]) {
    let mut at = FRAME;
    let mut put = |bytes: &[u8]| {
        bytes.iter().for_each(|&byte| {
            write(at, byte);
            at += 1;
        });
    };
    let packet = (len - 14) as u16;
    if len > PLAIN_LEN {
        // NEEDS_CSUM, TCPV4, lengths of headers and of pieces, where the checksum begins and lies in TCP's header.
        put(&[1, 1, 54, 0, (1460_u16 & 0xff) as u8, (1460_u16 >> 8) as u8, 34, 0, 16, 0, 0, 0]);
    } else {
        put(&[0; 12]);
    }
    put(&to);
    put(&[2, 0, 0, 0, 0, 2, 8, 0]);
    let mut head =
        [0x45, 0, (packet >> 8) as u8, packet as u8, 0, 0, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1];
    let sum: u32 = head.as_chunks::<2>().0.iter().map(|&pair| u32::from(u16::from_be_bytes(pair))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    put(&head);
    let datagram = packet - 20;
    match protocol {
        17 => put(&[0x1e, 0x61, 0, 7, (datagram >> 8) as u8, datagram as u8, 0, 0]),
        // ACK and PSH, a header of 20 bytes.
        _ => put(&[0x1e, 0x61, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]),
    }
}
