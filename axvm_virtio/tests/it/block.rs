//! The block device at work: every request, every shape, every feature.

use crate::common;

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use axvm_devices::BusDevice;
use axvm_virtio::block::{Cache, DiskConfig};
use axvm_virtio::device::feature;
use axvm_virtio::testing::Buffer;
use common::*;

const FLUSH_BIT: u64 = 1 << 9;
const CONFIG_WCE: u64 = 1 << 11;
const WRITEBACK: u64 = reg::CONFIG + 32;

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|n| (n / 7) as u8 ^ seed).collect()
}

#[test]
fn data_comes_back_with_every_ring_feature() {
    for features in [0, feature::EVENT_IDX, feature::INDIRECT_DESC, !0] {
        let file = Disk::file();
        let mut disk = Disk::open(&DiskConfig::new(file.path()), features);
        for (sector, len, seed) in [(0, 512, 1), (9, 4096, 2), (Disk::SECTORS - 1, 512, 3), (128, 1 << 20, 4)] {
            let data = pattern(len, seed);
            assert_eq!(disk.request(OUT, sector, &data, 0), (OK, 1));
            disk.machine.ram.write(DATA, &vec![0; len]).unwrap();
            assert_eq!(disk.request(IN, sector, &[], len as u32), (OK, len as u32 + 1));
            assert_eq!(disk.machine.bytes(DATA, len), data);
            let host = std::fs::read(file.path()).unwrap();
            assert_eq!(host[sector as usize * 512..][..len], data);
        }
    }
}

#[test]
fn requests_may_be_cut_anywhere() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    let at = |base: axvm_arch::Gpa, offset: u64| axvm_arch::Gpa(base.0 + offset);
    // Header byte by byte; data in three odd parts; status alone.
    disk.write_header(OUT, 2);
    disk.machine.ram.write(DATA, &pattern(1024, 9)).unwrap();
    let mut buffers: Vec<_> = (0..16).map(|n| Buffer::readable(at(HEADER, n), 1)).collect();
    buffers.extend([(0, 1), (1, 700), (701, 323)].map(|(offset, len)| Buffer::readable(at(DATA, offset), len)));
    buffers.push(Buffer::writable(STATUS, 1));
    assert_eq!(disk.submit(&buffers), (OK, 1));

    // Header and data joined: both lie one after the other.
    disk.write_header(OUT, 4);
    disk.machine.ram.write(at(HEADER, 16), &pattern(512, 10)).unwrap();
    assert_eq!(disk.submit(&[Buffer::readable(HEADER, 16 + 512), Buffer::writable(STATUS, 1)]), (OK, 1));

    // Data and status joined: the status is the last byte of 1537, the byte at STATUS.
    disk.write_header(IN, 2);
    let start = axvm_arch::Gpa(STATUS.0 - 1536);
    assert_eq!(disk.submit(&[Buffer::readable(HEADER, 16), Buffer::writable(start, 1537)]), (OK, 1537));
    assert_eq!(disk.machine.bytes(start, 1024), pattern(1024, 9));
    assert_eq!(disk.machine.bytes(at(start, 1024), 512), pattern(512, 10));
}

#[test]
fn an_indirect_request_is_served() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    disk.write_header(IN, 0);
    let buffers = [Buffer::readable(HEADER, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS, 1)];
    disk.driver.add_indirect(axvm_arch::Gpa(0x30_0000), &buffers);
    disk.kick();
    assert_eq!(disk.finish(), Some(513));
    assert_eq!(disk.machine.bytes(DATA, 512), [0x5a; 512]);
}

