//! A machine with a console: the driver's side of both queues, and the host's side of the port.

use axvm_arch::Gpa;
use axvm_console::Port;
use axvm_virtio::console::Console;
use axvm_virtio::device::feature;
use axvm_virtio::testing::{Buffer, FakeDriver};

use super::*;

pub const RECEIVE: u32 = 0;
pub const TRANSMIT: u32 = 1;
pub const RINGS: [Gpa; 2] = [RING, Gpa(RING.0 + 0x8000)];
/// Where input goes; output comes from [`DATA`].
pub const INPUT: Gpa = Gpa(0x100_0000);
/// Bytes that a port takes while it is welcome to.
pub const WELCOME: usize = 64 << 10;

/// A machine with a console, its driver ready, and the host's end of the line.
pub struct Line {
    pub machine: Machine,
    pub port: Port,
    pub features: u64,
    /// By queue number.
    pub drivers: [FakeDriver; 2],
}

impl Line {
    pub fn new(features: u64) -> Line {
        let port = Port::new().unwrap();
        let machine = Machine::new(Box::new(Console::new(port.clone())));
        let features = machine.offered() & (features | feature::VERSION_1);
        let drivers = machine.bring_up_all(features, RINGS, 64);
        Line { machine, port, features, drivers }
    }

    /// Resets the device, forgets all chains, and starts anew.
    pub fn bring_up(&mut self) {
        self.drivers = self.machine.bring_up_all(self.features, RINGS, 64);
    }

    pub fn kick(&mut self, queue: u32) {
        self.machine.show(queue, &mut self.drivers[queue as usize]);
    }

    pub fn offer(&mut self, queue: u32, buffers: &[Buffer]) {
        self.drivers[queue as usize].add(buffers);
        self.kick(queue);
    }

    pub fn finish(&mut self, queue: u32) -> usize {
        finished(&mut self.drivers[queue as usize])
    }

    /// One buffer of output.
    pub fn print(&mut self, text: &[u8]) {
        self.machine.ram.write(DATA, text).unwrap();
        self.offer(TRANSMIT, &[Buffer::readable(DATA, text.len() as u32)]);
    }

    /// Waits until the host has got so much.
    pub fn output(&self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        assert!(wait_until(|| {
            self.port.take(&mut bytes);
            bytes.len() >= len
        }));
        bytes
    }

    /// Waits until the port is full: the device has sent what there was room for.
    pub fn wait_for_full_port(&self) {
        assert!(wait_until(|| self.port.room() == 0));
    }

    /// Gives one buffer for input and waits for it.
    pub fn read(&mut self, len: u32) -> Vec<u8> {
        self.offer(RECEIVE, &[Buffer::writable(INPUT, len)]);
        let count = self.finish(RECEIVE);
        self.machine.bytes(INPUT, count)
    }

    pub fn check_alive(&mut self) {
        self.print(b"out");
        assert_eq!((self.output(3), self.finish(TRANSMIT)), (b"out".to_vec(), 0));
        assert_eq!(self.port.put(b"in"), 2);
        assert_eq!(self.read(16), b"in");
        assert_eq!(self.machine.status(), LIVE);
    }

    /// The device asks for a reset, for this reason, and works after it.
    pub fn check_refused(mut self, queue: u32, buffers: &[Buffer], reason: &str) {
        self.port.put(b"x");
        self.offer(queue, buffers);
        self.check_fault(reason);
    }

    pub fn check_fault(mut self, reason: &str) {
        assert!(wait_until(|| self.machine.tape.faults().len() == 1));
        assert!(self.machine.tape.faults()[0].contains(reason), "{:?}", self.machine.tape.faults());
        assert_eq!(self.machine.status(), LIVE | NEEDS_RESET);
        self.bring_up();
        if self.port.pending() > 0 {
            assert_eq!(self.read(1), b"x", "no input is lost by the driver's fault");
        }
        self.check_alive();
    }
}

/// Text in which each place is known.
pub fn text(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8).collect()
}
