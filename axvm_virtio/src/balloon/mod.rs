//! The memory balloon: takes RAM from a guest that is asked to spare it, and RAM that a guest says is free.
//!
//! ```text
//!   user --Target::set_mib--> num_pages, config interrupt --> driver
//!   driver: page numbers  --inflate (0)--> each page goes back to the host
//!   driver: page numbers  --deflate (1)--> nothing to do: a page is there again when it is touched
//!   driver: statistics    --(2)--> held until the user wants new ones (reports, statistics)
//!   driver: free ranges   --reporting--> all go back to the host, until the guest touches them
//! ```
//!
//! What the driver names are claims. Only whole pages of guest RAM are ever given back, and they are the guest's
//! own: a driver that lies destroys its own data.
//!
//! Spec: virtio 1.2, 5.5 "Traditional Memory Balloon Device".
//! Left out: free page hints (they serve migration), MUST_TELL_HOST (the driver may always take a page back first).

mod pages;
mod reports;
mod target;
mod worker;

use std::sync::Arc;
use std::time::Instant;

use axvm_memory::GuestRam;

use crate::device::{Activation, DeviceId, StartError, VirtioDevice, read_fields};
use crate::queue::QueueState;
use crate::state::{DeviceState, StateError};
use crate::worker::{StillBusy, Worker};

pub use crate::statistics::{Statistics, StatisticsReport};
pub use target::{BalloonError, Target};

use target::BalloonNumbers;
use worker::BalloonWork;

/// Entries of each queue.
const QUEUE_SIZES: [u16; 5] = [128; 5];
/// Queue numbers.
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;

/// Feature bits, as masks (5.5.3).
mod feature {
    pub(super) const STATS_VQ: u64 = 1 << 1;
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

/// A virtio memory balloon.
pub struct Balloon {
    config: BalloonConfig,
    shared: Arc<BalloonNumbers>,
    worker: Option<Worker<BalloonWork>>,
}

impl Balloon {
    /// A device at power-on; its target is 0, and no statistics are asked for.
    pub fn new(config: BalloonConfig) -> Balloon {
        Balloon { config, shared: Arc::default(), worker: None }
    }

    /// The handle to set its size. It accepts none but 0 before the device is in a machine.
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
        feature::STATS_VQ | oom | if self.config.free_page_reporting { reporting } else { 0 }
    }

    fn plugged(&mut self, ram: &Arc<GuestRam>) {
        self.shared.set_ram(ram.size());
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_fields(self.shared.config().as_flattened(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Ok(bytes) = data.try_into() else { return };
        match offset {
            config::ACTUAL => self.shared.set_actual(u32::from_le_bytes(bytes)),
            config::POISON_VAL => self.shared.set_poison(u32::from_le_bytes(bytes)),
            _ => {}
        }
    }

    fn start(&mut self, mut live: Activation) -> Result<(), StartError> {
        let work = BalloonWork::new(&live, &self.shared);
        let queues = std::mem::take(&mut live.queues);
        self.worker = live.spawn(live.name.to_string(), queues, work)?;
        self.shared.connect(live.config);
        Ok(())
    }

    fn stop(&mut self, deadline: Option<Instant>) -> Result<Vec<QueueState>, StillBusy> {
        let ended = Worker::take(&mut self.worker, deadline)?;
        self.shared.disconnect();
        Ok(ended.queues)
    }

    fn reset(&mut self) {
        self.shared.forget();
    }

    fn state(&self) -> DeviceState {
        DeviceState::Balloon(Box::new(self.shared.state()))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Balloon(state) => self.shared.restore(state),
            other => Err(StateError::Kind { saved: other.kind(), here: self.state().kind() }),
        }
    }
}
