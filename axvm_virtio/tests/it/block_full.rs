//! A host without room: a request is kept until there is some, or reported, and never lost or answered twice.
//!
//! ```text
//!   driver: DRIVER_OK in a thread where writes answer ENOSPC --> kept
//!           pause, resume from a thread where they do not    --> done, once
//! ```
//!
//! Source: pwritev(2), fallocate(2): ENOSPC, EDQUOT.

use crate::common;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axvm_arch::Gpa;
use axvm_sync::EventFd;
use axvm_virtio::block::{Block, DiskConfig, DiskHandle, DiskImage, Engine, OnFull};
use axvm_virtio::queue::QueueState;
use axvm_virtio::testing::Buffer;
use common::*;
use libc::{EDQUOT, EFBIG, ENOSPC, SYS_fallocate, SYS_io_uring_enter, SYS_pwritev};
use tempfile::NamedTempFile;

/// A disk whose writes find no room, until it is paused and resumed.
struct FullDisk {
    disk: Disk,
    handle: DiskHandle,
    attention: Arc<EventFd>,
    file: NamedTempFile,
}

impl FullDisk {
    fn new(errno: i32, on_full: OnFull) -> FullDisk {
        FullDisk::with(Engine::Sync, errno, on_full)
    }

    /// The same with an engine. A ring of which the host takes nothing has the call that waits do it.
    fn with(engine: Engine, errno: i32, on_full: OnFull) -> FullDisk {
        let file = Disk::file();
        let image = DiskImage::open(&DiskConfig { on_full, engine, ..DiskConfig::new(file.path()) }).unwrap();
        if let Err(error) = image.open_engines(1) {
            println!("{engine} is not here: {error}");
        }
        let attention = Arc::new(EventFd::new().unwrap());
        let block = Block::calling(Arc::clone(&image), Some(Arc::clone(&attention)));
        let handle = block.handle();
        let machine = Machine::new(Box::new(block));
        let on = || failing(SYS_io_uring_enter, errno, || Disk::on(machine, image, !0));
        let disk = failing(SYS_pwritev, errno, on);
        FullDisk { disk, handle, attention, file }
    }

    /// Offers a request of sector `sector`, full of `byte`, without waiting for its answer.
    fn offer(&mut self, sector: u64, byte: u8) {
        self.disk.write_header(OUT, sector);
        self.disk.machine.ram.write(DATA, &[byte; 512]).unwrap();
        let buffers = [Buffer::readable(HEADER, 16), Buffer::readable(DATA, 512), Buffer::writable(STATUS, 1)];
        self.disk.driver.add(&buffers);
        self.disk.kick();
    }

    fn is_kept(&self) -> bool {
        wait_until(|| self.handle.full().is_some())
    }

    #[track_caller]
    fn is_done_once(&mut self) {
        assert!(self.disk.finish().is_some(), "the request is lost");
        assert_eq!(self.disk.machine.bytes(STATUS, 1), [OK]);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(self.disk.driver.take_used(), None, "the request is answered twice");
        assert_eq!(self.handle.full(), None);
    }
}

#[test]
fn a_write_without_room_is_kept_and_done_after_a_pause() {
    for (engine, errno) in [(Engine::Sync, ENOSPC), (Engine::IoUring, ENOSPC), (Engine::IoUring, EDQUOT)] {
        let mut full = FullDisk::with(engine, errno, OnFull::Pause);
        full.offer(3, 0x33);
        assert!(full.is_kept());
        let why = full.handle.full().unwrap();
        assert_eq!((why.action, &*why.path), ("write", full.file.path()));
        assert!(why.free.is_some() && why.error.contains(&errno.to_string()), "{why:?}");
        assert!(full.attention.take(), "the machine is not told");
        assert_eq!(full.disk.machine.bytes(STATUS, 1), [UNTOUCHED]);
        assert_eq!(full.disk.driver.take_used(), None);

        full.disk.machine.pause();
        let indices = full.disk.machine.transport.state().unwrap().queues[0].indices;
        assert_eq!(indices, QueueState::default(), "it is in the ring");
        assert!(full.handle.full().is_some(), "why it is paused can still be asked");
        full.disk.machine.resume();
        full.is_done_once();
        assert_eq!(full.disk.read(2, 1536).1, [[0x5a; 512], [0x33; 512], [0x5a; 512]].concat());
        assert_eq!(full.disk.machine.tape.warnings(), Vec::<String>::new());
    }
}

#[test]
fn what_comes_after_a_kept_request_waits_and_a_reader_without_a_pause_too() {
    for engine in [Engine::Sync, Engine::IoUring] {
        let mut full = FullDisk::with(engine, ENOSPC, OnFull::Pause);
        full.offer(3, 0x33);
        assert!(full.is_kept());
        // The same header, data and status again: both are the same request.
        full.offer(3, 0x33);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(full.disk.driver.take_used(), None);
        full.disk.machine.pause();
        full.disk.machine.resume();
        assert!(full.disk.finish().is_some());
        full.is_done_once();
    }
}

