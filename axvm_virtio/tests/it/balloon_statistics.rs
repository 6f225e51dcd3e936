//! The balloon's statistics queue: a buffer that the device holds, and gives back to ask again.

use crate::common;

use std::thread::sleep;
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_virtio::balloon::{Balloon, BalloonConfig, Statistics, Target};
use axvm_virtio::device::feature;
use axvm_virtio::queue::QueueState;
use axvm_virtio::testing::{Buffer, FakeDriver};
use common::*;

const STATISTICS: u32 = 2;
const STATS_VQ: u64 = 1 << 1;
const PAGE_REPORTING: u64 = 1 << 5;
const FREE_MEMORY: u16 = 4;
/// Longer than a device takes that wants to do something.
const A_WHILE: Duration = Duration::from_millis(60);

/// A machine with a balloon and a driver that has statistics.
struct Guest {
    machine: Machine,
    driver: FakeDriver,
    target: Target,
}

impl Guest {
    fn new(features: u64) -> Guest {
        let balloon = Balloon::new(BalloonConfig { deflate_on_oom: true, free_page_reporting: true });
        let target = balloon.target();
        let machine = Machine::new(Box::new(balloon));
        let driver = FakeDriver::new(&machine.ram, RING, 8, features & feature::EVENT_IDX != 0);
        machine.agree(features | STATS_VQ | feature::VERSION_1);
        machine.enable_queue(STATISTICS, &driver.layout());
        machine.set(reg::STATUS, LIVE);
        Guest { machine, driver, target }
    }

    fn tell_bytes(&mut self, bytes: &[u8]) {
        self.machine.ram.write(DATA, bytes).unwrap();
        self.driver.add(&[Buffer::readable(DATA, bytes.len() as u32)]);
        if self.driver.kick() {
            self.machine.set(reg::QUEUE_NOTIFY, STATISTICS);
        }
    }

    /// Tells how much memory is free.
    fn tell(&mut self, free: u64) {
        self.tell_bytes(&[&FREE_MEMORY.to_le_bytes()[..], &free.to_le_bytes()].concat());
    }

    /// Whether the device asks for a new report, soon.
    fn is_asked(&mut self) -> bool {
        wait_until(|| self.driver.take_used().is_some_and(|used| used.1 == 0))
    }

    fn is_left_alone(&mut self) -> bool {
        sleep(A_WHILE);
        self.driver.take_used().is_none()
    }

    fn free(&self) -> Option<u64> {
        self.target.statistics().and_then(|report| report.statistics.free_memory)
    }

    fn knows(&self, free: u64) -> bool {
        wait_until(|| self.free() == Some(free))
    }

    fn pause(&self) {
        self.machine.pause();
        let state = self.machine.transport.state().unwrap().queues[STATISTICS as usize].indices;
        assert_eq!(state.next_avail, state.next_used, "nothing is in flight");
    }

    fn resume(&self) {
        self.machine.resume();
    }
}

#[test]
fn the_first_report_is_read_and_its_buffer_held() {
    for features in [0, feature::EVENT_IDX] {
        let mut guest = Guest::new(features);
        assert_eq!((guest.target.statistics(), guest.target.statistics_interval()), (None, Duration::ZERO));
        guest.tell(7);
        assert!(guest.knows(7) && guest.is_left_alone());
        let report = guest.target.statistics().unwrap();
        assert_eq!(report.statistics, Statistics { free_memory: Some(7), ..Statistics::default() });
        assert!(report.age >= A_WHILE && report.age < Duration::from_secs(10));
    }
}

