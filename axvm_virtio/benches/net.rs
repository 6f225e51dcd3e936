//! What a frame costs on its way through the network card: rings, worker, one system call each.
//!
//! ```text
//!   to host:    driver: a ring full of frames --> net0-q0 --write--> socket, tap (where the kernel drops them)
//!   to guest:   sender thread --> socket, tap --read--> net0-q0 --> ring; the driver gives the buffers back
//!   and back:   driver --> net0-q0 --> tap --> program of the host --> tap --> net0-q0 --> driver, which has slept
//! ```
//!
//! A socket's other end is emptied, or filled, by a thread of the bench. A tap needs root and ip(8); it lies in a network
//! namespace, and what goes to the host has another address than its interface, so that no protocol is measured. Frames
//! of 64 KiB are segments of TCP, or UDP datagrams, that are not cut yet: offloads. Without these the kernel, or the
//! guest, would make 45 frames of 1514 bytes of each.
//!
//! Medians of rounds; compare two versions by running both in turn. What the worker alone costs is its own processor time,
//! which says something on a busy machine, too. Run: `cargo bench -p axvm_virtio --bench net`.
#![allow(clippy::disallowed_methods, reason = "the other ends are threads of their own")]

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_devices::{BusDevice, Irq};
use axvm_events::Events;
use axvm_memory::{GuestRam, RamConfig};
use axvm_tap::testing::{in_namespace, ip};
use axvm_virtio::mmio::MmioTransport;
use axvm_virtio::net::{Link, LinkKind, Net, NetConfig, NetCount, NetHandle, Offloads, Tap};
use axvm_virtio::testing::{Buffer, FakeDriver};

const RINGS: [Gpa; 2] = [Gpa(0x1_0000), Gpa(0x2_0000)];
const SIZE: u16 = 256;
/// A frame each.
const OUTPUT: u64 = 0x100_0000;
const INPUT: u64 = 0x300_0000;
/// Buffers for the guest, of this size, as Linux has them with MRG_RXBUF.
const PAGE: u32 = 4096;
const HEAD: usize = 12;
const ROUNDS: usize = 21;
const ROUND: Duration = Duration::from_millis(60);

const MAC: [u8; 6] = [2, 0, 0, 0xa, 0xb, 0xc];
/// The checksum of TCP over IPv4 is missing, and segments of 1448 bytes are to be made.
const TSO: [u8; HEAD] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];

/// Register offsets of virtio-mmio (virtio 1.2, 4.2.2).
mod reg {
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_NUM: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC: u64 = 0x80;
    pub const QUEUE_DRIVER: u64 = 0x90;
    pub const QUEUE_DEVICE: u64 = 0xa0;
}

/// A card, and its driver.
struct Card {
    ram: Arc<GuestRam>,
    transport: MmioTransport,
    drivers: [FakeDriver; 2],
    handle: NetHandle,
    irq: Irq,
    /// Of the buffers for the guest, how many were given.
    given: u64,
    /// How often the driver has kicked.
    kicks: u64,
}

impl Card {
    fn new(link: Link) -> Card {
        let ram = GuestRam::allocate(&RamConfig::new(128 << 20)).unwrap();
        let handle = NetHandle::new(link).unwrap();
        let device = Box::new(Net::new(handle.clone(), NetConfig { mac: MAC, mtu: None }));
        let (irq, events) = (Irq::new().unwrap(), Events::default());
        let line = irq.try_clone().unwrap();
        let transport = MmioTransport::new("net0", device, Arc::clone(&ram), line, events).unwrap();
        let set = |offset, value: u32| transport.write(offset, &value.to_le_bytes());
        set(reg::STATUS, 3);
        for select in [0, 1] {
            set(reg::DEVICE_FEATURES_SEL, select);
            set(reg::DRIVER_FEATURES_SEL, select);
            let mut offered = [0; 4];
            transport.read(reg::DEVICE_FEATURES, &mut offered);
            transport.write(reg::DRIVER_FEATURES, &offered);
        }
        set(reg::STATUS, 11);
        let drivers = RINGS.map(|ring| FakeDriver::new(&ram, ring, SIZE, true));
        for (index, driver) in drivers.iter().enumerate() {
            let layout = driver.layout();
            set(reg::QUEUE_SEL, index as u32);
            set(reg::QUEUE_NUM, layout.size.into());
            let areas = [
                (reg::QUEUE_DESC, layout.descriptors),
                (reg::QUEUE_DRIVER, layout.avail),
                (reg::QUEUE_DEVICE, layout.used),
            ];
            areas.into_iter().for_each(|(offset, gpa)| set(offset, gpa.0 as u32));
            set(reg::QUEUE_READY, 1);
        }
        set(reg::STATUS, 15);
        Card { ram, transport, drivers, handle, irq, given: 0, kicks: 0 }
    }

    fn kick(&mut self, queue: usize) {
        if self.drivers[queue].kick() {
            self.kicks += 1;
            self.transport.kick(queue as u16).signal();
        }
    }