#[test]
fn the_serial_is_padded_with_zeroes() {
    let file = Disk::file();
    for (serial, expected) in [("", [0; 20]), ("abcdefghijklmnopqrst", *b"abcdefghijklmnopqrst")] {
        let config = DiskConfig { serial: Some(serial.into()), ..DiskConfig::new(file.path()) };
        let mut disk = Disk::open(&config, !0);
        assert_eq!(disk.request(GET_ID, 0, &[], 20), (OK, 21));
        assert_eq!(disk.machine.bytes(DATA, 20), expected);
        assert_eq!(disk.request(GET_ID, 0, &[], 19), (IOERR, 0));
    }
}

#[test]
fn unknown_requests_are_unsupported() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(disk.request(kind, 0, &[], 0), (UNSUPP, 1), "{kind}");
        assert_eq!(disk.request(kind, 0, &[], 512), (UNSUPP, 0), "{kind}");
    }
    disk.check_alive();
}

#[test]
fn a_flush_makes_writes_safe() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    assert_eq!(disk.write(0, &[1; 512]), OK);
    assert_eq!(disk.image.sync_count(), 0, "write-back: nothing is safe before a flush");
    assert_eq!(disk.request(FLUSH, 0, &[], 0), (OK, 1));
    assert_eq!(disk.image.sync_count(), 1);
}

#[test]
fn a_driver_without_flush_gets_write_through() {
    let file = Disk::file();
    for without in [FLUSH_BIT, FLUSH_BIT | CONFIG_WCE] {
        let mut disk = Disk::open(&DiskConfig::new(file.path()), !without);
        assert_eq!(disk.write(0, &[1; 512]), OK);
        assert_eq!(disk.request(WRITE_ZEROES, 0, &segment(0, 8, 0), 0).0, OK);
        assert_eq!(disk.request(DISCARD, 0, &segment(0, 8, 0), 0).0, OK);
        assert_eq!(disk.image.sync_count(), 3);
        disk.read(0, 512);
        assert_eq!(disk.image.sync_count(), 3, "reading needs no safety");
    }
}

#[test]
fn the_driver_switches_the_cache() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    let writeback = |disk: &Disk| {
        let mut byte = [0xff];
        disk.machine.transport.read(WRITEBACK, &mut byte);
        byte[0]
    };
    assert_eq!(writeback(&disk), 1);
    let generation = disk.machine.get(reg::CONFIG_GENERATION);
    disk.machine.transport.write(WRITEBACK, &[0]);
    assert_eq!(writeback(&disk), 0);
    assert_ne!(disk.machine.get(reg::CONFIG_GENERATION), generation);
    disk.write(0, &[1; 512]);
    assert_eq!(disk.image.sync_count(), 1);
    disk.machine.transport.write(WRITEBACK, &[1]);
    disk.write(0, &[1; 512]);
    assert_eq!(disk.image.sync_count(), 1);
    // A wider write over the field is not a write of the field.
    disk.machine.set(WRITEBACK, 0);
    assert_eq!(writeback(&disk), 1);

    disk.machine.transport.write(WRITEBACK, &[0]);
    disk.machine.agree(disk.machine.offered());
    assert_eq!(writeback(&disk), 1, "a reset brings the first setting back");
    disk.machine.agree(disk.machine.offered() & !FLUSH_BIT);
    assert_eq!(writeback(&disk), 0, "a driver that cannot flush starts with write-through");
}

#[test]
fn the_user_chooses_write_through() {
    let file = Disk::file();
    let config = DiskConfig { cache: Cache::WriteThrough, ..DiskConfig::new(file.path()) };
    let mut disk = Disk::open(&config, !0);
    assert_eq!(disk.machine.get(WRITEBACK) & 0xff, 0);
    disk.write(0, &[1; 512]);
    assert_eq!(disk.image.sync_count(), 1);
}

#[test]
fn discard_shrinks_the_image() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    let full = allocated(file.as_file());
    assert!(full >= Disk::SIZE, "the file system allocates what is written");
    let two = [segment(0, 2048, 0), segment(4096, 2048, 0)].concat();
    assert_eq!(disk.request(DISCARD, 0, &two, 0), (OK, 1));
    assert!(allocated(file.as_file()) <= full - (2 << 20));
    assert_eq!(file.as_file().metadata().unwrap().size(), Disk::SIZE);
    assert_eq!(disk.read(2048, 512), (OK, vec![0x5a; 512]), "the neighbour keeps its data");
}

