//! The virtio console, whole: transport, rings, worker and port, against any chains and any pace of the host.
//!
//! ```text
//!   input --> chains on both queues, typing, draining, pauses, and descriptors of any content
//!   held:     no panic, no hang; what was typed is in the input buffers or still in the port, what was sent arrives,
//!             both whole and in order, over any number of pauses
//! ```
//!
//! Run: `cargo +nightly fuzz run virtio_console`.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_console::{Port, Size};
use axvm_devices::{BusDevice, Irq};
use axvm_events::Events;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::console::Console;
use axvm_virtio::mmio::MmioTransport;
use axvm_virtio::testing::{Buffer, FakeDriver, RawDescriptor};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

const RING_SIZE: u16 = 64;
/// Receive and transmit.
const RINGS: [Gpa; 2] = [Gpa(0x1000), Gpa(0x3000)];
const TABLE: Gpa = Gpa(0x8000);
/// Output is made of this part of RAM: at `DATA + n` lies `n % 251`.
const DATA: u64 = 0x10_0000;
const DATA_LEN: usize = 128 << 10;
/// Each input chain has a part of its own.
const INPUT: u64 = 0x20_0000;
const INPUT_LEN: u64 = 4096;

const QUEUE_NOTIFY: u64 = 0x050;
const STATUS: u64 = 0x070;
const NEEDS_RESET: u32 = 0x40;
const EMERG_WR: u64 = 0x108;
const LIMIT: Duration = Duration::from_secs(10);

static RAM: LazyLock<Arc<GuestRam>> = LazyLock::new(|| {
    let ram = GuestRam::allocate(&RamConfig::new(4 << 20)).expect("4 MiB");
    write_pattern(&ram);
    ram
});

fn write_pattern(ram: &GuestRam) {
    ram.write(Gpa(DATA), &(0..DATA_LEN).map(pattern).collect::<Vec<u8>>()).expect("in RAM");
}

fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

#[derive(Arbitrary, Debug)]
enum Step {
    Print {
        pieces: Vec<(u16, u16)>,
        indirect: bool,
    },
    Offer {
        pieces: Vec<u16>,
        indirect: bool,
    },
    Type(u16),
    Drain,
    Resize {
        columns: u16,
        rows: u16,
    },
    Pause,
    /// A descriptor of any content, and any head.
    Raw {
        transmit: bool,
        index: u8,
        addr: u32,
        len: u32,
        flags: u16,
        next: u16,
        head: u16,
    },
    Emergency(Vec<u8>),
}

/// The device, and what a bystander knows of both directions.
struct Run {
    device: MmioTransport,
    drivers: [FakeDriver; 2],
    port: Port,
    printed: Vec<u8>,
    arrived: Vec<u8>,
    typed: Vec<u8>,
    /// Input chains: head, pieces.
    offered: Vec<(u16, Vec<Buffer>)>,
    received: Vec<u8>,
    tables: u64,
    outstanding: [usize; 2],
    /// Nothing happened that makes counting bytes meaningless.
    honest: bool,
}

impl Run {
    fn new(features: u32) -> Run {
        let port = Port::new().expect("eventfds");
        let drivers = RINGS.map(|ring| FakeDriver::new(&RAM, ring, RING_SIZE, features & 1 << 29 != 0));
        let console = Box::new(Console::new(port.clone()));
        let irq = Irq::new().expect("an eventfd");
        let device = MmioTransport::new("fuzz", console, Arc::clone(&RAM), irq, Events::default()).expect("eventfds");
        let (printed, arrived, typed, offered, received) = Default::default();
        let (tables, outstanding, honest) = (0, [0; 2], true);
        let run =
            Run { device, drivers, port, printed, arrived, typed, offered, received, tables, outstanding, honest };
        run.start(features);
        run
    }

    fn start(&self, features: u32) {
        self.set(STATUS, 3);
        let offered = self.get(0x010);
        // Indirect tables always, as the chains use them.
        for (register, value) in [(0x024, 1), (0x020, 1), (0x024, 0), (0x020, offered & (features | 1 << 28))] {
            self.set(register, value);
        }
        self.set(STATUS, 11);
        for (index, driver) in self.drivers.iter().enumerate() {
            let layout = driver.layout();
            let areas = [layout.descriptors, layout.avail, layout.used].map(|Gpa(address)| address as u32);
            let script = [(0x030, index as u32), (0x038, RING_SIZE.into())];
            let script = script.into_iter().chain([0x080, 0x090, 0x0a0].into_iter().zip(areas)).chain([(0x044, 1)]);
            script.for_each(|(register, value)| self.set(register, value));
        }
        self.set(STATUS, 15);
        assert_eq!(self.get(STATUS), 15);
    }