/// Several that were taken at once: those before the one without room are answered, the others are in the ring.
#[test]
fn what_was_taken_with_a_kept_request_goes_back_with_it() {
    for engine in [Engine::Sync, Engine::IoUring] {
        let mut full = FullDisk::with(engine, ENOSPC, OnFull::Pause);
        full.disk.write_header(IN, 0);
        // Only the write's header says that it is one.
        let (header, status) = (Gpa(HEADER.0 + 0x100), Gpa(STATUS.0 + 0x100));
        full.disk
            .machine
            .ram
            .write(header, &[OUT.to_le_bytes().as_slice(), &[0; 4], &9_u64.to_le_bytes()].concat())
            .unwrap();
        let read = [Buffer::readable(HEADER, 16), Buffer::writable(DATA, 512), Buffer::writable(STATUS, 1)];
        let other = Gpa(DATA.0 + 4096);
        let write = [Buffer::readable(header, 16), Buffer::readable(other, 512), Buffer::writable(status, 1)];
        let heads = [&read, &read, &write, &read, &write].map(|buffers| full.disk.driver.add(buffers));
        full.disk.kick();
        assert!(full.is_kept());
        let mut answered = Vec::new();
        let mut take = |full: &mut FullDisk, count| {
            wait_until(|| {
                answered.extend(full.disk.driver.take_used().map(|(head, _)| head));
                answered.len() >= count
            });
            answered.clone()
        };
        assert_eq!(take(&mut full, 2), heads[..2], "{engine}");
        full.disk.machine.pause();
        let indices = full.disk.machine.transport.state().unwrap().queues[0].indices;
        assert_eq!(indices, QueueState { next_avail: 2, next_used: 2 }, "{engine}");
        full.disk.machine.resume();
        let mut all = take(&mut full, 5);
        all.sort_unstable();
        let mut expected = heads;
        expected.sort_unstable();
        assert_eq!(all, expected, "{engine}: each once");
        assert_eq!(full.handle.full(), None, "{engine}");
    }
}

#[test]
fn a_kept_request_wakes_its_worker_no_more_than_a_kick_does() {
    let mut full = FullDisk::new(ENOSPC, OnFull::Pause);
    full.offer(3, 0x33);
    assert!(full.is_kept() && full.attention.take());
    thread::sleep(Duration::from_millis(50));
    assert!(!full.attention.take(), "it is tried again and again");
    full.disk.machine.set(reg::QUEUE_NOTIFY, 0);
    assert!(wait_until(|| full.attention.take()), "a kick tries it again");
}

#[test]
fn a_disk_with_a_kept_request_can_be_reset_and_stopped() {
    let mut full = FullDisk::new(ENOSPC, OnFull::Pause);
    full.offer(3, 0x33);
    assert!(full.is_kept());
    let FullDisk { disk, handle, .. } = full;
    let mut disk = Disk::on(disk.machine, disk.image, !0);
    assert_eq!(handle.full(), None);
    disk.check_alive();
    assert_eq!(disk.read(3, 512).1, [0x5a; 512], "a request of the old driver is carried out");

    let mut full = FullDisk::new(ENOSPC, OnFull::Pause);
    full.offer(3, 0x33);
    assert!(full.is_kept());
    full.disk.machine.stop();
    assert_eq!((full.handle.full(), full.disk.driver.take_used()), (None, None));
}

#[test]
fn a_kept_request_is_carried_to_another_machine() {
    let mut full = FullDisk::new(ENOSPC, OnFull::Pause);
    full.offer(3, 0x33);
    assert!(full.is_kept());
    let machine = full.disk.machine.carry(Box::new(Block::new(Arc::clone(&full.disk.image))));
    machine.resume();
    assert!(full.disk.finish().is_some());
    assert_eq!(machine.bytes(STATUS, 1), [OK]);
    let mut data = vec![0; 512];
    std::os::unix::fs::FileExt::read_exact_at(full.file.as_file(), &mut data, 3 * 512).unwrap();
    assert_eq!(data, [0x33; 512]);
}

#[test]
fn what_is_to_be_reported_and_what_room_does_not_help_is_an_error_of_the_guest() {
    for (errno, on_full) in [(ENOSPC, OnFull::Report), (EDQUOT, OnFull::Report), (EFBIG, OnFull::Pause)] {
        let mut full = FullDisk::new(errno, on_full);
        assert_eq!(full.disk.write(3, &[0x33; 512]), IOERR);
        assert_eq!((full.handle.full(), full.attention.take()), (None, false));
        let told = full.disk.machine.tape.warnings();
        assert!(told.len() == 1 && told[0].contains("the guest sees an I/O error"), "{told:?}");
    }
}

#[test]
fn zeroes_are_written_where_no_hole_can_be_noted_and_a_discard_is_a_hint() {
    for errno in [ENOSPC, EDQUOT] {
        let file = Disk::file();
        let mut disk = failing(SYS_fallocate, errno, || Disk::new(file.path()));
        assert_eq!(disk.request(DISCARD, 0, &segment(8, 8, 0), 0).0, OK);
        for (flags, sector) in [(0, 16), (1, 24)] {
            assert_eq!(disk.request(WRITE_ZEROES, 0, &segment(sector, 8, flags), 0).0, OK);
            assert_eq!(disk.read(sector, 4096).1, [0; 4096]);
        }
        assert_eq!(disk.read(32, 512).1, [0x5a; 512]);
    }
}
