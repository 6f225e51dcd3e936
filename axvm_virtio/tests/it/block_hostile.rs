//! A hostile driver in front of the block device: it gets errors, never a hang, a panic, or more of
//! the host than its disk.

use crate::common;

use axvm_arch::Gpa;
use axvm_devices::BusDevice;
use axvm_virtio::block::DiskConfig;
use axvm_virtio::device::feature;
use axvm_virtio::testing::{Buffer, FakeDriver, INDIRECT, NEXT, RawDescriptor, WRITE};
use common::*;

/// Runs `attack` on a fresh disk; the device must ask for a reset and tell the user why, and a good
/// driver must find a working device after it.
fn needs_reset(why: &str, attack: impl FnOnce(&mut Disk)) {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    attack(&mut disk);
    disk.machine.set(reg::QUEUE_NOTIFY, 0);
    assert!(wait_until(|| disk.machine.status() == LIVE | NEEDS_RESET), "{why}");
    assert!(disk.machine.interrupted());
    assert_eq!(disk.machine.get(reg::INTERRUPT_STATUS) & 2, 2);
    assert!(wait_until(|| !disk.machine.tape.faults().is_empty()));
    let faults = disk.machine.tape.faults();
    assert!(faults.len() == 1 && faults[0].contains(why), "{faults:?}");
    recover(&mut disk);
}

/// Resets, and asserts that the device serves again.
fn recover(disk: &mut Disk) {
    disk.driver = FakeDriver::new(&disk.machine.ram, RING, 64, false);
    disk.machine.bring_up(feature::VERSION_1 | 1 << 9, &disk.driver.layout());
    disk.check_alive();
}

#[test]
fn hostile_rings_get_a_reset_request_not_a_hang() {
    let descriptor = |addr, len, flags, next| RawDescriptor { addr, len, flags, next };
    needs_reset("loops", |disk| {
        disk.driver.write_descriptor(0, descriptor(HEADER.0, 16, NEXT, 1));
        disk.driver.write_descriptor(1, descriptor(HEADER.0, 16, NEXT, 0));
        disk.driver.offer(0);
        disk.driver.kick();
    });
    needs_reset("outside a table", |disk| {
        disk.driver.offer(64);
        disk.driver.kick();
    });
    needs_reset("outside a table", |disk| {
        disk.driver.write_descriptor(0, descriptor(HEADER.0, 16, NEXT, 9999));
        disk.driver.offer(0);
        disk.driver.kick();
    });
    needs_reset("available index", |disk| disk.driver.set_avail_idx(1000));
    needs_reset("not in guest RAM", |disk| {
        disk.driver.add(&[Buffer::readable(HEADER, 16), Buffer::writable(Gpa(1 << 45), 512)]);
        disk.driver.kick();
    });
    needs_reset("not in guest RAM", |disk| {
        disk.driver.add(&[Buffer::readable(Gpa(u64::MAX - 8), 16), Buffer::writable(STATUS, 1)]);
        disk.driver.kick();
    });
    needs_reset("readable buffer after a writable", |disk| {
        disk.driver.add(&[Buffer::writable(STATUS, 1), Buffer::readable(HEADER, 16)]);
        disk.driver.kick();
    });
    needs_reset("indirect", |disk| {
        disk.driver.write_descriptor(0, descriptor(DATA.0, 17, INDIRECT, 0));
        disk.driver.offer(0);
        disk.driver.kick();
    });
    needs_reset("indirect", |disk| {
        disk.driver.write_descriptor(0, descriptor(DATA.0, 16, INDIRECT | NEXT, 1));
        disk.driver.write_descriptor(1, descriptor(STATUS.0, 1, WRITE, 0));
        disk.driver.offer(0);
        disk.driver.kick();
    });
}

#[test]
fn indirect_tables_must_be_negotiated() {
    let file = Disk::file();
    let mut disk = Disk::open(&DiskConfig::new(file.path()), !feature::INDIRECT_DESC);
    disk.driver.add_indirect(DATA, &[Buffer::readable(HEADER, 16), Buffer::writable(STATUS, 1)]);
    disk.kick();
    assert!(wait_until(|| disk.machine.status() == LIVE | NEEDS_RESET));
    recover(&mut disk);
}