    fn set(&self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Offers a chain; its head, unless the ring is full or the chain empty.
    fn offer(&mut self, queue: usize, buffers: &[Buffer], indirect: bool) -> Option<u16> {
        let driver = &mut self.drivers[queue];
        if buffers.is_empty() || buffers.len() > driver.free_count() || self.tables == 500 {
            return None;
        }
        self.tables += 1;
        let head = match indirect {
            true => driver.add_indirect(Gpa(TABLE.0 + 0x100 * self.tables), buffers),
            false => driver.add(buffers),
        };
        self.outstanding[queue] += 1;
        if driver.kick() {
            self.set(QUEUE_NOTIFY, queue as u32);
        }
        Some(head)
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Print { pieces, indirect } => {
                let pieces = &pieces[..pieces.len().min(16)];
                let place = |&(at, len): &(u16, u16)| Buffer::readable(Gpa(DATA + u64::from(at)), len.into());
                if self.offer(1, &pieces.iter().map(place).collect::<Vec<_>>(), *indirect).is_some() {
                    let bytes = |&(at, len): &(u16, u16)| (at.into()..usize::from(at) + usize::from(len)).map(pattern);
                    self.printed.extend(pieces.iter().flat_map(bytes));
                }
            }
            Step::Offer { pieces, indirect } => {
                let mut at = INPUT + INPUT_LEN * self.tables % (2 << 20);
                let mut place = |&len: &u16| {
                    let piece = Buffer::writable(Gpa(at), u32::from(len) % 256);
                    at += u64::from(piece.len);
                    piece
                };
                let pieces: Vec<Buffer> = pieces.iter().take(16).map(&mut place).collect();
                if let Some(head) = self.offer(0, &pieces, *indirect) {
                    self.offered.push((head, pieces));
                }
            }
            Step::Type(count) => {
                let bytes: Vec<u8> = (self.typed.len()..self.typed.len() + usize::from(*count)).map(pattern).collect();
                let taken = self.port.put(&bytes);
                self.typed.extend(&bytes[..taken]);
            }
            Step::Drain => _ = self.port.take(&mut self.arrived),
            Step::Resize { columns, rows } => self.port.resize(Size { columns: *columns, rows: *rows }),
            Step::Pause => {
                self.device.pause(Instant::now() + LIMIT).expect("it stops");
                let state = self.device.state().expect("it is paused");
                let idle = state.queues.iter().all(|queue| queue.indices.next_avail == queue.indices.next_used);
                // A driver that broke the rules has a device that stopped in the middle.
                let stopped = state.status & NEEDS_RESET != 0;
                assert!(idle || stopped, "a paused device has a chain in flight: {state:?}");
                self.device.resume(Instant::now() + LIMIT).expect("it goes on");
            }
            Step::Raw { transmit, index, addr, len, flags, next, head } => {
                let raw = RawDescriptor { addr: u64::from(*addr) % (8 << 20), len: *len, flags: *flags, next: *next };
                let queue = usize::from(*transmit);
                self.drivers[queue].write_descriptor(u16::from(*index) % RING_SIZE, raw);
                self.drivers[queue].offer(head % (RING_SIZE + 1));
                self.drivers[queue].kick();
                self.set(QUEUE_NOTIFY, queue as u32);
                self.honest = false;
            }
            Step::Emergency(bytes) => {
                self.device.write(EMERG_WR, &bytes[..bytes.len().min(8)]);
                self.honest &= bytes.is_empty();
            }
        }
        self.collect();
    }

    /// Takes chains back, and the input in them.
    fn collect(&mut self) {
        if !self.honest {
            return;
        }
        while let Some((_, written)) = self.drivers[1].take_used() {
            assert_eq!(written, 0, "output buffers are not written");
            self.outstanding[1] -= 1;
        }
        while let Some((head, written)) = self.drivers[0].take_used() {
            self.outstanding[0] -= 1;
            let (offered, pieces) = self.offered.remove(0);
            assert_eq!(head, offered, "input buffers come back in order");
            let before = self.received.len();
            for piece in pieces {
                let left = written as usize - (self.received.len() - before);
                let mut bytes = vec![0; left.min(piece.len as usize)];
                RAM.read(piece.gpa, &mut bytes).expect("in RAM");
                self.received.extend(bytes);
            }
            assert_eq!(self.received.len() - before, written as usize, "more written than there is room for");
        }
    }

    /// Waits until the device has done all it can.
    fn finish(&mut self) {
        let begin = Instant::now();
        loop {
            self.port.take(&mut self.arrived);
            self.collect();
            let input_waits = self.port.pending() > 0 && self.outstanding[0] > 0;
            if self.get(STATUS) & NEEDS_RESET != 0 || self.outstanding[1] == 0 && !input_waits {
                return;
            }
            assert!(begin.elapsed() < LIMIT, "the device hangs: {:?} chains are not back", self.outstanding);
            std::thread::yield_now();
        }
    }
}

fuzz_target!(|input: (u32, Vec<Step>)| {
    let (features, steps) = input;
    let mut run = Run::new(features);
    steps.iter().take(200).for_each(|step| run.step(step));
    if run.honest {
        run.finish();
    }
    let whole = run.get(STATUS) & NEEDS_RESET == 0;
    run.device.stop(Instant::now() + LIMIT).expect("it stops");
    assert_eq!(run.get(STATUS), 0);
    run.collect();
    run.port.take(&mut run.arrived);
    if run.honest {
        assert!(run.typed.starts_with(&run.received), "input out of order");
        assert_eq!(run.received.len() + run.port.pending(), run.typed.len(), "input lost");
        assert!(run.printed.starts_with(&run.arrived), "output out of order");
        assert!(!whole || run.printed.len() == run.arrived.len(), "output lost");
    } else {
        // An input buffer may have lain there.
        write_pattern(&RAM);
    }
});
