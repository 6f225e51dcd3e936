//! Every engine, way and count of queues: what is written is read, what fails is what failed, and a flush is a line.
//!
//! ```text
//!   slot:      | q0 s0 | q0 s1 | ... | q0 s15 | q1 s0 | ...     8 KiB of the disk each: neighbours, which may go as one
//!   a batch:   any of a queue's slots, read or written in part, in any order; a flush somewhere between them
//!   model:     what each byte must be; the image is compared with it at the end
//! ```
//!
//! Where the host has no io_uring, or its file system no O_DIRECT, that part is left out, and says so.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use axvm_arch::Gpa;
use axvm_virtio::block::{Block, DiskConfig, DiskError, DiskImage, Engine};
use axvm_virtio::device::feature;
use axvm_virtio::testing::{Buffer, FakeDriver};
use libc::{EINVAL, EIO, EPERM, SYS_io_uring_enter, SYS_io_uring_setup, SYS_preadv, SYS_pwritev};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use tempfile::NamedTempFile;

use crate::common::*;

const MQ: u64 = 1 << 12;
const FLUSHES: u64 = 1 << 9;
const SLOTS: u64 = 16;
const SLOT: u64 = 8192;
const NO_SLOT: u64 = SLOTS;

/// A disk with so many queues, and what must be on it.
struct Bench<const QUEUES: usize> {
    machine: Machine,
    drivers: [FakeDriver; QUEUES],
    /// By queue and head: the slot.
    heads: [[u64; 64]; QUEUES],
    model: Vec<u8>,
    file: NamedTempFile,
    random: u64,
}

/// An image on a file system of a disk, if there is one: tests may run where /tmp is in memory.
fn image(direct: bool) -> NamedTempFile {
    let directory = if direct { PathBuf::from("/var/tmp") } else { std::env::temp_dir() };
    let file = NamedTempFile::new_in(directory).unwrap();
    fs::write(file.path(), vec![0x5a; Disk::SIZE as usize]).unwrap();
    file
}

/// Runs `test` on each engine, through the page cache and past it.
fn on_each(test: impl Fn(&str, Engine, bool)) {
    for engine in [Engine::Sync, Engine::IoUring] {
        for direct in [false, true] {
            let name = format!("{engine}, {}", if direct { "direct" } else { "cached" });
            let file = image(direct);
            match DiskImage::open(&DiskConfig { direct, engine, ..DiskConfig::new(file.path()) }) {
                Ok(image) => match image.open_engines(1) {
                    Ok(()) => {
                        drop((image, file));
                        test(&name, engine, direct);
                    }
                    Err(error) => println!("skipped: {name}: {error}"),
                },
                Err(error) => println!("skipped: {name}: {error}"),
            }
        }
    }
}

