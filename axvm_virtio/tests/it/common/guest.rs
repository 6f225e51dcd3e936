//! A machine with a socket device: the guest's side of its rings, packet by packet, and the host's side of its sockets.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use axvm_arch::Gpa;
use axvm_virtio::device::feature;
use axvm_virtio::testing::{Buffer, FakeDriver};
use axvm_virtio::vsock::{PathConnector, Vsock, VsockHost};
use tempfile::TempDir;

use super::*;

/// Queues.
pub const RX: usize = 0;
pub const TX: usize = 1;
pub const EVENTS: usize = 2;
/// Operations, written down a second time, from the standard.
pub const REQUEST: u16 = 1;
pub const RESPONSE: u16 = 2;
pub const RST: u16 = 3;
pub const SHUTDOWN: u16 = 4;
pub const RW: u16 = 5;
pub const CREDIT_UPDATE: u16 = 6;
pub const CREDIT_REQUEST: u16 = 7;
/// Shutdown flags.
pub const NO_RECEIVE: u32 = 1;
pub const NO_SEND: u32 = 2;

const RINGS: [Gpa; 3] = [RING, Gpa(RING.0 + 0x8000), Gpa(RING.0 + 0x1_0000)];
const QUEUE_SIZE: u16 = 256;
pub const CID: u32 = 3;
/// The first port of a client.
pub const FIRST: u32 = 1 << 30;
/// Where a packet to the device lies; those from it lie after it.
const OUTGOING: Gpa = Gpa(0x40_0000);
const INCOMING: Gpa = Gpa(0x60_0000);
const EVENT_BUFFER: Gpa = Gpa(0x30_0000);
const BUFFER: u32 = 4096;

/// A packet, either way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub cids: (u64, u64),
    /// Source, destination.
    pub ports: (u32, u32),
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
    pub data: Vec<u8>,
}

impl Packet {
    /// One of the guest, with room for `buf_alloc` bytes.
    pub fn new(op: u16, guest_port: u32, host_port: u32) -> Packet {
        Packet {
            cids: (CID.into(), 2),
            ports: (guest_port, host_port),
            len: 0,
            kind: 1,
            op,
            flags: 0,
            buf_alloc: 256 << 10,
            fwd_cnt: 0,
            data: Vec::new(),
        }
    }

    pub fn data(guest_port: u32, host_port: u32, data: &[u8]) -> Packet {
        Packet { len: data.len() as u32, data: data.to_vec(), ..Packet::new(RW, guest_port, host_port) }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.cids.0.to_le_bytes());
        bytes.extend(self.cids.1.to_le_bytes());
        bytes.extend(self.ports.0.to_le_bytes());
        bytes.extend(self.ports.1.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes.extend(&self.data);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Packet {
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let short = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        Packet {
            cids: (long(0), long(8)),
            ports: (word(16), word(20)),
            len: word(24),
            kind: short(28),
            op: short(30),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
            data: bytes[44..].to_vec(),
        }
    }
}

/// A socket device in a directory of its own, its driver ready.
pub struct Guest {
    pub machine: Machine,
    pub features: u64,
    pub drivers: [FakeDriver; 3],
    pub directory: TempDir,
    /// By head: where the buffer is.
    incoming: HashMap<u16, Gpa>,
}

impl Guest {
    pub fn new(features: u64) -> Guest {
        Guest::named("vda", features)
    }

    /// One whose thread has this name.
    pub fn named(name: &str, features: u64) -> Guest {
        let directory = TempDir::new().unwrap();
        let ram = GuestRam::allocate(&RamConfig::new(32 << 20)).unwrap();
        let machine = Machine::named(name, ram, Box::new(device(&directory)));
        let mut guest = Guest::on(machine, directory, features);
        guest.bring_up();
        guest.post_buffers(16);
        guest
    }

    pub fn on(machine: Machine, directory: TempDir, features: u64) -> Guest {
        let features = machine.offered() & (features | feature::VERSION_1);
        let drivers = drivers(&machine, features);
        Guest { machine, features, drivers, directory, incoming: HashMap::new() }
    }

    /// Resets the device, forgets all, and starts anew.
    pub fn bring_up(&mut self) {
        self.drivers = self.machine.bring_up_all(self.features, RINGS, QUEUE_SIZE);
        self.incoming.clear();
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("v")
    }