#[test]
fn zeroes_are_written_and_unmapped() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    let full = allocated(file.as_file());
    assert_eq!(disk.request(WRITE_ZEROES, 0, &segment(8, 2048, 0), 0), (OK, 1));
    assert!(allocated(file.as_file()) >= full, "without unmap the space stays");
    assert_eq!(disk.request(WRITE_ZEROES, 0, &segment(4097, 2047, 1), 0), (OK, 1));
    assert!(allocated(file.as_file()) <= full - (1 << 19), "with unmap it goes");
    let host = std::fs::read(file.path()).unwrap();
    let expected = |n: usize| if (8..2056).contains(&n) || (4097..6144).contains(&n) { 0 } else { 0x5a };
    assert!((0..Disk::SECTORS as usize).all(|n| host[n * 512..][..512].iter().all(|&byte| byte == expected(n))));
}

#[test]
fn bad_segments_are_refused_before_anything_is_done() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    let good = segment(0, 8, 0);
    let bad = |disk: &mut Disk, kind, data: &[u8]| disk.request(kind, 0, data, 0).0;
    for kind in [DISCARD, WRITE_ZEROES] {
        for wrong in [
            segment(Disk::SECTORS - 7, 8, 0),
            segment(u64::MAX, 8, 0),
            segment(u64::MAX >> 9, 1, 0),
            segment(0, 0, 0),
            segment(0, u32::MAX, 0),
        ] {
            assert_eq!(bad(&mut disk, kind, &wrong), IOERR, "{kind} {wrong:?}");
            assert_eq!(bad(&mut disk, kind, &[good.clone(), wrong].concat()), IOERR);
        }
        assert_eq!(bad(&mut disk, kind, &segment(0, 8, 2)), UNSUPP, "an unknown flag");
        assert_eq!(bad(&mut disk, kind, &[]), IOERR, "no segment");
        assert_eq!(bad(&mut disk, kind, &good[..15]), IOERR, "a part of a segment");
        assert_eq!(bad(&mut disk, kind, &good.repeat(33)), IOERR, "too many");
    }
    assert_eq!(bad(&mut disk, DISCARD, &segment(0, 8, 1)), UNSUPP, "discard knows no unmap flag");
    assert!(std::fs::read(file.path()).unwrap().iter().all(|&byte| byte == 0x5a));
    assert_eq!(bad(&mut disk, DISCARD, &good.repeat(32)), OK);
}

#[test]
fn a_read_only_disk_refuses_all_changes() {
    let file = Disk::file();
    let config = DiskConfig { read_only: true, ..DiskConfig::new(file.path()) };
    let mut disk = Disk::open(&config, !0);
    assert_eq!(disk.machine.offered() & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5, "RO, no DISCARD, no WRITE_ZEROES");
    assert_eq!(disk.write(0, &[1; 512]), IOERR);
    assert_eq!(disk.request(DISCARD, 0, &segment(0, 8, 0), 0).0, IOERR);
    assert_eq!(disk.request(WRITE_ZEROES, 0, &segment(0, 8, 0), 0).0, IOERR);
    assert_eq!(disk.request(FLUSH, 0, &[], 0).0, OK);
    assert_eq!(disk.read(0, 512), (OK, vec![0x5a; 512]));
    assert!(disk.machine.tape.warnings().is_empty(), "the host was not even asked");
}

