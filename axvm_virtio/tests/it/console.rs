//! The console at work: a host that is slow, a driver that is slow, and stops in between.

use crate::common;

use std::sync::Arc;
use std::time::Duration;

use axvm_arch::Gpa;
use axvm_console::{Port, Size};
use axvm_devices::{BusDevice, Irq};
use axvm_events::Events;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::console::Console;
use axvm_virtio::device::{VirtioDevice, feature};
use axvm_virtio::mmio::MmioTransport;
use axvm_virtio::testing::{Buffer, FakeDriver};
use common::line::*;
use common::*;

const F_SIZE: u64 = 1;
const F_EMERG_WRITE: u64 = 4;
const EMERG_WR: u64 = reg::CONFIG + 8;
const CONFIG_CHANGE: u32 = 2;

#[test]
fn the_device_is_a_console_that_offers_size_and_emergency_write() {
    let port = Port::new().unwrap();
    port.resize(Size { columns: 132, rows: 50 });
    let machine = Machine::new(Box::new(Console::new(port)));
    assert_eq!(machine.get(0x008), 3);
    assert_eq!(machine.offered() & !feature::TRANSPORT, F_SIZE | F_EMERG_WRITE);
    assert_eq!(machine.get(reg::CONFIG), 132 | 50 << 16);
    let mut rows = [0; 2];
    machine.transport.read(reg::CONFIG + 2, &mut rows);
    assert_eq!((rows, machine.get(EMERG_WR)), ([50, 0], 0));
    for queue in [(RECEIVE, 64), (TRANSMIT, 64), (2, 0)] {
        machine.set(reg::QUEUE_SEL, queue.0);
        assert_eq!(machine.get(reg::QUEUE_NUM_MAX), queue.1);
    }
}

#[test]
fn an_emergency_write_needs_no_driver() {
    let port = Port::new().unwrap();
    let machine = Machine::new(Box::new(Console::new(port.clone())));
    machine.set(EMERG_WR, u32::from(b'a'));
    machine.transport.write(EMERG_WR, b"b");
    machine.set(reg::CONFIG, u32::from(b'x'));
    let mut bytes = Vec::new();
    port.take(&mut bytes);
    assert_eq!(bytes, b"ab");
}

#[test]
fn output_arrives_in_order_however_it_is_cut() {
    for features in [0, feature::EVENT_IDX, !0] {
        let mut line = Line::new(features);
        let text = text(40_000);
        line.machine.ram.write(DATA, &text).unwrap();
        let mut at = 0;
        for (round, len) in [1, 7, 4096, 4097, 10_000, 20_000, 1799].into_iter().enumerate() {
            let middle = at + len / 3;
            let place = |from: usize, to: usize| Buffer::readable(Gpa(DATA.0 + from as u64), (to - from) as u32);
            let buffers = [place(at, middle), place(middle, at + len)];
            if line.features & feature::INDIRECT_DESC != 0 && round % 2 == 0 {
                line.drivers[1].add_indirect(HEADER, &buffers);
                line.kick(TRANSMIT);
            } else {
                line.offer(TRANSMIT, &buffers);
            }
            assert_eq!(line.finish(TRANSMIT), 0);
            at += len;
        }
        assert!(line.output(at) == text);
        assert!(line.machine.interrupted());
        line.check_alive();
    }
}

#[test]
fn a_full_ring_of_output_is_sent() {
    let mut line = Line::new(!0);
    line.machine.ram.write(DATA, &text(64)).unwrap();
    (0..64).for_each(|n| _ = line.drivers[1].add(&[Buffer::readable(Gpa(DATA.0 + n), 1)]));
    line.kick(TRANSMIT);
    assert_eq!(line.output(64), text(64));
    (0..64).for_each(|_| assert_eq!(line.finish(TRANSMIT), 0));
}