    /// Frames and bytes a second to the host, of one frame again and again.
    fn transmit(&mut self, header: &[u8; HEAD], frame: &[u8]) -> Round {
        let len = HEAD + frame.len();
        self.ram.write(Gpa(OUTPUT), &[&header[..], frame].concat()).unwrap();
        self.drivers[1].disable_interrupts();
        let (before, busy, start) = (self.handle.from_guest(), worker_time(), Instant::now());
        while start.elapsed() < ROUND {
            while self.drivers[1].free_count() > 0 {
                self.drivers[1].add(&[Buffer::readable(Gpa(OUTPUT), len as u32)]);
            }
            self.kick(1);
            std::iter::from_fn(|| self.drivers[1].take_used()).for_each(drop);
            // The other end may need this processor.
            std::thread::yield_now();
        }
        let time = start.elapsed().as_secs_f64();
        let now = self.handle.from_guest();
        assert_eq!(now.dropped, before.dropped);
        Round::new(before, now, (time, worker_time() - busy))
    }

    /// Gives the card all the buffers that the driver has.
    fn give(&mut self) {
        while self.drivers[0].free_count() > 0 {
            self.given += 1;
            let slot = self.given % u64::from(SIZE);
            self.drivers[0].add(&[Buffer::writable(Gpa(INPUT + slot * u64::from(PAGE)), PAGE)]);
        }
        self.kick(0);
    }

    /// Requests to a program of the host, each sent when the answer to the one before has interrupted the driver, which
    /// then thinks for so long.
    fn ask(&mut self, frame: &[u8], think: Duration) -> Round {
        self.ram.write(Gpa(OUTPUT), &[&[0; HEAD][..], frame].concat()).unwrap();
        self.drivers[1].disable_interrupts();
        let (before, busy, start) = (self.handle.to_guest(), worker_time(), Instant::now());
        while start.elapsed() < ROUND {
            self.give();
            // Those of the round before may still be on their way.
            while self.drivers[1].free_count() == 0 {
                while self.drivers[1].take_used().is_some() {}
            }
            self.drivers[1].add(&[Buffer::readable(Gpa(OUTPUT), (HEAD + frame.len()) as u32)]);
            self.kick(1);
            while !self.drivers[0].enable_interrupts() {
                self.irq.event_fd().wait();
            }
            self.drivers.iter_mut().for_each(|driver| while driver.take_used().is_some() {});
            let thinks = Instant::now();
            while thinks.elapsed() < think {
                std::hint::spin_loop();
            }
        }
        let time = start.elapsed().as_secs_f64();
        Round::new(before, self.handle.to_guest(), (time, worker_time() - busy))
    }

    /// Frames and bytes a second to the guest, as they come.
    fn receive(&mut self) -> Round {
        self.drivers[0].disable_interrupts();
        let (before, busy, start) = (self.handle.to_guest(), worker_time(), Instant::now());
        while start.elapsed() < ROUND {
            self.give();
            std::iter::from_fn(|| self.drivers[0].take_used()).for_each(drop);
            // The other end may need this processor.
            std::thread::yield_now();
        }
        let time = start.elapsed().as_secs_f64();
        Round::new(before, self.handle.to_guest(), (time, worker_time() - busy))
    }
}

/// Processor time of the worker so far, in nanoseconds.
fn worker_time() -> f64 {
    let read = |path: &Path, file| std::fs::read_to_string(path.join(file)).unwrap_or_default();
    let find = || {
        let mut tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        tasks.find(|path| read(path, "comm").trim() == "net0-q0")
    };
    // A thread that is young has no name yet.
    let task = std::iter::from_fn(|| Some(find())).flatten().next().unwrap();
    read(&task, "schedstat").split(' ').next().unwrap().parse().unwrap()
}

/// What one round brought.
struct Round {
    frames: f64,
    bytes: f64,
    /// Nanoseconds of the worker, a frame.
    worker: f64,
}

impl Round {
    fn new(before: NetCount, now: NetCount, (time, worker): (f64, f64)) -> Round {
        let (frames, bytes) = ((now.frames - before.frames) as f64, (now.bytes - before.bytes) as f64);
        Round { frames: frames / time, bytes: bytes / time, worker: worker / frames.max(1.0) }
    }
}

fn print(what: &str, len: usize, mut round: impl FnMut() -> Round) {
    round();
    let rounds: Vec<Round> = (0..ROUNDS).map(|_| round()).collect();
    let at = |part: usize, value: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[ROUNDS * part / 100]
    };
    let frames = [10, 50, 90].map(|part| at(part, |round| round.frames / 1e3));
    let (bytes, worker) = (at(50, |round| round.bytes / 1e6), at(50, |round| round.worker));
    let [low, median, high] = frames;
    println!("{what:22} {len:>6} {low:>9.0} {median:>9.0} {high:>9.0} {bytes:>9.0} {worker:>9.0}");
}

