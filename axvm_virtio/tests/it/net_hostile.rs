//! The network card between a driver that lies and a peer that does.

use crate::common;

use std::io::Write;
use std::time::Duration;

use axvm_arch::Gpa;
use axvm_virtio::net::{LinkKind, MAX_FRAME, MIN_FRAME};
use axvm_virtio::testing::{Buffer, NEXT, RawDescriptor, WRITE};
use common::card::*;
use common::*;
use proptest::prelude::*;

#[test]
fn buffers_that_break_the_rules_cost_a_reset() {
    let beyond = Gpa((32 << 20) - 8);
    for features in [0, !0] {
        let card = || Card::new(LinkKind::Stream, features);
        card().check_refused(RECEIVE, &[Buffer::readable(DATA, 2000)], "to read");
        card().check_refused(RECEIVE, &[Buffer::readable(DATA, 1), Buffer::writable(INPUT, 2000)], "to read");
        card().check_refused(RECEIVE, &[Buffer::writable(INPUT, 11)], "no room for a header");
        card().check_refused(RECEIVE, &[Buffer::writable(INPUT, 0)], "no room for a header");
        card().check_refused(RECEIVE, &[Buffer::writable(beyond, 2000)], "RAM");
        card().check_refused(TRANSMIT, &[Buffer::writable(DATA, 2000)], "to write");
        card().check_refused(TRANSMIT, &[Buffer::readable(DATA, 60), Buffer::writable(INPUT, 16)], "to write");
        card().check_refused(TRANSMIT, &[Buffer::readable(beyond, 60)], "RAM");
    }
}

#[test]
fn a_bad_buffer_behind_good_ones_costs_a_reset_and_no_frame() {
    let mut card = Card::new(LinkKind::Stream, MERGE);
    card.drivers[0].add(&[Buffer::writable(INPUT, 12)]);
    card.drivers[0].add(&[Buffer::writable(INPUT, 12)]);
    card.check_refused(RECEIVE, &[Buffer::writable(INPUT, 5)], "no room for a header");
}

#[test]
fn loops_and_lying_indices_cost_a_reset() {
    for queue in [RECEIVE, TRANSMIT] {
        for lie in [false, true] {
            let mut card = Card::new(LinkKind::Datagram, !0);
            assert!(card.peer.send(&frame(1, 60)));
            let driver = &mut card.drivers[queue as usize];
            if lie {
                driver.set_avail_idx(1000);
            } else {
                let flags = NEXT | if queue == RECEIVE { WRITE } else { 0 };
                driver.write_descriptor(5, RawDescriptor { addr: DATA.0, len: 1, flags, next: 5 });
                driver.offer(5);
                driver.kick();
            }
            card.machine.set(reg::QUEUE_NOTIFY, queue);
            assert!(wait_until(|| card.machine.tape.faults().len() == 1));
            card.bring_up();
            assert_eq!(card.receive(2048), frame(1, 60));
            card.check_alive();
        }
    }
}

#[test]
fn what_is_no_frame_is_dropped_and_comes_back() {
    for kind in KINDS {
        let mut card = Card::new(kind, !0);
        card.machine.ram.write(DATA, &vec![0; 1 << 17]).unwrap();
        let lengths = [0, 1, 11, 12, 25, (HEAD + MAX_FRAME + 1) as u32, 1 << 17, 20 << 20];
        for (count, len) in (1..).zip(lengths) {
            card.offer(TRANSMIT, &[Buffer::readable(DATA, len)]);
            assert_eq!(card.finish(TRANSMIT), 0);
            assert_eq!(card.handle.from_guest().dropped, count, "{len} bytes");
        }
        card.offer(TRANSMIT, &vec![Buffer::readable(Gpa(0), 31 << 20); 130]);
        assert_eq!(card.finish(TRANSMIT), 0);
        // A checksum that is missing, segments that are asked for: neither was offered.
        for header in [[1, 0], [0, 1], [0, 0x80]] {
            card.write(DATA, &frame(1, 60));
            card.machine.ram.write(DATA, &header).unwrap();
            card.offer(TRANSMIT, &[Buffer::readable(DATA, 72)]);
            assert_eq!(card.finish(TRANSMIT), 0);
        }
        assert_eq!((card.handle.from_guest().frames, card.handle.from_guest().dropped), (0, 12));
        card.check_alive();
    }
}