#[test]
fn a_request_without_a_status_byte_needs_a_reset() {
    needs_reset("no room for its status", |disk| {
        disk.write_header(OUT, 0);
        disk.driver.add(&[Buffer::readable(HEADER, 16), Buffer::readable(DATA, 512)]);
        disk.driver.kick();
    });
    needs_reset("no room for its status", |disk| {
        disk.driver.add(&[Buffer::readable(HEADER, 16), Buffer::writable(STATUS, 0)]);
        disk.driver.kick();
    });
}

#[test]
fn what_was_served_before_the_fault_is_returned() {
    needs_reset("outside a table", |disk| {
        disk.write_header(IN, 0);
        disk.driver.add(&[Buffer::readable(HEADER, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS, 1)]);
        disk.driver.offer(64);
        disk.driver.kick();
        disk.machine.set(reg::QUEUE_NOTIFY, 0);
        assert_eq!(disk.finish(), Some(513));
    });
}

#[test]
fn after_a_fault_nothing_is_served_before_the_reset() {
    needs_reset("no room for its status", |disk| {
        disk.driver.add(&[Buffer::readable(HEADER, 16)]);
        disk.kick();
        assert!(wait_until(|| disk.machine.status() & NEEDS_RESET != 0));
        disk.write_header(FLUSH, 0);
        disk.driver.add(&[Buffer::readable(HEADER, 16), Buffer::writable(STATUS, 1)]);
        disk.driver.kick();
        disk.machine.set(reg::QUEUE_NOTIFY, 0);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(disk.driver.take_used(), None);
    });
}

#[test]
fn malformed_requests_get_errors() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    let status = Buffer::writable(STATUS, 1);
    disk.write_header(IN, 0);
    for len in [1, 15] {
        assert_eq!(disk.submit(&[Buffer::readable(HEADER, len), status]), (IOERR, 1), "a header of {len} bytes");
        disk.write_header(IN, 0);
    }
    assert_eq!(disk.submit(&[status]), (IOERR, 1), "no header");
    for (sector, len) in [
        (0, 511),
        (0, 513),
        (0, 1),
        (Disk::SECTORS, 512),
        (Disk::SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (u64::MAX / 512 + 1, 512),
        (1 << 54, 512),
        (0, (Disk::SIZE + 512) as u32),
    ] {
        assert_eq!(disk.request(IN, sector, &[], len), (IOERR, 0), "read {len} at {sector}");
        let data = vec![0x11; len as usize];
        assert_eq!(disk.request(OUT, sector, &data, 0), (IOERR, 1), "write {len} at {sector}");
    }
    assert_eq!(std::fs::metadata(file.path()).unwrap().len(), Disk::SIZE);
    assert!(std::fs::read(file.path()).unwrap().iter().all(|&byte| byte == 0x5a));
    disk.check_alive();
}

/// Header, status, and as many segments of data as seg_max says: 254.
#[test]
fn more_segments_than_seg_max_allows_are_refused_and_the_user_is_told_why_once() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    let mut seg_max = [0; 4];
    disk.machine.transport.read(reg::CONFIG + 12, &mut seg_max);
    let seg_max = u32::from_le_bytes(seg_max) as usize;
    let status = Buffer::writable(STATUS, 1);
    for (count, expected) in [(seg_max, OK), (seg_max + 1, IOERR), (seg_max + 2, IOERR), (30_000, IOERR)] {
        for kind in [IN, OUT, GET_ID, 0xdead] {
            let expected = if kind == 0xdead && expected == OK { UNSUPP } else { expected };
            let data = if kind == OUT { Buffer::readable(DATA, 512) } else { Buffer::writable(DATA, 512) };
            let data = vec![data; count];
            let buffers = [&[Buffer::readable(HEADER, 16)][..], &data, &[status]].concat();
            disk.write_header(kind, 0);
            disk.driver.add_indirect(Gpa(DATA.0 + 4096), &buffers);
            disk.kick();
            let written = disk.finish().expect("the device answers");
            assert_eq!(disk.machine.bytes(STATUS, 1), [expected], "{count} segments of type {kind}");
            assert!(expected == OK || written <= 1, "{written}");
        }
    }
    let told = disk.machine.tape.warnings();
    assert!(told.len() == 1 && told[0].contains("257 descriptors") && told[0].contains("seg_max"), "{told:?}");
    disk.check_alive();
}

