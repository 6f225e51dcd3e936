//! The network card under a good driver: what it says of itself, and frames however their buffers are cut.

use crate::common;

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use axvm_arch::Gpa;
use axvm_devices::BusDevice;
use axvm_virtio::device::feature;
use axvm_virtio::net::{Link, LinkKind, MAX_FRAME, Net, NetConfig, NetHandle};
use axvm_virtio::testing::Buffer;
use common::card::*;
use common::*;

#[test]
fn the_card_says_what_it_is() {
    let card = Card::new(LinkKind::Stream, 0);
    assert_eq!(card.machine.offered() & 0xff_ffff, MAC | LINK_STATUS | MERGE | CONTROLS | MTU);
    let mut config = [0xee; 14];
    card.machine.transport.read(reg::CONFIG, &mut config);
    assert_eq!(config, [2, 0, 0, 0xa, 0xb, 0xc, 1, 0, 1, 0, 0xdc, 5, 0, 0], "address, link up, one pair, 1500");

    let (ours, _peer) = Peer::pair(LinkKind::Datagram);
    let handle = NetHandle::new(Link::new(LinkKind::Datagram, ours).unwrap()).unwrap();
    let machine = Machine::new(Box::new(Net::new(handle, NetConfig { mtu: None, ..CONFIG })));
    assert_eq!(machine.offered() & 0xff_ffff, MAC | LINK_STATUS | MERGE | CONTROLS, "no MTU, if none is given");
}

#[test]
fn a_link_over_another_kind_of_descriptor_is_refused() {
    let stream = || OwnedFd::from(UnixStream::pair().unwrap().0);
    let datagram = || OwnedFd::from(UnixDatagram::pair().unwrap().0);
    assert!(Link::new(LinkKind::Stream, stream()).is_ok() && Link::new(LinkKind::Datagram, datagram()).is_ok());
    assert!(Link::new(LinkKind::Stream, datagram()).is_err() && Link::new(LinkKind::Datagram, stream()).is_err());
    assert!(Link::new(LinkKind::Stream, tempfile::tempfile().unwrap().into()).is_err());
}

#[test]
fn frames_go_both_ways_over_every_link() {
    for kind in KINDS {
        for features in [0, MERGE, feature::EVENT_IDX, !0] {
            let mut card = Card::new(kind, features);
            let (mut count, mut bytes) = (0, 0);
            for len in [14, 60, 1514, 9014, MAX_FRAME] {
                let sent = frame(count, len);
                card.transmit(&sent);
                assert!(card.peer.receive() == sent, "{len} bytes from the guest, {kind:?}");
                assert!(card.peer.send(&sent));
                assert!(card.receive(70_000) == sent, "{len} bytes for the guest, {kind:?}");
                (count, bytes) = (count + 1, bytes + len as u64);
            }
            for counted in [card.handle.to_guest(), card.handle.from_guest()] {
                assert_eq!((counted.frames, counted.bytes, counted.dropped), (u64::from(count), bytes, 0));
            }
            card.check_alive();
        }
    }
}

/// All ways to cut so many bytes into three parts, empty ones too.
fn cuts(len: u32) -> impl Iterator<Item = [u32; 3]> {
    (0..=len).flat_map(move |first| (first..=len).map(move |second| [first, second - first, len - second]))
}

#[test]
fn a_frame_is_sent_whole_however_its_chain_is_cut() {
    for kind in KINDS {
        let mut card = Card::new(kind, !0);
        for (number, parts) in cuts(HEAD as u32 + 20).enumerate() {
            let sent = frame(number as u32, 20);
            card.write(DATA, &sent);
            let mut at = DATA.0;
            let buffers = parts.map(|len| {
                at += u64::from(len);
                Buffer::readable(Gpa(at - u64::from(len)), len)
            });
            card.offer(TRANSMIT, &buffers);
            assert_eq!((card.finish(TRANSMIT), card.peer.receive()), (0, sent), "{parts:?}");
        }
    }
}

#[test]
fn a_frame_arrives_whole_however_its_chain_is_cut() {
    for features in [0, MERGE] {
        let mut card = Card::new(LinkKind::Datagram, features);
        for (number, parts) in cuts(HEAD as u32 + 20).enumerate() {
            let sent = frame(number as u32, 20);
            // With a gap between the parts that stays as it is.
            card.machine.ram.write(INPUT, &[UNTOUCHED; 300]).unwrap();
            let places = [0, 100, 200].map(|offset| Gpa(INPUT.0 + offset));
            let buffers: Vec<_> = places.iter().zip(parts).map(|(gpa, len)| Buffer::writable(*gpa, len)).collect();
            card.offer(RECEIVE, &buffers);
            assert!(card.peer.send(&sent));
            assert_eq!(card.finish(RECEIVE), HEAD + 20);
            let mut bytes = Vec::new();
            for (gpa, len) in places.iter().zip(parts) {
                bytes.extend(card.machine.bytes(*gpa, len as usize));
                assert_eq!(card.machine.bytes(Gpa(gpa.0 + u64::from(len)), 1), [UNTOUCHED]);
            }
            assert_eq!(bytes, [&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0][..], &sent].concat(), "{parts:?}");
        }
    }
}

