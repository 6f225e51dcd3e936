//! The socket device under a guest that lies, floods and asks for too much: it costs the guest that connection.

use crate::common;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_memory::{GuestRam, RamConfig};
use axvm_sync::EventFd;
use axvm_virtio::testing::Buffer;
use axvm_virtio::vsock::{Connector, RemoteConnector, Vsock, VsockHost};
use common::guest::*;
use common::*;
use proptest::prelude::*;

const MAX_CONNECTIONS: u32 = 1023;

/// Packets that an open connection from guest port 52 to `port` does not survive.
fn fatal(port: u32) -> Vec<Packet> {
    let data = |len| vec![1; len];
    vec![
        Packet::new(REQUEST, 52, port),
        Packet::new(RESPONSE, 52, port),
        Packet::new(0, 52, port),
        Packet::new(8, 52, port),
        Packet::new(u16::MAX, 52, port),
        Packet { len: 100, ..Packet::data(52, port, &data(99)) },
        Packet { len: u32::MAX, ..Packet::data(52, port, &data(99)) },
        Packet { len: 65537, ..Packet::data(52, port, &data(65537)) },
    ]
}

#[test]
fn a_lie_ends_its_connection_and_no_other() {
    let mut guest = Guest::new(0);
    let (mut other, other_port) = guest.accept(53);
    let count = fatal(0).len();
    for index in 0..count {
        let (mut client, port) = guest.accept(52);
        guest.send(&fatal(port)[index]);
        guest.expect(RST, 52, port);
        assert!(is_closed(&mut client), "packet {index}");
        guest.send(&Packet::data(52, port, b"late"));
        guest.expect(RST, 52, port);
    }
    guest.send(&Packet::data(53, other_port, b"other"));
    let mut bytes = [0; 5];
    other.read_exact(&mut bytes).unwrap();
    assert_eq!((&bytes, guest.machine.status()), (b"other", LIVE));
}

#[test]
fn more_than_there_is_credit_for_ends_the_connection() {
    let mut guest = Guest::new(0);
    let (client, port) = guest.accept(52);
    client.set_nonblocking(true).unwrap();
    // What the socket takes is taken; then the device holds 64 KiB, and no more.
    let mut last = None;
    for _ in 0..200 {
        guest.send(&Packet::data(52, port, &[7; 60_000]));
        while let Some(packet) = guest.poll() {
            last = Some(packet.op);
        }
        if last == Some(RST) {
            break;
        }
    }
    assert_eq!(last, Some(RST));
    guest.check_alive();
}

#[test]
fn data_after_a_half_close_end_the_connection() {
    let mut guest = Guest::new(0);
    let (_client, port) = guest.accept(52);
    guest.send(&Packet { flags: NO_SEND, ..Packet::new(SHUTDOWN, 52, port) });
    guest.send(&Packet::data(52, port, b"x"));
    guest.expect(RST, 52, port);
    guest.check_alive();
}

#[test]
fn packets_that_are_not_for_the_host_are_dropped_and_other_types_refused() {
    let mut guest = Guest::new(0);
    let request = Packet::new(REQUEST, 1025, 5000);
    for cids in [(3, 0), (3, 1), (3, 3), (3, 5), (3, u64::MAX), (4, 2), (0x1_0000_0003, 2)] {
        guest.send(&Packet { cids, ..request.clone() });
    }
    guest.expect_silence();
    for kind in [0, 2, 3, u16::MAX] {
        guest.send(&Packet { kind, ..request.clone() });
        assert_eq!(guest.expect(RST, 1025, 5000).kind, kind);
        guest.send(&Packet { kind, ..Packet::new(RST, 1025, 5000) });
    }
    guest.expect_silence();
    guest.check_alive();
}

#[test]
fn a_reset_is_never_answered() {
    let mut guest = Guest::new(0);
    for port in 0..600 {
        guest.send(&Packet::new(RST, port, port));
    }
    guest.expect_silence();
    guest.check_alive();
}

