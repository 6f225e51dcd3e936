//! What a driver and a host leave to each other: only what was agreed on passes, and it passes unchanged.

use crate::common;

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use axvm_arch::Gpa;
use axvm_virtio::net::{Link, LinkKind, Net, NetHandle, Offloads};
use axvm_virtio::state::DeviceState;
use axvm_virtio::testing::{Buffer, FakeDriver};
use common::card::*;
use common::*;

/// Feature bits, written down a second time: what the driver leaves to the host, and the host to the driver.
const FROM_GUEST: [u64; 5] = [1, 1 << 11, 1 << 12, 1 << 13, 1 << 56];
const TO_GUEST: [u64; 5] = [1 << 1, 1 << 7, 1 << 8, 1 << 9, 1 << 54 | 1 << 55];

/// Headers that ask for each of these, with number of chains: checksum, TCP over IPv4, over IPv6, with marks, UDP.
const ASKING: [[u8; HEAD]; 5] = [
    [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0],
    [1, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0],
    [1, 4, 74, 0, 100, 0, 54, 0, 16, 0, 0, 0],
    [1, 0x81, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0],
    [1, 5, 42, 0, 100, 0, 34, 0, 6, 0, 0, 0],
];

/// A card over a socket in the place of a tap, and that tap's other end.
fn card(features: u64) -> (Card, UnixDatagram) {
    let (ours, peer) = Peer::pair(LinkKind::Tap);
    let Peer::Datagram(socket, _) = &peer else { panic!("datagrams") };
    let socket = socket.try_clone().unwrap();
    let handle = NetHandle::new(Link::stand_in(vec![ours], Offloads::ALL).unwrap()).unwrap();
    let machine = Machine::new(Box::new(Net::new(handle.clone(), CONFIG)));
    (Card::on(machine, handle, peer, features), socket)
}

/// What a driver that agreed on `features` agreed on, of the five.
fn agreed(features: u64, bits: [u64; 5], asked: usize) -> bool {
    let has = |number: usize| features & bits[number] == bits[number];
    // Segments with marks are segments over IPv4 here.
    has(0) && has(asked) && (asked != 3 || has(1))
}

#[test]
fn a_tap_offers_what_its_kernel_can_and_a_user_may_offer_less() {
    let all = FROM_GUEST.iter().chain(&TO_GUEST).sum::<u64>();
    let offered = |offloads| {
        let link = Link::stand_in(vec![Peer::pair(LinkKind::Tap).0], Offloads::ALL).unwrap().offering(offloads);
        Machine::new(Box::new(Net::new(NetHandle::new(link).unwrap(), CONFIG))).offered() & all
    };
    assert_eq!(offered(Offloads::ALL), all);
    assert_eq!(offered(Offloads { uso: false, ..Offloads::ALL }), all & !(FROM_GUEST[4] | TO_GUEST[4]));
    assert_eq!(offered(Offloads { checksum: false, ..Offloads::ALL }), 0);
    assert_eq!(offered(Offloads::NONE), 0);
}

#[test]
fn what_a_driver_leaves_to_the_host_passes_if_it_was_agreed_on() {
    for features in [0, 1, 1 | 1 << 11, 1 << 11, 1 | 1 << 13, 1 | 1 << 11 | 1 << 13, 1 | 1 << 12, 1 | 1 << 56, !0] {
        let (mut card, socket) = card(features);
        for (asked, header) in ASKING.iter().enumerate() {
            let sent = [&header[..], &frame(asked as u32, 3000)].concat();
            card.machine.ram.write(DATA, &sent).unwrap();
            let before = card.handle.from_guest();
            card.offer(TRANSMIT, &[Buffer::readable(DATA, sent.len() as u32)]);
            assert_eq!(card.finish(TRANSMIT), 0);
            let passes = agreed(features, FROM_GUEST, asked);
            if passes {
                let mut got = vec![0; 4000];
                let count = socket.recv(&mut got).unwrap();
                assert!(got[..count] == sent, "{features:#x}, {asked}");
            }
            let now = card.handle.from_guest();
            assert_eq!((now.frames - before.frames, now.dropped - before.dropped), (passes.into(), (!passes).into()));
        }
        card.check_alive();
    }
}

