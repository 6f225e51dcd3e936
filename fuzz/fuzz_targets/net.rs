//! The network card, whole: transport, three rings, worker and link, between a driver and a peer of any content and pace.
//!
//! ```text
//!   input --> frames and buffers cut anywhere, headers, commands, bytes of the peer, cables pulled, pauses, descriptors
//!   held:     no panic, no hang, nothing in flight in a pause; what arrives at the peer was sent, whole and in order;
//!             what arrives in the guest was sent by the peer, whole and in order; headers say what was agreed on only
//! ```
//!
//! Run: `cargo +nightly fuzz run net`.
#![no_main]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_devices::{BusDevice, Irq};
use axvm_events::Events;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::mmio::MmioTransport;
use axvm_virtio::net::{Link, LinkKind, MIN_FRAME, Net, NetConfig, NetHandle, Offloads};
use axvm_virtio::testing::{Buffer, FakeDriver, RawDescriptor};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

const RING_SIZE: u16 = 64;
/// Receive, transmit, control.
const RINGS: [Gpa; 3] = [Gpa(0x1000), Gpa(0x3000), Gpa(0x5000)];
/// Each chain has a part of its own, a place for each of its bytes.
const PARTS: u64 = 0x10_0000;
const PART_LEN: u64 = 0x4000;
/// Bytes of a frame here, or of a command.
const MOST: usize = 3000;
const HEAD: usize = 12;

const QUEUE_NOTIFY: u64 = 0x050;
const STATUS: u64 = 0x070;
const NEEDS_RESET: u32 = 0x40;
const LIMIT: Duration = Duration::from_secs(10);

static RAM: LazyLock<Arc<GuestRam>> = LazyLock::new(|| GuestRam::allocate(&RamConfig::new(32 << 20)).expect("32 MiB"));

#[derive(Arbitrary, Debug)]
enum Step {
    /// A frame of the guest behind a header, in pieces.
    Send {
        header: [u8; HEAD],
        len: u16,
        cuts: Vec<u16>,
    },
    /// Room for a frame.
    Room(Vec<u16>),
    Command {
        bytes: Vec<u8>,
        answer: u8,
    },
    /// A frame of the peer, with a header if the link has headers.
    Peer {
        header: [u8; HEAD],
        len: u16,
    },
    /// What is no frame, or half of one.
    Noise(Vec<u8>),
    Cable(bool),
    Pause,
    Reset(u64),
    /// A descriptor of any content, and any head.
    Raw {
        queue: u8,
        index: u8,
        addr: u32,
        len: u32,
        flags: u16,
        next: u16,
        head: u16,
    },
}

enum Peer {
    Stream(UnixStream, Vec<u8>),
    Datagram(UnixDatagram, bool),
}

struct Run {
    device: MmioTransport,
    handle: NetHandle,
    drivers: [FakeDriver; 3],
    peer: Peer,
    parts: u64,
    /// Frames that the guest sent, and the peer did; each is known by its first bytes and its length.
    sent: VecDeque<Vec<u8>>,
    peers: VecDeque<Vec<u8>>,
    /// Receive chains in the ring: their pieces, in order.
    rooms: VecDeque<Vec<Buffer>>,
    number: u32,
    /// Nothing happened that makes looking at frames meaningless.
    honest: bool,
}

fn frame(number: u32, len: u16) -> Vec<u8> {
    let len = usize::from(len) % MOST + 4;
    let mut frame: Vec<u8> = (0..len).map(|at| (at as u32 ^ number) as u8).collect();
    frame[..4].copy_from_slice(&number.to_be_bytes());
    frame
}

impl Run {
    fn new(kind: u8, features: u64) -> Run {
        let (link, peer) = match kind % 3 {
            0 => {
                let (ours, theirs) = UnixStream::pair().expect("sockets");
                theirs.set_nonblocking(true).expect("a socket");
                (
                    Link::new(LinkKind::Stream, ours.into()).map(|link| link.offering(Offloads::ALL)),
                    Peer::Stream(theirs, Vec::new()),
                )
            }
            kind => {
                let (ours, theirs) = UnixDatagram::pair().expect("sockets");
                theirs.set_nonblocking(true).expect("a socket");
                let link = match kind {
                    1 => Link::new(LinkKind::Datagram, ours.into()),
                    _ => Link::stand_in(vec![ours.into()], Offloads::ALL),
                };
                (link, Peer::Datagram(theirs, kind == 2))
            }
        };
        let handle = NetHandle::new(link.expect("a link")).expect("an eventfd");
        let card = Box::new(Net::new(handle.clone(), NetConfig { mac: [2; 6], mtu: Some(1500) }));
        let irq = Irq::new().expect("an eventfd");
        let device = MmioTransport::new("fuzz", card, Arc::clone(&RAM), irq, Events::default()).expect("eventfds");
        let drivers = RINGS.map(|ring| FakeDriver::new(&RAM, ring, RING_SIZE, false));
        let (sent, peers, rooms) = Default::default();
        let mut run = Run { device, handle, drivers, peer, parts: 0, sent, peers, rooms, number: 0, honest: true };
        run.start(features);
        run
    }