#[test]
fn a_guest_is_asked_at_the_interval_and_no_more_when_it_is_switched_off() {
    for features in [0, feature::EVENT_IDX] {
        let mut guest = Guest::new(features);
        guest.driver.enable_interrupts();
        guest.tell(0);
        guest.target.set_statistics_interval(Duration::from_millis(20));
        let begin = Instant::now();
        for n in 1..=5 {
            assert!(guest.is_asked());
            assert!(guest.machine.interrupted());
            guest.driver.enable_interrupts();
            guest.tell(n);
            assert!(guest.knows(n));
        }
        assert!(begin.elapsed() >= Duration::from_millis(80), "{:?} is too soon", begin.elapsed());
        guest.target.set_statistics_interval(Duration::ZERO);
        // One question may already be on its way.
        if !guest.is_left_alone() {
            guest.tell(6);
        }
        assert!(guest.is_left_alone());
        guest.target.set_statistics_interval(Duration::from_millis(1));
        assert_eq!(guest.target.statistics_interval(), Duration::from_millis(10), "not more often than that");
        assert!(guest.is_asked());
        guest.target.set_statistics_interval(Duration::MAX);
        guest.tell(9);
        assert!(guest.knows(9) && guest.is_left_alone());
    }
}

#[test]
fn the_interval_may_be_set_before_there_is_a_driver() {
    let balloon = Balloon::new(BalloonConfig { deflate_on_oom: true, free_page_reporting: true });
    let target = balloon.target();
    target.set_statistics_interval(Duration::from_millis(10));
    let machine = Machine::new(Box::new(balloon));
    let driver = FakeDriver::new(&machine.ram, RING, 8, false);
    machine.agree(STATS_VQ | feature::VERSION_1);
    machine.enable_queue(STATISTICS, &driver.layout());
    machine.set(reg::STATUS, LIVE);
    let mut guest = Guest { machine, driver, target };
    guest.tell_bytes(&[]);
    assert!(guest.is_asked());
}

#[test]
fn a_held_buffer_survives_a_pause() {
    let mut guest = Guest::new(feature::EVENT_IDX);
    guest.tell(5);
    assert!(guest.knows(5));
    for _ in 0..20 {
        let age = guest.target.statistics().unwrap().age;
        guest.pause();
        guest.resume();
        assert!(guest.target.statistics().unwrap().age >= age, "an old report does not become young");
    }
    assert!(guest.is_left_alone());
    guest.target.set_statistics_interval(Duration::from_millis(10));
    assert!(guest.is_asked());
    guest.tell(6);
    assert!(guest.knows(6), "a new report after the pause is news");
    assert!(guest.is_asked());
    assert!(guest.is_left_alone(), "the buffer is given back once");
}

#[test]
fn a_buffer_held_in_a_pause_is_not_given_back_before_its_end() {
    let mut guest = Guest::new(0);
    guest.tell(5);
    assert!(guest.knows(5));
    guest.pause();
    guest.target.set_statistics_interval(Duration::from_millis(10));
    assert!(guest.is_left_alone());
    guest.resume();
    assert!(guest.is_asked());
}

#[test]
fn a_guest_asked_without_end_can_be_paused_at_any_time() {
    let mut guest = Guest::new(feature::EVENT_IDX);
    guest.target.set_statistics_interval(Duration::from_millis(10));
    guest.tell(0);
    let mut told = 0;
    for round in 0..100 {
        sleep(Duration::from_micros(150 * (round % 13)));
        guest.pause();
        while guest.driver.take_used().is_some() {
            told += 1;
            guest.tell(told);
        }
        guest.resume();
    }
    assert!(told > 3, "{told} questions");
    assert!(guest.knows(told));
    assert!(wait_until(|| guest.driver.take_used().is_some()) && guest.is_left_alone());
}

#[test]
fn a_reset_forgets_the_report_and_the_buffer() {
    let mut guest = Guest::new(0);
    guest.tell(5);
    assert!(guest.knows(5));
    guest.pause();
    guest.resume();
    guest.machine.set(reg::STATUS, 0);
    guest.driver = FakeDriver::new(&guest.machine.ram, RING, 8, false);
    guest.machine.agree(STATS_VQ | feature::VERSION_1);
    assert_eq!(guest.target.statistics(), None);
    guest.machine.enable_queue(STATISTICS, &guest.driver.layout());
    guest.machine.set(reg::STATUS, LIVE);
    assert!(guest.is_left_alone());
    guest.tell(8);
    assert!(guest.knows(8));
}