#[test]
fn credit_lies_stall_only_their_connection() {
    let mut guest = Guest::new(0);
    let (mut client, port) = guest.accept(52);
    guest.send(&Packet { fwd_cnt: 1, ..Packet::new(CREDIT_UPDATE, 52, port) });
    client.write_all(b"stalled").unwrap();
    guest.expect_silence();
    guest.check_alive();
    guest.send(&Packet::new(CREDIT_UPDATE, 52, port));
    assert_eq!(guest.expect(RW, 52, port).data, b"stalled");
}

#[test]
fn questions_without_end_get_one_answer_when_there_is_a_buffer() {
    let mut guest = Guest::new(0);
    let (_client, port) = guest.accept(52);
    guest.machine.pause();
    guest.machine.resume();
    for _ in 0..1000 {
        guest.send(&Packet::new(CREDIT_REQUEST, 52, port));
    }
    // As many as there are buffers, and one.
    let mut count = 0;
    assert!(wait_until(|| {
        let before = count;
        while let Some(packet) = guest.poll() {
            assert_eq!(packet.op, CREDIT_UPDATE);
            count += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
        count == before
    }));
    assert!((1..=32).contains(&count), "{count}");
    guest.check_alive();
}

#[test]
fn a_flood_of_requests_without_buffers_holds_up_the_flood() {
    let mut guest = Guest::new(0);
    // No program listens: each is an RST, and only 16 buffers take them.
    let (mut offered, mut taken) = (0_u32, 0);
    let mut port = 0;
    while offered - taken < 1 {
        guest.offer(&Packet::new(REQUEST, port, 5000));
        (port, offered) = (port + 1, offered + 1);
        for _ in 0..50 {
            if guest.drivers[TX].take_used().is_some() {
                taken += 1;
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(offered < 1000, "the device remembers without end");
    }
    assert!(taken >= 16);
    // Buffers for some of them are enough for the next packet.
    guest.post_buffers(100);
    guest.taken();
    taken += 1;
    assert_eq!(taken, offered);
    let mut resets = 0;
    assert!(wait_until(|| {
        while let Some(packet) = guest.poll() {
            assert_eq!((packet.op, packet.ports), (RST, (5000, resets)));
            resets += 1;
        }
        resets == offered
    }));
    guest.check_alive();
}

#[test]
fn the_most_connections_are_1023() {
    let mut guest = Guest::new(0);
    let (listener, mut streams) = (guest.listen(5000), Vec::new());
    for port in 0..MAX_CONNECTIONS {
        streams.push(guest.connect(port, 5000, &listener));
    }
    guest.send(&Packet::new(REQUEST, 5000, 5000));
    guest.expect(RST, 5000, 5000);
    // A client waits for a place.
    let mut client = guest.client();
    client.write_all(b"CONNECT 52\n").unwrap();
    guest.expect_silence();
    guest.send(&Packet::new(RST, 7, 5000));
    guest.expect(REQUEST, 52, FIRST);
}

#[test]
fn chains_that_are_no_packets_are_errors() {
    for (queue, buffer, reason) in [
        (RX, Buffer::writable(DATA, 44), "no room for a header and data"),
        (RX, Buffer::readable(DATA, 4096), "a part for the device to read"),
        (TX, Buffer::writable(DATA, 44), "a part for the device to write"),
    ] {
        let mut guest = Guest::new(0);
        guest.bring_up();
        guest.drivers[queue].add(&[buffer]);
        guest.kick(queue);
        // A buffer for packets is looked at when there is a packet.
        let client = (queue == RX).then(|| guest.client());
        client.iter().for_each(|mut client| client.write_all(b"CONNECT 52\n").unwrap());
        assert!(wait_until(|| guest.machine.tape.faults().len() == 1));
        assert!(guest.machine.tape.faults()[0].contains(reason), "{:?}", guest.machine.tape.faults());
        guest.bring_up();
        guest.post_buffers(16);
        guest.check_alive();
    }
}

#[test]
fn a_packet_shorter_than_its_header_is_dropped() {
    let mut guest = Guest::new(0);
    for len in [1, 43] {
        guest.drivers[TX].add(&[Buffer::readable(Gpa(DATA.0), len)]);
        guest.kick(TX);
        guest.taken();
    }
    guest.expect_silence();
    guest.check_alive();
}

/// Any packet, most often one that means something to the connection of port 52.
fn packet(port: u32) -> impl Strategy<Value = Packet> {
    let op = prop_oneof![9 => 1..8_u16, 1 => any::<u16>()];
    let guest_port = prop_oneof![6 => Just(52_u32), 1 => 0..70_u32];
    let host_port = prop_oneof![6 => Just(port), 1 => Just(5000), 1 => any::<u32>()];
    let numbers = (prop_oneof![3 => 0..4_u32, 1 => any::<u32>()], any::<u32>(), 0..3_u32);
    let data = (0..2000_usize, prop_oneof![9 => Just(None), 1 => any::<u32>().prop_map(Some)]);
    (op, guest_port, host_port, numbers, data).prop_map(|(op, guest_port, host_port, numbers, (len, lie))| {
        let (flags, any, little) = numbers;
        let mut packet = Packet::data(guest_port, host_port, &vec![op as u8; len]);
        (packet.op, packet.flags, packet.fwd_cnt) = (op, flags, if any % 4 == 0 { any } else { little });
        packet.buf_alloc = if any % 3 == 0 { any } else { 0x4_0000 };
        packet.len = lie.unwrap_or(packet.len);
        packet
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_packets_leave_the_others_alone(packets in proptest::collection::vec(packet(FIRST + 1), 1..60)) {
        let mut guest = Guest::new(0);
        let listener = guest.listen(5000);
        listener.set_nonblocking(true).unwrap();
        let (mut other, other_port) = guest.accept(71);
        let (mut client, port) = guest.accept(52);
        prop_assert_eq!((other_port, port), (FIRST, FIRST + 1));
        client.write_all(&[9; 3000]).unwrap();
        for packet in &packets {
            guest.send(packet);
            while guest.poll().is_some() {}
        }
        other.write_all(b"other").unwrap();
        prop_assert!(wait_until(|| guest.poll().is_some_and(|packet| packet.ports == (FIRST, 71) && packet.data == b"other")));
        guest.send(&Packet::data(71, FIRST, b"too"));
        let mut bytes = [0; 3];
        other.read_exact(&mut bytes).unwrap();
        prop_assert_eq!((&bytes, guest.machine.status()), (b"too", LIVE));
    }
}

#[test]
fn clients_that_say_nothing_keep_no_guest_from_connecting() {
    let mut guest = Guest::new(0);
    let listener = guest.listen(5000);
    let _clients = (0..200).map(|_| guest.client()).collect::<Vec<_>>();
    thread::sleep(Duration::from_millis(50));
    let _stream = guest.connect(1025, 5000, &listener);
    // One behind them waits until the first have taken too long.
    guest.accept(52);
}

/// Answers when a test says so.
struct LateConnector {
    notifier: EventFd,
    answers: Receiver<io::Result<UnixStream>>,
}

impl AsFd for LateConnector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifier.as_fd()
    }
}

impl Connector for LateConnector {
    fn ask(&mut self, port: u32) -> io::Result<()> {
        if port == 666 { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
    }

    fn answer(&mut self) -> Option<io::Result<UnixStream>> {
        self.notifier.take();
        self.answers.try_recv().ok()
    }
}

#[test]
fn a_connector_may_take_its_time_and_the_guest_may_give_up() {
    let directory = tempfile::TempDir::new().unwrap();
    let listener = UnixListener::bind(directory.path().join("v")).unwrap();
    let notifier = EventFd::new().unwrap();
    let (sender, answers) = channel();
    let connector = LateConnector { notifier: notifier.try_clone().unwrap(), answers };
    let machine = Machine::new(Box::new(Vsock::new(CID, &VsockHost::new(listener, connector).unwrap())));
    let mut guest = Guest::on(machine, directory, 0);
    guest.bring_up();
    guest.post_buffers(16);
    let answer = |result| {
        sender.send(result).unwrap();
        notifier.signal();
    };
    let socket = || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, theirs)
    };
    guest.send(&Packet::new(REQUEST, 1, 666));
    guest.expect(RST, 1, 666);
    // The guest gives up, and asks again: the first answer is not for the second question.
    guest.send(&Packet::new(REQUEST, 2, 5000));
    guest.send(&Packet::new(RST, 2, 5000));
    guest.send(&Packet::new(REQUEST, 2, 5000));
    let (mut first, theirs) = socket();
    answer(Ok(theirs));
    guest.expect_silence();
    assert!(is_closed(&mut first));
    guest.check_alive();
    let (mut second, theirs) = socket();
    answer(Ok(theirs));
    guest.expect(RESPONSE, 2, 5000);
    second.write_all(b"here").unwrap();
    assert_eq!(guest.expect(RW, 2, 5000).data, b"here");
    // Data before the answer are against the rules; no answer at all is an RST after 2 s.
    guest.send(&Packet::new(REQUEST, 3, 5000));
    guest.send(&Packet::data(3, 5000, b"x"));
    guest.expect(RST, 3, 5000);
    guest.send(&Packet::new(REQUEST, 4, 5000));
    guest.expect(RST, 4, 5000);
    answer(Err(io::ErrorKind::ConnectionRefused.into()));
    answer(Err(io::ErrorKind::ConnectionRefused.into()));
    guest.send(&Packet::new(REQUEST, 5, 5000));
    guest.expect_silence();
    answer(Err(io::ErrorKind::ConnectionRefused.into()));
    guest.expect(RST, 5, 5000);
    guest.check_alive();
}

#[test]
fn a_connecting_process_that_ends_costs_refusals_and_no_time() {
    let directory = tempfile::TempDir::new().unwrap();
    let listener = UnixListener::bind(directory.path().join("v")).unwrap();
    let (connector, other) = RemoteConnector::pair().unwrap();
    let ram = GuestRam::allocate(&RamConfig::new(32 << 20)).unwrap();
    let machine =
        Machine::named("orphan", ram, Box::new(Vsock::new(CID, &VsockHost::new(listener, connector).unwrap())));
    let mut guest = Guest::on(machine, directory, 0);
    guest.bring_up();
    guest.post_buffers(16);
    guest.send(&Packet::new(REQUEST, 1, 5000));
    guest.expect_silence();
    drop(other);
    guest.expect(RST, 1, 5000);
    guest.send(&Packet::new(REQUEST, 2, 5000));
    guest.expect(RST, 2, 5000);
    assert!(sleeps("orphan"));
    guest.check_alive();
}

#[test]
fn a_program_that_takes_nothing_holds_a_guest_that_closes_for_two_seconds() {
    let mut guest = Guest::new(0);
    let (_client, port) = guest.accept(52);
    // More than the socket takes.
    let (mut sent, mut told, mut tries) = (0, 0, 0);
    while tries < 50 {
        if sent - told + 4096 <= 65_536 {
            guest.send(&Packet::data(52, port, &[1; 4096]));
            (sent, tries) = (sent + 4096, 0);
        }
        while let Some(packet) = guest.poll() {
            told = packet.fwd_cnt;
        }
        tries += 1;
        thread::sleep(Duration::from_millis(1));
    }
    let start = Instant::now();
    guest.send(&Packet { flags: NO_SEND | NO_RECEIVE, ..Packet::new(SHUTDOWN, 52, port) });
    guest.expect(RST, 52, port);
    assert!((1900..4000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    guest.check_alive();
}