#[test]
fn input_waits_for_buffers_and_fills_them() {
    for features in [0, feature::EVENT_IDX, !0] {
        let mut line = Line::new(features);
        let text = text(WELCOME);
        assert_eq!(line.port.put(&text), WELCOME);
        let (mut got, mut len) = (Vec::new(), 1);
        while got.len() < WELCOME {
            got.extend(line.read(len));
            len = len * 3 % 5000 + 1;
        }
        assert!(got == text);
        // Buffers that wait for input get each keystroke at once.
        line.offer(RECEIVE, &[Buffer::writable(INPUT, 100)]);
        line.offer(RECEIVE, &[Buffer::writable(Gpa(INPUT.0 + 100), 100)]);
        for key in 0..2 {
            line.port.put(b"k");
            assert_eq!(line.finish(RECEIVE), 1);
            assert_eq!(line.machine.bytes(Gpa(INPUT.0 + 100 * key), 1), b"k");
        }
        assert!(line.machine.interrupted());
    }
}

#[test]
fn a_host_that_is_behind_holds_the_chain_and_loses_nothing() {
    let mut line = Line::new(!0);
    let text = text(300_000);
    line.print(&text);
    line.wait_for_full_port();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(line.drivers[1].take_used(), None);
    let mut got = Vec::new();
    while got.len() < text.len() {
        assert!(wait_until(|| line.port.room() == 0 || got.len() + WELCOME > text.len()));
        assert!(line.port.take(&mut got) <= WELCOME, "no more than there is room for");
    }
    assert_eq!(line.finish(TRANSMIT), 0);
    assert!(got == text);
    line.check_alive();
}

#[test]
fn input_arrives_while_output_is_held() {
    let mut line = Line::new(!0);
    line.print(&text(100_000));
    line.wait_for_full_port();
    line.port.put(b"\x03");
    assert_eq!(line.read(8), b"\x03");
}

#[test]
fn a_pause_in_the_middle_of_a_chain_neither_loses_nor_repeats() {
    let mut line = Line::new(!0);
    let text = text(400_000);
    line.print(&text);
    let mut got = Vec::new();
    for round in 0.. {
        if round % 2 == 0 {
            assert!(wait_until(|| line.port.room() == 0 || got.len() + line.port.take(&mut got) >= text.len()));
        }
        line.machine.pause();
        let transmit = line.machine.transport.state().unwrap().queues[1];
        assert_eq!(transmit.indices.next_avail, transmit.indices.next_used, "no chain is in flight");
        if got.len() < text.len() {
            line.port.take(&mut got);
        }
        line.machine.resume();
        if got.len() >= text.len() {
            break;
        }
    }
    assert_eq!(line.finish(TRANSMIT), 0);
    assert!(got == text, "{} bytes of {}", got.len(), text.len());
    line.check_alive();
}

#[test]
fn input_and_kicks_of_a_pause_are_served_after_it() {
    let mut line = Line::new(!0);
    line.check_alive();
    line.machine.pause();
    line.port.put(b"typed");
    line.offer(RECEIVE, &[Buffer::writable(INPUT, 10)]);
    line.print(b"printed");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((line.port.pending(), line.port.take(&mut Vec::new())), (5, 0));
    line.machine.resume();
    assert_eq!((line.output(7), line.finish(RECEIVE)), (b"printed".to_vec(), 5));
}

#[test]
fn a_reset_forgets_the_half_sent_chain() {
    let mut line = Line::new(!0);
    line.print(&text(100_000));
    line.wait_for_full_port();
    line.bring_up();
    assert_eq!(line.output(WELCOME).len(), WELCOME);
    line.check_alive();
}

#[test]
fn a_queue_reset_forgets_the_half_sent_chain() {
    let mut line = Line::new(!0);
    line.print(&text(100_000));
    line.wait_for_full_port();
    line.machine.set(reg::QUEUE_SEL, TRANSMIT);
    line.machine.set(reg::QUEUE_RESET, 1);
    line.drivers[1] = FakeDriver::new(&line.machine.ram, RINGS[1], 64, line.features & feature::EVENT_IDX != 0);
    line.machine.enable_queue(TRANSMIT, &line.drivers[1].layout());
    assert_eq!(line.output(WELCOME).len(), WELCOME);
    line.check_alive();
}

#[test]
fn each_queue_works_without_the_other() {
    for queue in [RECEIVE, TRANSMIT] {
        let mut line = Line::new(!0);
        line.machine.agree(line.features);
        let event_idx = line.features & feature::EVENT_IDX != 0;
        line.drivers = RINGS.map(|ring| FakeDriver::new(&line.machine.ram, ring, 64, event_idx));
        line.machine.enable_queue(queue, &line.drivers[queue as usize].layout());
        line.machine.set(reg::STATUS, LIVE);
        line.port.put(b"in");
        match queue {
            RECEIVE => assert_eq!(line.read(2), b"in"),
            _ => {
                line.print(b"out");
                assert_eq!(line.output(3), b"out");
            }
        }
    }
}

