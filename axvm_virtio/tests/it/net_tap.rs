//! The network card on taps of the kernel, in a namespace of the test. Needs root and ip(8).
//!
//! ```text
//!   fake driver --frames--> card --> tap0 --> UDP socket of the test at 10.9.0.1
//!      10.9.0.2 <----------- card <-- tap0 <--'
//! ```

use crate::common;

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use axvm_arch::Gpa;
use axvm_tap::testing::{in_namespace, ip};
use axvm_virtio::net::{Link, Net, NetHandle, Offloads, Tap};
use axvm_virtio::testing::{Buffer, FakeDriver};
use common::card::*;
use common::*;

const PLAIN: [u8; HEAD] = [0; HEAD];
/// The checksum of UDP is not computed.
const UNSUMMED: [u8; HEAD] = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
/// Nor are there datagrams of 1000 bytes yet.
const UNCUT: [u8; HEAD] = [1, 5, 42, 0, 0xe8, 3, 34, 0, 6, 0, 0, 0];

/// The sum of 16-bit words, folded.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    let mut sum = bytes.chunks(2).map(word).fold(start, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of addresses, protocol and length of a UDP packet in a frame, from which its checksum starts.
fn pseudo(frame: &[u8]) -> u32 {
    u32::from(sum(&frame[26..34], 0)) + 17 + (frame.len() as u32 - 34)
}

/// A UDP packet from the guest, port 7, to port 9 of the host; with its checksum, or with what is computed of it first.
fn packet(to: &[u8; 6], payload: &[u8], summed: bool) -> Vec<u8> {
    let number = |value: usize| (value as u16).to_be_bytes();
    let mut ip =
        [&[0x45, 0][..], &number(28 + payload.len()), &[0, 0, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1]]
            .concat();
    let check = !sum(&ip, 0);
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    let udp = [&[0, 7, 0, 9][..], &number(8 + payload.len()), &[0, 0], payload].concat();
    let mut frame = [&to[..], &CONFIG.mac, &[8, 0], &ip, &udp].concat();
    let start = pseudo(&frame);
    let check = if summed { !sum(&frame[34..], start) } else { sum(&[], start) };
    frame[40..42].copy_from_slice(&check.to_be_bytes());
    frame
}

/// The kernel sends over a tap some time after it was opened.
fn wait_for_carrier() {
    let show = || Command::new("ip").args(["-o", "link", "show", "dev", "tap0"]).output().unwrap().stdout;
    assert!(wait_until(|| String::from_utf8(show()).unwrap().contains("state UP")));
}

/// A card on taps, and the host's end of them.
struct Tapped {
    machine: Machine,
    handle: NetHandle,
    drivers: [FakeDriver; 3],
    features: u64,
    socket: UdpSocket,
    /// The host's address on the wire.
    host: [u8; 6],
}

impl Tapped {
    fn new(features: u64, offloads: Offloads) -> Tapped {
        ip("tuntap add dev tap0 mode tap vnet_hdr");
        ip("link set tap0 up address 02:00:00:00:00:01");
        ip("addr add 10.9.0.1/24 dev tap0");
        ip("neigh add 10.9.0.2 lladdr 02:00:00:0a:0b:0c dev tap0 nud permanent");
        let socket = UdpSocket::bind("10.9.0.1:9").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let link = Link::tap(Tap::open("tap0", 1).unwrap()).unwrap().offering(offloads);
        let handle = NetHandle::new(link).unwrap();
        let machine = Machine::new(Box::new(Net::new(handle.clone(), CONFIG)));
        let drivers = Tapped::bring_up(&machine, features);
        wait_for_carrier();
        Tapped { machine, handle, drivers, features, socket, host: [2, 0, 0, 0, 0, 1] }
    }

    fn bring_up(machine: &Machine, features: u64) -> [FakeDriver; 3] {
        let features = machine.offered() & (features | axvm_virtio::device::feature::VERSION_1);
        machine.bring_up_all(features, [RINGS[0], RINGS[1], CONTROL_RING], 64)
    }

    fn has(&self, offload: u64) -> bool {
        self.machine.offered() & offload == offload
    }

    fn transmit(&mut self, header: &[u8; HEAD], frame: &[u8]) {
        self.machine.ram.write(DATA, &[&header[..], frame].concat()).unwrap();
        self.drivers[1].add(&[Buffer::readable(DATA, (HEAD + frame.len()) as u32)]);
        self.machine.show(TRANSMIT, &mut self.drivers[1]);
        assert_eq!(finished(&mut self.drivers[1]), 0);
    }

