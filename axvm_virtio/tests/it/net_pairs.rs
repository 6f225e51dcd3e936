//! A network card with several queue pairs, over sockets that stand for the queues of a tap.

use crate::common;

use std::time::Duration;

use axvm_arch::Gpa;
use axvm_virtio::net::{Link, LinkKind, MAX_PAIRS, Net, NetHandle, Offloads};
use axvm_virtio::state::DeviceState;
use axvm_virtio::testing::{Buffer, FakeDriver};
use common::card::*;
use common::*;

const MULTI: u64 = 1 << 22;
const PAIRS: usize = 3;

/// A card with three queue pairs.
struct Wide {
    machine: Machine,
    handle: NetHandle,
    peers: Vec<Peer>,
    drivers: [FakeDriver; 2 * PAIRS + 1],
}

impl Wide {
    fn new() -> Wide {
        let (ours, peers) = (0..PAIRS).map(|_| Peer::pair(LinkKind::Tap)).unzip();
        let handle = NetHandle::new(Link::stand_in(ours, Offloads::NONE).unwrap()).unwrap();
        let machine = Machine::new(Box::new(Net::new(handle.clone(), CONFIG)));
        let drivers = Wide::bring_up(&machine);
        Wide { machine, handle, peers, drivers }
    }

    fn bring_up(machine: &Machine) -> [FakeDriver; 2 * PAIRS + 1] {
        assert_eq!(machine.offered() & MULTI, MULTI);
        let ring = |number| Gpa(RING.0 + 0x8000 * number as u64);
        machine.bring_up_all(machine.offered(), std::array::from_fn(ring), 64)
    }

    fn offer(&mut self, queue: usize, buffers: &[Buffer]) {
        self.drivers[queue].add(buffers);
        self.machine.show(queue as u32, &mut self.drivers[queue]);
    }

    fn use_pairs(&mut self, count: u16) -> u8 {
        let [low, high] = count.to_le_bytes();
        self.machine.ram.write(HEADER, &[4, 0, low, high]).unwrap();
        self.offer(2 * PAIRS, &[Buffer::readable(HEADER, 4), Buffer::writable(STATUS, 1)]);
        assert_eq!(finished(&mut self.drivers[2 * PAIRS]), 1);
        self.machine.bytes(STATUS, 1)[0]
    }

    /// Sends a frame over each pair; over which it arrived.
    fn transmit(&mut self) -> Vec<usize> {
        let mut passed = Vec::new();
        for pair in 0..PAIRS {
            let before = self.handle.from_guest().frames;
            self.machine.ram.write(DATA, &[&[0; HEAD][..], &frame(pair as u32, 60)].concat()).unwrap();
            self.offer(2 * pair + 1, &[Buffer::readable(DATA, 72)]);
            assert_eq!(finished(&mut self.drivers[2 * pair + 1]), 0);
            if self.handle.from_guest().frames > before {
                assert_eq!(self.peers[pair].receive(), frame(pair as u32, 60));
                passed.push(pair);
            }
        }
        passed
    }

    /// Frames for the guest come over each of the first `count` pairs, and over no other.
    fn check_receive(&mut self, count: usize) {
        for pair in 0..PAIRS {
            let at = Gpa(INPUT.0 + 0x1_0000 * pair as u64);
            if pair < count {
                assert!(self.peers[pair].send(&frame(7, 60)));
                self.offer(2 * pair, &[Buffer::writable(at, 2048)]);
                assert_eq!(finished(&mut self.drivers[2 * pair]), 72);
                assert_eq!(self.machine.bytes(Gpa(at.0 + HEAD as u64), 60), frame(7, 60));
            }
        }
    }
}

