//! The memory balloon: takes RAM from a guest that is asked to spare it, and RAM that a guest says is free.
//!
//! ```text
//!   user --Target::set_mib--> num_pages, config interrupt --> driver
//!   driver: page numbers  --inflate (0)--> each page goes back to the host
//!   driver: page numbers  --deflate (1)--> nothing to do: a page is there again when it is touched
//!   driver: free ranges --reporting (2..)--> all go back to the host, until the guest touches them
//! ```
//!
//! What the driver names are claims. Only whole pages of guest RAM are ever given back, and they are the guest's
//! own: a driver that lies destroys its own data.
//!
//! Which queue is for reporting? The standard says 4. Linux numbers the queues that it uses without gaps and says
//! 2. Neither 2 nor 3 has another meaning here, so all from 2 on are for reporting.
//!
//! Spec: virtio 1.2, 5.5 "Traditional Memory Balloon Device".
//! Left out: statistics (VIRTIO_BALLOON_F_STATS_VQ), free page hints (they serve migration), MUST_TELL_HOST (the
//! driver may always take a page back first).

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axvm_arch::Gpa;
use axvm_memory::{GuestRam, GuestRange};

use crate::device::{Activation, DeviceId, StartError, VirtioDevice};
use crate::queue::{Chain, QueueState};
use crate::signals::{ConfigIrq, Fault};
use crate::worker::{QueueWorker, Serve};

/// Entries of each queue.
const QUEUE_SIZES: [u16; 5] = [128; 5];
/// Queue numbers.
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;

/// The unit of the protocol, in bytes.
const PAGE: u64 = 4096;
const PAGES_PER_MIB: u32 = 256;
/// Most pages in one inflate request (Linux sends 256), so that a stop never waits long.
const MAX_PAGES: usize = 16 << 10;

/// Feature bits, as masks (5.5.3).
mod feature {
    pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub(super) const PAGE_POISON: u64 = 1 << 4;
    pub(super) const PAGE_REPORTING: u64 = 1 << 5;
}

/// Offsets in the configuration space (5.5.4).
mod config {
    pub(super) const ACTUAL: u64 = 4;
    pub(super) const POISON_VAL: u64 = 12;
}

/// What the balloon may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonConfig {
    /// The guest may take pages out of the balloon when it has no others.
    pub deflate_on_oom: bool,
    /// The guest may tell which memory is free at the moment.
    pub free_page_reporting: bool,
}

/// The numbers in the configuration space, and the way to tell the driver of a new one.
#[derive(Default)]
struct Shared {
    /// Pages that the user wants in the balloon.
    num_pages: AtomicU32,
    /// Pages that the driver says are in it.
    actual: AtomicU32,
    /// What free pages of the guest are filled with.
    poison: AtomicU32,
    bell: Mutex<Bell>,
}

/// The driver's ear, while there is a driver.
#[derive(Default)]
struct Bell {
    irq: Option<ConfigIrq>,
    /// Nobody was there to hear of the last change.
    missed: bool,
}

impl Shared {
    fn bell(&self) -> MutexGuard<'_, Bell> {
        self.bell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The wanted size of a balloon: the user's handle on it, good for as long as there is a machine.
#[derive(Clone)]
pub struct Target(Arc<Shared>);

impl Target {
    /// Asks the guest to bring the balloon to `mib` MiB. It may take its time, or not do it.
    pub fn set_mib(&self, mib: u32) {
        self.0.num_pages.store(mib.saturating_mul(PAGES_PER_MIB), Ordering::SeqCst);
        let mut bell = self.0.bell();
        match &bell.irq {
            Some(irq) => irq.raise(),
            None => bell.missed = true,
        }
    }

    /// The wanted size.
    pub fn mib(&self) -> u32 {
        self.0.num_pages.load(Ordering::SeqCst) / PAGES_PER_MIB
    }

    /// The size that the guest claims, rounded down.
    pub fn actual_mib(&self) -> u32 {
        self.0.actual.load(Ordering::SeqCst) / PAGES_PER_MIB
    }
}

/// A virtio memory balloon.
pub struct Balloon {
    config: BalloonConfig,
    shared: Arc<Shared>,
    workers: Vec<QueueWorker>,
}

impl Balloon {
    /// A device at power-on; its target is 0.
    pub fn new(config: BalloonConfig) -> Balloon {
        Balloon { config, shared: Arc::default(), workers: Vec::new() }
    }

