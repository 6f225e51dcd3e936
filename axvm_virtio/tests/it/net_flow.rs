//! The network card in the middle of its work: floods, full links, pauses, resets, another machine. Frames are numbered:
//! none is lost, none comes twice, none comes cut.

use crate::common;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use axvm_arch::Gpa;
use axvm_devices::BusDevice;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::device::feature;
use axvm_virtio::net::{Link, LinkKind, MAX_FRAME, Net, NetHandle};
use axvm_virtio::state::{DeviceState, Frame, NetState, PairState};
use axvm_virtio::testing::Buffer;
use common::card::*;
use common::*;
use rustix::net::sockopt::set_socket_send_buffer_size;

/// Room for a frame of the guest, and for one for it.
const SLOT: u64 = 0x4000;

fn slot(base: Gpa, number: u32) -> Gpa {
    Gpa(base.0 + SLOT * u64::from(number % 256))
}

fn handle(kind: LinkKind, ours: OwnedFd) -> NetHandle {
    NetHandle::new(Link::new(kind, ours).unwrap()).unwrap()
}

/// A card whose stream takes little at a time.
fn narrow(features: u64) -> Card {
    let (ours, peer) = Peer::pair(LinkKind::Stream);
    set_socket_send_buffer_size(&ours, 4096).unwrap();
    let handle = handle(LinkKind::Stream, ours);
    let machine = Machine::new(Box::new(Net::new(handle.clone(), CONFIG)));
    Card::on(machine, handle, peer, features)
}

/// The guest sends frames of 9000 bytes until the link takes no more. How many are in the ring.
fn fill_link(card: &mut Card) -> u32 {
    for number in 0..40 {
        let len = card.write(slot(DATA, number), &frame(number, 9000));
        card.offer(TRANSMIT, &[Buffer::readable(slot(DATA, number), len)]);
    }
    assert!(wait_until(|| {
        let sent = card.handle.from_guest().frames;
        std::thread::sleep(Duration::from_millis(20));
        sent > 0 && card.handle.from_guest().frames == sent
    }));
    40
}

#[test]
fn a_flood_waits_for_buffers_and_needs_no_new_frame_to_go_on() {
    for kind in KINDS {
        for features in [0, MERGE, feature::EVENT_IDX | MERGE] {
            let mut card = Card::new(kind, features);
            if let Peer::Stream(stream, _) = &card.peer {
                stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
            }
            // A stream would end in the middle of a frame: as many as surely fit.
            let most = if kind == LinkKind::Stream { 100 } else { u32::MAX };
            let mut count = 0;
            while count < most && card.peer.send(&frame(count, 60 + count as usize)) {
                count += 1;
                std::thread::sleep(Duration::from_micros(100));
            }
            assert!(count > 5, "{kind:?}");
            assert_eq!(card.handle.to_guest().frames, 0);
            for number in 0..count {
                assert_eq!(card.receive(2048), frame(number, 60 + number as usize), "{kind:?}");
            }
            assert_eq!((u64::from(count), 0), (card.handle.to_guest().frames, card.handle.to_guest().dropped));
            card.check_alive();
        }
    }
}

#[test]
fn a_card_that_cannot_go_on_sleeps() {
    type Begin = fn(&mut Card);
    let waits: [(&str, Begin); 5] = [
        ("none", |card| assert!(card.peer.send(&frame(1, 60)) && card.peer.send(&frame(2, 60)))),
        ("few", |card| {
            card.offer(RECEIVE, &[Buffer::writable(INPUT, 1024)]);
            assert!(card.peer.send(&frame(1, 3000)));
        }),
        ("down", |card| {
            card.handle.set_up(false);
            card.offer(RECEIVE, &[Buffer::writable(INPUT, 2048)]);
            assert!(card.peer.send(&frame(1, 60)));
        }),
        ("ended", |card| {
            card.offer(RECEIVE, &[Buffer::writable(INPUT, 2048)]);
            card.peer = Peer::pair(LinkKind::Stream).1;
        }),
        ("full", |card| assert!(fill_link(card) > 0)),
    ];
    for (name, begin) in waits {
        let (ours, peer) = Peer::pair(LinkKind::Stream);
        let handle = handle(LinkKind::Stream, ours);
        let ram = GuestRam::allocate(&RamConfig::new(32 << 20)).unwrap();
        let machine = Machine::named(name, ram, Box::new(Net::new(handle.clone(), CONFIG)));
        let mut card = Card::on(machine, handle, peer, !0);
        begin(&mut card);
        std::thread::sleep(Duration::from_millis(50));
        let before = processor_time(&format!("{name}-q0"));
        std::thread::sleep(Duration::from_millis(200));
        let used = processor_time(&format!("{name}-q0")) - before;
        assert!(used < 10_000_000, "{name}: {used} ns in 200 ms");
    }
}

