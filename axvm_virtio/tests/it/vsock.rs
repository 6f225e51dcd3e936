//! The socket device under a good driver: connections both ways, data both ways, half-closes, credit.

use crate::common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use axvm_virtio::device::feature;
use common::guest::*;
use common::line::text;
use common::*;
use proptest::prelude::*;

/// Most bytes that the device holds of a connection.
const SPACE: usize = 64 << 10;

#[test]
fn it_is_a_socket_device_with_three_queues_and_an_address() {
    let guest = Guest::new(0);
    let config = |offset| guest.machine.get(reg::CONFIG + offset);
    assert_eq!((guest.machine.get(0x008), config(0), config(4), config(8)), (19, CID, 0, 0));
    assert_eq!(guest.machine.offered() & 0xffff, 1);
    for (index, max) in [(0, 256), (1, 256), (2, 256), (3, 0)] {
        guest.machine.set(reg::QUEUE_SEL, index);
        assert_eq!(guest.machine.get(reg::QUEUE_NUM_MAX), max);
    }
}

#[test]
fn a_guest_connects_to_a_program_of_the_host() {
    for features in [0, feature::EVENT_IDX] {
        let mut guest = Guest::new(features);
        let listener = guest.listen(5000);
        let mut stream = guest.connect(1025, 5000, &listener);
        guest.send(&Packet::data(1025, 5000, b"from the guest"));
        let mut bytes = [0; 14];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"from the guest");
        stream.write_all(b"from the host").unwrap();
        assert_eq!(guest.expect(RW, 1025, 5000).data, b"from the host");
        guest.expect_silence();
        guest.check_alive();
    }
}

#[test]
fn a_port_that_no_program_listens_at_is_refused() {
    let mut guest = Guest::new(0);
    guest.send(&Packet::new(REQUEST, 1025, 5000));
    guest.expect(RST, 1025, 5000);
    drop(guest.listen(5001));
    guest.send(&Packet::new(REQUEST, 1025, 5001));
    guest.expect(RST, 1025, 5001);
    guest.check_alive();
}

#[test]
fn a_client_connects_to_a_program_of_the_guest() {
    for features in [0, feature::EVENT_IDX] {
        let mut guest = Guest::new(features);
        let mut client = guest.client();
        client.write_all(b"connect 52\nhello").unwrap();
        assert_eq!(guest.expect(REQUEST, 52, FIRST).buf_alloc, SPACE as u32);
        guest.send(&Packet::new(RESPONSE, 52, FIRST));
        assert_eq!(guest.expect(RW, 52, FIRST).data, b"hello");
        guest.send(&Packet::data(52, FIRST, b"world"));
        assert_eq!(line(&mut client), "OK 1073741824");
        let mut bytes = [0; 5];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"world");
    }
}

#[test]
fn a_command_may_come_in_pieces() {
    let mut guest = Guest::new(0);
    let mut client = guest.client();
    for piece in ["CON", "NECT", " 5", "2", "\n"] {
        guest.expect_silence();
        client.write_all(piece.as_bytes()).unwrap();
    }
    guest.expect(REQUEST, 52, FIRST);
}

#[test]
fn a_client_without_a_program_or_a_command_is_closed_without_an_answer() {
    let mut guest = Guest::new(0);
    let mut client = guest.client();
    client.write_all(b"CONNECT 77\n").unwrap();
    guest.expect(REQUEST, 77, FIRST);
    guest.send(&Packet::new(RST, 77, FIRST));
    assert!(is_closed(&mut client));
    for bad in ["HELLO 52 foo\n", "CONNECT\n", "CONNECT 4294967296\n", "0123456789012345678901234567890123456789"] {
        let mut client = guest.client();
        client.write_all(bad.as_bytes()).unwrap();
        assert!(is_closed(&mut client), "{bad:?}");
    }
    // A failed attempt uses up a port; a refused command does not.
    assert_eq!(guest.accept(52).1, FIRST + 1);
}

#[test]
fn what_does_not_answer_in_two_seconds_is_closed() {
    let mut guest = Guest::new(0);
    let start = Instant::now();
    let (mut half, mut unanswered) = (guest.client(), guest.client());
    half.write_all(b"CON").unwrap();
    unanswered.write_all(b"CONNECT 77\n").unwrap();
    guest.expect(REQUEST, 77, FIRST);
    assert!(is_closed(&mut half) && is_closed(&mut unanswered));
    guest.expect(RST, 77, FIRST);
    assert!((1900..4000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    guest.check_alive();
}

#[test]
fn the_host_ends_its_half_and_still_gets_the_guests() {
    let mut guest = Guest::new(0);
    let listener = guest.listen(5000);
    let mut stream = guest.connect(1025, 5000, &listener);
    stream.write_all(b"last words").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(RW, 1025, 5000).data, b"last words");
    assert_eq!(guest.expect(SHUTDOWN, 1025, 5000).flags, NO_SEND);
    guest.send(&Packet::data(1025, 5000, b"answer"));
    guest.send(&Packet { flags: NO_SEND, ..Packet::new(SHUTDOWN, 1025, 5000) });
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"answer");
    guest.expect(RST, 1025, 5000);
    guest.check_alive();
}