/// It is not copied, but for more pieces than one call takes.
#[test]
fn a_long_frame_goes_to_a_tap_whole_however_its_chain_is_cut() {
    let (mut card, socket) = card(!0);
    let header = &ASKING[1];
    let sent = [&header[..], &frame(1, 8000)].concat();
    card.machine.ram.write(DATA, &sent).unwrap();
    let mut in_pieces = |ends: &[usize]| {
        let starts = [0].iter().chain(ends);
        let pieces =
            starts.zip(ends).map(|(start, end)| Buffer::readable(Gpa(DATA.0 + *start as u64), (end - start) as u32));
        card.offer(TRANSMIT, &pieces.collect::<Vec<_>>());
        assert_eq!(card.finish(TRANSMIT), 0);
        let mut got = vec![0; 10_000];
        let count = socket.recv(&mut got).unwrap();
        assert!(got[..count] == sent, "cut at {ends:?}");
    };
    for first in 0..=20 {
        for second in [first, first + 1, HEAD + 1, 4096, 8000].into_iter().filter(|second| *second >= first) {
            in_pieces(&[first, second, sent.len()]);
        }
    }
    for count in [61, 62, 63, 64, 65] {
        let mut ends: Vec<_> = (1..count).map(|number| number * 100).collect();
        ends.push(sent.len());
        in_pieces(&ends);
    }
}

#[test]
fn what_the_host_leaves_to_a_driver_passes_if_it_was_agreed_on() {
    for features in [0, 2, 2 | 1 << 7, 1 << 7, 2 | 1 << 7 | 1 << 9, 2 | 1 << 8, 2 | 1 << 54, 2 | 3 << 54, !0] {
        let (mut card, socket) = card(features);
        for (asked, header) in ASKING.iter().enumerate() {
            let before = card.handle.to_guest();
            // What the kernel leaves in the place of the number of chains is not the guest's business.
            let mut dirty = *header;
            dirty[10..].copy_from_slice(&[0x5a; 2]);
            socket.send(&[&dirty[..], &frame(asked as u32, 3000)].concat()).unwrap();
            if agreed(features, TO_GUEST, asked) {
                card.offer(RECEIVE, &[Buffer::writable(INPUT, 4000)]);
                let len = card.finish(RECEIVE);
                let mut expected = *header;
                expected[10] = 1;
                assert!(card.machine.bytes(INPUT, len) == [&expected[..], &frame(asked as u32, 3000)].concat());
            } else {
                assert!(wait_until(|| card.handle.to_guest().dropped == before.dropped + 1), "{features:#x}, {asked}");
            }
        }
        card.check_alive();
    }
}

