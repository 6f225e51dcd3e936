//! A machine with a network card: the driver's side of both queues, and the other end of the link.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use axvm_arch::Gpa;
use axvm_virtio::device::feature;
use axvm_virtio::net::{Link, LinkKind, Net, NetConfig, NetHandle};
use axvm_virtio::testing::{Buffer, FakeDriver};

use super::*;

pub const RECEIVE: u32 = 0;
pub const TRANSMIT: u32 = 1;
/// The control queue, of a driver that uses one pair.
pub const CONTROL: u32 = 2;
pub const RINGS: [Gpa; 2] = [RING, Gpa(RING.0 + 0x8000)];
/// Where the control queue is.
pub const CONTROL_RING: Gpa = Gpa(RING.0 + 0x1_0000);
/// Where frames for the guest go; frames of the guest come from [`DATA`].
pub const INPUT: Gpa = Gpa(0x100_0000);
/// Length of the header before each frame.
pub const HEAD: usize = 12;
/// Feature bits, written down a second time.
pub const MTU: u64 = 1 << 3;
pub const MAC: u64 = 1 << 5;
pub const MERGE: u64 = 1 << 15;
pub const LINK_STATUS: u64 = 1 << 16;
/// A control queue, with receive modes and an address.
pub const CONTROLS: u64 = 1 << 17 | 1 << 18 | 1 << 23;

pub const CONFIG: NetConfig = NetConfig { mac: [2, 0, 0, 0xa, 0xb, 0xc], mtu: Some(1500) };
pub const KINDS: [LinkKind; 3] = [LinkKind::Tap, LinkKind::Stream, LinkKind::Datagram];

/// The other end of a link.
pub enum Peer {
    Stream(UnixStream, Vec<u8>),
    /// A frame in each, behind so many bytes.
    Datagram(UnixDatagram, usize),
}

impl Peer {
    /// Both ends.
    pub fn pair(kind: LinkKind) -> (OwnedFd, Peer) {
        let wait = Some(Duration::from_secs(10));
        if kind == LinkKind::Stream {
            let (ours, theirs) = UnixStream::pair().unwrap();
            theirs.set_read_timeout(wait).unwrap();
            return (ours.into(), Peer::Stream(theirs, Vec::new()));
        }
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_read_timeout(wait).unwrap();
        (ours.into(), Peer::Datagram(theirs, if kind == LinkKind::Tap { HEAD } else { 0 }))
    }

    /// Sends a frame; false if there is no room for it now.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        let result = match self {
            Peer::Stream(stream, _) => {
                let length = (frame.len() as u32).to_be_bytes();
                stream.write_all(&[&length, frame].concat())
            }
            Peer::Datagram(socket, header) => {
                socket.set_nonblocking(true).unwrap();
                // What means nothing in a header of the host.
                let head: &[u8] = if *header == 0 { &[] } else { &[0xcc, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0xcc, 0xcc] };
                let sent = socket.send(&[head, frame].concat()).map(drop);
                socket.set_nonblocking(false).unwrap();
                sent
            }
        };
        match result {
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            result => result.map(|()| true).unwrap(),
        }
    }

    /// Waits for a frame.
    pub fn receive(&mut self) -> Vec<u8> {
        let mut piece = vec![0; 1 << 17];
        match self {
            Peer::Stream(stream, bytes) => loop {
                if let Some(frame) = decode(bytes) {
                    return frame;
                }
                let count = stream.read(&mut piece).expect("a frame comes in time");
                assert!(count > 0, "the link is open");
                bytes.extend_from_slice(&piece[..count]);
            },
            Peer::Datagram(socket, header) => {
                let count = socket.recv(&mut piece).expect("a frame comes in time");
                assert_eq!(piece[..*header], vec![0; *header], "a header that asks for nothing");
                piece[*header..count].to_vec()
            }
        }
    }

    pub fn stream(&mut self) -> &mut UnixStream {
        match self {
            Peer::Stream(stream, _) => stream,
            Peer::Datagram(..) => panic!("a stream was asked for"),
        }
    }
}

/// Takes the first frame of a stream, if it is whole.
pub fn decode(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let len = u32::from_be_bytes(*bytes.first_chunk::<4>()?) as usize;
    let frame = bytes.get(4..4 + len)?.to_vec();
    bytes.drain(..4 + len);
    Some(frame)
}

