//! The socket device: an honest driver, its proof, and a server that counts what it gets.
//!
//! ```text
//!   queue 0, from the host: 6 buffers of 4 KiB     queue 1, to the host: one packet at a time     queue 2: one buffer
//!   header, 44 bytes: CIDs 0, 8 | ports 16, 20 | len 24 | type, op 28 | flags 32 | buf_alloc 36 | fwd_cnt 40
//! ```
//!
//! What arrives is consumed at once, so the credit given is what was received. Spec: virtio 1.2, 5.10 "Socket Device".
//! Left out: the host's credit; no more is sent than it has room for in any case.

use crate::clock;
use crate::cpu::{self, read, write};
use crate::report::{Fault, Line, Verdict};
use crate::virtio::{Buffer, Device, QUEUE_LEN, Queue, register::CONFIG};

const HEADER_LEN: u32 = 44;
const HOST: u64 = 2;
const STREAM: u16 = 1;
/// What is told of as room for each connection.
const ROOM: u32 = 64 << 10;
const BUFFERS: u16 = 6;
const BUFFER_LEN: u32 = 4096;
/// As in `virtio.rs`.
const PATIENCE: u64 = 2_000_000;
/// Where the self-test's client of the host connects, and how much goes there and back.
const ECHO_PORT: u32 = 1024;
const ECHOED: u32 = 15_000;

mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}
const SENDS_NO_MORE: u32 = 2;
const OVER: u32 = 3;

/// Both ports of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Ports {
    host: u32,
    guest: u32,
}

/// A packet of the host; its data are here until the next one is taken.
struct Packet {
    ports: Ports,
    op: u16,
    flags: u32,
    data: u64,
    len: u32,
}

/// The device, started.
struct Link {
    device: Device,
    cid: u64,
    taken: u16,
    /// Events taken.
    moves: u16,
    /// The buffer that the last packet is in.
    held: Option<u16>,
}

impl Link {
    fn start(device: Device, line: &mut Line) -> Result<Link, Fault> {
        device.start(0, 3, line)?;
        let cid = u64::from(device.read(CONFIG)) | u64::from(device.read(CONFIG + 4)) << 32;
        let link = Link { device, cid, taken: 0, moves: 0, held: None };
        for number in 0..BUFFERS {
            let address = link.buffer(number);
            link.incoming().describe(number, Buffer { address, len: BUFFER_LEN, device_writes: true }, None);
            link.incoming().offer(number);
        }
        link.offer_event();
        Ok(link)
    }

    fn events(&self) -> Queue {
        Queue::of(self.device, 2)
    }

    fn offer_event(&self) {
        self.events().describe(0, Buffer { address: self.events().room(), len: 4, device_writes: true }, None);
        self.events().offer(0);
    }

    /// Whether all connections are gone, because this machine goes on elsewhere.
    fn was_moved(&self) -> bool {
        read::<u16>(self.events().used() + 2) != self.moves
    }

    fn incoming(&self) -> Queue {
        Queue::of(self.device, 0)
    }

    fn buffer(&self, number: u16) -> u64 {
        self.incoming().room() + u64::from(number) * u64::from(BUFFER_LEN)
    }

    /// Sends a packet whose `len` bytes of data are in place.
    fn send(&self, ports: Ports, op: u16, flags: u32, len: u32, received: u32, line: &mut Line) -> Verdict {
        let queue = Queue::of(self.device, 1);
        let at = queue.room();
        write(at, self.cid);
        write(at + 8, HOST);
        write(at + 16, ports.guest);
        write(at + 20, ports.host);
        write(at + 24, len);
        write(at + 28, STREAM);
        write(at + 30, op);
        write(at + 32, flags);
        write(at + 36, ROOM);
        write(at + 40, received);
        queue.ask(&[Buffer { address: at, len: HEADER_LEN + len, device_writes: false }], line).map(drop)
    }

    /// Where data of the next packet belong.
    fn place(&self) -> u64 {
        Queue::of(self.device, 1).room() + u64::from(HEADER_LEN)
    }

    fn has_packet(&self) -> bool {
        read::<u16>(self.incoming().used() + 2) != self.taken
    }

