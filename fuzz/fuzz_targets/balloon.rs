//! The balloon, whole: every queue, chains of any shape, pauses and resets in between.
//!
//! ```text
//!   RAM   0x1000 rings | 0x10000 lists of page numbers, statistics | 0x100000 64 pages full of a pattern | free
//!   held: no panic, no hang; a chain comes back at most once; a page that the driver did not give away keeps its
//!         pattern, one that it gave away has it or is zero; a paused device has nothing in flight
//! ```
//!
//! Run: `cargo xtask fuzz balloon`.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_devices::{BusDevice, Irq};
use axvm_events::Events;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::balloon::{Balloon, BalloonConfig, Target};
use axvm_virtio::mmio::MmioTransport;
use axvm_virtio::testing::{Buffer, FakeDriver};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

const RAM_LEN: u64 = 2 << 20;
const PAGE: u64 = 4096;
const LISTS: u64 = 0x1_0000;
const LISTS_LEN: usize = 64 << 10;
const PAGES: u64 = 0x10_0000;
const PAGE_COUNT: usize = 64;
const PATTERN: u8 = 0x5a;

const QUEUES: usize = 5;
const RING_SIZE: u16 = 16;
const QUEUE_NOTIFY: u64 = 0x050;
const STATUS: u64 = 0x070;
const LIVE: u32 = 15;
const NEEDS_RESET: u32 = 0x40;
const STATS_VQ: u32 = 1 << 1;
const LIMIT: Duration = Duration::from_secs(10);

static RAM: LazyLock<Arc<GuestRam>> = LazyLock::new(|| GuestRam::allocate(&RamConfig::new(RAM_LEN)).expect("2 MiB"));

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Piece {
    /// To read: a part of the lists.
    List { at: u16, len: u16 },
    /// To write: words from the pattern on.
    Pages { at: u16, len: u16 },
    /// To write: whole pages of the pattern.
    WholePages { first: u8, count: u8 },
    /// Around the end of RAM, or beyond.
    Far { at: u64, len: u32, writable: bool },
}