    /// Waits for a UDP packet of the host: header and frame. Others (the host looks for neighbours) are passed over.
    fn receive(&mut self) -> ([u8; HEAD], Vec<u8>) {
        loop {
            self.drivers[0].add(&[Buffer::writable(INPUT, 70_000)]);
            self.machine.show(RECEIVE, &mut self.drivers[0]);
            let len = finished(&mut self.drivers[0]);
            let bytes = self.machine.bytes(INPUT, len);
            let (header, frame) = bytes.split_first_chunk::<HEAD>().unwrap();
            if frame[12..14] == [8, 0] && frame[23] == 17 {
                return (*header, frame.to_vec());
            }
        }
    }

    /// What the host's socket got.
    fn at_host(&self) -> Vec<u8> {
        let mut bytes = vec![0; 70_000];
        let count = self.socket.recv(&mut bytes).expect("a packet of the guest arrives");
        bytes.truncate(count);
        bytes
    }

    fn check_alive(&mut self) {
        self.transmit(&PLAIN, &packet(&self.host.clone(), b"alive", true));
        assert_eq!(self.at_host(), b"alive");
        self.socket.send_to(b"alive, too", "10.9.0.2:7").unwrap();
        assert_eq!(self.receive().1[42..], *b"alive, too");
        assert_eq!(self.machine.status(), LIVE);
    }

    /// Has the host send a packet: whether it left the checksum to the driver. If not, it must be right.
    fn host_leaves_checksums(&mut self) -> bool {
        self.socket.send_to(&[0x5a; 333], "10.9.0.2:7").unwrap();
        let (header, frame) = self.receive();
        if header[0] & 1 == 0 {
            assert_eq!(sum(&frame[34..], pseudo(&frame)), 0xffff);
            assert_eq!(header[1..10], [0; 9]);
        }
        header[0] & 1 == 1
    }
}

#[test]
fn checksums_are_left_to_whom_said_so() {
    in_namespace(|| {
        let mut card = Tapped::new(!0, Offloads::ALL);
        card.transmit(&UNSUMMED, &packet(&card.host.clone(), b"no checksum yet", false));
        assert_eq!(card.at_host(), b"no checksum yet");
        assert!(card.host_leaves_checksums());
        card.check_alive();
        // In another machine.
        card.machine = card.machine.carry(Box::new(Net::new(card.handle.clone(), CONFIG)));
        card.machine.resume();
        assert!(card.host_leaves_checksums());
        // A driver that takes nothing, and one that takes it again.
        card.drivers = Tapped::bring_up(&card.machine, 0);
        assert!(!card.host_leaves_checksums());
        card.drivers = Tapped::bring_up(&card.machine, card.features);
        assert!(card.host_leaves_checksums());
        // A device that no driver uses takes nothing, so that no such frame waits for the next.
        card.machine.set(reg::STATUS, 0);
        card.socket.send_to(&[1; 100], "10.9.0.2:7").unwrap();
        card.drivers = Tapped::bring_up(&card.machine, 0);
        assert!(!card.host_leaves_checksums());
        assert_eq!(card.handle.to_guest().dropped, 0);
    });
}

#[test]
fn a_driver_that_takes_less_has_the_kernel_do_it() {
    in_namespace(|| {
        let mut card = Tapped::new(!0, Offloads::ALL);
        let set = |card: &mut Tapped, offloads: u64| {
            set_offloads(&card.machine, &mut card.drivers[2], &offloads.to_le_bytes())
        };
        for _ in 0..3 {
            assert_eq!(set(&mut card, 0), 0);
            assert!(!card.host_leaves_checksums());
            assert_eq!(set(&mut card, 2), 0);
            assert!(card.host_leaves_checksums());
        }
        assert_eq!(set(&mut card, 0), 0);
        card.machine = card.machine.carry(Box::new(Net::new(card.handle.clone(), CONFIG)));
        card.machine.resume();
        assert!(!card.host_leaves_checksums());
        assert_eq!(card.handle.to_guest().dropped, 0, "the kernel did it, no frame was refused");
        card.check_alive();
        ip("link del tap0");
        assert_eq!(set(&mut card, 2), 1, "a tap that is gone");
    });
}

#[test]
fn a_user_may_offer_no_offloads() {
    in_namespace(|| {
        let mut card = Tapped::new(!0, Offloads::NONE);
        assert!(!card.host_leaves_checksums());
        card.transmit(&UNSUMMED, &packet(&card.host.clone(), b"no checksum yet", false));
        assert_eq!(card.handle.from_guest().dropped, 1);
        card.check_alive();
    });
}