#[test]
fn a_reset_in_mid_flight_joins_the_worker() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    for round in 0..100 {
        for _ in 0..10 {
            disk.write_header(if round % 2 == 0 { IN } else { OUT }, 0);
            let data = if round % 2 == 0 { Buffer::writable(DATA, 1 << 20) } else { Buffer::readable(DATA, 1 << 20) };
            let mut buffers = [Buffer::readable(HEADER, 16), data, Buffer::writable(STATUS, 1)];
            buffers[1..].sort_by_key(|buffer| buffer.writable);
            disk.driver.add(&buffers);
        }
        disk.kick();
        if round % 3 == 0 {
            disk.finish();
        }
        disk.machine.set(reg::STATUS, 0);
        // The device has let go of RAM: what we write now stays.
        let mark = vec![round as u8; 1 << 20];
        disk.machine.ram.write(DATA, &mark).unwrap();
        assert_eq!(disk.machine.status(), 0);
        assert_eq!(disk.machine.bytes(DATA, 1 << 20), mark);
        recover(&mut disk);
    }
}

#[test]
fn a_driver_that_never_stops_offering_cannot_hold_up_a_reset() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    disk.write_header(FLUSH, 0);
    let buffers = [Buffer::readable(HEADER, 16), Buffer::writable(STATUS, 1)];
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let Disk { driver, machine, .. } = &mut disk;
        let machine = &*machine;
        let done = &done;
        scope.spawn(move || {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                while driver.take_used().is_some() {}
                while driver.free_count() >= 2 {
                    driver.add(&buffers);
                }
                if driver.kick() {
                    machine.set(reg::QUEUE_NOTIFY, 0);
                }
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        machine.set(reg::STATUS, 0);
        assert_eq!(machine.status(), 0);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    recover(&mut disk);
}

/// A small xorshift generator: the same chaos in every run.
struct Chaos(u64);

impl Chaos {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn pick(&mut self, choices: &[u64]) -> u64 {
        choices[(self.next() % choices.len() as u64) as usize]
    }
}

#[test]
fn register_chaos_leaves_a_working_device() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    let values = [0, 1, 2, 3, 4, 8, 11, 15, 64, 128, 255, 256, RING.0, HEADER.0, 1 << 31, u32::MAX.into()];
    for seed in 1..=4 {
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let machine = &disk.machine;
                scope.spawn(move || {
                    let mut chaos = Chaos(seed * 0x9e37_79b9 + thread * 77 + 1);
                    for _ in 0..3000 {
                        let offset = chaos.next() % 0x210;
                        let offset = if chaos.next().is_multiple_of(8) { offset } else { offset & !3 };
                        let value = if chaos.next().is_multiple_of(4) { chaos.next() } else { chaos.pick(&values) };
                        let width = chaos.pick(&[4, 4, 4, 4, 4, 1, 2, 8]) as usize;
                        if chaos.next().is_multiple_of(4) {
                            machine.transport.read(offset, &mut vec![0xff; width]);
                        } else {
                            machine.transport.write(offset, &value.to_le_bytes()[..width]);
                        }
                    }
                });
            }
        });
        recover(&mut disk);
    }
}

#[test]
fn request_chaos_never_changes_more_than_the_disk() {
    let file = Disk::file();
    let mut disk = Disk::open(&DiskConfig::new(file.path()), !0);
    let mut chaos = Chaos(42);
    for _ in 0..3000 {
        let kind = chaos.pick(&[0, 1, 4, 8, 11, 13, 2, 0xffff_ffff]) as u32;
        let sector = chaos.pick(&[0, 1, Disk::SECTORS - 1, Disk::SECTORS, 1 << 55, u64::MAX]);
        disk.write_header(kind, sector);
        let mut buffers = vec![Buffer::readable(HEADER, chaos.pick(&[16, 16, 16, 0, 3, 20]) as u32)];
        for _ in 0..chaos.next() % 4 {
            buffers.push(Buffer::readable(DATA, chaos.pick(&[0, 1, 15, 16, 32, 512, 4096]) as u32));
        }
        for _ in 0..chaos.next() % 4 {
            buffers.push(Buffer::writable(DATA, chaos.pick(&[0, 1, 20, 511, 512, 4096]) as u32));
        }
        buffers.push(Buffer::writable(STATUS, 1));
        let room: u32 = buffers.iter().filter(|buffer| buffer.writable).map(|buffer| buffer.len).sum();
        let (status, written) = disk.submit(&buffers);
        assert!([OK, IOERR, UNSUPP].contains(&status), "{kind} {buffers:?}");
        assert!(written <= room);
    }
    assert_eq!(std::fs::metadata(file.path()).unwrap().len(), Disk::SIZE);
    disk.check_alive();
}
