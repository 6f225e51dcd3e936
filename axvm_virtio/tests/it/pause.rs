//! Pause and resume: a device held still in the middle of its work, again and again, loses and repeats nothing.

use crate::common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_virtio::balloon::{Balloon, BalloonConfig};
use axvm_virtio::block::{Block, DiskConfig, DiskImage};
use axvm_virtio::device::{VirtioDevice, feature};
use axvm_virtio::queue::QueueState;
use axvm_virtio::rng::Rng;
use axvm_virtio::testing::{Buffer, FakeDriver};
use common::*;

const PAUSES: usize = 100;
const RING_SIZE: u16 = 64;
/// Most requests in flight.
const SLOTS: u16 = 16;

/// A device of which one queue is in use.
struct Target {
    machine: Machine,
    driver: FakeDriver,
    queue: u32,
}

impl Target {
    fn new(device: Box<dyn VirtioDevice>, queue: u32, features: u64) -> Target {
        let machine = Machine::new(device);
        let driver = FakeDriver::new(&machine.ram, RING, RING_SIZE, features & feature::EVENT_IDX != 0);
        machine.agree(features | feature::VERSION_1);
        machine.enable_queue(queue, &driver.layout());
        machine.set(reg::STATUS, LIVE);
        Target { machine, driver, queue }
    }

    fn kick(&mut self) {
        if self.driver.kick() {
            self.machine.set(reg::QUEUE_NOTIFY, self.queue);
        }
    }

    fn indices(&self) -> QueueState {
        self.machine.transport.state().expect("a paused device").queues[self.queue as usize].indices
    }
}