#[test]
fn uncut_packets_pass_both_ways() {
    in_namespace(|| {
        let mut card = Tapped::new(!0, Offloads::ALL);
        if !card.has(1 << 56) {
            println!("skipped: this kernel cuts no UDP");
            return;
        }
        let payload: Vec<u8> = (0..4000_u32).map(|at| (at / 1000) as u8).collect();
        card.transmit(&UNCUT, &packet(&card.host.clone(), &payload, false));
        for part in payload.chunks(1000) {
            assert_eq!(card.at_host(), part);
        }
        let size: libc::c_int = 1000;
        // SAFETY: UDP_SEGMENT (103) of SOL_UDP reads an int.
        let set = unsafe { libc::setsockopt(card.socket.as_raw_fd(), 17, 103, (&raw const size).cast(), 4) };
        assert_eq!(set, 0);
        card.socket.send_to(&payload, "10.9.0.2:7").unwrap();
        let (header, frame) = card.receive();
        assert_eq!((header[1], &frame[42..]), (5, &payload[..]));
        // To a driver that does not take it, it comes in parts.
        card.drivers = Tapped::bring_up(&card.machine, 0);
        card.socket.send_to(&payload, "10.9.0.2:7").unwrap();
        for part in payload.chunks(1000) {
            assert_eq!(card.receive().1[42..], *part);
        }
    });
}

#[test]
fn what_the_kernel_refuses_costs_its_frame_and_nothing_else() {
    in_namespace(|| {
        let mut card = Tapped::new(!0, Offloads::ALL);
        // Segments of TCP that is UDP, over an IPv6 that is IPv4.
        let tcp = [1, 4, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0];
        for count in 1..4 {
            card.transmit(&tcp, &packet(&card.host.clone(), &[0; 500], false));
            assert_eq!(card.handle.from_guest().dropped, count, "EINVAL");
        }
        card.check_alive();
        ip("link set tap0 down");
        card.transmit(&PLAIN, &packet(&card.host.clone(), b"to no one", true));
        assert_eq!(card.handle.from_guest().dropped, 4, "EIO");
        ip("link set tap0 up");
        wait_for_carrier();
        ip("neigh replace 10.9.0.2 lladdr 02:00:00:0a:0b:0c dev tap0 nud permanent");
        card.check_alive();
        assert_eq!((card.machine.tape.warnings().len(), card.handle.is_up()), (4, true), "notes, each");
    });
}

#[test]
fn a_tap_that_is_deleted_is_a_cable_pulled() {
    in_namespace(|| {
        let mut card = Tapped::new(!0, Offloads::ALL);
        ip("link del tap0");
        card.transmit(&PLAIN, &[0; 60]);
        assert!(wait_until(|| card.handle.is_broken()));
        (0..3).for_each(|_| card.transmit(&PLAIN, &[0; 60]));
        card.drivers = Tapped::bring_up(&card.machine, !0);
        card.transmit(&PLAIN, &[0; 60]);
        assert_eq!((card.machine.tape.warnings().len(), card.machine.status()), (1, LIVE));
    });
}

#[test]
fn pairs_that_are_not_in_use_get_no_frame() {
    in_namespace(|| {
        ip("tuntap add dev tap0 mode tap vnet_hdr multi_queue");
        ip("link set tap0 up");
        ip("addr add 10.9.0.1/24 dev tap0");
        ip("neigh add 10.9.0.2 lladdr 02:00:00:0a:0b:0c dev tap0 nud permanent");
        let handle = NetHandle::new(Link::tap(Tap::open("tap0", 2).unwrap()).unwrap()).unwrap();
        let machine = Machine::new(Box::new(Net::new(handle.clone(), CONFIG)));
        let rings = std::array::from_fn::<_, 5, _>(|number| Gpa(RING.0 + 0x8000 * number as u64));
        let mut drivers = machine.bring_up_all(machine.offered(), rings, 64);
        let flood = || {
            for port in 1000..1200 {
                let socket = UdpSocket::bind(("10.9.0.1", port)).unwrap();
                socket.send_to(b"flow", "10.9.0.2:7").unwrap();
            }
        };
        for slot in 0..60 {
            drivers[2].add(&[Buffer::writable(Gpa(INPUT.0 + slot * 4096), 4096)]);
        }
        machine.show(2, &mut drivers[2]);
        let mut received_by_second = |wanted: u16| {
            machine.ram.write(HEADER, &[&[4, 0][..], &wanted.to_le_bytes()].concat()).unwrap();
            drivers[4].add(&[Buffer::readable(HEADER, 4), Buffer::writable(STATUS, 1)]);
            machine.show(4, &mut drivers[4]);
            assert_eq!((finished(&mut drivers[4]), machine.bytes(STATUS, 1)[0]), (1, 0));
            flood();
            std::thread::sleep(Duration::from_millis(50));
            std::iter::from_fn(|| drivers[2].take_used()).count()
        };
        wait_for_carrier();
        assert_eq!(received_by_second(1), 0, "not in use");
        assert!(received_by_second(2) > 0, "some of two hundred flows");
        assert_eq!((handle.is_broken(), machine.status()), (false, LIVE));
    });
}