    /// The packet that is there; the buffer of the last one goes back.
    fn take(&mut self) -> Packet {
        if let Some(number) = self.held.take() {
            self.incoming().offer(number);
        }
        let element = self.incoming().used() + 4 + u64::from(self.taken % QUEUE_LEN) * 8;
        let number = read::<u32>(element) as u16 % BUFFERS;
        self.taken = self.taken.wrapping_add(1);
        self.held = Some(number);
        let at = self.buffer(number);
        Packet {
            ports: Ports { host: read(at + 16), guest: read(at + 20) },
            op: read(at + 30),
            flags: read(at + 32),
            data: at + u64::from(HEADER_LEN),
            len: read::<u32>(at + 24).min(BUFFER_LEN - HEADER_LEN),
        }
    }

    /// Waits for a packet.
    fn next(&mut self, line: &mut Line) -> Result<Packet, Fault> {
        line.check(clock::wait(PATIENCE, || self.has_packet()), "waited 2 s for a packet")?;
        Ok(self.take())
    }
}

/// A connection that no program of the host takes is refused; with `echo`, one that a client of the host makes brings
/// back what is sent.
pub fn prove(device: Device, echo: bool, line: &mut Line) -> Verdict {
    let mut link = Link::start(device, line)?;
    line.text(" CID ").decimal(link.cid);
    let nowhere = Ports { host: 1, guest: 1025 };
    link.send(nowhere, op::REQUEST, 0, 0, 0, line)?;
    let mut client = None;
    loop {
        let something = clock::wait(PATIENCE, || link.has_packet() || link.was_moved());
        line.check(something, "waited 2 s for a packet or an event")?;
        if link.was_moved() {
            link.moves = link.moves.wrapping_add(1);
            link.offer_event();
            link.send(nowhere, op::REQUEST, 0, 0, 0, line)?;
            continue;
        }
        let packet = link.next(line)?;
        if packet.op == op::RST && packet.ports == nowhere {
            break;
        }
        if packet.op == op::REQUEST {
            client = Some(packet.ports);
        }
    }
    line.text(", port 1 of the host refused");
    if !echo {
        return Ok(());
    }
    while client.is_none() {
        let packet = link.next(line)?;
        client = (packet.op == op::REQUEST).then_some(packet.ports);
    }
    let Some(ports) = client.filter(|ports| ports.guest == ECHO_PORT) else {
        return line.failed("a client asks for another port");
    };
    link.send(ports, op::RESPONSE, 0, 0, 0, line)?;
    echoed(&mut link, ports, line)?;
    link.send(ports, op::SHUTDOWN, OVER, 0, ECHOED, line)?;
    while link.next(line)?.op != op::RST {}
    line.text(", ").decimal(ECHOED.into()).text(" bytes to a client and back");
    Ok(())
}

/// Connects to the host's `port`, whose program is to send back what it gets.
pub fn dial(device: Device, port: u32, line: &mut Line) -> Verdict {
    let mut link = Link::start(device, line)?;
    let ports = Ports { host: port, guest: 1025 };
    link.send(ports, op::REQUEST, 0, 0, 0, line)?;
    let answer = loop {
        let packet = link.next(line)?;
        if packet.ports == ports {
            break packet.op;
        }
    };
    if answer == op::RST {
        line.text("refused ");
        return Ok(());
    }
    echoed(&mut link, ports, line)?;
    link.send(ports, op::SHUTDOWN, SENDS_NO_MORE, 0, ECHOED, line)?;
    // The program ends its half, too.
    while link.next(line)?.op != op::SHUTDOWN {}
    line.text("echoed ");
    Ok(())
}

/// Sends bytes in packets of different lengths; what comes back must be them.
fn echoed(link: &mut Link, ports: Ports, line: &mut Line) -> Verdict {
    let seed = cpu::rdtsc() | 1;
    let byte = |at: u32| (seed.wrapping_mul(u64::from(at) + 1) >> 32) as u8;
    let (mut sent, mut back) = (0, 0);
    while back < ECHOED {
        if sent < ECHOED {
            let len = (ECHOED - sent).min(1 + sent % 5000);
            (0..len).for_each(|at| write(link.place() + u64::from(at), byte(sent + at)));
            link.send(ports, op::RW, 0, len, back, line)?;
            sent += len;
        }
        while back < ECHOED && (sent == ECHOED || link.has_packet()) {
            let packet = link.next(line)?;
            if packet.op == op::RW {
                let same = (0..packet.len).all(|at| read::<u8>(packet.data + u64::from(at)) == byte(back + at));
                line.check(same && back + packet.len <= sent, "other bytes come back than were sent")?;
                back += packet.len;
            }
        }
    }
    Ok(())
}