#[test]
fn datagrams_that_are_no_frames_are_dropped() {
    for kind in [LinkKind::Tap, LinkKind::Datagram] {
        let mut card = Card::new(kind, !0);
        let Peer::Datagram(socket, header) = &card.peer else { panic!("datagrams") };
        let lengths = [0, 1, 13, header + 13, header + MAX_FRAME + 1, 100_000, 150_000];
        for (count, len) in (1..).zip(lengths) {
            socket.send(&vec![0x5a; len]).unwrap();
            assert!(wait_until(|| card.handle.to_guest().dropped == count), "{len} bytes, {kind:?}");
        }
        assert_eq!(card.handle.to_guest().frames, 0);
        card.check_alive();
    }
}

/// Frames in what a peer wrote, and whether it announced one that is too long. Written without a look at the device.
fn model(mut bytes: &[u8]) -> (Vec<Vec<u8>>, u64, bool) {
    let (mut frames, mut dropped) = (Vec::new(), 0);
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let len = u32::from_be_bytes(*length) as usize;
        if len > MAX_FRAME {
            return (frames, dropped, true);
        }
        let Some((frame, rest)) = rest.split_at_checked(len) else { break };
        if len < MIN_FRAME {
            dropped += 1;
        } else {
            frames.push(frame.to_vec());
        }
        bytes = rest;
    }
    (frames, dropped, false)
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let framed = |bytes: Vec<u8>| [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat();
    let frame = proptest::collection::vec(any::<u8>(), 0..200).prop_map(framed);
    let long = (1000..=MAX_FRAME).prop_map(move |len| framed(vec![0x5a; len]));
    let noise = proptest::collection::vec(any::<u8>(), 0..9);
    let near = (MAX_FRAME as u32 - 1..MAX_FRAME as u32 + 3).prop_map(|len| len.to_be_bytes().to_vec());
    let part = prop_oneof![20 => frame, 1 => long, 1 => noise, 1 => near];
    proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_bytes_of_a_peer_are_frames_or_the_end_of_the_link(
        bytes in stream(),
        pieces in proptest::collection::vec(1..3000_usize, 1..8),
        features in prop_oneof![Just(0), Just(MERGE), Just(!0)],
    ) {
        let (frames, dropped, broken) = model(&bytes);
        let mut card = Card::new(LinkKind::Stream, features);
        for n in 0..frames.len() as u64 + 1 {
            card.offer(RECEIVE, &[Buffer::writable(Gpa(INPUT.0 + n * 0x1_1000), 0x1_1000)]);
        }
        let mut rest = &bytes[..];
        card.peer.stream().set_nonblocking(true).unwrap();
        for piece in pieces.into_iter().cycle() {
            // A link at its end is not read any more.
            if rest.is_empty() || card.handle.is_broken() {
                break;
            }
            match card.peer.stream().write(&rest[..piece.min(rest.len())]) {
                Ok(count) => rest = &rest[count..],
                Err(_) => std::thread::sleep(Duration::from_micros(100)),
            }
        }
        card.peer.stream().set_nonblocking(false).unwrap();
        for (n, frame) in (0..).zip(&frames) {
            prop_assert!(card.take_frame(Gpa(INPUT.0 + n * 0x1_1000)) == *frame, "frame {}", n);
        }
        prop_assert!(wait_until(|| card.handle.is_broken() == broken && card.handle.to_guest().dropped == dropped));
        prop_assert!(wait_until(|| card.machine.tape.warnings().len() == usize::from(broken)));
        prop_assert_eq!(card.machine.status(), LIVE);
        card.transmit(&frame(1, 60));
    }
}