impl Piece {
    fn buffer(self) -> Buffer {
        match self {
            Piece::List { at, len } => {
                let len = usize::from(len).min(LISTS_LEN - usize::from(at));
                Buffer::readable(Gpa(LISTS + u64::from(at)), len as u32)
            }
            Piece::Pages { at, len } => Buffer::writable(Gpa(PAGES + 4 * u64::from(at)), 4 * u32::from(len)),
            Piece::WholePages { first, count } => {
                let first = u64::from(first) % PAGE_COUNT as u64;
                Buffer::writable(Gpa(PAGES + PAGE * first), PAGE as u32 * u32::from(count))
            }
            Piece::Far { at, len, writable } => {
                Buffer { gpa: Gpa((RAM_LEN - 2 * PAGE).saturating_add(at)), len, writable }
            }
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum PageName {
    Near(u8),
    Any(u32),
}

#[derive(Arbitrary, Debug)]
enum Step {
    Chain {
        queue: u8,
        pieces: Vec<Piece>,
    },
    /// Numbers of pages, into the lists.
    List {
        at: u16,
        pages: Vec<PageName>,
    },
    /// Anything, into the lists.
    Memory {
        at: u16,
        bytes: Vec<u8>,
    },
    Config {
        offset: u8,
        bytes: [u8; 4],
    },
    Target(u8),
    Interval(u8),
    Kick(u8),
    Pause,
    Resume,
    ResetQueue(u8),
    Reset,
}

#[derive(Arbitrary, Debug)]
struct Input {
    features: u32,
    reporting: bool,
    /// Queues that the driver leaves off, as bits.
    unused: u8,
    steps: Vec<Step>,
}

/// The device, its driver, and what may be gone of the pattern.
struct Run {
    device: MmioTransport,
    target: Target,
    features: u32,
    unused: u8,
    drivers: Vec<FakeDriver>,
    /// By queue: chains that the device has.
    offered: Vec<Vec<(u16, Vec<Buffer>)>>,
    may_be_gone: [bool; PAGE_COUNT],
    paused: bool,
    /// The driver gave away what it needs itself: nothing can be expected any more.
    ruined: bool,
}

impl Run {
    fn new(input: &Input) -> Run {
        RAM.write(Gpa(0), &[0; LISTS as usize + LISTS_LEN]).expect("in RAM");
        RAM.write(Gpa(PAGES), &[PATTERN; PAGE as usize * PAGE_COUNT]).expect("in RAM");
        let balloon = Balloon::new(BalloonConfig { deflate_on_oom: true, free_page_reporting: input.reporting });
        let (target, irq) = (balloon.target(), Irq::new().expect("an eventfd"));
        let device = MmioTransport::new("fuzz", Box::new(balloon), Arc::clone(&RAM), irq, Events::default());
        let mut run = Run {
            device: device.expect("eventfds"),
            target,
            features: input.features,
            unused: input.unused,
            drivers: Vec::new(),
            offered: vec![Vec::new(); QUEUES],
            may_be_gone: [false; PAGE_COUNT],
            paused: false,
            ruined: false,
        };
        run.bring_up();
        run
    }

    fn set(&self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn bring_up(&mut self) {
        self.set(STATUS, 0);
        assert_eq!(self.get(STATUS), 0, "reset is over");
        // Two halves of the features; the ring can be reset, VERSION_1.
        self.set(0x014, 0);
        self.features &= self.get(0x010);
        let features = [(0x024, 1), (0x020, 1 | 1 << 8), (0x024, 0), (0x020, self.features)];
        [(STATUS, 3)]
            .iter()
            .chain(&features)
            .chain(&[(STATUS, 11)])
            .for_each(|&(offset, value)| self.set(offset, value));
        self.drivers = (0..QUEUES).map(|queue| self.enable(queue)).collect();
        self.offered = vec![Vec::new(); QUEUES];
        self.set(STATUS, LIVE);
        assert_eq!(self.get(STATUS), LIVE);
    }

    fn enable(&self, queue: usize) -> FakeDriver {
        let event_idx = self.features & 1 << 29 != 0;
        let driver = FakeDriver::new(&RAM, Gpa(0x1000 * (1 + queue as u64)), RING_SIZE, event_idx);
        let layout = driver.layout();
        let areas = [(0x080, layout.descriptors), (0x090, layout.avail), (0x0a0, layout.used)];
        self.set(0x030, queue as u32);
        self.set(0x038, RING_SIZE.into());
        areas.iter().for_each(|&(offset, gpa)| self.set(offset, gpa.0 as u32));
        self.set(0x044, u32::from(self.unused & 1 << queue == 0));
        driver
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Chain { queue, pieces } => self.chain(usize::from(*queue) % QUEUES, pieces),
            Step::List { at, pages } => {
                let number = |page: &PageName| match *page {
                    PageName::Near(page) => (PAGES / PAGE) as u32 + u32::from(page) % 80,
                    PageName::Any(page) => page,
                };
                let bytes: Vec<u8> = pages.iter().flat_map(|page| number(page).to_le_bytes()).collect();
                self.write_list(*at, &bytes);
            }
            Step::Memory { at, bytes } => self.write_list(*at, bytes),
            Step::Config { offset, bytes } => self.device.write(0x100 + u64::from(offset % 32), bytes),
            Step::Target(mib) => {
                assert_eq!(self.target.set_mib((*mib).into()).is_ok(), u64::from(*mib) <= RAM_LEN >> 20)
            }
            Step::Interval(ms) => self.target.set_statistics_interval(Duration::from_millis((*ms).into())),
            Step::Kick(queue) => self.set(QUEUE_NOTIFY, (*queue).into()),
            Step::Pause => self.pause(),
            Step::Resume => {
                self.device.resume(Instant::now() + LIMIT).expect("it goes on");
                self.paused = false;
                (0..QUEUES).for_each(|queue| self.collect(queue));
            }
            Step::ResetQueue(queue) => {
                let queue = usize::from(*queue) % QUEUES;
                self.set(0x030, queue as u32);
                self.set(0x0c0, 1);
                assert_eq!(self.get(0x044), 0, "a queue reset is over");
                self.offered[queue].clear();
                self.drivers[queue] = self.enable(queue);
            }
            Step::Reset => self.bring_up(),
        }
    }

    fn pause(&mut self) {
        self.device.pause(Instant::now() + LIMIT).expect("it stops");
        self.paused = true;
        let state = self.device.state().expect("a paused device");
        let still = |queue: &axvm_virtio::state::QueueSnapshot| queue.indices.next_avail == queue.indices.next_used;
        assert!(state.status & NEEDS_RESET != 0 || state.queues.iter().all(still), "{state:?}");
    }

    fn write_list(&mut self, at: u16, bytes: &[u8]) {
        let room = LISTS_LEN - usize::from(at);
        RAM.write(Gpa(LISTS + u64::from(at)), &bytes[..bytes.len().min(room)]).expect("in RAM");
        // What waits for the end of a pause names other pages now.
        self.account();
    }

    fn chain(&mut self, queue: usize, pieces: &[Piece]) {
        let buffers: Vec<Buffer> = pieces.iter().take(6).map(|piece| piece.buffer()).collect();
        // A driver puts what is to be read first.
        let in_order = buffers.is_sorted_by_key(|buffer| buffer.writable);
        let driver = &mut self.drivers[queue];
        if self.unused & 1 << queue != 0 || buffers.is_empty() || !in_order || buffers.len() > driver.free_count() {
            return;
        }
        let head = driver.add(&buffers);
        self.offered[queue].push((head, buffers));
        self.account();
        if self.drivers[queue].kick() {
            self.set(QUEUE_NOTIFY, queue as u32);
        }
        self.collect(queue);
    }

    /// Takes back what is ready; everything but statistics must come soon.
    fn collect(&mut self, queue: usize) {
        let holds = queue == 2 && self.features & STATS_VQ != 0;
        let begin = Instant::now();
        loop {
            if self.ruined || self.get(STATUS) != LIVE {
                return;
            }
            if let Some((head, written)) = self.drivers[queue].take_used() {
                assert_eq!(written, 0);
                let place = self.offered[queue].iter().position(|(offered, _)| *offered == head);
                self.offered[queue].remove(place.expect("a chain that the device has"));
            } else if holds || self.paused || self.offered[queue].is_empty() {
                return;
            } else {
                assert!(begin.elapsed() < LIMIT, "queue {queue} hangs: {:?}", self.offered[queue]);
                std::thread::yield_now();
            }
        }
    }

    /// Notes what the chains that the device has give away.
    fn account(&mut self) {
        let inflated = self.offered[0].iter().flat_map(|(_, buffers)| named(buffers)).collect::<Vec<_>>();
        for page in inflated {
            if page < PAGES / PAGE {
                self.ruined = true;
                self.may_be_gone = [true; PAGE_COUNT];
            }
            self.give(page);
        }
        let reports = if self.features & STATS_VQ != 0 { 3 } else { 2 };
        let reported = self.offered[reports..].iter().flatten().flat_map(|(_, buffers)| buffers);
        let whole =
            |buffer: &Buffer| buffer.gpa.0.div_ceil(PAGE)..buffer.gpa.0.saturating_add(buffer.len.into()) / PAGE;
        let ranges = reported.filter(|buffer| buffer.writable && buffer.gpa.0 < RAM_LEN).map(whole).collect::<Vec<_>>();
        ranges.into_iter().for_each(|pages| pages.take(2 * PAGE_COUNT).for_each(|page| self.give(page)));
    }

    fn give(&mut self, page: u64) {
        let index = page.wrapping_sub(PAGES / PAGE) as usize;
        self.may_be_gone.get_mut(index).into_iter().for_each(|gone| *gone = true);
    }

    fn check_pattern(&self) {
        let mut bytes = vec![0; PAGE as usize * PAGE_COUNT];
        RAM.read(Gpa(PAGES), &mut bytes).expect("in RAM");
        for (index, page) in bytes.chunks_exact(PAGE as usize).enumerate() {
            let full = page.iter().all(|&byte| byte == PATTERN);
            let gone = self.may_be_gone[index] && page.iter().all(|&byte| byte == 0);
            assert!(full || gone, "page {index} of the pattern changed; given away: {}", self.may_be_gone[index]);
        }
    }
}

/// The pages that an inflate request names.
fn named(buffers: &[Buffer]) -> Vec<u64> {
    let mut bytes = Vec::new();
    for buffer in buffers.iter().filter(|buffer| !buffer.writable) {
        let from = bytes.len();
        bytes.resize(from + (buffer.len as usize).min(LISTS_LEN), 0);
        // A piece outside RAM makes the whole request invalid.
        _ = RAM.read(buffer.gpa, &mut bytes[from..]);
    }
    bytes.as_chunks().0.iter().map(|&number| u32::from_le_bytes(number).into()).collect()
}

fuzz_target!(|input: Input| {
    let mut run = Run::new(&input);
    for step in &input.steps {
        if run.ruined {
            break;
        }
        run.step(step);
        if !run.paused && run.get(STATUS) & NEEDS_RESET != 0 {
            run.bring_up();
        }
        _ = (run.target.statistics(), run.target.actual_mib());
    }
    run.device.stop(Instant::now() + LIMIT).expect("it stops");
    assert_eq!(run.get(STATUS), 0);
    run.check_pattern();
});