    /// A program of the host listens at `port`.
    pub fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.directory.path().join(format!("v_{port}"))).unwrap()
    }

    /// A client of the host.
    pub fn client(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    pub fn kick(&mut self, queue: usize) {
        self.machine.show(queue as u32, &mut self.drivers[queue]);
    }

    /// Gives buffers for packets.
    pub fn post_buffers(&mut self, count: usize) {
        let posted = self.incoming.len();
        for slot in posted..posted + count {
            self.post(Gpa(INCOMING.0 + slot as u64 * u64::from(BUFFER)));
        }
        self.kick(RX);
    }

    /// In two pieces, of which the first ends within the header.
    fn post(&mut self, place: Gpa) {
        let pieces = [Buffer::writable(place, 20), Buffer::writable(Gpa(place.0 + 20), BUFFER - 20)];
        let head = self.drivers[RX].add(&pieces);
        self.incoming.insert(head, place);
    }

    /// Sends a packet, and waits until the device has taken it.
    pub fn send(&mut self, packet: &Packet) {
        self.offer(packet);
        self.taken();
    }

    /// Sends a packet. One at a time.
    pub fn offer(&mut self, packet: &Packet) {
        let bytes = packet.bytes();
        self.machine.ram.write(OUTGOING, &bytes).unwrap();
        let pieces =
            [Buffer::readable(OUTGOING, 30), Buffer::readable(Gpa(OUTGOING.0 + 30), (bytes.len() - 30) as u32)];
        self.drivers[TX].add(&pieces);
        self.kick(TX);
    }

    pub fn taken(&mut self) {
        assert!(wait_until(|| self.drivers[TX].take_used().is_some()), "the device takes a packet");
    }

    /// A packet of the device, if there is one now; its buffer goes back.
    pub fn poll(&mut self) -> Option<Packet> {
        let (head, written) = self.drivers[RX].take_used()?;
        let place = self.incoming.remove(&head).unwrap();
        let packet = Packet::from_bytes(&self.machine.bytes(place, written as usize));
        assert_eq!((packet.cids, packet.len as usize), ((2, CID.into()), packet.data.len()));
        self.post(place);
        self.kick(RX);
        Some(packet)
    }

    /// Waits for the next packet.
    pub fn next(&mut self) -> Packet {
        let mut packet = None;
        assert!(
            wait_until(|| {
                packet = self.poll();
                packet.is_some()
            }),
            "a packet comes"
        );
        packet.unwrap()
    }

    /// The next packet is this; ports from the guest's point of view.
    pub fn expect(&mut self, op: u16, guest_port: u32, host_port: u32) -> Packet {
        let packet = self.next();
        assert_eq!((packet.op, packet.ports), (op, (host_port, guest_port)), "{packet:?}");
        packet
    }

    /// No packet comes for a moment.
    pub fn expect_silence(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(self.poll(), None);
    }

    /// The guest connects to a program of the host.
    pub fn connect(&mut self, guest_port: u32, host_port: u32, listener: &UnixListener) -> UnixStream {
        self.send(&Packet::new(REQUEST, guest_port, host_port));
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        self.expect(RESPONSE, guest_port, host_port);
        stream
    }

    /// A client connects to the guest, which accepts; with it the client's port.
    pub fn accept(&mut self, guest_port: u32) -> (UnixStream, u32) {
        let mut client = self.client();
        std::io::Write::write_all(&mut client, format!("CONNECT {guest_port}\n").as_bytes()).unwrap();
        let request = self.next();
        assert_eq!((request.op, request.ports.1), (REQUEST, guest_port));
        let host_port = request.ports.0;
        self.send(&Packet::new(RESPONSE, guest_port, host_port));
        assert_eq!(line(&mut client), format!("OK {host_port}"));
        (client, host_port)
    }

    /// Gives a buffer for an event.
    pub fn post_event(&mut self) {
        self.machine.ram.write(EVENT_BUFFER, &[0xff; 4]).unwrap();
        self.drivers[EVENTS].add(&[Buffer::writable(EVENT_BUFFER, 4)]);
        self.kick(EVENTS);
    }

    /// Waits for an event.
    pub fn event(&mut self) -> u32 {
        assert!(
            wait_until(|| self.drivers[EVENTS].take_used().is_some_and(|(_, written)| written == 4)),
            "an event comes"
        );
        u32::from_le_bytes(self.machine.bytes(EVENT_BUFFER, 4).try_into().unwrap())
    }

    pub fn check_alive(&mut self) {
        let (mut client, port) = self.accept(9999);
        self.send(&Packet::data(9999, port, b"alive"));
        let mut text = [0; 5];
        client.read_exact(&mut text).unwrap();
        assert_eq!((&text, self.machine.status()), (b"alive", LIVE));
        self.send(&Packet::new(RST, 9999, port));
        assert!(is_closed(&mut client));
    }
}

/// A device at power-on, with its sockets in `directory`.
pub fn device(directory: &TempDir) -> Vsock {
    let path = directory.path().join("v");
    std::fs::remove_file(&path).ok();
    let listener = UnixListener::bind(&path).unwrap();
    Vsock::new(CID, &VsockHost::new(listener, PathConnector::new(&path).unwrap()).unwrap())
}

fn drivers(machine: &Machine, features: u64) -> [FakeDriver; 3] {
    let event_idx = features & feature::EVENT_IDX != 0;
    RINGS.map(|ring| FakeDriver::new(&machine.ram, ring, QUEUE_SIZE, event_idx))
}

/// Whether the threads of this name use hardly any time for a moment.
pub fn sleeps(name: &str) -> bool {
    let before = ticks(name);
    std::thread::sleep(Duration::from_millis(300));
    ticks(name) - before < 10
}

/// Clock ticks, of 10 ms, that all threads of this name have used.
fn ticks(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let lines = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    let used = |line: String| {
        let (head, tail) = line.rsplit_once(") ")?;
        let fields = tail.split(' ').collect::<Vec<_>>();
        let number = |at: usize| fields[at].parse::<u64>().unwrap();
        head.ends_with(&format!("({name}")).then(|| number(11) + number(12))
    };
    let used = lines.filter_map(used).collect::<Vec<_>>();
    assert_eq!(used.len(), 1, "one thread is called {name}");
    used[0]
}

/// A line, without its end.
pub fn line(stream: &mut UnixStream) -> String {
    let (mut text, mut byte) = (String::new(), [0]);
    loop {
        stream.read_exact(&mut byte).unwrap();
        match byte[0] {
            b'\n' => return text,
            other => text.push(other.into()),
        }
    }
}

/// Waits for the end of a stream that says nothing more.
pub fn is_closed(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}
