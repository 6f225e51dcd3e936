//! Rate limits of disks, network cards and the entropy source: never faster, never spinning, nothing lost, and changed
//! while a request waits.
//!
//! A loaded machine is late, never early: so times are bounded from below, and what must not happen is given some time.

use crate::common;

use std::time::{Duration, Instant};

use axvm_virtio::block::{Block, DiskConfig, DiskImage};
use axvm_virtio::limiter::RateLimit;
use axvm_virtio::net::{LinkKind, Net};
use axvm_virtio::rng::Rng;
use axvm_virtio::testing::{Buffer, FakeDriver};
use common::card::*;
use common::*;

/// Time for what must not happen.
const A_WHILE: Duration = Duration::from_millis(30);
/// One operation, and no second one in this test.
const ONE: &str = "1ops/10000s";

fn rate(text: &str) -> RateLimit {
    text.parse().unwrap()
}

fn timed(body: impl FnOnce()) -> Duration {
    let start = Instant::now();
    body();
    start.elapsed()
}

fn limited(path: &std::path::Path, text: &str) -> DiskConfig {
    DiskConfig { rate: rate(text), ..DiskConfig::new(path) }
}

/// Offers a read of the first sector; it does not wait for the answer.
fn offer(disk: &mut Disk) {
    disk.write_header(IN, 0);
    disk.driver.add(&[Buffer::readable(HEADER, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS, 1)]);
    disk.kick();
}

#[test]
fn a_disk_does_as_many_operations_and_bytes_as_it_may() {
    let file = Disk::file();
    // Five at once; each of the other ten waits for 20 ms.
    let mut disk = Disk::open(&limited(file.path(), "5ops/100ms"), !0);
    assert!(timed(|| (0..15).for_each(|_| assert_eq!(disk.read(0, 512).0, OK))) >= Duration::from_millis(200));
    drop(disk);
    // 64 KiB at once, and 128 more in 200 ms; the last 64 are used, not waited for.
    let mut disk = Disk::open(&limited(file.path(), "64K/100ms"), !0);
    let all = timed(|| {
        assert_eq!(disk.read(0, 96 << 10).0, OK, "more than the bucket holds");
        assert_eq!(disk.write(0, &vec![1; 96 << 10]), OK);
        assert_eq!(disk.read(0, 512).0, OK);
    });
    assert!(all >= Duration::from_millis(200), "{all:?}");
    assert_eq!(disk.machine.status(), LIVE);
}

#[test]
fn a_request_that_waits_is_kept_over_pause_and_change_and_in_another_machine() {
    for features in [0, !0] {
        let file = Disk::file();
        let mut disk = Disk::open(&limited(file.path(), ONE), features);
        assert_eq!(disk.read(0, 512).0, OK);
        offer(&mut disk);
        std::thread::sleep(A_WHILE);
        disk.machine.pause();
        disk.machine.resume();
        std::thread::sleep(A_WHILE);
        assert_eq!(disk.driver.take_used(), None, "the bucket is as empty as before");
        disk.machine = disk.machine.carry(Box::new(Block::new(disk.image.clone())));
        disk.machine.resume();
        std::thread::sleep(A_WHILE);
        assert_eq!(disk.driver.take_used(), None, "and in another machine");
        disk.machine.stop();
        let device = Block::new(disk.image.clone());
        let handle = device.handle();
        assert_eq!(handle.rate().to_string(), ONE);
        disk.machine = Machine::new(Box::new(device));
        disk = Disk::on(disk.machine, disk.image, features);
        offer(&mut disk);
        std::thread::sleep(A_WHILE);
        assert_eq!(disk.driver.take_used(), None, "a reset gives no new tokens");
        handle.set_rate(rate("none"));
        assert!(disk.finish().is_some(), "a change is seen at once");
        assert!(handle.rate().is_none());
        (0..100).for_each(|_| assert_eq!(disk.read(0, 512).0, OK));
    }
}

#[test]
fn a_saved_limit_takes_the_place_of_the_one_that_was_set() {
    let file = Disk::file();
    let disk = Disk::open(&limited(file.path(), "5ops/s+7"), !0);
    disk.machine.pause();
    let state = disk.machine.transport.state().unwrap();
    disk.machine.stop();
    let Disk { machine, image, .. } = disk;
    let ram = machine.ram.clone();
    drop((machine, image));
    let device = Block::new(DiskImage::open(&DiskConfig::new(file.path())).unwrap());
    let handle = device.handle();
    let machine = Machine::over(ram, Box::new(device));
    machine.pause();
    machine.transport.restore(&state).unwrap();
    assert_eq!(handle.rate().to_string(), "5ops/s+7");
}

#[test]
fn a_disk_that_must_wait_sleeps() {
    let file = Disk::file();
    let image = DiskImage::open(&limited(file.path(), ONE)).unwrap();
    let ram = axvm_memory::GuestRam::allocate(&axvm_memory::RamConfig::new(32 << 20)).unwrap();
    let machine = Machine::named("slow", ram, Box::new(Block::new(image.clone())));
    let mut disk = Disk::on(machine, image, !0);
    (0..3).for_each(|_| offer(&mut disk));
    std::thread::sleep(A_WHILE);
    let before = processor_time("slow-q0");
    std::thread::sleep(Duration::from_millis(200));
    let used = processor_time("slow-q0") - before;
    assert!(used < 10_000_000, "{used} ns in 200 ms");
}

