//! The control queue of a network card: what a driver asks for, and what it gets.

use crate::common;

use axvm_arch::Gpa;
use axvm_devices::BusDevice;
use axvm_virtio::net::{Link, LinkKind, Net, NetHandle};
use axvm_virtio::testing::{Buffer, FakeDriver, NEXT, RawDescriptor};
use common::card::*;
use common::*;

/// Answers.
const DONE: u8 = 0;
const REFUSED: u8 = 1;
/// Commands are written here, and answered behind.
const COMMAND: Gpa = HEADER;
const ANSWER: Gpa = STATUS;

/// A card with a control queue.
struct Controlled {
    machine: Machine,
    handle: NetHandle,
    drivers: [FakeDriver; 3],
    _peer: Peer,
}

impl Controlled {
    fn new() -> Controlled {
        let (ours, peer) = Peer::pair(LinkKind::Stream);
        let handle = NetHandle::new(Link::new(LinkKind::Stream, ours).unwrap()).unwrap();
        let machine = Machine::new(Box::new(Net::new(handle.clone(), CONFIG)));
        let drivers = Controlled::bring_up(&machine);
        Controlled { machine, handle, drivers, _peer: peer }
    }

    fn bring_up(machine: &Machine) -> [FakeDriver; 3] {
        machine.bring_up_all(machine.offered(), [RINGS[0], RINGS[1], CONTROL_RING], 64)
    }

    fn offer(&mut self, buffers: &[Buffer]) {
        let driver = &mut self.drivers[CONTROL as usize];
        driver.add(buffers);
        self.machine.show(CONTROL, driver);
    }

    fn ask(&mut self, command: &[u8]) -> u8 {
        self.machine.ram.write(COMMAND, command).unwrap();
        self.ask_in(&[Buffer::readable(COMMAND, command.len() as u32)])
    }

    fn ask_in(&mut self, command: &[Buffer]) -> u8 {
        self.machine.ram.write(ANSWER, &[UNTOUCHED; 2]).unwrap();
        self.offer(&[command, &[Buffer::writable(ANSWER, 2)]].concat());
        assert_eq!(finished(&mut self.drivers[CONTROL as usize]), 1);
        assert_eq!(self.machine.bytes(ANSWER, 2)[1], UNTOUCHED);
        self.machine.bytes(ANSWER, 1)[0]
    }

    fn mac(&self) -> [u8; 6] {
        let mut mac = [0; 6];
        self.machine.transport.read(reg::CONFIG, &mut mac);
        mac
    }
}

#[test]
fn commands_are_done_or_refused() {
    let mut card = Controlled::new();
    let table = |count: u32, addresses: usize| [&count.to_le_bytes()[..], &vec![2; 6 * addresses]].concat();
    let set = |tables: &[Vec<u8>]| [&[1, 0][..], &tables.concat()].concat();
    for command in
        [&[0, 0, 1][..], &[0, 0, 0], &[0, 1, 1], &set(&[table(0, 0), table(0, 0)]), &set(&[table(3, 3), table(9, 9)])]
    {
        assert_eq!(card.ask(command), DONE, "{command:?}");
    }
    let refused = [
        // Cut short, or too long.
        &[0][..],
        &[0, 0],
        &[0, 0, 1, 1],
        &[1, 1, 2, 2, 2, 2, 2],
        &[1, 1, 2, 2, 2, 2, 2, 2, 2],
        &set(&[table(0, 0)]),
        &set(&[table(1, 0), table(0, 0)]),
        &set(&[table(u32::MAX, 1), table(0, 0)]),
        &set(&[table(0, 0), table(0, 1)]),
        // What is not offered: more modes, VLANs, announcements, several pairs, offloads.
        &[0, 2, 1],
        &[2, 0, 1, 0],
        &[3, 0],
        &[4, 0, 1, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0xff; 20],
    ];
    for command in refused {
        assert_eq!(card.ask(command), REFUSED, "{command:?}");
    }
    assert_eq!((card.machine.status(), card.mac()), (LIVE, CONFIG.mac));
}

#[test]
fn a_driver_gives_the_card_an_address_until_the_next_reset() {
    let mut card = Controlled::new();
    let mac = [2, 4, 6, 8, 10, 12];
    assert_eq!(card.ask(&[&[1, 1][..], &mac].concat()), DONE);
    assert_eq!(card.mac(), mac);
    card.machine.pause();
    card.machine.resume();
    assert_eq!(card.mac(), mac);
    card.machine = card.machine.carry(Box::new(Net::new(card.handle.clone(), CONFIG)));
    card.machine.resume();
    assert_eq!(card.mac(), mac);
    card.drivers = Controlled::bring_up(&card.machine);
    assert_eq!(card.mac(), CONFIG.mac);
    assert_eq!(card.ask(&[0, 0, 1]), DONE);
}

#[test]
fn a_command_may_be_cut_anywhere() {
    let mut card = Controlled::new();
    card.machine.ram.write(COMMAND, &[1, 1, 2, 2, 2, 2, 2, 7]).unwrap();
    let bytes: Vec<_> = (0..8).map(|at| Buffer::readable(Gpa(COMMAND.0 + at), 1)).collect();
    assert_eq!(card.ask_in(&bytes), DONE);
    assert_eq!(card.mac(), [2, 2, 2, 2, 2, 7]);
    assert_eq!(card.ask_in(&[Buffer::readable(COMMAND, 0)]), REFUSED);
    assert_eq!(card.ask_in(&[]), REFUSED);
    // Longer than any: not even copied.
    assert_eq!(card.ask_in(&[Buffer::readable(Gpa(0), 31 << 20); 8]), REFUSED);
    assert_eq!(card.machine.status(), LIVE);
}

#[test]
fn a_command_without_room_for_an_answer_costs_a_reset() {
    for buffers in [
        &[Buffer::readable(COMMAND, 3)][..],
        &[Buffer::readable(COMMAND, 3), Buffer::writable(ANSWER, 0)],
        &[Buffer::readable(Gpa((32 << 20) - 1), 3), Buffer::writable(ANSWER, 1)],
    ] {
        let mut card = Controlled::new();
        card.offer(buffers);
        assert!(wait_until(|| card.machine.tape.faults().len() == 1));
        card.drivers = Controlled::bring_up(&card.machine);
        assert_eq!(card.ask(&[0, 0, 1]), DONE);
    }
}

#[test]
fn loops_and_lying_indices_of_commands_cost_a_reset() {
    for lie in [false, true] {
        let mut card = Controlled::new();
        let driver = &mut card.drivers[CONTROL as usize];
        if lie {
            driver.set_avail_idx(1000);
        } else {
            driver.write_descriptor(5, RawDescriptor { addr: COMMAND.0, len: 1, flags: NEXT, next: 5 });
            driver.offer(5);
            driver.kick();
        }
        card.machine.set(reg::QUEUE_NOTIFY, CONTROL);
        assert!(wait_until(|| card.machine.tape.faults().len() == 1));
        card.drivers = Controlled::bring_up(&card.machine);
        assert_eq!(card.ask(&[0, 0, 1]), DONE);
    }
}