    /// Reset, and everything up to DRIVER_OK.
    fn start(&mut self, features: u64) {
        self.set(STATUS, 0);
        let event_idx = features & 1 << 29 != 0;
        self.drivers = RINGS.map(|ring| FakeDriver::new(&RAM, ring, RING_SIZE, event_idx));
        self.rooms.clear();
        self.set(STATUS, 3);
        let half = |select: u32, wanted: u64| {
            self.set(0x014, select);
            let accepted = self.get(0x010) & (wanted >> (32 * select)) as u32 | select;
            self.set(0x024, select);
            self.set(0x020, accepted);
        };
        half(0, features);
        half(1, features);
        self.set(STATUS, 11);
        for (index, driver) in self.drivers.iter().enumerate() {
            let layout = driver.layout();
            let areas = [layout.descriptors, layout.avail, layout.used].map(|Gpa(address)| address as u32);
            let script = [(0x030, index as u32), (0x038, RING_SIZE.into())];
            let script = script.into_iter().chain([0x080, 0x090, 0x0a0].into_iter().zip(areas)).chain([(0x044, 1)]);
            script.for_each(|(register, value)| self.set(register, value));
        }
        self.set(STATUS, 15);
        assert_eq!(self.get(STATUS), 15);
    }

    fn set(&self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Buffers for `len` bytes, cut there.
    fn cut(&mut self, len: usize, cuts: &[u16], writable: bool) -> Vec<Buffer> {
        self.parts = (self.parts + 1) % 512;
        let (mut at, end) = (PARTS + PART_LEN * self.parts, PARTS + PART_LEN * self.parts + len as u64);
        let mut buffers = Vec::new();
        for cut in cuts.iter().take(8) {
            let piece = u64::from(*cut).min(end - at);
            buffers.push(Buffer { gpa: Gpa(at), len: piece as u32, writable });
            at += piece;
        }
        buffers.push(Buffer { gpa: Gpa(at), len: (end - at) as u32, writable });
        buffers
    }

    fn offer(&mut self, queue: usize, buffers: &[Buffer]) -> bool {
        let driver = &mut self.drivers[queue];
        if buffers.len() > driver.free_count() {
            return false;
        }
        driver.add(buffers);
        if driver.kick() {
            self.set(QUEUE_NOTIFY, queue as u32);
        }
        true
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Send { header, len, cuts } => {
                let bytes = [&header[..], &frame(self.number, *len)].concat();
                let buffers = self.cut(bytes.len(), cuts, false);
                RAM.write(buffers[0].gpa, &bytes).expect("in RAM");
                if self.offer(1, &buffers) {
                    self.sent.push_back(bytes[HEAD..].to_vec());
                    self.number += 1;
                }
            }
            Step::Room(cuts) => {
                let len = HEAD + cuts.iter().map(|cut| usize::from(*cut) % 900).sum::<usize>().min(MOST);
                let buffers = self.cut(len, cuts, true);
                if self.offer(0, &buffers) {
                    self.rooms.push_back(buffers);
                }
            }
            Step::Command { bytes, answer } => {
                let bytes = &bytes[..bytes.len().min(MOST)];
                let command = self.cut(bytes.len(), &[], false);
                RAM.write(command[0].gpa, bytes).expect("in RAM");
                let answer = Buffer::writable(Gpa(command[0].gpa.0 + PART_LEN / 2), u32::from(answer % 3));
                self.offer(2, &[command[0], answer]);
            }
            Step::Peer { header, len } => {
                let frame = frame(self.number, *len);
                let whole = match &mut self.peer {
                    // Half a frame is what the next one begins in.
                    Peer::Stream(stream, _) => {
                        let bytes = [&(frame.len() as u32).to_be_bytes()[..], &frame].concat();
                        stream.write(&bytes).map_or(0, |count| count) == bytes.len()
                    }
                    Peer::Datagram(socket, headed) => {
                        let head = if *headed { &header[..] } else { &[] };
                        socket.send(&[head, &frame].concat()).is_ok()
                    }
                };
                self.honest &= whole || matches!(self.peer, Peer::Datagram(..));
                if whole {
                    self.peers.push_back(frame);
                    self.number += 1;
                }
            }
            Step::Noise(bytes) => {
                self.honest = false;
                let _ = match &mut self.peer {
                    Peer::Stream(stream, _) => stream.write(bytes),
                    Peer::Datagram(socket, _) => socket.send(bytes),
                };
            }
            Step::Cable(up) => self.handle.set_up(*up),
            Step::Pause => {
                self.device.pause(Instant::now() + LIMIT).expect("it stops");
                let state = self.device.state().expect("it is paused");
                let idle = state.queues.iter().all(|queue| queue.indices.next_avail == queue.indices.next_used);
                assert!(idle || state.status & NEEDS_RESET != 0, "a chain is in flight: {state:?}");
                self.device.resume(Instant::now() + LIMIT).expect("it goes on");
            }
            Step::Reset(features) => {
                self.start(*features);
                // Frames in the ring are forgotten with it.
                self.honest = false;
            }
            Step::Raw { queue, index, addr, len, flags, next, head } => {
                let raw = RawDescriptor { addr: u64::from(*addr) % (40 << 20), len: *len, flags: *flags, next: *next };
                let queue = usize::from(queue % 3);
                self.drivers[queue].write_descriptor(u16::from(*index) % RING_SIZE, raw);
                self.drivers[queue].offer(head % (RING_SIZE + 1));
                self.drivers[queue].kick();
                self.set(QUEUE_NOTIFY, queue as u32);
                self.honest = false;
            }
        }
        self.collect();
    }