#[test]
fn a_card_passes_as_many_frames_and_bytes_as_it_may_each_way() {
    for kind in KINDS {
        let mut card = Card::new(kind, !0);
        card.handle.set_tx_rate(rate("5ops/100ms"));
        card.handle.set_rx_rate(rate("1000/100ms"));
        // The sixth to the fifteenth wait for 20 ms each.
        let sent = timed(|| (0..15).for_each(|number| card.transmit(&frame(number, 60))));
        assert!(sent >= Duration::from_millis(200), "{kind:?}: {sent:?}");
        (0..15).for_each(|number| assert_eq!(card.peer.receive(), frame(number, 60)));
        // A thousand bytes at once, two thousand in 200 ms.
        let received = timed(|| {
            for number in 0..6 {
                assert!(card.peer.send(&frame(number, 500)));
                assert_eq!(card.receive(2048), frame(number, 500));
            }
        });
        assert!(received >= Duration::from_millis(200), "{kind:?}: {received:?}");
        assert_eq!((card.handle.to_guest().dropped, card.handle.from_guest().dropped), (0, 0));
    }
}

#[test]
fn frames_that_wait_are_kept_and_go_when_the_limit_does() {
    let mut card = Card::new(LinkKind::Stream, !0);
    card.handle.set_tx_rate(rate(ONE));
    card.handle.set_rx_rate(rate(ONE));
    card.transmit(&frame(0, 60));
    assert!(card.peer.send(&frame(0, 60)) && card.receive(2048) == frame(0, 60));
    let len = card.write(DATA, &frame(1, 60));
    card.offer(TRANSMIT, &[Buffer::readable(DATA, len)]);
    assert!(card.peer.send(&frame(1, 60)));
    card.offer(RECEIVE, &[Buffer::writable(INPUT, 2048)]);
    let waits = |card: &mut Card| {
        std::thread::sleep(A_WHILE);
        assert!(card.drivers.iter_mut().all(|driver| driver.take_used().is_none()));
    };
    waits(&mut card);
    card.machine.pause();
    card.machine.resume();
    waits(&mut card);
    card.machine = card.machine.carry(Box::new(Net::new(card.handle.clone(), CONFIG)));
    card.machine.resume();
    waits(&mut card);
    card.handle.set_up(false);
    card.handle.set_up(true);
    waits(&mut card);
    assert_eq!((card.handle.rx_rate().to_string(), card.handle.tx_rate().to_string()), (ONE.into(), ONE.into()));
    card.handle.set_tx_rate(rate("none"));
    assert_eq!(card.finish(TRANSMIT), 0);
    card.handle.set_rx_rate(rate("1M/s"));
    assert_eq!(card.take_frame(INPUT), frame(1, 60));
    let waited = [card.peer.receive(), card.peer.receive()];
    assert_eq!(waited, [frame(0, 60), frame(1, 60)]);
    card.check_alive();
}

#[test]
fn a_card_that_must_wait_sleeps() {
    let ram = axvm_memory::GuestRam::allocate(&axvm_memory::RamConfig::new(32 << 20)).unwrap();
    let (ours, peer) = Peer::pair(LinkKind::Stream);
    let link = axvm_virtio::net::Link::new(LinkKind::Stream, ours).unwrap();
    let handle = axvm_virtio::net::NetHandle::new(link).unwrap();
    let machine = Machine::named("thin", ram, Box::new(Net::new(handle.clone(), CONFIG)));
    let mut card = Card::on(machine, handle, peer, !0);
    card.handle.set_tx_rate(rate(ONE));
    card.handle.set_rx_rate(rate(ONE));
    for number in 0..3 {
        let len = card.write(DATA, &frame(number, 60));
        card.offer(TRANSMIT, &[Buffer::readable(DATA, len)]);
        card.offer(RECEIVE, &[Buffer::writable(INPUT, 2048)]);
        assert!(card.peer.send(&frame(number, 60)));
    }
    std::thread::sleep(A_WHILE);
    let before = processor_time("thin-q0");
    std::thread::sleep(Duration::from_millis(200));
    let used = processor_time("thin-q0") - before;
    assert!(used < 10_000_000, "{used} ns in 200 ms");
}

#[test]
fn random_numbers_come_as_fast_as_they_may() {
    let machine = Machine::new(Box::new(Rng::limited(rate("1000/100ms"))));
    let mut driver = FakeDriver::new(&machine.ram, RING, 16, true);
    machine.bring_up(machine.offered(), &driver.layout());
    let mut ask = || {
        driver.add(&[Buffer::writable(DATA, 500)]);
        machine.show(0, &mut driver);
        assert_eq!(finished(&mut driver), 500);
    };
    assert!(timed(|| (0..6).for_each(|_| ask())) >= Duration::from_millis(200));
    let machine = machine.carry(Box::new(Rng::default()));
    machine.resume();
    assert_eq!(machine.get(reg::STATUS), LIVE);
}
