//! The socket device, whole: transport, rings, worker and connections, against any packets, chains and hosts.
//!
//! ```text
//!   input --> packets with anything in them, buffers of any size, clients with any words, pauses, closes
//!   held:     no panic, no hang; each packet for the guest has its address, a known operation, no more data than its
//!             buffer holds and than the guest said there is room for, to the byte
//! ```
//!
//! Run: `cargo +nightly fuzz run vsock`.
#![no_main]

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_devices::{BusDevice, Irq};
use axvm_events::Events;
use axvm_memory::{GuestRam, RamConfig};
use axvm_sync::{EventFd, lock};
use axvm_virtio::mmio::MmioTransport;
use axvm_virtio::testing::{Buffer, FakeDriver};
use axvm_virtio::vsock::{Connector, Vsock, VsockHost};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

const RING_SIZE: u16 = 64;
/// Receive, transmit, events.
const RINGS: [Gpa; 3] = [Gpa(0x1000), Gpa(0x3000), Gpa(0x5000)];
const OUTGOING: Gpa = Gpa(0x10_0000);
/// Each buffer for a packet has a part of its own.
const INCOMING: u64 = 0x20_0000;
const INCOMING_LEN: u64 = 0x4000;

const QUEUE_NOTIFY: u64 = 0x050;
const STATUS: u64 = 0x070;
const NEEDS_RESET: u32 = 0x40;
const LIMIT: Duration = Duration::from_secs(10);

const CID: u64 = 3;
const HEADER_LEN: usize = 44;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const RW: u16 = 5;

static RAM: LazyLock<Arc<GuestRam>> = LazyLock::new(|| GuestRam::allocate(&RamConfig::new(4 << 20)).expect("4 MiB"));

#[derive(Arbitrary, Debug)]
enum Step {
    /// A packet of the guest. Few ports, so that packets meet.
    Packet {
        op: u8,
        guest_port: u8,
        host_port: u8,
        len: u16,
        flags: u8,
        room: Room,
        passed: Passed,
        /// Few are odd, or nothing would ever be connected.
        odd: u8,
        value: u32,
    },
    /// The guest connects with little room to a program that writes more.
    Flow(u8, u8, u16),
    /// Buffers for packets, of these lengths.
    Offer(Vec<u16>),
    Client(Vec<u8>),
    Connect(u8),
    Write(u8, u16),
    Read(u8, u16),
    Close(u8, u8),
    Pause,
    Event,
}

/// `buf_alloc`.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Room {
    /// Soon used up.
    Small(u8),
    Some(u16),
    Any(u32),
}

/// `fwd_cnt`.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Passed {
    /// All that came, as far as we have seen.
    All,
    /// But for so many bytes.
    AllBut(u8),
    Any(u32),
}

/// The host's programs, where a guest connects: every third port has none.
struct Programs {
    answers: VecDeque<io::Result<UnixStream>>,
    waiting: EventFd,
    others: Arc<Mutex<Vec<UnixStream>>>,
}

impl AsFd for Programs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waiting.as_fd()
    }
}

impl Connector for Programs {
    fn ask(&mut self, port: u32) -> io::Result<()> {
        if port % 3 == 2 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let answer = UnixStream::pair().and_then(|(ours, theirs)| {
            [&ours, &theirs].into_iter().try_for_each(|stream| stream.set_nonblocking(true))?;
            lock(&self.others).push(theirs);
            Ok(ours)
        });
        self.answers.push_back(answer);
        self.waiting.signal();
        Ok(())
    }

    fn answer(&mut self) -> Option<io::Result<UnixStream>> {
        let answer = self.answers.pop_front();
        if answer.is_none() {
            self.waiting.take();
        }
        answer
    }
}

/// What the guest knows of the connections of two ports: bytes that it got, and the most that it can have allowed.
#[derive(Default)]
struct Known {
    received: u64,
    allowed: u64,
    /// How many packets of the device began a connection.
    begun: u32,
    /// It lied, or there is another connection, whose bytes cannot be told from those of the one before.
    vague: bool,
}

impl Known {
    /// The guest says in a packet of kind `op` how much room it has, and how much it passed on.
    fn tell(&mut self, op: u16, buf_alloc: u32, passed: Passed) -> u32 {
        let begins = [REQUEST, RESPONSE].contains(&op) && (self.begun > 0 || self.allowed > 0);
        self.vague |= op == RST || begins && op == REQUEST || matches!(passed, Passed::Any(_));
        let fwd_cnt = match passed {
            Passed::All => self.received as u32,
            Passed::AllBut(count) => (self.received as u32).saturating_sub(count.into()),
            Passed::Any(count) => count,
        };
        // Whatever it says has been passed on, it allows at most so many bytes more.
        let base = if self.vague { self.allowed } else { u64::from(fwd_cnt) };
        self.allowed = self.allowed.max(base + u64::from(buf_alloc));
        fwd_cnt
    }

