//! The virtqueue against a driver that writes anything, anywhere, at any time.
//!
//! ```text
//!   input --> queue layout, steps of the driver (writes to RAM) and of the device (pop, push, ...)
//!   held:     no panic, no endless loop; every buffer lies in RAM; only the used ring is written
//! ```
//!
//! Everything near lies in the last 64 KiB of RAM, so that a step too far leaves it.
//!
//! Run: `cargo xtask fuzz ring`.
#![no_main]

use std::sync::{Arc, LazyLock};

use axvm_arch::Gpa;
use axvm_memory::{GuestRam, GuestRange, RamConfig};
use axvm_virtio::queue::{QueueFeatures, QueueLayout, QueueState, VirtQueue};
use axvm_virtio::testing::RawDescriptor;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

const RAM: u64 = 2 << 20;
const NEAR: u64 = RAM - NEAR_LEN as u64;
const NEAR_LEN: usize = 64 << 10;

static RAM_OF_ALL_RUNS: LazyLock<Arc<GuestRam>> =
    LazyLock::new(|| GuestRam::allocate(&RamConfig::new(RAM)).expect("2 MiB"));

/// An address: mostly one where something is.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Address {
    Near(u16),
    Far(u64),
}

impl Address {
    fn gpa(self) -> Gpa {
        match self {
            Address::Near(offset) => Gpa(NEAR + u64::from(offset)),
            Address::Far(address) => Gpa(address),
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Length {
    Short(u8),
    Table(u8),
    Any(u32),
}

impl Length {
    fn bytes(self) -> u32 {
        match self {
            Length::Short(len) => len.into(),
            Length::Table(count) => u32::from(count) * 16,
            Length::Any(len) => len,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    // The driver's steps.
    Write { at: u16, bytes: Vec<u8> },
    Descriptor { table: u16, index: u8, addr: Address, len: Length, flags: u8, next: u8 },
    Offer { head: u8 },
    OfferAnything { head: u16, idx: u16 },
    // The device's steps.
    Pop,
    PopAll,
    PutBack,
    Push { pick: u8, written: u32 },
    Publish,
    EnableKicks,
    DisableKicks,
    Restart,
}

#[derive(Arbitrary, Debug)]
struct Input {
    size_bits: u8,
    odd_size: Option<u16>,
    descriptors: Address,
    avail: Address,
    used: Address,
    event_idx: bool,
    indirect: bool,
    next: u16,
    steps: Vec<Step>,
}

/// One queue and what is known of it.
struct Run {
    ram: Arc<GuestRam>,
    layout: QueueLayout,
    features: QueueFeatures,
    queue: VirtQueue,
    in_flight: Vec<u16>,
    /// The chain that was popped last, if it is in flight.
    last: Option<u16>,
    idx: u16,
}

impl Run {
    fn new(input: &Input) -> Option<Run> {
        let ram = Arc::clone(&RAM_OF_ALL_RUNS);
        ram.write(Gpa(NEAR), &[0; NEAR_LEN]).expect("in RAM");
        let size = input.odd_size.unwrap_or(1 << (input.size_bits % 16));
        let (descriptors, avail, used) = (input.descriptors.gpa(), input.avail.gpa(), input.used.gpa());
        let layout = QueueLayout { size, descriptors, avail, used };
        let features = QueueFeatures { event_idx: input.event_idx, indirect: input.indirect };
        let state = QueueState { next_avail: input.next, next_used: input.next };
        let queue = VirtQueue::new(&ram, &layout, features, state).ok()?;
        Some(Run { ram, layout, features, queue, in_flight: Vec::new(), last: None, idx: input.next })
    }

    fn driver(&mut self, step: &Step) {
        // Writes that leave RAM reach no memory: ignored.
        match *step {
            Step::Write { at, ref bytes } => {
                let room = NEAR_LEN - usize::from(at);
                _ = self.ram.write(Gpa(NEAR + u64::from(at)), &bytes[..bytes.len().min(room)]);
            }
            Step::Descriptor { table, index, addr, len, flags, next } => {
                // Table 0 is the ring's own, in the place where its entries are.
                let base = if table == 0 { self.layout.descriptors.0 } else { NEAR + u64::from(table) };
                let entry =
                    RawDescriptor { addr: addr.gpa().0, len: len.bytes(), flags: flags.into(), next: next.into() };
                _ = self.ram.write(Gpa(base.wrapping_add(16 * u64::from(index))), &entry.to_bytes());
            }
            Step::Offer { head } => {
                let slot = u64::from(self.idx % self.layout.size);
                _ = self.ram.write(Gpa(self.layout.avail.0 + 4 + 2 * slot), &u16::from(head).to_le_bytes());
                self.idx = self.idx.wrapping_add(1);
                _ = self.ram.write(Gpa(self.layout.avail.0 + 2), &self.idx.to_le_bytes());
            }
            Step::OfferAnything { head, idx } => {
                let slot = u64::from(self.idx % self.layout.size);
                _ = self.ram.write(Gpa(self.layout.avail.0 + 4 + 2 * slot), &head.to_le_bytes());
                _ = self.ram.write(Gpa(self.layout.avail.0 + 2), &idx.to_le_bytes());
                self.idx = idx;
            }
            _ => {}
        }
    }

    fn device(&mut self, step: &Step) {
        match *step {
            Step::Pop => _ = self.pop(),
            Step::PopAll => {
                let before = self.in_flight.len();
                while self.pop() {}
                assert!(self.in_flight.len() - before <= usize::from(self.layout.size), "an endless ring");
            }
            Step::Push { pick, written } if !self.in_flight.is_empty() => {
                let index = usize::from(pick) % self.in_flight.len();
                let head = self.in_flight.swap_remove(index);
                self.last.take_if(|last| *last == head);
                self.queue.push_used(head, written);
            }
            Step::PutBack => {
                let Some(head) = self.last.take() else { return };
                let place = self.in_flight.iter().rposition(|&other| other == head).expect("a chain in flight");
                self.in_flight.swap_remove(place);
                self.queue.put_back();
            }
            Step::Publish => _ = self.queue.publish(),
            Step::EnableKicks => _ = self.queue.enable_kicks(),
            Step::DisableKicks => self.queue.disable_kicks(),
            Step::Restart => {
                self.queue.publish();
                let state = self.queue.state();
                let in_flight = state.next_avail.wrapping_sub(state.next_used);
                assert_eq!(usize::from(in_flight), self.in_flight.len());
                self.queue = VirtQueue::new(&self.ram, &self.layout, self.features, state).expect("as before");
            }
            _ => {}
        }
    }

    /// Takes a chain and checks all it says; false if there was none.
    fn pop(&mut self) -> bool {
        let Ok(Some(chain)) = self.queue.pop() else { return false };
        let sum = |ranges: &[GuestRange]| {
            ranges.iter().fold(0, |sum, range| {
                assert!(!range.is_empty() && self.ram.range(range.gpa(), range.len() as u64).is_ok());
                sum + range.len() as u64
            })
        };
        assert_eq!((chain.readable_len, chain.writable_len), (sum(chain.readable), sum(chain.writable)));
        assert!(chain.readable_len + chain.writable_len <= 1 << 32);
        assert!(chain.head < self.layout.size);
        self.in_flight.push(chain.head);
        self.last = Some(chain.head);
        assert!(self.in_flight.len() <= usize::from(self.layout.size), "more in flight than there are entries");
        true
    }

    /// The near memory, with the used ring blanked out.
    fn rest_of_memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; NEAR_LEN];
        self.ram.read(Gpa(NEAR), &mut bytes).expect("in RAM");
        let used = self.layout.used.0.saturating_sub(NEAR) as usize;
        let end = (self.layout.used.0 + 6 + 8 * u64::from(self.layout.size)).saturating_sub(NEAR) as usize;
        bytes[used.min(NEAR_LEN)..end.min(NEAR_LEN)].fill(0);
        bytes
    }
}

fuzz_target!(|input: Input| {
    let Some(mut run) = Run::new(&input) else { return };
    // Looking at all memory takes longer than a step, so only now and then.
    let watched = input.steps.len() % 8 == 0;
    for step in &input.steps {
        run.driver(step);
        let before = watched.then(|| run.rest_of_memory());
        run.device(step);
        if let Some(before) = before {
            assert!(before == run.rest_of_memory(), "{step:?} wrote outside the used ring");
        }
    }
});