/// A connection of the server.
#[derive(Clone, Copy)]
struct Counted {
    ports: Ports,
    received: u32,
    told: u32,
    sum: u32,
    answered: bool,
}

/// Most connections of the server at a time.
const PLACES: usize = 64;

/// Serves clients of the host at any port, until so many connections have ended: after the client's last byte (its
/// half-close) it gets their count and checksum. Gives how many were counted to their end.
pub fn serve(
    device: Device,
    connections: u64,
    wait: impl Fn(&dyn Fn() -> bool),
    line: &mut Line,
) -> Result<u64, Fault> {
    let mut link = Link::start(device, line)?;
    let mut places: [Option<Counted>; PLACES] = [None; PLACES];
    let (mut ended, mut whole) = (0, 0);
    while ended < connections {
        wait(&|| {
            device.acknowledge();
            link.has_packet()
        });
        let packet = link.take();
        let ports = packet.ports;
        let free = places.iter().position(Option::is_none);
        let known = places.iter().position(|place| place.is_some_and(|known| known.ports == ports));
        match (packet.op, known, free) {
            (op::REQUEST, None, Some(free)) => {
                places[free] = Some(Counted { ports, received: 0, told: 0, sum: 0, answered: false });
                link.send(ports, op::RESPONSE, 0, 0, 0, line)?;
            }
            (op::RST, Some(known), _) => {
                // The host did not wait for one that was taken too late; it comes again.
                let was_taken = places[known].is_some_and(|known| known.answered || known.received > 0);
                ended += u64::from(was_taken);
                places[known] = None;
            }
            (op::RST, None, _) => {}
            (_, Some(known), _) => {
                let Some(counted) = &mut places[known] else { continue };
                if counted.take(&packet, &link, line)? {
                    whole += u64::from(packet.flags & OVER == SENDS_NO_MORE);
                }
                if packet.op == op::SHUTDOWN && packet.flags & OVER == OVER {
                    link.send(ports, op::RST, 0, 0, counted.received, line)?;
                    places[known] = None;
                    ended += 1;
                }
            }
            (_, None, _) => link.send(ports, op::RST, 0, 0, 0, line)?,
        }
    }
    Ok(whole)
}

impl Counted {
    /// Takes a packet; whether the client has got its answer now.
    fn take(&mut self, packet: &Packet, link: &Link, line: &mut Line) -> Result<bool, Fault> {
        match packet.op {
            op::RW => {
                let sum = |sum: u32, at| sum.rotate_left(5) ^ u32::from(read::<u8>(packet.data + u64::from(at)));
                self.sum = (0..packet.len).fold(self.sum, sum);
                self.received = self.received.wrapping_add(packet.len);
                if self.received.wrapping_sub(self.told) > ROOM / 2 {
                    self.told = self.received;
                    link.send(self.ports, op::CREDIT_UPDATE, 0, 0, self.received, line)?;
                }
            }
            op::CREDIT_REQUEST => {
                self.told = self.received;
                link.send(self.ports, op::CREDIT_UPDATE, 0, 0, self.received, line)?;
            }
            op::SHUTDOWN if packet.flags & OVER == SENDS_NO_MORE => {
                let mut answer = Line::new();
                answer.decimal(self.received.into()).text(" ").decimal(self.sum.into()).text("\n");
                for (at, &byte) in (link.place()..).zip(answer.bytes()) {
                    write(at, byte);
                }
                link.send(self.ports, op::RW, 0, answer.bytes().len() as u32, self.received, line)?;
                link.send(self.ports, op::SHUTDOWN, OVER, 0, self.received, line)?;
                self.answered = true;
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }
}