#[test]
fn a_header_that_cannot_be_meant_costs_its_frame() {
    let (mut card, socket) = card(!0);
    let bad: [[u8; HEAD]; 7] = [
        // Segments without checksums, without a size, of an unknown kind.
        [0, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0],
        [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0],
        [1, 2, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0],
        [1, 0xff, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0],
        // A checksum outside of the frame.
        [1, 0, 0, 0, 0, 0, 84, 0, 16, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        [0xff; HEAD],
    ];
    for (count, header) in (1..).zip(bad) {
        card.machine.ram.write(DATA, &[&header[..], &frame(1, 100)].concat()).unwrap();
        card.offer(TRANSMIT, &[Buffer::readable(DATA, 112)]);
        assert_eq!((card.finish(TRANSMIT), card.handle.from_guest().dropped), (0, count), "{header:?}");
    }
    socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    assert!(socket.recv(&mut [0; 200]).is_err(), "none reached the host");
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    card.check_alive();
}

#[test]
fn a_frame_that_waits_keeps_its_header_in_another_machine() {
    let (mut card, socket) = card(!0);
    socket.send(&[&ASKING[1][..], &frame(1, 3000)].concat()).unwrap();
    std::thread::sleep(Duration::from_millis(10));
    let handle = card.handle.clone();
    card.machine = card.machine.carry(Box::new(Net::new(handle, CONFIG)));
    card.machine.resume();
    card.offer(RECEIVE, &[Buffer::writable(INPUT, 4000)]);
    assert_eq!(card.finish(RECEIVE), HEAD + 3000);
    assert_eq!(card.machine.bytes(INPUT, 10), ASKING[1][..10]);
}

#[test]
fn a_driver_that_takes_less_than_the_one_before_gets_no_older_frame() {
    let (mut card, socket) = card(!0);
    socket.send(&[&ASKING[1][..], &frame(1, 3000)].concat()).unwrap();
    std::thread::sleep(Duration::from_millis(10));
    card.features &= !(TO_GUEST[1] | FROM_GUEST[1]);
    card.bring_up();
    assert!(card.peer.send(&frame(2, 60)));
    assert_eq!(card.receive(4000), frame(2, 60));
    assert_eq!(card.handle.to_guest().dropped, 1);
}

#[test]
fn a_peer_that_looks_at_no_checksum_is_sent_none() {
    let (ours, mut peer) = Peer::pair(LinkKind::Stream);
    let link = Link::new(LinkKind::Stream, ours).unwrap().offering(Offloads::ALL);
    let handle = NetHandle::new(link).unwrap();
    let machine = Machine::new(Box::new(Net::new(handle.clone(), CONFIG)));
    assert_eq!(machine.offered() & 0x3fff, MAC | MTU | 7, "checksums both ways, no segments");
    let mut drivers = machine.bring_up_all(machine.offered(), RINGS, 64);
    machine.ram.write(DATA, &[&ASKING[0][..], &frame(1, 100)].concat()).unwrap();
    drivers[1].add(&[Buffer::readable(DATA, 112)]);
    machine.show(TRANSMIT, &mut drivers[1]);
    assert_eq!(peer.receive(), frame(1, 100));
    assert!(peer.send(&frame(2, 100)));
    drivers[0].add(&[Buffer::writable(INPUT, 2000)]);
    machine.show(RECEIVE, &mut drivers[0]);
    assert_eq!(finished(&mut drivers[0]), 112);
    assert_eq!(machine.bytes(INPUT, HEAD), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "found right");
}

/// Feature bit, and what a driver says to it that takes all.
const CHANGEABLE: u64 = 1 << 2;
const ALL: u64 = 2 | 7 << 7 | 3 << 54;

#[test]
fn a_driver_may_take_less_while_it_runs_and_more_again() {
    let (card, socket) = card(0);
    let Card { mut machine, handle, .. } = card;
    let rings = [RINGS[0], RINGS[1], CONTROL_RING];
    assert_eq!(machine.offered() & CHANGEABLE, CHANGEABLE);
    let mut drivers = machine.bring_up_all(machine.offered() & !(1 << 29), rings, 64);
    let passes = |machine: &Machine, driver: &mut FakeDriver, offloads: u64| {
        for (asked, header) in ASKING.iter().enumerate() {
            let before = handle.to_guest().dropped;
            socket.send(&[&header[..], &frame(asked as u32, 3000)].concat()).unwrap();
            if agreed(offloads, TO_GUEST, asked) {
                driver.add(&[Buffer::writable(INPUT, 4000)]);
                machine.show(RECEIVE, driver);
                assert_eq!(finished(driver), HEAD + 3000);
                assert_eq!(machine.bytes(INPUT, 2), header[..2]);
            } else {
                assert!(wait_until(|| handle.to_guest().dropped == before + 1), "{offloads:#x}, {asked}");
            }
        }
    };
    passes(&machine, &mut drivers[0], ALL);
    for offloads in [0, 2, 2 | 1 << 7, 1 << 8, 2 | 1 << 54, ALL, 0] {
        assert_eq!(set_offloads(&machine, &mut drivers[2], &offloads.to_le_bytes()), 0, "{offloads:#x}");
        passes(&machine, &mut drivers[0], offloads);
    }
    // What was said holds over a pause, and in another machine.
    machine.pause();
    machine.resume();
    passes(&machine, &mut drivers[0], 0);
    assert_eq!(set_offloads(&machine, &mut drivers[2], &2_u64.to_le_bytes()), 0);
    machine = machine.carry(Box::new(Net::new(handle.clone(), CONFIG)));
    machine.resume();
    passes(&machine, &mut drivers[0], 2);
    // The next driver begins anew.
    drivers = machine.bring_up_all(machine.offered() & !(1 << 29), rings, 64);
    passes(&machine, &mut drivers[0], ALL);
    assert_eq!(machine.status(), LIVE);
}

#[test]
fn offloads_that_were_not_agreed_on_are_refused_and_change_nothing() {
    let (card, socket) = card(0);
    let Card { machine, handle, .. } = card;
    let rings = [RINGS[0], RINGS[1], CONTROL_RING];
    // Checksums and segments over IPv4, one way; marks are not agreed on.
    let features = machine.offered() & !(1 << 29 | ALL) | 2 | 1 << 7;
    let mut drivers = machine.bring_up_all(features, rings, 64);
    for offloads in [1 << 8, 1 << 9, 1 << 10, 1 << 54, 3 << 54, 2 | 1, 2 | 4, 1 << 11, 1 << 63, u64::MAX] {
        assert_eq!(set_offloads(&machine, &mut drivers[2], &offloads.to_le_bytes()), 1, "{offloads:#x}");
    }
    for len in [0, 1, 7, 9, 16, 1000] {
        assert_eq!(set_offloads(&machine, &mut drivers[2], &vec![0; len]), 1, "{len} bytes");
    }
    socket.send(&[&ASKING[1][..], &frame(1, 3000)].concat()).unwrap();
    drivers[0].add(&[Buffer::writable(INPUT, 4000)]);
    machine.show(RECEIVE, &mut drivers[0]);
    assert_eq!(finished(&mut drivers[0]), HEAD + 3000);
    // Without the feature there is no such command.
    drivers = machine.bring_up_all(features & !CHANGEABLE, rings, 64);
    assert_eq!(set_offloads(&machine, &mut drivers[2], &2_u64.to_le_bytes()), 1);
    assert_eq!((handle.to_guest().dropped, machine.status()), (0, LIVE));
}

#[test]
fn a_saved_state_leaves_a_driver_nothing_that_it_has_not_agreed_on() {
    let (card, _socket) = card(2);
    card.machine.pause();
    let mut state = card.machine.transport.state().unwrap();
    for (offloads, taken) in [(2, true), (ALL, true), (1 << 10, false), (1, false), (u64::MAX, false)] {
        let DeviceState::Net(net) = &mut state.device else { panic!("a network card") };
        net.offloads = offloads;
        let (ours, peer) = Peer::pair(LinkKind::Tap);
        let Peer::Datagram(socket, _) = &peer else { panic!("datagrams") };
        let handle = NetHandle::new(Link::stand_in(vec![ours], Offloads::ALL).unwrap()).unwrap();
        let machine = Machine::over(card.machine.ram.clone(), Box::new(Net::new(handle.clone(), CONFIG)));
        machine.pause();
        match machine.transport.restore(&state) {
            Ok(()) if taken => {
                machine.resume();
                socket.send(&[&ASKING[1][..], &frame(1, 3000)].concat()).unwrap();
                assert!(wait_until(|| handle.to_guest().dropped == 1), "segments: {offloads:#x}");
            }
            Err(error) if !taken => assert!(error.source.to_string().contains("offloads in force"), "{error:?}"),
            other => panic!("{offloads:#x}: {other:?}"),
        }
    }
}