#[test]
fn a_link_that_is_full_holds_the_guest_back_and_loses_nothing() {
    for kind in KINDS {
        let mut card = Card::new(kind, !0);
        // More than fits: of a socket for datagrams ten, of a stream some two hundred KiB.
        let count = fill_link(&mut card);
        assert!(card.handle.from_guest().frames < u64::from(count));
        (0..count).for_each(|number| assert!(card.peer.receive() == frame(number, 9000), "{kind:?}, {number}"));
        (0..count).for_each(|_| assert_eq!(card.finish(TRANSMIT), 0));
        assert_eq!((card.handle.from_guest().frames, card.handle.from_guest().dropped), (u64::from(count), 0));
        card.check_alive();
    }
}

#[test]
fn frames_for_the_guest_pass_while_the_link_takes_none_of_its_own() {
    let mut card = narrow(!0);
    fill_link(&mut card);
    for number in 0..10 {
        assert!(card.peer.send(&frame(number, 500)));
        assert_eq!(card.receive(2048), frame(number, 500));
    }
}

#[test]
fn a_frame_that_was_begun_is_finished_whatever_the_guest_does() {
    let resets: [fn(&mut Card); 4] = [
        |card| card.bring_up(),
        |card| {
            card.handle.set_up(false);
            card.handle.set_up(true);
        },
        |card| {
            card.machine.pause();
            card.machine.resume();
        },
        // Another machine on the same cable, as after a reset of this one.
        |card| {
            card.machine.stop();
            card.machine = Machine::new(Box::new(Net::new(card.handle.clone(), CONFIG)));
            card.bring_up();
        },
    ];
    for (index, reset) in resets.into_iter().enumerate() {
        let mut card = narrow(MERGE);
        fill_link(&mut card);
        // A frame for the guest is begun, too.
        card.peer.stream().write_all(&[0, 0]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        reset(&mut card);
        let mut expected = 0;
        let begun = card.handle.from_guest().frames as u32;
        while expected < begun {
            assert!(card.peer.receive() == frame(expected, 9000), "reset {index}: frame {expected}");
            expected += 1;
        }
        card.peer.stream().write_all(&[&[0, 60][..], &frame(7, 60)].concat()).unwrap();
        assert_eq!(card.receive(2048), frame(7, 60), "reset {index}");
        assert_eq!(card.machine.status(), LIVE);
    }
}

/// Sends and receives `count` numbered frames each way, and some more, while `disturb` does something to the card again
/// and again.
fn under_load(mut card: Card, count: u32, mut disturb: impl FnMut(&mut Card)) {
    let length = |number: u32| 60 + (number as usize * 977) % 9000;
    let (mut queued, mut returned, mut arrived) = (0, 0, 0);
    let (mut given, mut to_send, mut received) = (0, 0, 0);
    let mut at_peer = Vec::new();
    let mut rest: Vec<u8> = Vec::new();
    card.peer.stream().set_nonblocking(true).unwrap();
    let mut disturbed = 0;
    for round in 0_u32.. {
        let ending = arrived >= count && received >= count;
        while !ending && queued - returned < 30 {
            let len = card.write(slot(DATA, queued), &frame(queued, length(queued)));
            card.drivers[1].add(&[Buffer::readable(slot(DATA, queued), len)]);
            queued += 1;
        }
        while given - received < 30 {
            card.drivers[0].add(&[Buffer::writable(slot(INPUT, given), 10_000)]);
            given += 1;
        }
        [RECEIVE, TRANSMIT].into_iter().for_each(|queue| card.kick(queue));
        if rest.is_empty() && !ending {
            rest = [&(length(to_send) as u32).to_be_bytes()[..], &frame(to_send, length(to_send))].concat();
            to_send += 1;
        }
        // The peer writes and reads in pieces of any length.
        let piece = rest.len().min(1 + (round as usize * 331) % 5000);
        if let Ok(count) = card.peer.stream().write(&rest[..piece]) {
            rest.drain(..count);
        }
        let mut bytes = vec![0; 1 + (round as usize * 757) % 9000];
        if let Ok(count) = card.peer.stream().read(&mut bytes) {
            at_peer.extend_from_slice(&bytes[..count]);
        }
        while let Some(got) = decode(&mut at_peer) {
            assert!(got == frame(arrived, length(arrived)), "frame {arrived} of the guest");
            arrived += 1;
        }
        if !ending && round.is_multiple_of(7) {
            disturb(&mut card);
            disturbed += 1;
        }
        while let Some((_, written)) = card.drivers[1].take_used() {
            assert_eq!(written, 0);
            returned += 1;
        }
        while let Some((_, written)) = card.drivers[0].take_used() {
            let bytes = card.machine.bytes(slot(INPUT, received), written as usize);
            assert!(bytes[HEAD..] == frame(received, length(received)), "frame {received} for the guest");
            received += 1;
        }
        if ending && rest.is_empty() && (arrived, returned, received) == (queued, queued, to_send) {
            break;
        }
        assert!(round < 3_000_000, "{arrived}, {returned} of {queued}, {received} of {to_send}");
    }
    assert!(disturbed >= 10, "only {disturbed} times");
    assert_eq!((card.handle.to_guest().dropped, card.handle.from_guest().dropped), (0, 0));
    assert_eq!(card.machine.status(), LIVE);
}

#[test]
fn a_card_paused_under_load_loses_and_repeats_nothing() {
    for features in [0, MERGE, !0] {
        under_load(narrow(features), 100, |card| {
            card.machine.pause();
            let state = card.machine.transport.state().expect("a paused device");
            assert!(state.queues.iter().all(|queue| queue.indices.next_avail == queue.indices.next_used));
            card.machine.resume();
        });
    }
}

#[test]
fn a_card_carried_under_load_loses_and_repeats_nothing() {
    for features in [0, !0] {
        under_load(narrow(features), 30, |card| {
            card.machine = card.machine.carry(Box::new(Net::new(card.handle.clone(), CONFIG)));
            card.machine.resume();
        });
    }
}

#[test]
fn a_card_goes_on_over_another_link_with_whole_frames() {
    for kind in KINDS {
        let mut card = narrow(!0);
        fill_link(&mut card);
        (0..3).for_each(|number| assert!(card.peer.send(&frame(number, 100))));
        std::thread::sleep(Duration::from_millis(5));
        card.machine.pause();
        let begun = card.handle.from_guest().frames as u32;
        let DeviceState::Net(state) = card.machine.transport.state().unwrap().device else { panic!("a network card") };
        let PairState { received, unsent } = &state.pairs[0];
        assert!(received.len() <= 3 && unsent.as_ref() == Some(&Frame(frame(begun - 1, 9000))));
        let waiting = received.len() as u32;

        let (ours, peer) = Peer::pair(kind);
        let (old, old_handle) = (std::mem::replace(&mut card.peer, peer), handle(kind, ours));
        card.handle = old_handle;
        card.machine = card.machine.carry(Box::new(Net::new(card.handle.clone(), CONFIG)));
        card.machine.resume();
        drop(old);
        for number in begun - 1..40 {
            assert!(card.peer.receive() == frame(number, 9000), "{kind:?}: frame {number}");
        }
        (0..40).for_each(|_| assert_eq!(card.finish(TRANSMIT), 0));
        (0..waiting).for_each(|number| assert_eq!(card.receive(2048), frame(number, 100)));
        card.check_alive();
    }
}

#[test]
fn a_link_that_is_down_where_the_card_goes_on_is_told() {
    let mut card = Card::new(LinkKind::Stream, !0);
    card.handle.set_up(false);
    let (ours, peer) = Peer::pair(LinkKind::Stream);
    let other = handle(LinkKind::Stream, ours);
    card.machine.set(reg::INTERRUPT_ACK, 3);
    let machine = card.machine.carry(Box::new(Net::new(other.clone(), CONFIG)));
    machine.resume();
    assert!(!other.is_up(), "the user's wish goes with the card");
    assert_eq!(machine.get(reg::INTERRUPT_STATUS) & 2, 0, "the driver knows");
    other.set_up(true);
    drop(peer);

    card = Card::new(LinkKind::Stream, !0);
    let mut config = [0; 8];
    card.machine.pause();
    let mut state = card.machine.transport.state().unwrap();
    let DeviceState::Net(net) = &mut state.device else { panic!("a network card") };
    // The old link had ended; the new one has not.
    net.up = false;
    let (ours, _peer) = Peer::pair(LinkKind::Stream);
    let machine = Machine::over(card.machine.ram.clone(), Box::new(Net::new(handle(LinkKind::Stream, ours), CONFIG)));
    machine.pause();
    machine.transport.restore(&state).unwrap();
    machine.resume();
    assert_eq!(machine.get(reg::INTERRUPT_STATUS) & 2, 2);
    machine.transport.read(reg::CONFIG, &mut config);
    assert_eq!(config[6], 1);
}

#[test]
fn a_frame_restored_to_a_link_that_has_ended_is_dropped_without_a_word() {
    let mut card = Card::new(LinkKind::Stream, !0);
    card.peer = Peer::pair(LinkKind::Stream).1;
    assert!(wait_until(|| card.handle.is_broken()));
    card.machine.pause();
    let mut state = card.machine.transport.state().unwrap();
    let DeviceState::Net(net) = &mut state.device else { panic!("a network card") };
    net.pairs[0].unsent = Some(Frame(frame(1, 60)));
    let ram = card.machine.ram.clone();
    card.machine = Machine::over(ram, Box::new(Net::new(card.handle.clone(), CONFIG)));
    card.machine.pause();
    card.machine.transport.restore(&state).unwrap();
    card.machine.resume();
    (0..3).for_each(|number| card.transmit(&frame(number, 60)));
    assert_eq!((card.machine.tape.warnings(), card.machine.status()), (Vec::new(), LIVE));
}

#[test]
fn a_state_with_frames_that_no_card_holds_is_refused() {
    let card = Card::new(LinkKind::Stream, !0);
    card.machine.pause();
    let state = card.machine.transport.state().unwrap();
    type Damage = fn(&mut NetState);
    let damages: [(Damage, &str); 10] = [
        (|state| state.mac[0] = 4, "address"),
        (|state| state.mtu = None, "MTU"),
        (|state| state.active = 0, "queue pairs in use"),
        (|state| state.active = 2, "queue pairs in use"),
        (|state| state.pairs.push(PairState::default()), "number of queue pairs"),
        (|state| state.pairs[0].received = vec![Frame(vec![0; 11])], "length of a frame"),
        (|state| state.pairs[0].received = vec![Frame(vec![0; HEAD + 13])], "length of a frame"),
        (|state| state.pairs[0].received = vec![Frame(vec![0; HEAD + MAX_FRAME + 1])], "length of a frame"),
        (|state| state.pairs[0].received = vec![Frame(vec![0; HEAD + MAX_FRAME]); 2], "number of waiting frames"),
        (|state| state.pairs[0].unsent = Some(Frame(Vec::new())), "length of a frame"),
    ];
    for (damage, reason) in damages {
        let mut state = state.clone();
        let DeviceState::Net(net) = &mut state.device else { panic!("a network card") };
        damage(net);
        let (ours, _peer) = Peer::pair(LinkKind::Stream);
        let device = Net::new(handle(LinkKind::Stream, ours), CONFIG);
        let machine = Machine::over(card.machine.ram.clone(), Box::new(device));
        machine.pause();
        let error = machine.transport.restore(&state).unwrap_err();
        assert!(error.source.to_string().contains(reason), "{error:?}");
    }
}