#[test]
fn a_new_size_is_told_by_a_configuration_interrupt() {
    let line = Line::new(!0);
    assert_eq!(line.machine.get(reg::INTERRUPT_STATUS), 0);
    let generation = line.machine.get(reg::CONFIG_GENERATION);
    line.port.resize(Size { columns: 100, rows: 30 });
    assert!(line.machine.interrupted());
    assert_eq!(line.machine.get(reg::INTERRUPT_STATUS), CONFIG_CHANGE);
    assert_eq!(line.machine.get(reg::CONFIG), 100 | 30 << 16);
    assert_ne!(line.machine.get(reg::CONFIG_GENERATION), generation);
}

#[test]
fn a_new_size_in_a_pause_is_told_after_it() {
    let line = Line::new(!0);
    line.machine.pause();
    line.port.resize(Size { columns: 100, rows: 30 });
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(line.machine.get(reg::INTERRUPT_STATUS), 0);
    line.machine.resume();
    assert!(wait_until(|| line.machine.get(reg::INTERRUPT_STATUS) == CONFIG_CHANGE));
}

#[test]
fn the_size_is_told_again_with_the_first_output() {
    let mut line = Line::new(!0);
    line.port.resize(Size { columns: 80, rows: 25 });
    assert!(line.machine.interrupted());
    line.bring_up();
    assert_eq!(line.machine.get(reg::INTERRUPT_STATUS), 0, "a driver finds it in the configuration");
    for told in [CONFIG_CHANGE, 0] {
        line.machine.set(reg::INTERRUPT_ACK, !0);
        line.print(b"x");
        line.finish(TRANSMIT);
        // The worker tells the size after it returned the chain; input shows that it came past that.
        line.port.put(b"y");
        line.read(1);
        line.port.put(b"y");
        line.read(1);
        assert_eq!(line.machine.get(reg::INTERRUPT_STATUS) & CONFIG_CHANGE, told);
    }
}

#[test]
fn a_stopped_device_touches_nothing() {
    let mut line = Line::new(0);
    line.check_alive();
    line.machine.stop();
    line.port.put(b"x");
    line.print(b"x");
    line.offer(RECEIVE, &[Buffer::writable(INPUT, 1)]);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((line.port.pending(), line.port.take(&mut Vec::new())), (1, 0));
    assert!(Console::new(line.port).stop(None).unwrap().is_empty());
}

/// What the thread called `name` has used of a processor.
fn processor_time(name: &str) -> Duration {
    let mut tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|entry| entry.path());
    let named = |task: &std::path::PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    let task = tasks.find(named).expect("the worker is there");
    let schedstat = std::fs::read_to_string(task.join("schedstat")).unwrap();
    Duration::from_nanos(schedstat.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn waiting_takes_no_processor_time() {
    let (port, ram) = (Port::new().unwrap(), GuestRam::allocate(&RamConfig::new(32 << 20)).unwrap());
    let (irq, device) = (Irq::new().unwrap(), Box::new(Console::new(port.clone())));
    let transport = MmioTransport::new("idle", device, ram.clone(), irq.try_clone().unwrap(), Events::default());
    let machine = Machine { ram, transport: transport.unwrap(), irq, tape: Arc::default(), rules: Arc::default() };
    let features = feature::VERSION_1 | feature::EVENT_IDX;
    let drivers = RINGS.map(|ring| FakeDriver::new(&machine.ram, ring, 64, true));
    let mut line = Line { machine, port, features, drivers };
    line.bring_up();
    // Both directions have to wait.
    line.port.put(b"no driver takes this");
    line.print(&text(100_000));
    line.print(b"more");
    line.wait_for_full_port();
    std::thread::sleep(Duration::from_millis(50));
    let before = processor_time("idle");
    std::thread::sleep(Duration::from_millis(300));
    assert!(processor_time("idle") - before < Duration::from_millis(30));
}