impl<const QUEUES: usize> Bench<QUEUES> {
    fn new(engine: Engine, direct: bool) -> Bench<QUEUES> {
        let file = image(direct);
        let image = DiskImage::open(&DiskConfig { direct, engine, ..DiskConfig::new(file.path()) }).unwrap();
        image.open_engines(QUEUES as u16).unwrap();
        let machine = Machine::new(Box::new(Block::new(image).with_queues(QUEUES as u16)));
        let rings = std::array::from_fn(|queue| Gpa(RING.0 + queue as u64 * 0x8000));
        let features = machine.offered() & (feature::VERSION_1 | feature::EVENT_IDX | MQ | FLUSHES);
        let drivers = machine.bring_up_all(features, rings, 64);
        let (heads, model) = ([[NO_SLOT; 64]; QUEUES], vec![0x5a; Disk::SIZE as usize]);
        Bench { machine, drivers, heads, model, file, random: 0x9e37_79b9_7f4a_7c15 }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn place(queue: usize, slot: u64) -> (Gpa, Gpa) {
        let base = DATA.0 + queue as u64 * 0x10_0000;
        (Gpa(base + slot * 64), Gpa(base + 0x1_0000 + slot * SLOT))
    }

    /// Where a slot is on the disk, in bytes.
    fn start(queue: usize, slot: u64) -> u64 {
        (queue as u64 * SLOTS + slot) * SLOT
    }

    /// Offers a request of a slot; in sectors of the slot.
    fn offer(&mut self, queue: usize, slot: u64, kind: u32, (first, count): (u64, u64)) {
        let (header, data) = Self::place(queue, slot);
        let sector = Self::start(queue, slot) / 512 + first;
        let words = [kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes(), &[0; 16], &[UNTOUCHED]].concat();
        self.machine.ram.write(header, &words).unwrap();
        let (request, status) = (Buffer::readable(header, 16), Buffer::writable(Gpa(header.0 + 32), 1));
        let data = Buffer { gpa: data, len: (count * 512) as u32, writable: kind == IN };
        let buffers = if kind == FLUSH { vec![request, status] } else { vec![request, data, status] };
        let head = self.drivers[queue].add(&buffers);
        self.heads[queue][usize::from(head)] = slot;
    }

    fn status(&self, queue: usize, slot: u64) -> u8 {
        self.machine.bytes(Gpa(Self::place(queue, slot).0.0 + 32), 1)[0]
    }

    /// Slots in the order of their answers, when so many have come.
    fn answers(&mut self, queue: usize, count: usize) -> Vec<u64> {
        let mut seen = Vec::new();
        wait_until(|| {
            while let Some((head, _)) = self.drivers[queue].take_used() {
                seen.push(self.heads[queue][usize::from(head)]);
            }
            seen.len() >= count
        });
        assert_eq!(seen.len(), count, "requests are lost, or answered twice");
        seen
    }

    /// One batch in each queue at the same time.
    fn step(&mut self) {
        let mut batches = Vec::new();
        for queue in 0..QUEUES {
            let flush_at = self.random(SLOTS - 1);
            let mut asked = Vec::new();
            for slot in 0..SLOTS - 1 {
                if slot == flush_at {
                    self.offer(queue, SLOTS - 1, FLUSH, (0, 0));
                    asked.push((SLOTS - 1, FLUSH, 0..0));
                }
                let whole = self.random(2) == 0;
                let (first, kind) = (if whole { 0 } else { self.random(16) }, [IN, OUT][self.random(2) as usize]);
                let count = if whole { 16 } else { 1 + self.random(16 - first) };
                let (_, data) = Self::place(queue, slot);
                let fill = vec![self.random(256) as u8; count as usize * 512];
                self.machine.ram.write(data, &fill).unwrap();
                self.offer(queue, slot, kind, (first, count));
                let start = (Self::start(queue, slot) + first * 512) as usize;
                let range = start..start + fill.len();
                if kind == OUT {
                    self.model[range.clone()].copy_from_slice(&fill);
                }
                asked.push((slot, kind, range));
            }
            batches.push((flush_at as usize, asked));
        }
        for queue in 0..QUEUES {
            self.machine.show(queue as u32, &mut self.drivers[queue]);
        }
        for (queue, (flush_at, asked)) in batches.into_iter().enumerate() {
            let order = self.answers(queue, asked.len());
            let flush = order.iter().position(|slot| *slot == SLOTS - 1).unwrap();
            let before = |slot: u64| order.iter().position(|seen| *seen == slot).unwrap() < flush;
            for (slot, kind, range) in asked {
                assert_eq!(self.status(queue, slot), OK);
                if kind == IN {
                    let read = self.machine.bytes(Self::place(queue, slot).1, range.len());
                    assert!(read == self.model[range], "queue {queue}, slot {slot}: other bytes than were written");
                }
                assert!(kind == FLUSH || before(slot) == (slot < flush_at as u64), "{slot} passed a flush");
            }
        }
    }

    /// Reads all slots of the first queue as one batch: which of them fail.
    fn failing_reads(&mut self) -> Vec<u64> {
        (0..SLOTS).for_each(|slot| self.offer(0, slot, IN, (0, 16)));
        self.machine.show(0, &mut self.drivers[0]);
        self.answers(0, SLOTS as usize);
        (0..SLOTS).filter(|slot| self.status(0, *slot) == IOERR).collect()
    }
}

fn is_whole<const QUEUES: usize>(engine: Engine, direct: bool) {
    let mut bench = Bench::<QUEUES>::new(engine, direct);
    for round in 0..60 {
        bench.step();
        if round % 20 == 7 {
            bench.machine.pause();
            let state = bench.machine.transport.state().unwrap();
            assert!(state.queues.iter().all(|queue| queue.indices.next_avail == queue.indices.next_used));
            bench.machine.resume();
        }
    }
    assert!(fs::read(bench.file.path()).unwrap() == bench.model, "the image has other bytes than were written");
    assert_eq!(bench.machine.tape.warnings(), Vec::<String>::new());
}

#[test]
fn what_is_written_is_read_and_a_flush_is_a_line() {
    on_each(|name, engine, direct| {
        println!("{name}");
        is_whole::<1>(engine, direct);
        is_whole::<4>(engine, direct);
    });
}

#[test]
fn a_pause_in_the_middle_loses_nothing() {
    on_each(|name, engine, direct| {
        let mut bench = Bench::<1>::new(engine, direct);
        for round in 0..30_u8 {
            for slot in 0..SLOTS {
                bench.machine.ram.write(Bench::<1>::place(0, slot).1, &[round ^ slot as u8; SLOT as usize]).unwrap();
                bench.offer(0, slot, OUT, (0, 16));
            }
            bench.machine.show(0, &mut bench.drivers[0]);
            bench.machine.pause();
            bench.machine.resume();
            bench.answers(0, SLOTS as usize);
            assert!((0..SLOTS).all(|slot| bench.status(0, slot) == OK), "{name}");
        }
        let image = fs::read(bench.file.path()).unwrap();
        for slot in 0..SLOTS as usize {
            assert!(
                image[slot * SLOT as usize..][..SLOT as usize].iter().all(|byte| *byte == 29 ^ slot as u8),
                "{name}"
            );
        }
    });
}

/// Neighbours go as one; of an image that ends in the middle of them, those before the end are good.
#[test]
fn of_neighbours_just_those_fail_that_must() {
    on_each(|name, engine, direct| {
        let mut bench = Bench::<1>::new(engine, direct);
        assert_eq!(bench.failing_reads(), [0; 0], "{name}");
        for whole in [9, 4, 0] {
            bench.file.as_file().set_len(whole * SLOT + 4096).unwrap();
            let expected: Vec<_> = (whole..SLOTS).collect();
            assert_eq!(bench.failing_reads(), expected, "{name}: {whole} are whole");
        }
        bench.file.as_file().set_len(Disk::SIZE).unwrap();
        assert_eq!(bench.failing_reads(), [0; 0], "{name}: and they work again");
    });
}

/// A ring that the host does not serve any more costs speed, nothing else; storage that fails is told.
#[test]
fn a_host_that_fails_is_told_once_for_each_request() {
    on_each(|name, engine, direct| {
        let mut bench = failing(SYS_io_uring_enter, EIO, || Bench::<4>::new(engine, direct));
        bench.step();
        for (call, error) in [(SYS_preadv, "read"), (SYS_pwritev, "write")] {
            let mut bench = failing(call, EIO, || failing(SYS_io_uring_enter, EIO, || Bench::<1>::new(engine, direct)));
            let kind = if call == SYS_preadv { IN } else { OUT };
            (0..3).for_each(|slot| bench.offer(0, slot, kind, (0, 16)));
            bench.machine.show(0, &mut bench.drivers[0]);
            bench.answers(0, 3);
            assert_eq!([0, 1, 2].map(|slot| bench.status(0, slot)), [IOERR; 3], "{name}: {error}");
            assert!(bench.machine.tape.warnings()[0].contains(&format!("cannot {error}")), "{name}");
        }
    });
}

/// What a guest puts anywhere in its memory, a disk without a page cache between takes from there.
#[test]
fn a_direct_disk_takes_what_is_not_aligned() {
    on_each(|name, engine, direct| {
        let mut bench = Bench::<1>::new(engine, direct);
        for (round, shift) in [0_u64, 1, 7, 512, 513].into_iter().enumerate() {
            for (kind, byte) in [(OUT, round as u8 + 1), (IN, 0)] {
                let (header, data) = (Bench::<1>::place(0, 0).0, Gpa(DATA.0 + 0x8_0000 + shift));
                bench.machine.ram.write(data, &[byte; 1024]).unwrap();
                bench.offer(0, 1, FLUSH, (0, 0));
                let words = [kind.to_le_bytes().as_slice(), &[0; 4], &3_u64.to_le_bytes()].concat();
                bench.machine.ram.write(header, &words).unwrap();
                // Cut where no sector ends.
                let cut = |at, len| Buffer { gpa: Gpa(data.0 + at), len, writable: kind == IN };
                let parts = [Buffer::readable(header, 16), cut(0, 100), cut(100, 924)];
                let head = bench.drivers[0].add(&[&parts[..], &[Buffer::writable(Gpa(header.0 + 32), 1)]].concat());
                bench.heads[0][usize::from(head)] = 0;
                bench.machine.show(0, &mut bench.drivers[0]);
                bench.answers(0, 2);
                assert_eq!(bench.status(0, 0), OK, "{name}: {shift}");
                assert_eq!(bench.machine.bytes(data, 1024), [round as u8 + 1; 1024], "{name}: {shift}");
            }
        }
        assert_eq!(fs::read(bench.file.path()).unwrap()[3 * 512..][..1024], [5; 1024], "{name}");
    });
}

#[test]
fn a_host_without_a_way_is_told_apart_from_one_that_fails() {
    let file = image(false);
    let config = DiskConfig { direct: true, ..DiskConfig::new(file.path()) };
    let condition = SeccompCondition::new(
        2,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(libc::O_DIRECT as u64),
        libc::O_DIRECT as u64,
    );
    let rules = BTreeMap::from([(libc::SYS_openat, vec![SeccompRule::new(vec![condition.unwrap()]).unwrap()])]);
    let refusal = SeccompAction::Errno(EINVAL as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, TargetArch::x86_64).unwrap();
    let open = || {
        apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
        DiskImage::open(&config).unwrap_err()
    };
    let error = std::thread::scope(|scope| scope.spawn(open).join().unwrap());
    assert!(matches!(error, DiskError::NotDirect(_)), "{error}");

    let image = DiskImage::open(&DiskConfig { engine: Engine::IoUring, ..DiskConfig::new(file.path()) }).unwrap();
    let error = failing(SYS_io_uring_setup, EPERM, || image.open_engines(1)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EPERM));
    let mut disk = Disk::on(Machine::new(Box::new(Block::new(image.clone()))), image, !0);
    disk.check_alive();
}
