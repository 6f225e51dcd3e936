//! The agent's port: control messages, one client after the other, bytes both ways, and its ends.

use crate::common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use axvm_arch::Gpa;
use axvm_devices::BusDevice;
use axvm_virtio::agent_port::{AgentPort, AgentPortHost, NAME};
use axvm_virtio::testing::{Buffer, FakeDriver};
use common::*;
use tempfile::TempDir;

const MULTIPORT: u64 = 1 << 1;
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const FROM_DEVICE: u32 = 2;
const TO_DEVICE: u32 = 3;

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// Where messages of the device go; what the guest reads, and writes.
const MESSAGES: Gpa = Gpa(0x60_0000);
const INPUT: Gpa = Gpa(0x100_0000);

struct Guest {
    machine: Machine,
    host: AgentPortHost,
    directory: TempDir,
    drivers: [FakeDriver; 4],
}

impl Guest {
    fn new() -> Guest {
        let directory = tempfile::tempdir().unwrap();
        let host = AgentPortHost::new(UnixListener::bind(directory.path().join("a")).unwrap()).unwrap();
        let machine = Machine::new(Box::new(AgentPort::new(&host)));
        let drivers = Guest::bring_up(&machine);
        Guest { machine, host, directory, drivers }
    }

    fn bring_up(machine: &Machine) -> [FakeDriver; 4] {
        let rings = std::array::from_fn(|number| Gpa(RING.0 + 0x8000 * number as u64));
        machine.bring_up_all(machine.offered(), rings, 16)
    }

    fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.directory.path().join("a")).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (&client).write_all(b"CONNECT 348\n").unwrap();
        client
    }

    fn offer(&mut self, queue: u32, buffers: &[Buffer]) {
        let driver = &mut self.drivers[queue as usize];
        driver.add(buffers);
        self.machine.show(queue, driver);
    }

    fn say(&mut self, event: u16, value: u16) {
        let message = [&[0; 4][..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
        self.machine.ram.write(HEADER, &message).unwrap();
        self.offer(TO_DEVICE, &[Buffer::readable(HEADER, 8)]);
        assert_eq!(finished(&mut self.drivers[TO_DEVICE as usize]), 0);
    }

    /// The next message of the device: event, value, name.
    fn told(&mut self) -> (u16, u16, String) {
        self.offer(FROM_DEVICE, &[Buffer::writable(MESSAGES, 100)]);
        let len = finished(&mut self.drivers[FROM_DEVICE as usize]);
        let bytes = self.machine.bytes(MESSAGES, len);
        assert_eq!(bytes[..4], [0; 4], "the only port");
        let number = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (number(4), number(6), String::from_utf8(bytes[8..].to_vec()).unwrap())
    }

    /// As Linux does it, and a program that opens the port.
    fn open(&mut self) {
        self.say(DEVICE_READY, 1);
        assert_eq!(self.told(), (PORT_ADD, 1, String::new()));
        self.say(PORT_READY, 1);
        assert_eq!(self.told(), (PORT_NAME, 1, NAME.into()));
        assert_eq!(self.told(), (PORT_OPEN, 1, String::new()));
        self.say(PORT_OPEN, 1);
    }

    fn write(&mut self, bytes: &[u8]) {
        self.machine.ram.write(DATA, bytes).unwrap();
        self.offer(TRANSMIT, &[Buffer::readable(DATA, bytes.len() as u32)]);
        assert_eq!(finished(&mut self.drivers[TRANSMIT as usize]), 0);
    }

    fn read(&mut self) -> Vec<u8> {
        self.offer(RECEIVE, &[Buffer::writable(INPUT, 4096)]);
        let len = finished(&mut self.drivers[RECEIVE as usize]);
        self.machine.bytes(INPUT, len)
    }

    fn check_talk(&mut self, client: &mut UnixStream) {
        assert_eq!(read_line(client), "OK 0\n");
        client.write_all(b"hello guest").unwrap();
        assert_eq!(self.read(), b"hello guest");
        self.write(b"hello host");
        let mut bytes = [0; 10];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello host");
    }
}

fn read_line(client: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn rest_of(client: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn clients_have_the_port_one_after_the_other() {
    let mut guest = Guest::new();
    let (mut first, mut second) = (guest.client(), guest.client());
    guest.open();
    guest.check_talk(&mut first);
    // The guest's program closes: what it wrote arrives, then the end.
    guest.write(b"last words");
    guest.say(PORT_OPEN, 0);
    assert_eq!(rest_of(&mut first), b"last words");
    guest.say(PORT_OPEN, 1);
    guest.check_talk(&mut second);
    // The client goes: the guest's program is told, and closes before there is another.
    let mut third = guest.client();
    drop(second);
    guest.offer(RECEIVE, &[Buffer::writable(INPUT, 4096)]);
    assert_eq!(guest.told(), (PORT_OPEN, 0, String::new()));
    guest.write(b"for none");
    guest.say(PORT_OPEN, 0);
    assert_eq!(guest.told(), (PORT_OPEN, 1, String::new()));
    guest.say(PORT_OPEN, 1);
    assert_eq!(read_line(&mut third), "OK 0\n");
    third.write_all(b"third").unwrap();
    assert_eq!(finished(&mut guest.drivers[RECEIVE as usize]), 5);
    assert_eq!(guest.machine.status(), LIVE);
}

#[test]
fn what_a_slow_client_has_not_taken_is_kept_over_a_pause() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    guest.open();
    guest.check_talk(&mut client);
    let text: Vec<u8> = (0..4_u32 << 20).map(|at| (at ^ at >> 8) as u8).collect();
    guest.machine.ram.write(DATA, &text).unwrap();
    guest.offer(TRANSMIT, &[Buffer::readable(DATA, text.len() as u32)]);
    std::thread::sleep(Duration::from_millis(50));
    guest.machine.pause();
    guest.machine.resume();
    let mut got = vec![0; text.len()];
    client.read_exact(&mut got).unwrap();
    assert!(got == text);
    assert_eq!(finished(&mut guest.drivers[TRANSMIT as usize]), 0);
}

#[test]
fn a_reset_and_another_machine_end_the_connection() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    guest.open();
    guest.check_talk(&mut client);
    guest.drivers = Guest::bring_up(&guest.machine);
    assert_eq!(rest_of(&mut client), b"");
    let mut client = guest.client();
    guest.open();
    guest.check_talk(&mut client);
    let host = guest.host.clone();
    guest.machine = guest.machine.carry(Box::new(AgentPort::new(&host)));
    assert_eq!(rest_of(&mut client), b"");
    guest.machine.resume();
    assert_eq!(guest.told(), (PORT_OPEN, 0, String::new()), "its program is told");
    guest.say(PORT_OPEN, 0);
    assert_eq!(guest.told(), (PORT_OPEN, 1, String::new()));
    let mut client = guest.client();
    guest.say(PORT_OPEN, 1);
    guest.check_talk(&mut client);
}

#[test]
fn clients_that_say_something_else_or_nothing_lose_their_turn() {
    let mut guest = Guest::new();
    guest.open();
    let connect = |text: &[u8]| {
        let client = UnixStream::connect(guest.directory.path().join("a")).unwrap();
        (&client).write_all(text).unwrap();
        client
    };
    let mut wrong = [connect(b"GET / HTTP/1.0\n"), connect(&[b'x'; 100]), connect(b"CON")];
    let mut good = guest.client();
    let begin = std::time::Instant::now();
    guest.check_talk(&mut good);
    assert!(begin.elapsed() >= Duration::from_secs(1), "the silent one had its time");
    // What was not read of a line makes its end a reset.
    wrong.iter_mut().for_each(|client| assert!(!matches!(client.read(&mut [0]), Ok(1))));
}

#[test]
fn messages_that_are_none_mean_nothing() {
    let mut guest = Guest::new();
    for (event, value) in [(PORT_READY, 0), (PORT_OPEN, 1), (DEVICE_READY, 0), (99, 1), (PORT_ADD, 1)] {
        guest.say(event, value);
    }
    guest.offer(TO_DEVICE, &[Buffer::readable(HEADER, 7)]);
    assert_eq!(finished(&mut guest.drivers[TO_DEVICE as usize]), 0);
    // Asked a hundred times, answered once.
    (0..100).for_each(|_| guest.say(DEVICE_READY, 1));
    guest.say(PORT_READY, 1);
    assert_eq!(guest.told().0, PORT_ADD);
    assert_eq!(guest.told().0, PORT_NAME);
    assert_eq!(guest.told().0, PORT_OPEN);
    let mut client = guest.client();
    guest.say(PORT_OPEN, 1);
    guest.check_talk(&mut client);
}

#[test]
fn a_driver_that_breaks_the_rules_has_to_reset() {
    let cases = [
        (RECEIVE, Buffer::readable(DATA, 1), "An input buffer has no room"),
        (TRANSMIT, Buffer::writable(DATA, 1), "An output buffer has a part"),
        (FROM_DEVICE, Buffer::writable(DATA, 7), "A buffer for control messages has no room"),
        (TO_DEVICE, Buffer::writable(DATA, 8), "A control message has a part"),
    ];
    for (queue, buffer, reason) in cases {
        let mut guest = Guest::new();
        let mut client = guest.client();
        guest.open();
        assert_eq!(read_line(&mut client), "OK 0\n");
        client.write_all(b"x").unwrap();
        if queue == FROM_DEVICE {
            guest.say(PORT_READY, 1);
        }
        guest.offer(queue, &[buffer]);
        assert!(wait_until(|| guest.machine.tape.faults().len() == 1), "{reason}");
        assert!(guest.machine.tape.faults()[0].contains(reason), "{:?}", guest.machine.tape.faults());
        guest.drivers = Guest::bring_up(&guest.machine);
        let mut client = guest.client();
        guest.open();
        guest.check_talk(&mut client);
    }
}

#[test]
fn without_the_feature_there_is_no_port() {
    let guest = Guest::new();
    assert_eq!(guest.machine.offered() & 7, MULTIPORT);
    let mut config = [0xee; 12];
    guest.machine.transport.read(reg::CONFIG, &mut config);
    assert_eq!(config[..8], [0, 0, 0, 0, 1, 0, 0, 0]);
    let rings = std::array::from_fn::<_, 2, _>(|number| Gpa(RING.0 + 0x8000 * number as u64));
    guest.machine.bring_up_all(guest.machine.offered() & !MULTIPORT, rings, 16);
    assert_eq!(guest.machine.status(), LIVE);
}
