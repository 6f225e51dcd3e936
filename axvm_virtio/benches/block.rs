//! What a 4 KiB request costs on its way through the block device: kick, worker, ring, engine, used ring.
//!
//! ```text
//!   driver: n in flight --kick--> vda-q0 --engine--> page cache, or disk       nanoseconds a request
//!     ^                                     |
//!     '---- polls the used ring, offers <---'
//! ```
//!
//! Each engine moves the same requests, in turn, round by round: from the page cache, where what is measured is AxVM and
//! its system calls; through it while it is empty (cold); and past it (direct), where the disk is. Medians of rounds. The image is in the directory that TMPDIR
//! names; on a file system without O_DIRECT the direct part is left out.
//!
//! Run: `cargo bench -p axvm_virtio --bench block`, and behind `--` the number of rounds, and
//! cached, cold or direct for one of the three.

use std::hint::spin_loop;
use std::sync::Arc;
use std::time::Instant;

use axvm_arch::Gpa;
use axvm_devices::{BusDevice, Irq};
use axvm_events::Events;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::block::{Block, DiskConfig, DiskImage, Engine};
use axvm_virtio::mmio::MmioTransport;
use axvm_virtio::testing::{Buffer, FakeDriver};

const RING: Gpa = Gpa(0x1_0000);
const HEADERS: u64 = 0x10_0000;
const TABLES: u64 = 0x18_0000;
const DATA: u64 = 0x20_0000;
const SIZE: u16 = 256;
const ROUNDS: usize = 15;
/// Requests of a round, from the page cache and from the disk.
const COUNTS: [u64; 2] = [4000, 1000];
const DEPTHS: [u64; 5] = [1, 8, 32, 64, 128];
const WAYS: [&str; 3] = ["cached", "cold", "direct"];
const IMAGE: u64 = 256 << 20;

/// What the driver asks for.
#[derive(Clone, Copy, PartialEq)]
enum Pattern {
    Read,
    Write,
    /// Reads, each behind the last one.
    Sequential,
}

/// Register offsets of virtio-mmio (virtio 1.2, 4.2.2).
mod reg {
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_NUM: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC: u64 = 0x80;
    pub const QUEUE_DRIVER: u64 = 0x90;
    pub const QUEUE_DEVICE: u64 = 0xa0;
}

struct Disk {
    ram: Arc<GuestRam>,
    transport: MmioTransport,
    driver: FakeDriver,
    /// By head: the place of a request.
    slots: Vec<u64>,
    number: u64,
}

impl Disk {
    /// None if the host cannot.
    fn open(path: &std::path::Path, direct: bool, engine: Engine) -> Option<Disk> {
        let ram = GuestRam::allocate(&RamConfig::new(64 << 20)).unwrap();
        let image = DiskImage::open(&DiskConfig { direct, engine, ..DiskConfig::new(path) }).ok()?;
        image.open_engines(1).ok()?;
        let device = Box::new(Block::new(image));
        let transport =
            MmioTransport::new("vda", device, Arc::clone(&ram), Irq::new().unwrap(), Events::default()).unwrap();
        let driver = FakeDriver::new(&ram, RING, SIZE, true);
        let set = |offset, value: u32| transport.write(offset, &value.to_le_bytes());
        set(reg::STATUS, 3);
        // INDIRECT_DESC (28), EVENT_IDX (29), FLUSH (9: write-back) and VERSION_1 (32).
        for (select, features) in [(0, 3 << 28 | 1 << 9), (1, 1)] {
            set(reg::DRIVER_FEATURES_SEL, select);
            set(reg::DRIVER_FEATURES, features);
        }
        set(reg::STATUS, 11);
        let layout = driver.layout();
        set(reg::QUEUE_NUM, layout.size.into());
        let areas = [
            (reg::QUEUE_DESC, layout.descriptors),
            (reg::QUEUE_DRIVER, layout.avail),
            (reg::QUEUE_DEVICE, layout.used),
        ];
        areas.into_iter().for_each(|(offset, gpa)| set(offset, gpa.0 as u32));
        set(reg::QUEUE_READY, 1);
        set(reg::STATUS, 15);
        Some(Disk { ram, transport, driver, slots: vec![0; usize::from(SIZE)], number: 0 })
    }

