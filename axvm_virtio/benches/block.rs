//! What a 4 KiB read costs on its way through the block device: kick, worker, ring, `preadv`, used ring.
//!
//! ```text
//!   driver: n chains --kick--> vda-q0 --preadv--> page cache        reads per second, nanoseconds a read
//!     ^                                  |
//!     '---- polls the used ring <--------'
//! ```
//!
//! The image lies in the page cache, so what is measured is AxVM and the system calls, not the storage. Medians of rounds;
//! compare two versions by running both in turn.
//!
//! Run: `cargo bench -p axvm_virtio --bench block`.

use std::hint::spin_loop;
use std::sync::Arc;
use std::time::Instant;

use axvm_arch::Gpa;
use axvm_devices::{BusDevice, Irq};
use axvm_events::Events;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::block::{Block, DiskConfig, DiskImage};
use axvm_virtio::mmio::MmioTransport;
use axvm_virtio::testing::{Buffer, FakeDriver};

const RING: Gpa = Gpa(0x1_0000);
const HEADERS: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const SIZE: u16 = 256;
const ROUNDS: usize = 41;
const READS: u32 = 2000;
const IMAGE: u64 = 64 << 20;

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
}

impl Disk {
    fn open(path: &std::path::Path) -> Disk {
        let ram = GuestRam::allocate(&RamConfig::new(64 << 20)).unwrap();
        let device = Box::new(Block::new(DiskImage::open(&DiskConfig::new(path)).unwrap()));
        let transport =
            MmioTransport::new("vda", device, Arc::clone(&ram), Irq::new().unwrap(), Events::default()).unwrap();
        let driver = FakeDriver::new(&ram, RING, SIZE, true);
        let set = |offset, value: u32| transport.write(offset, &value.to_le_bytes());
        set(reg::STATUS, 3);
        // EVENT_IDX (29) and VERSION_1 (32).
        for (select, features) in [(0, 1 << 29), (1, 1)] {
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
        Disk { ram, transport, driver }
    }

    /// Offers a read of 4 KiB; each slot has a header, a buffer and a status byte of its own.
    fn offer(&mut self, slot: u64, number: u64) {
        let (header, data) = (HEADERS + slot * 32, DATA + slot * 4096);
        let sector = number * 7919 % (IMAGE / 4096) * 8;
        self.ram.write(Gpa(header + 8), &sector.to_le_bytes()).unwrap();
        let [request, status] = [Buffer::readable(Gpa(header), 16), Buffer::writable(Gpa(header + 16), 1)];
        self.driver.add(&[request, Buffer::writable(Gpa(data), 4096), status]);
    }

    /// Nanoseconds a read, with so many in flight.
    fn round(&mut self, depth: u64) -> f64 {
        self.driver.disable_interrupts();
        let start = Instant::now();
        for batch in 0..u64::from(READS) / depth {
            (0..depth).for_each(|slot| self.offer(slot, batch * depth + slot));
            if self.driver.kick() {
                self.transport.kick(0).signal();
            }
            for _ in 0..depth {
                while self.driver.take_used().is_none() {
                    spin_loop();
                }
            }
        }
        start.elapsed().as_nanos() as f64 / f64::from(READS)
    }
}

fn main() {
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), vec![1; IMAGE as usize]).unwrap();
    let mut disk = Disk::open(image.path());
    println!("{:8} {:>9} {:>9} {:>9}   ns a read of 4 KiB", "depth", "10 %", "median", "90 %");
    for depth in [1, 8, 32] {
        let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| disk.round(depth)).collect();
        rounds.sort_by(f64::total_cmp);
        let at = |part: usize| rounds[ROUNDS * part / 100];
        println!("{depth:8} {:9.0} {:9.0} {:9.0}", at(10), at(50), at(90));
    }
}