#[test]
fn a_queue_reset_takes_the_buffer_away() {
    let mut guest = Guest::new(feature::RING_RESET);
    guest.tell(5);
    assert!(guest.knows(5));
    guest.machine.set(reg::QUEUE_SEL, STATISTICS);
    guest.machine.set(reg::QUEUE_RESET, 1);
    guest.driver = FakeDriver::new(&guest.machine.ram, RING, 8, false);
    guest.machine.enable_queue(STATISTICS, &guest.driver.layout());
    guest.target.set_statistics_interval(Duration::from_millis(10));
    assert!(guest.is_left_alone());
    guest.tell(5);
    assert!(guest.is_asked());
    guest.tell(8);
    assert!(guest.knows(8));
}

#[test]
fn a_driver_with_many_buffers_gets_them_back_one_by_one() {
    let mut guest = Guest::new(0);
    for n in 0..4 {
        guest.tell(n);
    }
    assert!(guest.is_left_alone());
    guest.target.set_statistics_interval(Duration::from_millis(10));
    for _ in 0..4 {
        assert!(guest.is_asked());
    }
    assert!(guest.is_left_alone());
}

#[test]
fn hostile_buffers_are_held_like_others() {
    let shapes: [&[Buffer]; 4] = [
        &[Buffer::writable(DATA, 4096)],
        &[Buffer::readable(DATA, 16 << 20)],
        &[Buffer::readable(DATA, 3), Buffer::readable(Gpa(DATA.0 + 3), 1), Buffer::writable(HEADER, 8)],
        &[Buffer::readable(DATA, 0)],
    ];
    for buffers in shapes {
        let mut guest = Guest::new(0);
        guest.machine.ram.write(DATA, &[0xff; 8192]).unwrap();
        guest.driver.add(buffers);
        guest.driver.kick();
        guest.machine.set(reg::QUEUE_NOTIFY, STATISTICS);
        assert!(guest.is_left_alone());
        assert_eq!((guest.machine.status(), guest.target.statistics()), (LIVE, None));
        guest.target.set_statistics_interval(Duration::from_millis(10));
        assert!(guest.is_asked());
    }
}

#[test]
fn a_buffer_outside_ram_costs_a_reset() {
    let mut guest = Guest::new(0);
    guest.driver.add(&[Buffer::readable(Gpa(1 << 40), 10)]);
    guest.driver.kick();
    guest.machine.set(reg::QUEUE_NOTIFY, STATISTICS);
    assert!(wait_until(|| guest.machine.status() == LIVE | NEEDS_RESET));
    guest.pause();
    guest.resume();
    guest.target.set_statistics_interval(Duration::from_millis(10));
    assert!(guest.is_left_alone());
}

#[test]
fn reporting_comes_after_statistics() {
    for queue in [3, 4] {
        let balloon = Balloon::new(BalloonConfig { deflate_on_oom: true, free_page_reporting: true });
        let machine = Machine::new(Box::new(balloon));
        let mut driver = FakeDriver::new(&machine.ram, RING, 8, false);
        machine.agree(STATS_VQ | PAGE_REPORTING | feature::VERSION_1);
        machine.enable_queue(queue, &driver.layout());
        machine.set(reg::STATUS, LIVE);
        machine.ram.write(DATA, &[1; 8192]).unwrap();
        driver.add(&[Buffer::writable(DATA, 4096)]);
        driver.kick();
        machine.set(reg::QUEUE_NOTIFY, queue);
        assert!(wait_until(|| driver.take_used().is_some()));
        assert_eq!(machine.bytes(DATA, 8192), [[0; 4096], [1; 4096]].concat());
        machine.pause();
        let indices = machine.transport.state().unwrap().queues[queue as usize].indices;
        assert_eq!(indices, QueueState { next_avail: 1, next_used: 1 });
    }
}
