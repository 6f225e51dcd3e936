//! A disk with several queues: each has a worker, and all are one disk.

use crate::common::*;
use axvm_arch::Gpa;
use axvm_virtio::block::{Block, DiskConfig, DiskImage};
use axvm_virtio::device::feature;
use axvm_virtio::testing::{Buffer, FakeDriver};

const MQ: u64 = 1 << 12;
const NUM_QUEUES: u64 = reg::CONFIG + 34;
const RINGS: [Gpa; 3] = [RING, Gpa(RING.0 + 0x8000), Gpa(RING.0 + 0x1_0000)];

/// One request of a sector, of queue `queue`: its status.
fn request(machine: &Machine, driver: &mut FakeDriver, queue: u32, kind: u32, sector: u64) -> u8 {
    let at = |offset: u64| Gpa(DATA.0 + u64::from(queue) * 4096 + offset);
    let header = [kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat();
    machine.ram.write(at(0), &header).unwrap();
    machine.ram.write(at(1024), &[UNTOUCHED]).unwrap();
    let data = if kind == OUT { Buffer::readable(at(512), 512) } else { Buffer::writable(at(512), 512) };
    driver.add(&[Buffer::readable(at(0), 16), data, Buffer::writable(at(1024), 1)]);
    machine.show(queue, driver);
    finished(driver);
    machine.bytes(at(1024), 1)[0]
}

#[test]
fn what_one_queue_writes_every_other_reads() {
    let file = Disk::file();
    let image = DiskImage::open(&DiskConfig::new(file.path())).unwrap();
    let machine = Machine::new(Box::new(Block::new(image).with_queues(3)));
    assert_eq!(machine.offered() & MQ, MQ);
    assert_eq!(machine.get(NUM_QUEUES - 2) >> 16, 3);
    let mut drivers = machine.bring_up_all(feature::VERSION_1 | MQ, RINGS, 8);
    for sector in 0..30_u64 {
        let (writer, reader) = (sector as usize % 3, (sector as usize + 1) % 3);
        machine.ram.write(Gpa(DATA.0 + writer as u64 * 4096 + 512), &[sector as u8 + 1; 512]).unwrap();
        assert_eq!(request(&machine, &mut drivers[writer], writer as u32, OUT, sector), 0);
        assert_eq!(request(&machine, &mut drivers[reader], reader as u32, IN, sector), 0);
        assert_eq!(machine.bytes(Gpa(DATA.0 + reader as u64 * 4096 + 512), 512), [sector as u8 + 1; 512]);
    }
    // A pause takes all queues back; they go on where they stood.
    for _ in 0..5 {
        machine.pause();
        let state = machine.transport.state().unwrap();
        assert!(state.queues.iter().all(|queue| queue.indices.next_avail == queue.indices.next_used));
        assert_eq!(state.queues.len(), 3);
        machine.resume();
        for (queue, driver) in (0..).zip(&mut drivers) {
            assert_eq!(request(&machine, driver, queue, IN, 0), 0);
        }
    }
    machine.stop();
}

#[test]
fn a_driver_may_leave_queues_off() {
    let file = Disk::file();
    let image = DiskImage::open(&DiskConfig::new(file.path())).unwrap();
    let machine = Machine::new(Box::new(Block::new(image).with_queues(3)));
    machine.agree(feature::VERSION_1 | MQ);
    let mut driver = FakeDriver::new(&machine.ram, RING, 8, false);
    machine.enable_queue(1, &driver.layout());
    machine.set(reg::STATUS, LIVE);
    assert_eq!(request(&machine, &mut driver, 1, IN, 0), 0);
    let one = DiskImage::open(&DiskConfig::new(Disk::file().path())).unwrap();
    assert_eq!(Machine::new(Box::new(Block::new(one))).offered() & MQ, 0, "one queue is not several");
}
