//! The entropy device at work, with a driver that is honest and one that is not.

use crate::common;

use std::collections::HashSet;

use axvm_arch::Gpa;
use axvm_virtio::device::{VirtioDevice, feature};
use axvm_virtio::rng::Rng;
use axvm_virtio::testing::{Buffer, FakeDriver};
use common::*;

/// Most bytes for one request.
const BOUND: usize = 64 << 10;
/// What buffers hold before the device fills them.
const STALE: u8 = 0xa5;

/// A machine with an entropy device, its driver ready.
struct Source {
    machine: Machine,
    driver: FakeDriver,
}

impl Source {
    fn new(features: u64) -> Source {
        let machine = Machine::new(Box::new(Rng::default()));
        let features = machine.offered() & (features | feature::VERSION_1);
        let driver = FakeDriver::new(&machine.ram, RING, 64, features & feature::EVENT_IDX != 0);
        machine.bring_up(features, &driver.layout());
        assert_eq!(machine.status(), LIVE);
        Source { machine, driver }
    }

    fn kick(&mut self) {
        if self.driver.kick() {
            self.machine.set(reg::QUEUE_NOTIFY, 0);
        }
    }

    fn finish(&mut self) -> Option<usize> {
        let mut used = None;
        wait_until(|| {
            used = self.driver.take_used();
            used.is_some()
        });
        used.map(|(_, written)| written as usize)
    }

    /// One request over stale memory: how many bytes of it are filled.
    fn request(&mut self, buffers: &[Buffer]) -> usize {
        for buffer in buffers {
            self.machine.ram.write(buffer.gpa, &vec![STALE; buffer.len as usize]).unwrap();
        }
        self.driver.add(buffers);
        self.kick();
        self.finish().expect("the device answers")
    }

    /// The device asked for a reset, for this reason, and works after it.
    fn check_refused(mut self, buffers: &[Buffer], reason: &str) {
        self.driver.add(buffers);
        self.kick();
        assert!(wait_until(|| self.machine.status() == LIVE | NEEDS_RESET));
        assert!(wait_until(|| self.machine.tape.faults().len() == 1));
        assert!(self.machine.tape.faults()[0].contains(reason), "{:?}", self.machine.tape.faults());
        assert_eq!(self.driver.take_used(), None);
        self.driver = FakeDriver::new(&self.machine.ram, RING, 64, false);
        self.machine.bring_up(feature::VERSION_1, &self.driver.layout());
        assert_eq!(self.request(&[Buffer::writable(DATA, 32)]), 32);
    }
}

/// Whether `bytes` look like random numbers: no value fills much of them.
fn is_random(bytes: &[u8]) -> bool {
    let mut counts = [0; 256];
    bytes.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    counts.iter().all(|&count| count < bytes.len() / 8)
}

#[test]
fn the_device_is_an_entropy_source_without_configuration() {
    let machine = Machine::new(Box::new(Rng::default()));
    assert_eq!(machine.get(0x008), 4);
    assert_eq!(machine.offered(), feature::TRANSPORT);
    assert_eq!(machine.get(reg::CONFIG), 0);
    machine.set(reg::CONFIG, !0);
    assert_eq!(machine.get(reg::CONFIG), 0);
}

#[test]
fn every_byte_of_a_request_is_random() {
    for features in [0, feature::EVENT_IDX, !0] {
        let mut source = Source::new(features);
        for len in [1, 64, 4095, 4096, 4097, BOUND] {
            assert_eq!(source.request(&[Buffer::writable(DATA, len as u32)]), len);
            let bytes = source.machine.bytes(DATA, len);
            if len >= 64 {
                assert!(bytes.chunks_exact(len.min(1024)).all(is_random), "{len}");
            }
        }
        assert!(source.machine.interrupted());
    }
}

#[test]
fn no_two_requests_get_the_same() {
    let mut source = Source::new(!0);
    let mut seen = HashSet::new();
    for _ in 0..200 {
        assert_eq!(source.request(&[Buffer::writable(DATA, 16)]), 16);
        assert!(seen.insert(source.machine.bytes(DATA, 16)));
    }
}

#[test]
fn a_request_may_be_cut_anywhere_and_nothing_beside_it_changes() {
    let mut source = Source::new(!0);
    source.machine.ram.write(DATA, &[STALE; 1 << 16]).unwrap();
    let places = [(1, 1), (100, 7), (4000, 200), (9000, 5000)];
    let buffers = places.map(|(offset, len)| Buffer::writable(Gpa(DATA.0 + offset), len));
    assert_eq!(source.request(&buffers), 5208);
    let mut bytes = source.machine.bytes(DATA, 1 << 16);
    for (offset, len) in places {
        let part = &mut bytes[offset as usize..][..len as usize];
        assert!(len < 200 || is_random(part));
        part.fill(STALE);
    }
    assert!(bytes.iter().all(|&byte| byte == STALE));
}

#[test]
fn a_large_request_is_filled_up_to_the_bound() {
    let mut source = Source::new(!0);
    assert_eq!(source.request(&[Buffer::writable(DATA, 8 << 20)]), BOUND);
    let bytes = source.machine.bytes(DATA, 8 << 20);
    assert!(bytes[..BOUND].chunks(1024).all(is_random));
    assert!(bytes[BOUND..].iter().all(|&byte| byte == STALE));

    let halves = [(0, 40_000), (1 << 20, 40_000)];
    assert_eq!(source.request(&halves.map(|(offset, len)| Buffer::writable(Gpa(DATA.0 + offset), len))), BOUND);
    let second = source.machine.bytes(Gpa(DATA.0 + (1 << 20)), 40_000);
    assert!(is_random(&second[..BOUND - 40_000]));
    assert!(second[BOUND - 40_000..].iter().all(|&byte| byte == STALE));
}

#[test]
fn a_full_ring_is_served() {
    let mut source = Source::new(!0);
    for n in 0..64 {
        source.driver.add(&[Buffer::writable(Gpa(DATA.0 + n * 64), 64)]);
    }
    source.kick();
    for _ in 0..64 {
        assert_eq!(source.finish(), Some(64));
    }
    assert!(is_random(&source.machine.bytes(DATA, 64 * 64)));
}

#[test]
fn a_request_that_breaks_the_rules_costs_a_reset() {
    Source::new(0).check_refused(&[Buffer::readable(DATA, 16)], "to read");
    Source::new(0).check_refused(&[Buffer::readable(DATA, 16), Buffer::writable(HEADER, 16)], "to read");
    Source::new(0).check_refused(&[Buffer::writable(DATA, 0)], "no room");
    Source::new(0).check_refused(&[Buffer::writable(Gpa(1 << 40), 16)], "RAM");
    Source::new(0).check_refused(&[Buffer::writable(Gpa((32 << 20) - 8), 16)], "RAM");
}

#[test]
fn a_stopped_device_touches_nothing() {
    let mut source = Source::new(0);
    assert_eq!(source.request(&[Buffer::writable(DATA, 8)]), 8);
    source.machine.stop();
    source.machine.ram.write(DATA, &[STALE; 8]).unwrap();
    source.driver.add(&[Buffer::writable(DATA, 8)]);
    source.driver.kick();
    source.machine.set(reg::QUEUE_NOTIFY, 0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(source.machine.bytes(DATA, 8), [STALE; 8]);
    assert!(Rng::default().stop(None).unwrap().is_empty());
}
