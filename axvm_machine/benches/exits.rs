//! What an exit costs in user space, beside KVM: the loop, the bus, the chip.
//!
//! ```text
//!   played vCPU --Exit--> loop --> bus --> chip          each row adds what is right of the one above
//!        |------> the same with a tape: what --trace costs, whose clock is most of it
//!        '------> a loop that answers 0: the floor
//! ```
//!
//! Nothing enters a guest, so nothing is measured but AxVM's own instructions. Rounds of all rows take turns; medians.
//! Run: `cargo bench -p axvm_machine --bench exits`.

use std::cell::Cell;
use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use axvm_console::Port;
use axvm_devices::{BusBuilder, BusDevice, Irq, Uart16550};
use axvm_events::Events;
use axvm_events::tape::{Capacity, Tapes};
use axvm_kvm::{Exit, Vcpu, tsc};
use axvm_machine::testing::Loop;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::mmio::MmioTransport;
use axvm_virtio::rng::Rng;

const ROUNDS: usize = 301;
const EXITS: u32 = 10_000;
/// As a machine has them, beside the chips that are measured: a lookup goes through so many.
const OTHERS: u64 = 12;
const WINDOW: u64 = 0xd000_0000;
/// Registers of virtio-mmio.
const MAGIC: u64 = WINDOW;
const INTERRUPT_STATUS: u64 = WINDOW + 0x60;

/// The same exit again and again, and then the last one.
struct Played {
    exit: Kind,
    left: u32,
    data: [u8; 8],
}

#[derive(Clone, Copy)]
enum Kind {
    Out(u16),
    In(u16),
    Read(u64),
}

impl Vcpu for Played {
    fn run(&mut self) -> io::Result<Exit<'_>> {
        if self.left == 0 {
            return Ok(Exit::Shutdown);
        }
        self.left -= 1;
        Ok(match self.exit {
            Kind::Out(port) => Exit::IoOut { port, size: 1, data: &self.data[..1] },
            Kind::In(port) => Exit::IoIn { port, size: 1, data: &mut self.data[..1] },
            Kind::Read(address) => Exit::MmioRead { address, data: &mut self.data[..4] },
        })
    }
}

/// What a loop has to do at least.
fn floor(vcpu: &mut dyn Vcpu) {
    loop {
        match black_box(vcpu.run()) {
            Ok(Exit::IoIn { data, .. } | Exit::MmioRead { data, .. }) => data.fill(0),
            Ok(Exit::IoOut { data, .. }) => _ = black_box(data),
            _ => return,
        }
    }
}

struct Nothing;

impl BusDevice for Nothing {
    fn read(&self, _: u64, _: &mut [u8]) {}
    fn write(&self, _: u64, _: &[u8]) {}
}

fn machine() -> Loop {
    let (mut ports, mut mmio) = (BusBuilder::default(), BusBuilder::default());
    let nothing: Arc<dyn BusDevice> = Arc::new(Nothing);
    for n in 0..OTHERS {
        ports.plug(0x400 + n * 0x10, 8, "another", Arc::clone(&nothing)).unwrap();
        mmio.plug(WINDOW + (n + 1) * 0x1000, 0x200, "another", Arc::clone(&nothing)).unwrap();
    }
    ports.plug(0x84, 1, "nothing", nothing).unwrap();
    let uart = Uart16550::new(Irq::new().unwrap(), Port::new().unwrap());
    ports.plug(0x3f8, 8, "com1", uart).unwrap();
    let ram = GuestRam::allocate(&RamConfig::new(2 << 20)).unwrap();
    let (rng, irq) = (Box::new(Rng::default()), Irq::new().unwrap());
    let disk = MmioTransport::new("rng", rng, ram, irq, Events::default()).unwrap();
    mmio.plug(WINDOW, 0x200, "rng", Arc::new(disk)).unwrap();
    Loop::new(ports.finish(), mmio.finish()).unwrap()
}

fn main() {
    let machine = machine();
    let rows = [
        ("OUT, no chip", Kind::Out(0x80)),
        ("OUT, a chip that does nothing", Kind::Out(0x84)),
        ("IN, a chip that does nothing", Kind::In(0x84)),
        ("IN, COM1's line status", Kind::In(0x3fd)),
        ("MMIO read, InterruptStatus", Kind::Read(INTERRUPT_STATUS)),
        ("MMIO read, MagicValue", Kind::Read(MAGIC)),
    ];
    let time = |exit: Kind, run: &dyn Fn(&mut dyn Vcpu)| {
        let mut vcpu = Played { exit, left: EXITS, data: [0; 8] };
        let start = Instant::now();
        run(&mut vcpu);
        start.elapsed().as_nanos() as f64 / f64::from(EXITS)
    };
    let mut samples = vec![[const { Vec::new() }; 3]; rows.len()];
    let tapes = Tapes::new(tsc);
    tapes.switch(true);
    for _ in 0..ROUNDS {
        for (row, samples) in rows.iter().zip(&mut samples) {
            samples[0].push(time(row.1, &|vcpu| _ = machine.run(vcpu)));
            let tape = Cell::new(tapes.tape("vcpu0", Capacity::Thread));
            samples[1].push(time(row.1, &|vcpu| _ = tape.take().map(|tape| machine.run_taped(vcpu, tape))));
            tapes.take_new();
            samples[2].push(time(row.1, &floor));
        }
    }
    println!("{:<32} {:>20} {:>20} {:>20}", "ns for an exit, beside KVM", "AxVM", "with a tape", "floor");
    for ((name, _), samples) in rows.iter().zip(samples) {
        let [ours, taped, floor] = samples.map(|mut samples| {
            samples.sort_by(f64::total_cmp);
            let [low, median, high] = [1, 2, 3].map(|quarter| samples[samples.len() * quarter / 4]);
            format!("{median:.1} ({low:.1} .. {high:.1})")
        });
        println!("{name:<32} {ours:>20} {taped:>20} {floor:>20}");
    }
}