    /// Looks at what has arrived on both sides.
    fn collect(&mut self) {
        if !self.honest {
            return;
        }
        for queue in [1, 2] {
            while let Some((_, written)) = self.drivers[queue].take_used() {
                assert_eq!(written, u32::from(queue == 2), "an answer is a byte");
            }
        }
        while let Some(bytes) = self.arrived() {
            // What was dropped is passed over; what comes was sent, and nothing twice.
            let expected = std::iter::from_fn(|| self.sent.pop_front()).find(|frame| *frame == bytes);
            assert!(expected.is_some(), "a frame that the guest has not sent, or not now");
        }
        while let Some((_, written)) = self.drivers[0].take_used() {
            let mut bytes = self.room(written as usize);
            let head = bytes.first_chunk::<HEAD>().expect("a header");
            assert!(head[0] & !3 == 0, "unknown flags");
            for _ in 1..u16::from_le_bytes([head[10], head[11]]) {
                let (_, written) = self.drivers[0].take_used().expect("all chains of a frame at once");
                bytes.extend(self.room(written as usize));
            }
            let expected = std::iter::from_fn(|| self.peers.pop_front()).find(|frame| *frame == bytes[HEAD..]);
            assert!(expected.is_some(), "a frame that the peer has not sent, or not now");
        }
    }

    /// What was written into the next receive chain.
    fn room(&mut self, written: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in self.rooms.pop_front().expect("a chain that was offered") {
            let mut part = vec![0; (written - bytes.len()).min(piece.len as usize)];
            RAM.read(piece.gpa, &mut part).expect("in RAM");
            bytes.extend(part);
        }
        assert_eq!(bytes.len(), written, "more written than there is room for");
        bytes
    }

    /// The next frame at the peer.
    fn arrived(&mut self) -> Option<Vec<u8>> {
        let mut piece = vec![0; 2 * MOST];
        match &mut self.peer {
            Peer::Stream(stream, bytes) => {
                while let Ok(count @ 1..) = stream.read(&mut piece) {
                    bytes.extend_from_slice(&piece[..count]);
                }
                let len = u32::from_be_bytes(*bytes.first_chunk()?) as usize;
                let frame = bytes.get(4..4 + len)?.to_vec();
                bytes.drain(..4 + len);
                Some(frame)
            }
            Peer::Datagram(socket, headed) => {
                let count = socket.recv(&mut piece).ok()?;
                let head = if *headed { HEAD } else { 0 };
                assert!(count >= head + MIN_FRAME && (!*headed || piece[0] & !1 == 0), "no frame");
                Some(piece[head..count].to_vec())
            }
        }
    }

    /// Waits until the device has taken all that the guest sent.
    fn finish(&mut self) {
        self.handle.set_up(true);
        let begin = Instant::now();
        while self.get(STATUS) & NEEDS_RESET == 0 && self.drivers[1].free_count() < usize::from(RING_SIZE) {
            self.collect();
            assert!(begin.elapsed() < LIMIT, "the device hangs");
            std::thread::yield_now();
        }
    }
}

fuzz_target!(|input: (u8, u64, Vec<Step>)| {
    let (kind, features, steps) = input;
    let mut run = Run::new(kind, features);
    steps.iter().take(200).for_each(|step| run.step(step));
    if run.honest {
        run.finish();
    }
    run.device.stop(Instant::now() + LIMIT).expect("it stops");
    assert_eq!(run.get(STATUS), 0);
    run.collect();
});