/// A TCP packet over IPv4 for another address than the interface has.
fn packet(len: usize) -> Vec<u8> {
    let mut frame = vec![0; len];
    frame[..6].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    frame[6..12].copy_from_slice(&MAC);
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    frame[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
    frame[22..24].copy_from_slice(&[64, 6]);
    frame[26..34].copy_from_slice(&[10, 9, 0, 2, 10, 9, 0, 3]);
    frame[46] = 0x50;
    frame
}

/// A UDP datagram to port 9 of the interface.
fn datagram(len: usize) -> Vec<u8> {
    let mut frame = packet(len);
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0xfe]);
    frame[23] = 17;
    frame[30..34].copy_from_slice(&[10, 9, 0, 1]);
    let words = frame[14..34].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    frame[34..38].copy_from_slice(&[0, 7, 0, 9]);
    frame[38..42].copy_from_slice(&[&((len - 34) as u16).to_be_bytes()[..], &[0, 0]].concat());
    frame
}

/// Runs `body` while `other` works at the other end, again and again until it says no.
fn beside(mut other: impl FnMut() -> bool + Send, body: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| std::iter::repeat_with(|| !done.load(Ordering::Relaxed) && other()).all(|goes_on| goes_on));
        body();
        done.store(true, Ordering::Relaxed);
    });
}

fn stream() {
    for len in [60, 1514, 65_000] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut card = Card::new(Link::new(LinkKind::Stream, ours.into()).unwrap());
        let mut bytes = vec![0; 1 << 20];
        let read = || {
            let _ = theirs.read(&mut bytes);
            true
        };
        beside(read, || print("stream, to host", len, || card.transmit(&[0; HEAD], &packet(len))));
    }
    for len in [60, 1514, 65_000] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut card = Card::new(Link::new(LinkKind::Stream, ours.into()).unwrap());
        let framed = [&(len as u32).to_be_bytes()[..], &packet(len)].concat();
        // Many at once, as a peer that is busy has them.
        let many = framed.repeat((1 << 17) / framed.len() + 1);
        beside(|| theirs.write_all(&many).is_ok(), || print("stream, to guest", len, || card.receive()));
    }
}

fn tap(offloads: Offloads) -> Card {
    ip("tuntap add dev tap0 mode tap vnet_hdr");
    ip("link set tap0 address 02:00:00:00:00:fe up");
    ip("addr add 10.9.0.1/24 dev tap0");
    ip("neigh add 10.9.0.2 lladdr 02:00:00:0a:0b:0c dev tap0 nud permanent");
    let taps = Tap::open("tap0", 1).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    Card::new(Link::tap(taps).unwrap().offering(offloads))
}

fn taps() {
    in_namespace(|| {
        let mut card = tap(Offloads::ALL);
        for len in [60, 1514] {
            print("tap, to host", len, || card.transmit(&[0; HEAD], &packet(len)));
        }
        print("tap, to host, TSO", 65_000, || card.transmit(&TSO, &packet(65_000)));
        let socket = UdpSocket::bind("10.9.0.1:9").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut bytes = [0; 2048];
        let answer = || {
            let asked = socket.recv_from(&mut bytes);
            asked.is_err() || asked.is_ok_and(|(len, from)| socket.send_to(&bytes[..len], from).is_ok())
        };
        beside(answer, || {
            let mut kicks = (card.kicks, card.handle.from_guest().frames);
            for (what, micros) in [("tap, and back", 0), ("tap, and back, 20 us", 20), ("tap, and back, 2 ms", 2000)] {
                print(what, 60, || card.ask(&datagram(60), Duration::from_micros(micros)));
                let now = (card.kicks, card.handle.from_guest().frames);
                println!("{:.2} kicks a request", (now.0 - kicks.0) as f64 / (now.1 - kicks.1) as f64);
                kicks = now;
            }
        });
        for (what, payload, segment) in
            [("tap, to guest", 18, 0), ("tap, to guest", 1472, 0), ("tap, to guest, USO", 44 * 1448, 1448)]
        {
            set_segment(&socket, segment);
            let bytes = vec![0x5a; payload];
            let send = || socket.send_to(&bytes, "10.9.0.2:7").is_ok();
            beside(send, || print(what, 42 + payload, || card.receive()));
        }
    });
    in_namespace(|| {
        let mut card = tap(Offloads::NONE);
        let socket = UdpSocket::bind("10.9.0.1:9").unwrap();
        set_segment(&socket, 1448);
        let bytes = vec![0x5a; 44 * 1448];
        let send = || socket.send_to(&bytes, "10.9.0.2:7").is_ok();
        beside(send, || print("tap, to guest, cut", 42 + 1448, || card.receive()));
    });
}

/// Has what is sent cut into datagrams of this size, by the latest there is.
fn set_segment(socket: &UdpSocket, size: libc::c_int) {
    // SAFETY: UDP_SEGMENT (103) of SOL_UDP reads an int.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), 17, 103, (&raw const size).cast(), 4) };
    assert_eq!(set, 0);
}

fn main() {
    println!(
        "{:22} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "thousand frames a s", "bytes", "10 %", "median", "90 %", "MB/s", "worker ns"
    );
    stream();
    taps();
}