#[test]
fn the_guest_ends_its_half_and_still_gets_the_hosts() {
    let mut guest = Guest::new(0);
    let (mut client, port) = guest.accept(52);
    guest.send(&Packet::data(52, port, b"question"));
    guest.send(&Packet { flags: NO_SEND, ..Packet::new(SHUTDOWN, 52, port) });
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"question");
    client.write_all(b"answer").unwrap();
    assert_eq!(guest.expect(RW, 52, port).data, b"answer");
    drop(client);
    assert_eq!(guest.expect(SHUTDOWN, 52, port).flags, NO_SEND);
    guest.expect(RST, 52, port);
    guest.check_alive();
}

#[test]
fn a_guest_that_receives_no_more_leaves_the_host_without_a_reader() {
    let mut guest = Guest::new(0);
    let (mut client, port) = guest.accept(52);
    guest.send(&Packet { flags: NO_RECEIVE, ..Packet::new(SHUTDOWN, 52, port) });
    assert!(wait_until(|| client.write_all(b"x").is_err()));
    guest.send(&Packet::data(52, port, b"still"));
    let mut bytes = [0; 5];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still");
    drop(client);
    assert_eq!(guest.expect(SHUTDOWN, 52, port).flags, NO_RECEIVE | NO_SEND);
}

#[test]
fn a_guest_that_closes_gets_an_answer_after_its_last_byte_is_taken() {
    let mut guest = Guest::new(0);
    let (mut client, port) = guest.accept(52);
    guest.send(&Packet::data(52, port, b"bye"));
    guest.send(&Packet { flags: NO_SEND | NO_RECEIVE, ..Packet::new(SHUTDOWN, 52, port) });
    guest.expect(RST, 52, port);
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"bye");
}

#[test]
fn a_program_that_ends_is_a_close_and_one_that_leaves_bytes_unread_a_reset() {
    let mut guest = Guest::named("ended", 0);
    let (client, port) = guest.accept(52);
    drop(client);
    assert_eq!(guest.expect(SHUTDOWN, 52, port).flags, NO_SEND);
    assert_eq!(guest.expect(SHUTDOWN, 52, port).flags, NO_RECEIVE | NO_SEND);
    assert!(sleeps("ended"));
    // A guest that does not answer is told after 2 s that it is over.
    guest.expect(RST, 52, port);
    let (client, port) = guest.accept(52);
    guest.send(&Packet::data(52, port, b"never read"));
    drop(client);
    guest.expect(RST, 52, port);
    guest.check_alive();
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut guest = Guest::named("roomless", 0);
    let (mut client, port) = guest.accept(52);
    guest.send(&Packet { buf_alloc: 100, ..Packet::new(CREDIT_UPDATE, 52, port) });
    client.write_all(&text(250)).unwrap();
    let mut bytes = guest.expect(RW, 52, port).data;
    assert_eq!(bytes.len(), 100);
    guest.expect(CREDIT_REQUEST, 52, port);
    guest.expect_silence();
    assert!(sleeps("roomless"));
    guest.send(&Packet { buf_alloc: 100, fwd_cnt: 60, ..Packet::new(CREDIT_UPDATE, 52, port) });
    bytes.extend(guest.expect(RW, 52, port).data);
    assert_eq!(bytes.len(), 160);
    guest.expect(CREDIT_REQUEST, 52, port);
    guest.send(&Packet { buf_alloc: 100, fwd_cnt: 160, ..Packet::new(CREDIT_UPDATE, 52, port) });
    bytes.extend(guest.expect(RW, 52, port).data);
    assert_eq!(bytes, text(250));
}

#[test]
fn the_guest_is_told_of_room_that_it_needs_to_know_of() {
    let mut guest = Guest::new(0);
    let (mut client, port) = guest.accept(52);
    guest.send(&Packet::new(CREDIT_REQUEST, 52, port));
    let answer = guest.expect(CREDIT_UPDATE, 52, port);
    assert_eq!((answer.buf_alloc, answer.fwd_cnt), (SPACE as u32, 0));
    let bytes = text(SPACE);
    guest.send(&Packet::data(52, port, &bytes[..SPACE - 5000]));
    guest.expect_silence();
    guest.send(&Packet::data(52, port, &bytes[SPACE - 5000..]));
    let mut got = vec![0; SPACE];
    client.read_exact(&mut got).unwrap();
    assert!(got == bytes);
    let mut told = guest.expect(CREDIT_UPDATE, 52, port).fwd_cnt;
    while told < SPACE as u32 - 4096 {
        told = guest.expect(CREDIT_UPDATE, 52, port).fwd_cnt;
    }
}