/// Has the card set what the host may leave to the driver, feature bits; its answer.
pub fn set_offloads(machine: &Machine, driver: &mut FakeDriver, command: &[u8]) -> u8 {
    machine.ram.write(HEADER, &[&[5, 0][..], command].concat()).unwrap();
    driver.add(&[Buffer::readable(HEADER, command.len() as u32 + 2), Buffer::writable(STATUS, 1)]);
    machine.show(CONTROL, driver);
    assert_eq!(finished(driver), 1);
    machine.bytes(STATUS, 1)[0]
}

/// A frame that says its number, in which each place is known.
pub fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame: Vec<_> = (0..len).map(|at| (at as u32 * 7 + number) as u8).collect();
    frame[..4].copy_from_slice(&number.to_be_bytes());
    frame
}

/// A machine with a network card, its driver ready, and the other end of the link.
pub struct Card {
    pub machine: Machine,
    pub handle: NetHandle,
    pub peer: Peer,
    pub features: u64,
    /// By queue number.
    pub drivers: [FakeDriver; 2],
}

impl Card {
    pub fn new(kind: LinkKind, features: u64) -> Card {
        let (ours, peer) = Peer::pair(kind);
        let handle = NetHandle::new(Link::new(kind, ours).unwrap()).unwrap();
        let machine = Machine::new(Box::new(Net::new(handle.clone(), CONFIG)));
        Card::on(machine, handle, peer, features)
    }

    /// A card in a machine that no driver has used.
    pub fn on(machine: Machine, handle: NetHandle, peer: Peer, features: u64) -> Card {
        let features = machine.offered() & (features | feature::VERSION_1);
        let drivers = machine.bring_up_all(features, RINGS, 256);
        Card { machine, handle, peer, features, drivers }
    }

    /// Resets the device, forgets all chains, and starts anew.
    pub fn bring_up(&mut self) {
        self.drivers = self.machine.bring_up_all(self.features, RINGS, 256);
    }

    pub fn kick(&mut self, queue: u32) {
        self.machine.show(queue, &mut self.drivers[queue as usize]);
    }

    pub fn offer(&mut self, queue: u32, buffers: &[Buffer]) -> u16 {
        let head = self.drivers[queue as usize].add(buffers);
        self.kick(queue);
        head
    }

    /// Waits for the next chain of a queue: the bytes written.
    pub fn finish(&mut self, queue: u32) -> usize {
        finished(&mut self.drivers[queue as usize])
    }

    /// Puts a frame, behind a header, where the guest's frames are.
    pub fn write(&self, at: Gpa, frame: &[u8]) -> u32 {
        let bytes = [&[0; HEAD], frame].concat();
        self.machine.ram.write(at, &bytes).unwrap();
        bytes.len() as u32
    }

    /// Sends a frame of the guest in one buffer, and waits until the device has done with it.
    pub fn transmit(&mut self, frame: &[u8]) {
        let len = self.write(DATA, frame);
        self.offer(TRANSMIT, &[Buffer::readable(DATA, len)]);
        assert_eq!(self.finish(TRANSMIT), 0);
    }

    /// Gives a buffer and waits for a frame in it.
    pub fn receive(&mut self, len: u32) -> Vec<u8> {
        self.offer(RECEIVE, &[Buffer::writable(INPUT, len)]);
        self.take_frame(INPUT)
    }

    /// Waits for a frame that lies at `at`, in one chain.
    pub fn take_frame(&mut self, at: Gpa) -> Vec<u8> {
        let len = self.finish(RECEIVE);
        let bytes = self.machine.bytes(at, len);
        assert_eq!(bytes[..HEAD], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "one buffer, and nothing else");
        bytes[HEAD..].to_vec()
    }

    pub fn check_alive(&mut self) {
        self.transmit(b"a frame of the guest");
        assert_eq!(self.peer.receive(), b"a frame of the guest");
        assert!(self.peer.send(b"a frame for the guest"));
        assert_eq!(self.receive(2048), b"a frame for the guest");
        assert_eq!(self.machine.status(), LIVE);
    }

    /// The device asks for a reset, for this reason, and works after it.
    pub fn check_refused(mut self, queue: u32, buffers: &[Buffer], reason: &str) {
        if queue == RECEIVE {
            assert!(self.peer.send(b"a frame that waits"));
        }
        self.offer(queue, buffers);
        assert!(wait_until(|| self.machine.tape.faults().len() == 1), "{reason}");
        assert!(self.machine.tape.faults()[0].contains(reason), "{:?}", self.machine.tape.faults());
        assert_eq!(self.machine.status(), LIVE | NEEDS_RESET);
        self.bring_up();
        if queue == RECEIVE {
            assert_eq!(self.receive(2048), b"a frame that waits", "no frame is lost by the driver's fault");
        }
        self.check_alive();
    }
}
