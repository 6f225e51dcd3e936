//! The console under a driver that lies, floods, or never ends.

use crate::common;

use axvm_arch::Gpa;
use axvm_console::Port;
use axvm_devices::BusDevice;
use axvm_virtio::console::Console;
use axvm_virtio::testing::{Buffer, NEXT, RawDescriptor, WRITE};
use common::line::*;
use common::*;

#[test]
fn buffers_that_break_the_rules_cost_a_reset() {
    let beyond = Buffer::readable(Gpa((32 << 20) - 8), 16);
    for features in [0, !0] {
        let line = || Line::new(features);
        line().check_refused(RECEIVE, &[Buffer::readable(DATA, 16)], "to read");
        line().check_refused(RECEIVE, &[Buffer::readable(DATA, 1), Buffer::writable(INPUT, 16)], "to read");
        line().check_refused(RECEIVE, &[Buffer::writable(INPUT, 0)], "no room");
        line().check_refused(RECEIVE, &[Buffer::writable(Gpa(1 << 40), 16)], "RAM");
        line().check_refused(TRANSMIT, &[Buffer::writable(DATA, 16)], "to write");
        line().check_refused(TRANSMIT, &[Buffer::readable(DATA, 1), Buffer::writable(INPUT, 16)], "to write");
        line().check_refused(TRANSMIT, &[beyond], "RAM");
    }
}

#[test]
fn loops_and_lying_indices_cost_a_reset() {
    for queue in [RECEIVE, TRANSMIT] {
        let mut line = Line::new(0);
        line.port.put(b"x");
        let flags = NEXT | if queue == RECEIVE { WRITE } else { 0 };
        line.drivers[queue as usize].write_descriptor(5, RawDescriptor { addr: DATA.0, len: 1, flags, next: 5 });
        line.drivers[queue as usize].offer(5);
        line.kick(queue);
        line.check_fault("loop");

        let mut line = Line::new(0);
        line.port.put(b"x");
        line.drivers[queue as usize].set_avail_idx(1000);
        line.machine.set(reg::QUEUE_NOTIFY, queue);
        line.check_fault("avail");
    }
}

#[test]
fn output_of_no_bytes_comes_back() {
    let mut line = Line::new(0);
    line.offer(TRANSMIT, &[Buffer::readable(DATA, 0)]);
    assert_eq!(line.finish(TRANSMIT), 0);
    line.check_alive();
}

#[test]
fn a_chain_that_shrinks_while_it_is_held_is_the_drivers_loss() {
    let mut line = Line::new(0);
    line.print(&text(100_000));
    line.wait_for_full_port();
    line.drivers[1].write_descriptor(0, RawDescriptor { addr: DATA.0, len: 5, flags: 0, next: 0 });
    assert_eq!(line.output(WELCOME).len(), WELCOME);
    assert_eq!(line.finish(TRANSMIT), 0);
    line.check_alive();
}

#[test]
fn a_flood_of_emergency_writes_is_bounded_and_counted() {
    let port = Port::new().unwrap();
    let machine = Machine::new(Box::new(Console::new(port.clone())));
    let total = WELCOME + (1 << 20);
    (0..total + 5).for_each(|_| machine.transport.write(reg::CONFIG + 8, b"x"));
    assert_eq!((port.take(&mut Vec::new()), port.lost()), (total, 5));
}

#[test]
fn input_arrives_while_output_never_ends() {
    let mut line = Line::new(!0);
    let port = line.port.clone();
    let host = std::thread::spawn(move || while port.take(&mut Vec::new()) != 1 {});
    line.offer(TRANSMIT, &vec![Buffer::readable(DATA, 24 << 20 >> 1); 60]);
    line.port.put(b"\x03");
    assert_eq!(line.read(8), b"\x03");
    assert_eq!(line.drivers[1].take_used(), None, "720 MiB take longer");
    line.machine.set(reg::STATUS, 0);
    line.port.take(&mut Vec::new());
    line.port.send(b"x");
    host.join().unwrap();
}