    /// Offers a request of 4 KiB; each slot has a table, a header, a buffer and a status byte of its own.
    fn offer(&mut self, slot: u64, pattern: Pattern) {
        let (header, data) = (HEADERS + slot * 32, Gpa(DATA + slot * 4096));
        self.number += 1;
        let step = if pattern == Pattern::Sequential { 1 } else { 7919 };
        let sector = self.number * step % (IMAGE / 4096) * 8;
        let kind = u64::from(pattern == Pattern::Write);
        self.ram.write(Gpa(header), &[kind.to_le_bytes(), sector.to_le_bytes()].concat()).unwrap();
        let [request, status] = [Buffer::readable(Gpa(header), 16), Buffer::writable(Gpa(header + 16), 1)];
        let data = Buffer { gpa: data, len: 4096, writable: kind == 0 };
        let head = self.driver.add_indirect(Gpa(TABLES + slot * 64), &[request, data, status]);
        self.slots[usize::from(head)] = slot;
    }

    fn kick(&mut self) {
        if self.driver.kick() {
            self.transport.kick(0).signal();
        }
    }

    /// Nanoseconds a request, with so many in flight; and of processor time on our side.
    fn round(&mut self, pattern: Pattern, depth: u64, count: u64) -> [f64; 2] {
        self.driver.disable_interrupts();
        let (start, worked) = (Instant::now(), worked());
        (0..depth).for_each(|slot| self.offer(slot, pattern));
        self.kick();
        let (mut offered, mut done) = (depth, 0);
        while done < count {
            let before = done;
            while let Some((head, _)) = self.driver.take_used() {
                done += 1;
                if offered < count {
                    offered += 1;
                    self.offer(self.slots[usize::from(head)], pattern);
                }
            }
            if done == before {
                spin_loop();
            } else {
                self.kick();
            }
        }
        [start.elapsed().as_nanos() as u64, self::worked() - worked].map(|time| time as f64 / count as f64)
    }
}

/// Nanoseconds that all threads but this one have run: the worker, and what the kernel runs for its ring.
fn worked() -> u64 {
    let ran = |task: std::fs::DirEntry| {
        let is_main = task.file_name().to_str() == Some(&std::process::id().to_string());
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok().filter(|_| !is_main)?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    std::fs::read_dir("/proc/self/task").unwrap().flatten().filter_map(ran).sum()
}

/// The one in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() {
    let rounds = std::env::args().filter_map(|word| word.parse().ok()).next().unwrap_or(ROUNDS);
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), vec![1; IMAGE as usize]).unwrap();
    image.as_file().sync_data().unwrap();
    println!("ns a request of 4 KiB, medians of {rounds} rounds: time, and processor time of the device");
    println!("{:6} {:10} {:>5} {:>18} {:>18} {:>11}", "way", "pattern", "depth", "sync", "io_uring", "ratios");
    let named: Vec<_> = std::env::args().filter(|word| WAYS.contains(&&**word)).collect();
    for way in WAYS.into_iter().filter(|way| named.is_empty() || named.iter().any(|word| word == way)) {
        let direct = way == "direct";
        for (pattern, name) in [(Pattern::Read, "read"), (Pattern::Write, "write"), (Pattern::Sequential, "sequential")]
        {
            // What is written goes to the page cache, whatever is in it.
            for depth in DEPTHS.into_iter().filter(|_| way != "cold" || pattern != Pattern::Write) {
                let mut times: [[Vec<f64>; 2]; 2] = Default::default();
                for engine in [Engine::Sync, Engine::IoUring].repeat(rounds) {
                    let Some(mut disk) = Disk::open(image.path(), direct, engine) else { continue };
                    disk.round(pattern, depth, 200.max(depth));
                    if way == "cold" {
                        image.as_file().sync_data().unwrap();
                        rustix::fs::fadvise(image.as_file(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
                    }
                    let round = disk.round(pattern, depth, COUNTS[usize::from(way != "cached")]);
                    let columns = &mut times[usize::from(engine == Engine::IoUring)];
                    columns.iter_mut().zip(round).for_each(|(column, time)| column.push(time));
                }
                let [[sync, sync_work], [ring, ring_work]] = times.map(|columns| columns.map(median));
                println!(
                    "{way:6} {name:10} {depth:5} {sync:9.0} {sync_work:8.0} {ring:9.0} {ring_work:8.0} {:5.2} {:5.2}",
                    sync / ring,
                    sync_work / ring_work
                );
            }
        }
    }
}