#[test]
fn the_configuration_describes_the_disk() {
    let file = Disk::file();
    let config = DiskConfig { block_size: Some(4096), ..DiskConfig::new(file.path()) };
    let disk = Disk::open(&config, !0);
    let field = |offset| disk.machine.get(reg::CONFIG + offset);
    assert_eq!((field(0), field(4)), (Disk::SECTORS as u32, 0));
    assert_eq!(field(12), 254, "seg_max");
    assert_eq!(field(20), 4096, "blk_size");
    assert!(field(36) > 0 && field(40) > 0 && field(44) > 0, "discard limits");
    assert!(field(48) > 0 && field(52) > 0, "write-zeroes limits");
    assert_eq!((field(60), field(0xffc)), (0, 0), "past the end");
    let mut capacity = [0xff; 8];
    disk.machine.transport.read(reg::CONFIG, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), Disk::SECTORS);
    let mut last = [0xff; 2];
    disk.machine.transport.read(reg::CONFIG + 59, &mut last);
    assert_eq!(last, [0, 0]);
}

#[test]
fn an_interrupt_follows_a_request_if_wanted() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    disk.driver.enable_interrupts();
    assert_eq!(disk.write(0, &[1; 512]), OK);
    assert!(disk.machine.interrupted());
    assert_eq!(disk.machine.get(reg::INTERRUPT_STATUS), 1);
    disk.machine.set(reg::INTERRUPT_ACK, 1);
    assert_eq!(disk.machine.get(reg::INTERRUPT_STATUS), 0);

    disk.driver.disable_interrupts();
    assert_eq!(disk.write(0, &[1; 512]), OK);
    std::thread::sleep(Duration::from_millis(20));
    assert!(!disk.machine.irq.event_fd().take(), "the driver wanted no interrupt");
    assert_eq!(disk.machine.get(reg::INTERRUPT_STATUS), 0);
}

#[test]
fn a_kick_by_eventfd_wakes_the_worker() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    disk.write_header(FLUSH, 0);
    disk.driver.add(&[Buffer::readable(HEADER, 16), Buffer::writable(STATUS, 1)]);
    assert!(disk.driver.kick());
    disk.machine.transport.kick(0).signal();
    assert_eq!(disk.finish(), Some(1));
}

#[test]
fn requests_offered_before_driver_ok_are_served() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    let layout = disk.driver.layout();
    disk.machine.set(reg::STATUS, 0);
    disk.driver = axvm_virtio::testing::FakeDriver::new(&disk.machine.ram, RING, layout.size, false);
    disk.write_header(FLUSH, 0);
    disk.driver.add(&[Buffer::readable(HEADER, 16), Buffer::writable(STATUS, 1)]);
    disk.driver.kick();
    disk.machine.bring_up(feature::VERSION_1, &layout);
    assert_eq!(disk.finish(), Some(1));
}

#[test]
fn a_full_queue_is_served_in_order() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    let at = |base: axvm_arch::Gpa, n: u64| axvm_arch::Gpa(base.0 + n * 512);
    for round in 0..50u64 {
        let heads: Vec<u16> = (0..21)
            .map(|n| {
                disk.write_header(IN, n);
                let header = at(axvm_arch::Gpa(0x60_0000), n);
                disk.machine.ram.write(header, &disk.machine.bytes(HEADER, 16)).unwrap();
                disk.driver.add(&[
                    Buffer::readable(header, 16),
                    Buffer::writable(at(DATA, n), 512),
                    Buffer::writable(at(axvm_arch::Gpa(0x70_0000), n), 1),
                ])
            })
            .collect();
        disk.kick();
        for head in heads {
            let mut used = None;
            assert!(wait_until(|| {
                used = disk.driver.take_used();
                used.is_some()
            }));
            assert_eq!(used, Some((head, 513)), "round {round}");
        }
    }
}

#[test]
fn the_worker_is_named_after_disk_and_queue() {
    let file = Disk::file();
    let _disk = Disk::new(file.path());
    let named = || {
        let mut tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| task.ok());
        tasks.any(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "vda-q0\n"))
    };
    assert!(wait_until(named));
}