    /// The handle to set its size.
    pub fn target(&self) -> Target {
        Target(Arc::clone(&self.shared))
    }
}

impl VirtioDevice for Balloon {
    fn id(&self) -> DeviceId {
        DeviceId::Balloon
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let oom = if self.config.deflate_on_oom { feature::DEFLATE_ON_OOM } else { 0 };
        // Without the poison bit, a guest that clears memory as it frees it does not report.
        let reporting = feature::PAGE_REPORTING | feature::PAGE_POISON;
        oom | if self.config.free_page_reporting { reporting } else { 0 }
    }

    fn negotiated(&mut self, _: u64) {
        self.shared.actual.store(0, Ordering::SeqCst);
        self.shared.poison.store(0, Ordering::SeqCst);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let Shared { num_pages, actual, poison, .. } = &*self.shared;
        let hint = AtomicU32::new(0);
        let fields = [num_pages, actual, &hint, poison].map(|field| field.load(Ordering::SeqCst).to_le_bytes());
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(fields.as_flattened().iter().skip(from)) {
            *byte = *value;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(bytes) = data.try_into() else { return };
        match offset {
            config::ACTUAL => self.shared.actual.store(u32::from_le_bytes(bytes), Ordering::SeqCst),
            config::POISON_VAL => self.shared.poison.store(u32::from_le_bytes(bytes), Ordering::SeqCst),
            _ => {}
        }
    }

    fn start(&mut self, live: Activation) -> Result<(), StartError> {
        for queue in live.queues {
            let index = queue.index;
            let (ram, shared, fault) = (Arc::clone(&live.ram), Arc::clone(&self.shared), live.fault.clone());
            let server = Server { index, ram, shared, fault, numbers: Vec::new() };
            let worker = QueueWorker::spawn(&live.name, queue, live.fault.clone(), server)
                .map_err(|source| StartError::Host { index, source })?;
            self.workers.push(worker);
        }
        let mut bell = self.shared.bell();
        if std::mem::take(&mut bell.missed) {
            live.config.raise();
        }
        bell.irq = Some(live.config);
        Ok(())
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.shared.bell().irq = None;
        self.workers.drain(..).map(QueueWorker::stop).collect()
    }
}

/// Serves one queue of the balloon.
struct Server {
    index: u16,
    ram: Arc<GuestRam>,
    shared: Arc<Shared>,
    fault: Fault,
    /// The page numbers of a request, four bytes each; reused from request to request.
    numbers: Vec<u8>,
}

impl Server {
    /// Gives the pages that the driver names back to the host, in runs of neighbours.
    fn inflate(&mut self, chain: &Chain<'_>) -> Result<(), &'static str> {
        if chain.readable_len > 4 * MAX_PAGES as u64 {
            return Err("An inflate request names more than 16384 pages");
        }
        self.numbers.resize(chain.readable_len as usize, 0);
        let mut done = 0;
        for range in chain.readable {
            done += self.ram.copy_from(range, &mut self.numbers[done..]);
        }
        let (numbers, _) = self.numbers.as_chunks();
        let mut run = 0..0;
        for page in numbers.iter().map(|bytes| u64::from(u32::from_le_bytes(*bytes))) {
            if page == run.end {
                run.end += 1;
            } else if page + 1 == run.start {
                run.start -= 1;
            } else {
                self.give_back(run.start, run.end);
                run = page..page + 1;
            }
        }
        self.give_back(run.start, run.end);
        Ok(())
    }

    /// Gives pages `first` to before `end` back, if they are RAM.
    fn give_back(&self, first: u64, end: u64) {
        let proof = self.ram.range(Gpa(first * PAGE), (end - first) * PAGE);
        match proof {
            Ok(range) => self.discard(&range),
            // A run may leave RAM halfway: what is RAM of it counts.
            Err(_) if end - first > 1 => (first..end).for_each(|page| self.give_back(page, page + 1)),
            Err(error) => self.fault.warn(format_args!("the guest balloons what it does not have: {error}; ignored")),
        }
    }

    /// Gives the ranges that the driver does not use at the moment back to the host.
    fn report(&self, chain: &Chain<'_>) {
        // Discarded pages read as zero, and the driver wants to find its poison again.
        if self.shared.poison.load(Ordering::SeqCst) == 0 {
            chain.writable.iter().for_each(|range| self.discard(range));
        }
    }

    fn discard(&self, range: &GuestRange) {
        if let Err(error) = self.ram.discard(range) {
            let (len, gpa) = (range.len(), range.gpa());
            self.fault
                .warn(format_args!("cannot give {len} bytes at {gpa} back to the host: {error}; the guest keeps them"));
        }
    }
}

impl Serve for Server {
    fn serve(&mut self, chain: &Chain<'_>) -> Result<u32, &'static str> {
        match self.index {
            INFLATE => self.inflate(chain)?,
            DEFLATE => {}
            _ => self.report(chain),
        }
        Ok(0)
    }
}