#[test]
fn a_slow_program_holds_up_no_other() {
    let mut guest = Guest::named("slow", 0);
    let (mut slow, slow_port) = guest.accept(52);
    let (mut quick, quick_port) = guest.accept(53);
    // As much as the socket and the device take.
    let (mut sent, mut told) = (0, 0);
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(100) {
        if sent - told + 4096 <= SPACE {
            guest.send(&Packet::data(52, slow_port, &[0x55; 4096]));
            (sent, last) = (sent + 4096, Instant::now());
        }
        while let Some(packet) = guest.poll() {
            told = packet.fwd_cnt as usize;
        }
    }
    assert!(sent > SPACE);
    guest.send(&Packet::data(53, quick_port, b"quick"));
    let mut bytes = [0; 5];
    quick.read_exact(&mut bytes).unwrap();
    quick.write_all(b"too").unwrap();
    assert_eq!(guest.expect(RW, 53, quick_port).data, b"too");
    assert!(sleeps("slow"));
    let mut bytes = vec![0; sent];
    slow.read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0x55));
}

#[test]
fn a_guest_without_buffers_costs_nothing_and_loses_nothing() {
    let mut guest = Guest::named("bufferless", 0);
    let (mut client, port) = guest.accept(52);
    // The buffers that are there, and no other, are filled.
    client.write_all(&text(150_000)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(sleeps("bufferless"));
    let mut bytes = Vec::new();
    while bytes.len() < 150_000 {
        bytes.extend(guest.expect(RW, 52, port).data);
    }
    assert!(bytes == text(150_000));
}

#[test]
fn buffers_that_come_late_are_found_though_what_wanted_them_is_gone() {
    for features in [0, feature::EVENT_IDX] {
        let mut guest = Guest::new(features);
        let (mut first, first_port) = guest.accept(52);
        let (mut second, second_port) = guest.accept(53);
        first.write_all(&text(150_000)).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        guest.send(&Packet::new(RST, 52, first_port));
        second.write_all(b"second").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(wait_until(|| guest.poll().is_some_and(|packet| packet.ports.0 == second_port)));
    }
}

fn pump(guest: &mut Guest, client: &mut UnixStream, port: u32, to_host: &[u8], to_guest: &[u8], cuts: &[usize]) {
    client.set_nonblocking(true).unwrap();
    let (mut sent, mut told, mut got, mut given, mut received) = (0, 0, Vec::<u8>::new(), 0, Vec::<u8>::new());
    let mut cut = cuts.iter().cycle().copied();
    let mut buffer = vec![0; 70_000];
    assert!(wait_until(|| {
        let len = cut.next().unwrap().min(to_host.len() - sent).min(SPACE - (sent - told));
        // Our own space is small, too.
        let credit =
            Packet { buf_alloc: 20_000, fwd_cnt: received.len() as u32, ..Packet::new(CREDIT_UPDATE, 52, port) };
        let data = &to_host[sent..sent + len];
        match len {
            0 => guest.send(&credit),
            _ => guest.send(&Packet { len: len as u32, op: RW, data: data.to_vec(), ..credit }),
        }
        sent += len;
        while let Some(packet) = guest.poll() {
            assert!([RW, CREDIT_UPDATE, CREDIT_REQUEST].contains(&packet.op), "{packet:?}");
            told = packet.fwd_cnt as usize;
            received.extend(packet.data);
        }
        let piece = cut.next().unwrap().min(to_guest.len() - given);
        given += client.write(&to_guest[given..given + piece]).unwrap_or(0);
        let count = client.read(&mut buffer[..cut.next().unwrap()]).unwrap_or(0);
        got.extend(&buffer[..count]);
        got.len() == to_host.len() && received.len() == to_guest.len()
    }));
    assert!(got == to_host && received == to_guest);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn data_pass_both_ways_however_they_are_cut(
        cuts in proptest::collection::vec(1_usize..66_000, 1..9),
        lens in (0_usize..400_000, 0_usize..400_000),
        event_idx in any::<bool>(),
    ) {
        let mut guest = Guest::new(if event_idx { feature::EVENT_IDX } else { 0 });
        let (mut client, port) = guest.accept(52);
        guest.send(&Packet { buf_alloc: 20_000, ..Packet::new(CREDIT_UPDATE, 52, port) });
        // Small cuts of much data take long, and find nothing more.
        let most = cuts.iter().max().unwrap() * 40;
        pump(&mut guest, &mut client, port, &text(lens.0.min(most)), &text(lens.1.min(most)), &cuts);
    }
}