#[test]
fn a_driver_uses_as_many_pairs_as_it_asks_for() {
    let mut card = Wide::new();
    assert_eq!(card.machine.get(reg::CONFIG + 8) & 0xffff, PAIRS as u32);
    // The first one, until it says otherwise.
    assert_eq!(card.transmit(), [0]);
    card.check_receive(1);
    assert!(card.peers[2].send(&frame(9, 60)));
    card.offer(4, &[Buffer::writable(DATA, 2048)]);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(card.drivers[4].take_used(), None, "not in use");
    for count in [0, PAIRS as u16 + 1, u16::MAX] {
        assert_eq!(card.use_pairs(count), 1, "{count}");
    }
    assert_eq!(card.use_pairs(3), 0);
    assert_eq!(finished(&mut card.drivers[4]), 72, "now it is");
    assert_eq!(card.transmit(), [0, 1, 2]);
    card.check_receive(3);
    assert_eq!(card.use_pairs(2), 0);
    assert_eq!(card.transmit(), [0, 1]);
    assert_eq!(card.handle.from_guest().dropped, 3);
    assert_eq!(card.machine.status(), LIVE);
}

#[test]
fn pairs_stay_in_use_over_a_pause_and_in_another_machine_and_not_over_a_reset() {
    let mut card = Wide::new();
    assert_eq!(card.use_pairs(3), 0);
    assert!(card.peers[1].send(&frame(1, 60)));
    std::thread::sleep(Duration::from_millis(10));
    card.machine.pause();
    let DeviceState::Net(state) = card.machine.transport.state().unwrap().device else { panic!("a network card") };
    assert_eq!((state.active, state.pairs.iter().map(|pair| pair.received.len()).collect()), (3, vec![0, 1, 0]));
    card.machine.resume();
    assert_eq!(card.transmit(), [0, 1, 2]);
    card.machine = card.machine.carry(Box::new(Net::new(card.handle.clone(), CONFIG)));
    card.machine.resume();
    card.offer(2, &[Buffer::writable(INPUT, 2048)]);
    assert_eq!(finished(&mut card.drivers[2]), 72);
    assert_eq!(card.transmit(), [0, 1, 2]);
    card.check_receive(3);
    card.drivers = Wide::bring_up(&card.machine);
    assert_eq!(card.transmit(), [0]);
    // A new machine on the same cable, whose driver has not asked yet.
    assert_eq!(card.use_pairs(3), 0);
    card.machine.stop();
    card.machine = Machine::new(Box::new(Net::new(card.handle.clone(), CONFIG)));
    card.drivers = Wide::bring_up(&card.machine);
    assert_eq!(card.transmit(), [0]);
}

#[test]
fn a_driver_that_knows_one_pair_finds_its_control_queue_behind_it() {
    let card = Wide::new();
    let features = card.machine.offered() & !MULTI;
    let rings = [RINGS[0], RINGS[1], CONTROL_RING, Gpa(RING.0 + 0x2_0000)];
    let mut drivers = card.machine.bring_up_all(features, rings, 64);
    for (command, answer) in [(&[0, 0, 1, 0], 1), (&[4, 0, 2, 0], 1)] {
        card.machine.ram.write(HEADER, command).unwrap();
        drivers[2].add(&[Buffer::readable(HEADER, 4), Buffer::writable(STATUS, 1)]);
        card.machine.show(2, &mut drivers[2]);
        assert_eq!(
            (finished(&mut drivers[2]), card.machine.bytes(STATUS, 1)[0]),
            (1, answer),
            "several were not agreed on"
        );
    }
    // A queue that is nothing to this driver is left alone.
    drivers[3].add(&[Buffer::readable(DATA, 72)]);
    card.machine.show(3, &mut drivers[3]);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((drivers[3].take_used(), card.machine.status()), (None, LIVE));
}

#[test]
fn a_link_has_as_many_queues_as_a_card_can_have() {
    let sockets = |count| (0..count).map(|_| Peer::pair(LinkKind::Tap).0).collect();
    assert!(Link::stand_in(sockets(0), Offloads::NONE).is_err());
    assert!(Link::stand_in(sockets(MAX_PAIRS + 1), Offloads::NONE).is_err());
    assert_eq!(Link::stand_in(sockets(MAX_PAIRS), Offloads::NONE).unwrap().pairs(), MAX_PAIRS as u16);
    assert!(Link::tap(Vec::new()).is_err());
}