    /// The guest gets a packet.
    fn get(&mut self, op: u16, len: u32) {
        self.begun += u32::from([REQUEST, RESPONSE].contains(&op));
        self.vague |= op == RST || self.begun > 1;
        self.received += u64::from(len);
        assert!(self.received <= self.allowed, "{} of {}", self.received, self.allowed);
    }
}

struct Run {
    device: MmioTransport,
    drivers: [FakeDriver; 3],
    address: SocketAddr,
    streams: Arc<Mutex<Vec<UnixStream>>>,
    /// By head: where the buffer is, and its length.
    offered: HashMap<u16, (Gpa, u32)>,
    slots: u64,
    outstanding: usize,
    connections: HashMap<(u32, u32), Known>,
}

impl Run {
    fn new(features: u32) -> Run {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("axvm-fuzz-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("an abstract socket");
        let streams = Arc::<Mutex<Vec<UnixStream>>>::default();
        let waiting = EventFd::new().expect("an eventfd");
        let programs = Programs { answers: VecDeque::new(), waiting, others: Arc::clone(&streams) };
        let host = VsockHost::new(listener, programs).expect("a host's end");
        let drivers = RINGS.map(|ring| FakeDriver::new(&RAM, ring, RING_SIZE, features & 1 << 29 != 0));
        let (vsock, irq) = (Box::new(Vsock::new(CID as u32, &host)), Irq::new().expect("an eventfd"));
        let device = MmioTransport::new("fuzz", vsock, Arc::clone(&RAM), irq, Events::default()).expect("eventfds");
        let (offered, connections) = Default::default();
        let run = Run { device, drivers, address, streams, offered, slots: 0, outstanding: 0, connections };
        run.start(features);
        run
    }

    fn start(&self, features: u32) {
        self.set(STATUS, 3);
        let offered = self.get(0x010);
        for (register, value) in [(0x024, 1), (0x020, 1), (0x024, 0), (0x020, offered & features)] {
            self.set(register, value);
        }
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

    fn stands(&self) -> bool {
        self.get(STATUS) & NEEDS_RESET != 0
    }

    fn kick(&mut self, queue: usize) {
        if self.drivers[queue].kick() {
            self.set(QUEUE_NOTIFY, queue as u32);
        }
    }

    /// Sends bytes, and waits until the device has them: the place is used again.
    fn send(&mut self, bytes: &[u8]) {
        RAM.write(OUTGOING, bytes).expect("in RAM");
        let (first, rest) = (bytes.len() / 2, bytes.len() - bytes.len() / 2);
        let pieces =
            [(0, first), (first, rest)].map(|(at, len)| Buffer::readable(Gpa(OUTGOING.0 + at as u64), len as u32));
        self.drivers[1].add(&pieces);
        self.kick(1);
        let begin = Instant::now();
        while self.drivers[1].take_used().is_none() {
            // With 256 resets that wait for a buffer it takes no more.
            if self.stands() || self.outstanding == 0 && begin.elapsed() > Duration::from_millis(20) {
                self.offer(&[200; 8]);
            }
            if self.stands() {
                return;
            }
            self.collect();
            assert!(begin.elapsed() < LIMIT, "the device takes no packet");
            std::thread::yield_now();
        }
    }

    fn offer(&mut self, lens: &[u16]) {
        for len in lens.iter().take(8) {
            if self.drivers[0].free_count() == 0 {
                break;
            }
            let (place, len) =
                (Gpa(INCOMING + INCOMING_LEN * (self.slots % 64)), HEADER_LEN as u32 + 1 + u32::from(*len % 8000));
            self.slots += 1;
            let head = self.drivers[0].add(&[Buffer::writable(place, len)]);
            self.offered.insert(head, (place, len));
            self.outstanding += 1;
        }
        self.kick(0);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Packet { .. } => self.packet(step),
            Step::Flow(port, room, len) => self.flow(*port, *room, *len),
            Step::Offer(lens) => self.offer(lens),
            Step::Client(words) => self.client(words),
            Step::Connect(port) => self.client(format!("CONNECT {}\n", port % 4).as_bytes()),
            Step::Write(which, len) => self.with(*which, |mut stream| {
                _ = stream.write(&vec![0x5a; usize::from(*len)]);
            }),
            Step::Read(which, len) => self.with(*which, |mut stream| {
                _ = stream.read(&mut vec![0; usize::from(*len)]);
            }),
            Step::Close(which, how) => match how % 3 {
                0 => self.with(*which, |stream| _ = stream.shutdown(Shutdown::Write)),
                1 => self.with(*which, |stream| _ = stream.shutdown(Shutdown::Both)),
                _ => {
                    let mut streams = lock(&self.streams);
                    let count = streams.len();
                    if count > 0 {
                        streams.swap_remove(usize::from(*which) % count);
                    }
                }
            },
            Step::Pause => {
                self.device.pause(Instant::now() + LIMIT).expect("it stops");
                self.device.resume(Instant::now() + LIMIT).expect("it goes on");
            }
            Step::Event if self.drivers[2].free_count() > 0 => {
                self.drivers[2].add(&[Buffer::writable(Gpa(0x8000), 4)]);
                self.kick(2);
            }
            Step::Event => {}
        }
        self.collect();
    }

    fn packet(&mut self, step: &Step) {
        let &Step::Packet { op, guest_port, host_port, len, flags, room, passed, odd, value } = step else { return };
        // Some of the host's ports are those of clients.
        let host = if host_port % 2 == 0 { (1 << 30) + u32::from(host_port / 2 % 4) } else { u32::from(host_port % 8) };
        let (guest, len) = (u32::from(guest_port % 4), usize::from(len % 5000));
        let [low, high, ..] = value.to_le_bytes().map(u64::from);
        let (source, target) = if odd == 1 { (low, high) } else { (CID, 2) };
        let op = u16::from(op % 9);
        let buf_alloc = match room {
            Room::Small(count) => count.into(),
            Room::Some(count) => count.into(),
            Room::Any(count) => count,
        };
        let fwd_cnt = self.connections.entry((host, guest)).or_default().tell(op, buf_alloc, passed);
        let mut bytes = Vec::new();
        bytes.extend(source.to_le_bytes());
        bytes.extend(target.to_le_bytes());
        bytes.extend(guest.to_le_bytes());
        bytes.extend(host.to_le_bytes());
        bytes.extend(if odd == 2 { value } else { len as u32 }.to_le_bytes());
        bytes.extend(if odd == 3 { value as u16 } else { 1 }.to_le_bytes());
        bytes.extend(op.to_le_bytes());
        bytes.extend(u32::from(flags % 4).to_le_bytes());
        bytes.extend(buf_alloc.to_le_bytes());
        bytes.extend(fwd_cnt.to_le_bytes());
        bytes.resize(HEADER_LEN + len, 0xa5);
        self.send(&bytes);
    }

    fn flow(&mut self, port: u8, room: u8, len: u16) {
        self.offer(&[3000; 8]);
        let before = lock(&self.streams).len();
        // Odd ports are those of programs.
        let (guest_port, host_port, room, passed) = (port, (port / 4) << 1 | 1, Room::Small(room), Passed::All);
        self.packet(&Step::Packet {
            op: REQUEST as u8,
            guest_port,
            host_port,
            len: 0,
            flags: 0,
            room,
            passed,
            odd: 0,
            value: 0,
        });
        for mut stream in lock(&self.streams).get(before..).unwrap_or_default() {
            _ = stream.write(&vec![0x5a; usize::from(len)]);
        }
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(1) {
            self.collect();
            std::thread::yield_now();
        }
    }

    fn client(&mut self, words: &[u8]) {
        // Where 128 say nothing, no more are let in for a time.
        if lock(&self.streams).len() > 100 {
            return;
        }
        let stream = UnixStream::connect_addr(&self.address).expect("it listens");
        stream.set_nonblocking(true).expect("a socket");
        _ = (&stream).write(words);
        lock(&self.streams).push(stream);
    }

    fn with(&self, which: u8, work: impl FnOnce(&UnixStream)) {
        let streams = lock(&self.streams);
        if !streams.is_empty() {
            work(&streams[usize::from(which) % streams.len()]);
        }
    }

    /// Takes packets, and looks whether they are ones.
    fn collect(&mut self) {
        while let Some((head, written)) = self.drivers[0].take_used() {
            let (place, room) = self.offered.remove(&head).expect("a buffer of ours");
            self.outstanding -= 1;
            assert!(written as usize >= HEADER_LEN && written <= room, "{written} bytes in {room}");
            let mut bytes = [0; HEADER_LEN];
            RAM.read(place, &mut bytes).expect("in RAM");
            let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
            let short = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"));
            let (key, len, op) = ((word(16), word(20)), word(24), short(30));
            assert_eq!((long(0), long(8)), (2, CID));
            assert_eq!(len as usize + HEADER_LEN, written as usize);
            assert!((1..=7).contains(&op) && (short(28) == 1 || op == RST), "{bytes:?}");
            assert!(len == 0 || op == RW, "{bytes:?}");
            self.connections.entry(key).or_default().get(op, len);
        }
    }
}

fuzz_target!(|input: (u32, Vec<Step>)| {
    let (features, steps) = input;
    let mut run = Run::new(features);
    for step in steps.iter().take(200) {
        run.step(step);
        if run.stands() {
            break;
        }
    }
    run.device.stop(Instant::now() + LIMIT).expect("it stops");
    assert_eq!(run.get(STATUS), 0);
    run.collect();
});