#[test]
fn a_frame_fills_as_many_small_buffers_as_it_needs() {
    for kind in KINDS {
        for size in [12_u32, 13, 64, 100, 1012] {
            let mut card = Card::new(kind, !0);
            let sent = frame(size, 1000);
            let count = (HEAD as u32 + 1000).div_ceil(size);
            assert!(card.peer.send(&sent));
            for n in 0..count {
                if n + 1 == count {
                    // Time for what must not happen.
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    assert_eq!(card.drivers[0].take_used(), None, "no half frame");
                }
                card.offer(RECEIVE, &[Buffer::writable(Gpa(INPUT.0 + u64::from(n) * 4096), size)]);
            }
            let mut bytes = Vec::new();
            for n in 0..count {
                let len = card.finish(RECEIVE);
                assert!(len == size as usize || n + 1 == count);
                bytes.extend(card.machine.bytes(Gpa(INPUT.0 + u64::from(n) * 4096), len));
            }
            assert_eq!(bytes[10..12], (count as u16).to_le_bytes(), "num_buffers, {size} bytes each");
            assert!(bytes[HEAD..] == sent);
            card.check_alive();
        }
    }
}

#[test]
fn a_frame_that_no_ring_holds_is_dropped() {
    let mut card = Card::new(LinkKind::Stream, MERGE);
    assert!(card.peer.send(&frame(1, 9000)));
    for _ in 0..256 {
        card.offer(RECEIVE, &[Buffer::writable(INPUT, 20)]);
    }
    assert!(wait_until(|| card.handle.to_guest().dropped == 1));
    assert!(card.peer.send(&frame(2, 30)));
    assert_eq!(
        [card.finish(RECEIVE), card.finish(RECEIVE), card.finish(RECEIVE)],
        [20, 20, 2],
        "all buffers are there"
    );
}

#[test]
fn without_merging_a_frame_too_long_for_its_buffer_is_dropped() {
    for kind in KINDS {
        let mut card = Card::new(kind, 0);
        assert!(card.peer.send(&frame(1, 101)) && card.peer.send(&frame(2, 100)));
        assert_eq!(card.receive(112), frame(2, 100), "the buffer is for the next one");
        assert_eq!((card.handle.to_guest().dropped, card.handle.to_guest().frames), (1, 1));
        card.check_alive();
    }
}

#[test]
fn the_driver_learns_that_the_user_pulls_the_cable() {
    let mut card = Card::new(LinkKind::Stream, !0);
    let status = |card: &Card| card.machine.get(reg::CONFIG + 4) >> 16;
    for round in 0..3 {
        let generation = card.machine.get(reg::CONFIG_GENERATION);
        card.handle.set_up(false);
        assert_eq!((status(&card), card.handle.is_up()), (0, false));
        assert_eq!(card.machine.get(reg::INTERRUPT_STATUS) & 2, 2);
        assert_ne!(card.machine.get(reg::CONFIG_GENERATION), generation);
        card.machine.set(reg::INTERRUPT_ACK, 3);
        card.handle.set_up(false);
        assert_eq!(card.machine.get(reg::INTERRUPT_STATUS) & 2, 0, "it was down");
        card.transmit(&frame(9, 60));
        assert_eq!(card.handle.from_guest().dropped, round + 1);
        assert!(card.peer.send(&frame(1, 60)));
        card.offer(RECEIVE, &[Buffer::writable(INPUT, 2048)]);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(card.drivers[0].take_used(), None);

        card.handle.set_up(true);
        assert_eq!(status(&card), 1);
        assert_eq!(card.machine.get(reg::INTERRUPT_STATUS) & 2, 2);
        assert_eq!(card.take_frame(INPUT), frame(1, 60), "it waited in the link");
        card.machine.set(reg::INTERRUPT_ACK, 3);
        card.check_alive();
    }
}

#[test]
fn a_link_that_changes_in_a_pause_is_told_after_it() {
    let card = Card::new(LinkKind::Datagram, !0);
    card.machine.pause();
    card.handle.set_up(false);
    assert_eq!(card.machine.get(reg::INTERRUPT_STATUS) & 2, 0);
    card.machine.resume();
    assert_eq!(card.machine.get(reg::INTERRUPT_STATUS) & 2, 2);
}

#[test]
fn the_end_of_a_link_is_one_event_and_a_cable_pulled() {
    let mut card = Card::new(LinkKind::Stream, !0);
    card.check_alive();
    assert!(card.peer.send(&frame(5, 70)));
    card.peer = Peer::pair(LinkKind::Stream).1;
    assert_eq!(card.receive(2048), frame(5, 70), "what came before the end");
    assert!(wait_until(|| card.machine.tape.warnings().len() == 1));
    assert!(card.machine.tape.warnings()[0].contains("its other end closed it"), "{:?}", card.machine.tape.warnings());
    assert_eq!(card.machine.get(reg::CONFIG + 4) >> 16, 0);
    assert_eq!(card.machine.get(reg::INTERRUPT_STATUS) & 2, 2);
    (0..3).for_each(|number| card.transmit(&frame(number, 60)));
    card.handle.set_up(true);
    card.machine.pause();
    card.machine.resume();
    card.bring_up();
    card.transmit(&frame(4, 60));
    assert_eq!((card.handle.from_guest().dropped, card.handle.is_up(), card.handle.is_broken()), (4, false, true));
    assert_eq!((card.machine.tape.warnings().len(), card.machine.status()), (1, LIVE));
}

#[test]
fn datagrams_to_no_peer_are_dropped_until_one_comes() {
    let mut card = Card::new(LinkKind::Datagram, !0);
    card.peer = Peer::pair(LinkKind::Datagram).1;
    (0..3).for_each(|number| card.transmit(&frame(number, 60)));
    assert_eq!((card.handle.from_guest().dropped, card.handle.is_up()), (3, true));
    assert_eq!(card.machine.status(), LIVE);
}