/// Keeps the ring full with what `request` makes for a slot, until `PAUSES` pauses are over; `finished` looks at each
/// slot whose request came back, with the bytes written. Every request comes back exactly once.
fn under_load(
    target: &mut Target,
    mut request: impl FnMut(&Machine, u16) -> Vec<Buffer>,
    mut finished: impl FnMut(&Machine, u16, u32),
) {
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let Target { machine, driver, queue } = target;
    let machine = &*machine;
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..PAUSES {
                let before = served.load(Ordering::SeqCst);
                assert!(wait_until(|| served.load(Ordering::SeqCst) > before), "the device goes on after a pause");
                machine.pause();
                let state = machine.transport.state().expect("a paused device");
                let QueueState { next_avail, next_used } = state.queues[*queue as usize].indices;
                assert_eq!(next_avail, next_used, "nothing is in flight");
                thread::sleep(Duration::from_micros(300));
                // Acknowledgements and kicks come in a pause as always; nothing else changes.
                let mut later = machine.transport.state().expect("a paused device");
                later.interrupt_status = state.interrupt_status;
                later.queues.iter_mut().zip(&state.queues).for_each(|(later, now)| later.kicked = now.kicked);
                assert_eq!(later, state);
                machine.resume();
                assert_eq!(machine.transport.state(), None);
            }
            over.store(true, Ordering::SeqCst);
        });
        let (mut free, mut in_flight) = ((0..SLOTS).collect::<Vec<_>>(), HashMap::new());
        while !over.load(Ordering::SeqCst) || !in_flight.is_empty() {
            if !over.load(Ordering::SeqCst) {
                while let Some(slot) = free.pop() {
                    let head = driver.add(&request(machine, slot));
                    assert_eq!(in_flight.insert(head, slot), None);
                }
            }
            if driver.kick() {
                machine.set(reg::QUEUE_NOTIFY, *queue);
            }
            if !driver.enable_interrupts() {
                assert!(machine.interrupted(), "an interrupt was asked for; {} are in flight", in_flight.len());
            }
            while let Some((head, written)) = driver.take_used() {
                let slot = in_flight.remove(&head).expect("a request comes back once");
                finished(machine, slot, written);
                free.push(slot);
                served.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    assert_eq!((machine.status(), driver.take_used()), (LIVE, None));
}

#[test]
fn a_disk_paused_under_load_loses_and_repeats_nothing() {
    for features in [0, feature::EVENT_IDX] {
        let file = Disk::file();
        let image = DiskImage::open(&DiskConfig::new(file.path())).unwrap();
        let mut target = Target::new(Box::new(Block::new(Arc::clone(&image))), 0, features | 1 << 9);
        let (mut count, mut expected) = (0_u32, HashMap::new());
        let place = |slot: u16, offset: u64| Gpa(DATA.0 + u64::from(slot) * 4096 + offset);
        let contents = std::cell::RefCell::new(&mut expected);
        under_load(
            &mut target,
            |machine, slot| {
                count += 1;
                let bytes: Vec<u8> = count.to_le_bytes().repeat(128);
                let mut header = [0; 16];
                header[0] = OUT as u8;
                header[8..10].copy_from_slice(&slot.to_le_bytes());
                machine.ram.write(place(slot, 0), &header).unwrap();
                machine.ram.write(place(slot, 1024), &bytes).unwrap();
                machine.ram.write(place(slot, 2048), &[UNTOUCHED]).unwrap();
                contents.borrow_mut().insert(slot, bytes);
                vec![
                    Buffer::readable(place(slot, 0), 16),
                    Buffer::readable(place(slot, 1024), 512),
                    Buffer::writable(place(slot, 2048), 1),
                ]
            },
            |machine, slot, written| {
                assert_eq!((written, machine.bytes(place(slot, 2048), 1)[0]), (1, OK));
                let disk = std::fs::read(file.path()).unwrap();
                assert_eq!(disk[usize::from(slot) * 512..][..512], contents.borrow()[&slot]);
            },
        );
        assert!(count >= PAUSES as u32);
    }
}

#[test]
fn an_entropy_source_paused_under_load_answers_each_request_once() {
    for features in [0, feature::EVENT_IDX] {
        let mut target = Target::new(Box::new(Rng::default()), 0, features);
        let place = |slot: u16| Gpa(DATA.0 + u64::from(slot) * 4096);
        under_load(
            &mut target,
            |machine, slot| {
                machine.ram.write(place(slot), &[0; 64]).unwrap();
                vec![Buffer::writable(place(slot), 64)]
            },
            |machine, slot, written| {
                assert_eq!(written, 64);
                assert_ne!(machine.bytes(place(slot), 64), [0; 64]);
            },
        );
    }
}

#[test]
fn a_balloon_paused_under_load_takes_each_page() {
    let config = BalloonConfig { deflate_on_oom: true, free_page_reporting: true };
    let mut target = Target::new(Box::new(Balloon::new(config)), 0, feature::EVENT_IDX);
    let page = |slot: u16| DATA.0 / 4096 + u64::from(slot);
    let list = |slot: u16| Gpa(HEADER.0 + 4 * u64::from(slot));
    under_load(
        &mut target,
        |machine, slot| {
            machine.ram.write(Gpa(page(slot) * 4096), &[0x5a; 4096]).unwrap();
            machine.ram.write(list(slot), &(page(slot) as u32).to_le_bytes()).unwrap();
            vec![Buffer::readable(list(slot), 4)]
        },
        |machine, slot, _| assert_eq!(machine.bytes(Gpa(page(slot) * 4096), 4096), [0; 4096]),
    );
}

fn entropy() -> Target {
    Target::new(Box::new(Rng::default()), 0, 0)
}

fn request(target: &mut Target) -> bool {
    target.driver.add(&[Buffer::writable(DATA, 16)]);
    target.kick();
    wait_until(|| target.driver.take_used().is_some_and(|(_, written)| written == 16))
}

#[test]
fn a_kick_in_a_pause_is_served_after_it() {
    let mut target = entropy();
    assert!(request(&mut target));
    target.machine.pause();
    target.driver.add(&[Buffer::writable(DATA, 16)]);
    target.driver.kick();
    target.machine.set(reg::QUEUE_NOTIFY, 0);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(target.driver.take_used(), None);
    assert_eq!(target.indices(), QueueState { next_avail: 1, next_used: 1 });
    target.machine.resume();
    assert!(wait_until(|| target.driver.take_used().is_some()));
}

#[test]
fn pausing_twice_is_pausing_once() {
    let mut target = entropy();
    target.machine.resume();
    assert!(request(&mut target));
    target.machine.pause();
    let state = target.machine.transport.state();
    target.machine.pause();
    assert_eq!(target.machine.transport.state(), state);
    target.machine.resume();
    target.machine.resume();
    assert!(request(&mut target));
}

#[test]
fn the_state_is_what_the_driver_said() {
    let target = entropy();
    assert_eq!(target.machine.transport.state(), None, "its rings move");
    target.machine.set(reg::DRIVER_FEATURES_SEL, 7);
    target.machine.pause();
    let state = target.machine.transport.state().unwrap();
    assert_eq!((state.status, state.driver_features), (LIVE, feature::VERSION_1));
    assert_eq!((state.driver_features_sel, state.queue_sel, state.interrupt_status), (7, 0, 0));
    assert_eq!(state.queues.len(), 1);
    assert_eq!((state.queues[0].layout, state.queues[0].ready), (target.driver.layout(), true));
}

#[test]
fn a_driver_that_comes_in_a_pause_is_served_after_it() {
    let machine = Machine::new(Box::new(Rng::default()));
    machine.pause();
    let mut driver = FakeDriver::new(&machine.ram, RING, 8, false);
    driver.add(&[Buffer::writable(DATA, 16)]);
    driver.kick();
    machine.bring_up(feature::VERSION_1, &driver.layout());
    machine.set(reg::QUEUE_NOTIFY, 0);
    thread::sleep(Duration::from_millis(20));
    assert_eq!((machine.status(), driver.take_used()), (LIVE, None));
    machine.resume();
    assert!(wait_until(|| driver.take_used().is_some()));
}

#[test]
fn a_reset_in_a_pause_leaves_nothing_to_resume() {
    let mut target = entropy();
    assert!(request(&mut target));
    target.machine.pause();
    target.machine.set(reg::STATUS, 0);
    let state = target.machine.transport.state().unwrap();
    assert_eq!((state.status, state.queues[0].ready), (0, false));
    assert_eq!(target.indices(), QueueState::default());
    target.driver.add(&[Buffer::writable(DATA, 16)]);
    target.driver.kick();
    target.machine.resume();
    target.machine.set(reg::QUEUE_NOTIFY, 0);
    thread::sleep(Duration::from_millis(20));
    assert_eq!((target.machine.status(), target.driver.take_used()), (0, None));
}

#[test]
fn a_queue_reset_in_a_pause_starts_the_queue_anew_after_it() {
    let mut target = Target::new(Box::new(Rng::default()), 0, feature::RING_RESET);
    assert!(request(&mut target));
    target.machine.pause();
    target.machine.set(reg::QUEUE_RESET, 1);
    assert_eq!(target.machine.get(reg::QUEUE_READY), 0);
    target.driver = FakeDriver::new(&target.machine.ram, RING, 8, false);
    target.machine.enable_queue(0, &target.driver.layout());
    target.driver.add(&[Buffer::writable(DATA, 16)]);
    target.kick();
    thread::sleep(Duration::from_millis(20));
    assert_eq!(target.driver.take_used(), None);
    target.machine.resume();
    assert!(wait_until(|| target.driver.take_used().is_some()));
}

#[test]
fn a_device_that_waits_for_a_reset_still_does_after_a_pause() {
    let mut target = entropy();
    target.driver.add(&[Buffer::readable(DATA, 16)]);
    target.kick();
    assert!(wait_until(|| target.machine.status() == LIVE | NEEDS_RESET));
    target.machine.pause();
    assert_eq!(target.machine.transport.state().unwrap().status, LIVE | NEEDS_RESET);
    target.machine.resume();
    target.driver.add(&[Buffer::writable(DATA, 16)]);
    target.kick();
    thread::sleep(Duration::from_millis(20));
    assert_eq!((target.machine.status(), target.driver.take_used()), (LIVE | NEEDS_RESET, None));
    let mut fresh = FakeDriver::new(&target.machine.ram, RING, 8, false);
    target.machine.bring_up(feature::VERSION_1, &fresh.layout());
    fresh.add(&[Buffer::writable(DATA, 16)]);
    fresh.kick();
    target.machine.set(reg::QUEUE_NOTIFY, 0);
    assert!(wait_until(|| fresh.take_used().is_some()));
}

/// The worst that a guest can have in flight: rings full of the longest reads, on four disks.
#[test]
fn a_pause_waits_for_a_piece_of_a_read_and_not_for_a_ring_of_gigabytes() {
    const GIB: u64 = 1 << 30;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(GIB).unwrap();
    let config = DiskConfig { read_only: true, ..DiskConfig::new(file.path()) };
    let mut disks = [(); 4].map(|()| {
        let block = Block::new(DiskImage::open(&config).unwrap());
        let mut disk = Target::new(Box::new(block), 0, feature::INDIRECT_DESC | 1 << 9);
        let piece = Buffer::writable(Gpa(16 << 20), 16 << 20);
        let buffers = [&[Buffer::readable(HEADER, 16)][..], &[piece; 64], &[Buffer::writable(STATUS, 1)]].concat();
        disk.machine.ram.write(HEADER, &[0; 16]).unwrap();
        while disk.driver.free_count() > 0 {
            disk.driver.add_indirect(DATA, &buffers);
        }
        disk.kick();
        disk
    });
    thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    disks.iter().for_each(|disk| disk.machine.pause());
    let took = start.elapsed();
    // A ring of one disk would take a minute.
    assert!(took < Duration::from_secs(2), "{took:?}");
    for disk in &mut disks {
        assert!(disk.indices().next_avail < 64, "all was read before the pause");
        disk.machine.set(reg::STATUS, 0);
    }
}
