//! What the device's side of a ring costs: chains taken, returned and published, one by one and 32 at a time.
//!
//! Side by side with rust-vmm's `virtio-queue` in one run: rounds alternate, medians are compared, and
//! the ratio is what counts (processors differ, and change speed). Both sides do the same work for a
//! chain: read it, check that its buffers are RAM, write the used element and index, ask whether to
//! interrupt.
//!
//! The last column is the check of `--virtio-check` on, beside it off. Off, it has no code of its own on this way: a queue
//! asks once for each step whether a recorder or a check looks at it, as it asked for the recorder alone.
//!
//! Run: `cargo bench -p axvm_virtio --bench queue`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use axvm_arch::Gpa;
use axvm_events::Events;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::queue::{QueueFeatures, QueueLayout, QueueState, VirtQueue};
use axvm_virtio::testing::{Buffer, FakeDriver};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestMemory, Permissions};

const SIZE: u16 = 256;
const ROUNDS: usize = 2000;
const DATA: u64 = 0x20_0000;
const TABLES: u64 = 0x10_0000;

/// The shape of the chains in one comparison.
#[derive(Clone, Copy)]
struct Shape {
    buffers: u16,
    indirect: bool,
    /// Chains that are published together.
    batch: u16,
}

impl Shape {
    const fn direct(buffers: u16) -> Shape {
        Shape { buffers, indirect: false, batch: 1 }
    }

    const fn indirect(buffers: u16) -> Shape {
        Shape { indirect: true, ..Shape::direct(buffers) }
    }

    const fn batched(self) -> Shape {
        Shape { batch: 32, ..self }
    }
}

/// A frame, a request of a disk, and the longest that Linux makes of 64 KiB in pages.
const SHAPES: [Shape; 10] = [
    Shape::direct(1),
    Shape::direct(2),
    Shape::direct(3),
    Shape::direct(17),
    Shape::indirect(3),
    Shape::indirect(17),
    Shape::direct(1).batched(),
    Shape::direct(3).batched(),
    Shape::indirect(3).batched(),
    Shape::indirect(17).batched(),
];

/// A device under measurement.
trait Device {
    /// Serves `count` chains, `batch` at a time, and returns the number of bytes in their buffers.
    fn serve(&mut self, count: u16, batch: u16) -> u64;
}

struct Ours(VirtQueue);

impl Device for Ours {
    fn serve(&mut self, count: u16, batch: u16) -> u64 {
        let mut bytes = 0;
        for n in 1..=count {
            let chain = self.0.pop().unwrap().unwrap();
            bytes += chain.readable_len + chain.writable_len;
            let head = chain.head;
            black_box((chain.readable, chain.writable));
            self.0.push_used(head, 1);
            if n % batch == 0 {
                black_box(self.0.publish());
            }
        }
        bytes
    }
}

struct Theirs {
    ram: Arc<GuestRam>,
    queue: Queue,
}

impl Device for Theirs {
    fn serve(&mut self, count: u16, batch: u16) -> u64 {
        let (memory, mut bytes) = (self.ram.memory(), 0);
        for n in 1..=count {
            let chain = self.queue.pop_descriptor_chain(memory).unwrap();
            let head = chain.head_index();
            for descriptor in chain {
                let (len, write) = (descriptor.len(), descriptor.is_write_only());
                let access = if write { Permissions::Write } else { Permissions::Read };
                assert!(memory.check_range(descriptor.addr(), len as usize, access));
                bytes += u64::from(len);
                black_box(descriptor);
            }
            self.queue.add_used(memory, head, 1).unwrap();
            if n % batch == 0 {
                black_box(self.queue.needs_notification(memory).unwrap());
            }
        }
        bytes
    }
}

fn ours(ram: &Arc<GuestRam>, layout: &QueueLayout) -> Ours {
    let features = QueueFeatures { event_idx: true, indirect: true };
    Ours(VirtQueue::new(ram, layout, features, QueueState::default()).unwrap())
}

/// The same, held against the standard (`--virtio-check`).
fn checked(ram: &Arc<GuestRam>, layout: &QueueLayout) -> Ours {
    let Ours(mut queue) = ours(ram, layout);
    axvm_virtio::testing::check(&mut queue, true, &Events::default().with_rules(Arc::default()));
    Ours(queue)
}

fn theirs(ram: &Arc<GuestRam>, layout: &QueueLayout) -> Theirs {
    let mut queue = Queue::new(layout.size).unwrap();
    queue.set_desc_table_address(Some(layout.descriptors.0 as u32), Some(0));
    queue.set_avail_ring_address(Some(layout.avail.0 as u32), Some(0));
    queue.set_used_ring_address(Some(layout.used.0 as u32), Some(0));
    queue.set_event_idx(true);
    queue.set_ready(true);
    Theirs { ram: Arc::clone(ram), queue }
}

/// Fills the ring, lets the device empty it, and gives the nanoseconds for one chain.
fn round(driver: &mut FakeDriver, device: &mut dyn Device, shape: Shape) -> f64 {
    let buffer = |n: u16| Buffer { gpa: Gpa(DATA + 4096 * u64::from(n)), len: 4096, writable: n > 0 };
    let buffers: Vec<_> = (0..shape.buffers).map(buffer).collect();
    let fit = if shape.indirect { SIZE } else { SIZE / shape.buffers };
    let count = fit - fit % shape.batch;
    for n in 0..count {
        match shape.indirect {
            true => driver.add_indirect(Gpa(TABLES + 512 * u64::from(n)), &buffers),
            false => driver.add(&buffers),
        };
    }
    driver.kick();
    let start = Instant::now();
    let bytes = device.serve(count, shape.batch);
    let took = start.elapsed();
    assert_eq!(bytes, u64::from(count) * 4096 * u64::from(shape.buffers));
    while driver.take_used().is_some() {}
    took.as_nanos() as f64 / f64::from(count)
}

fn quartiles(mut samples: Vec<f64>) -> [f64; 3] {
    samples.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| samples[samples.len() * quarter / 4])
}

fn main() {
    println!("ns for pop + push_used + publish: median (quartiles); {ROUNDS} rounds, queue of {SIZE}, EVENT_IDX");
    println!("{:<26} {:>22} {:>22} {:>7} {:>7}", "buffers of a chain", "axvm", "virtio-queue", "ratio", "checked");
    for shape in SHAPES {
        let rams = [(); 3].map(|_| GuestRam::allocate(&RamConfig::new(8 << 20)).unwrap());
        let mut drivers = [0, 1, 2].map(|n| FakeDriver::new(&rams[n], Gpa(0x1000), SIZE, true));
        let layout = drivers[0].layout();
        let (mut ours, mut theirs) = (ours(&rams[0], &layout), theirs(&rams[1], &layout));
        let mut checked = checked(&rams[2], &layout);
        let mut samples = [(); 3].map(|()| Vec::new());
        for _ in 0..ROUNDS {
            samples[0].push(round(&mut drivers[0], &mut ours, shape));
            samples[1].push(round(&mut drivers[1], &mut theirs, shape));
            samples[2].push(round(&mut drivers[2], &mut checked, shape));
        }
        let [a, b, c] = samples.map(quartiles);
        let show = |q: [f64; 3]| format!("{:.1} ({:.1} .. {:.1})", q[1], q[0], q[2]);
        let Shape { buffers, indirect, batch } = shape;
        let name = format!("{buffers} {}, {batch} at a time", if indirect { "indirect" } else { "direct" });
        println!("{name:<26} {:>22} {:>22} {:>6.2}x {:>6.2}x", show(a), show(b), b[1] / a[1], c[1] / a[1]);
    }
}
