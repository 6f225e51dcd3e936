//! What a virtio device is to its transport: a contract that knows no bus.
//!
//! ```text
//!   transport                                   device
//!   features, config space   <---------------   features(), read_config()
//!   DRIVER_OK: queues proven ----- start ---->  owns the queues, workers run
//!   reset, pause, shutdown -------- stop ---->  workers joined
//!   ring indices             <----- stop -----
//!   device reset -------------------reset---->  everything of the old driver is forgotten
//!   save, load   <--- state, restore -------->  what it knows beside its queues, as a value
//! ```
//!
//! Spec: virtio 1.2, 2 "Basic Facilities of a Virtio Device", 5 "Device Types", 6 "Reserved Feature Bits".

use std::io;
use std::sync::Arc;
use std::time::Instant;

use axvm_memory::GuestRam;
use thiserror::Error;

use crate::queue::{Checked, QueueError, QueueState, Watch};
use crate::signals::{ConfigIrq, FaultReporter};
use crate::state::{DeviceState, StateError};
use crate::worker::{StillBusy, Work, Worker, WorkerList, WorkerParts};

pub use crate::live::LiveQueue;

/// What kind of device this is (5 "Device Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceId {
    /// Network card (5.1).
    Net = 1,
    /// Block device (5.2).
    Block = 2,
    /// Console (5.3).
    Console = 3,
    /// Entropy source (5.4).
    Entropy = 4,
    /// Memory balloon (5.5).
    Balloon = 5,
    /// Socket device (5.10).
    Vsock = 19,
}

/// Feature bits of the transport and the rings, as masks (6 "Reserved Feature Bits").
pub mod feature {
    /// Descriptors may point to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Kicks and interrupts are asked for by ring position.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The driver speaks virtio 1.0 or later. AxVM insists on it.
    pub const VERSION_1: u64 = 1 << 32;
    /// A single queue can be reset.
    pub const RING_RESET: u64 = 1 << 40;
    /// What every transport offers beside the bits of its device.
    pub const TRANSPORT: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET;
}

/// A virtio device, ignorant of the bus it hangs from.
///
/// Calls come from one thread at a time, in this order: `plugged`, once; `negotiated` (FEATURES_OK), `start`
/// (DRIVER_OK), `stop`; then `start` again after a queue reset or a pause, or `reset` and all from `negotiated` on.
/// Configuration accesses come at any time.
pub trait VirtioDevice: Send {
    /// Its kind.
    fn id(&self) -> DeviceId;
    /// The largest size of each queue, a power of two; the length is the number of queues.
    fn queue_sizes(&self) -> &[u16];
    /// Its own feature bits; the transport adds [`feature::TRANSPORT`].
    fn features(&self) -> u64;
    /// The machine that it is in has this RAM.
    fn plugged(&mut self, _ram: &Arc<GuestRam>) {}
    /// FEATURES_OK: driver and device agree on these features; writable configuration takes its first value.
    fn negotiated(&mut self, _features: u64) {}
    /// Reads its configuration space. `data` arrives zeroed; bytes past the end stay zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes its configuration space; what is not writable is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);
    /// The driver is ready: the queues become the device's. Queues that the driver left off are missing.
    fn start(&mut self, live: Activation) -> Result<(), StartError>;
    /// Completes every request taken from a ring, joins the workers, gives the queues back in the order they
    /// were given. Without a start before it: nothing happens. Waits until `deadline` at most (`None`: for ever); a
    /// device that is still busy then is stopped again later.
    fn stop(&mut self, deadline: Option<Instant>) -> Result<Vec<QueueState>, StillBusy>;
    /// Device reset, after a stop: forgets everything that the old driver said or did.
    fn reset(&mut self);
    /// Everything that it knows beside its queues, after a stop.
    fn state(&self) -> DeviceState;
    /// Takes such a state, before the first start; `plugged` came before it. An error changes nothing.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError>;
}

/// All that a device gets when its driver is ready.
pub struct Activation {
    /// The guest's RAM.
    pub ram: Arc<GuestRam>,
    /// The negotiated feature bits.
    pub features: u64,
    /// The queues that the driver enabled, by ascending index.
    pub queues: Vec<LiveQueue>,
    /// To tell the driver of a new configuration.
    pub config: ConfigIrq,
    /// Where to report what goes wrong.
    pub fault: FaultReporter,
    /// What kind of device it is.
    pub id: DeviceId,
    /// Name of the device, such as `vda`; threads are named after it.
    pub name: Arc<str>,
    /// The workers of this device.
    pub(crate) workers: Arc<WorkerList>,
}

impl Activation {
    /// Starts a worker in a thread called `thread`; none without a queue to serve.
    pub(crate) fn spawn<W: Work>(
        &self,
        thread: String,
        mut queues: Vec<LiveQueue>,
        work: W,
    ) -> Result<Option<Worker<W>>, StartError> {
        for live in &mut queues {
            let tape = self.fault.tape(&format!("{}-q{}", self.name, live.index));
            let (queue, size, features) = (live.index, live.queue.size(), self.features);
            // The odd queues of a card: those of frames for the guest, and of commands, are even.
            let has_frames = self.id == DeviceId::Net && queue % 2 == 1;
            let event_idx = features & feature::EVENT_IDX != 0;
            let checked = Checked { queue, size, event_idx, features, has_frames };
            live.queue.watch_by(Watch::new(tape, self.fault.check(&self.ram, checked)));
        }
        let Some(first) = queues.first() else { return Ok(None) };
        let index = first.index;
        let parts = WorkerParts { name: thread, queues, fault: self.fault.clone(), list: Arc::clone(&self.workers) };
        let worker = Worker::spawn(parts, work);
        worker.map(Some).map_err(|source| StartError::Host { index, source })
    }
}

/// Answers a read of a configuration space that is `fields`, as its bytes lie; what is behind them stays as it is.
pub(crate) fn read_fields<'a>(fields: impl IntoIterator<Item = &'a u8>, offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    for (byte, value) in data.iter_mut().zip(fields.into_iter().skip(from)) {
        *byte = *value;
    }
}

/// A device cannot start; the guest sees DEVICE_NEEDS_RESET.
#[derive(Debug, Error)]
pub enum StartError {
    /// The driver asked for a larger queue than there is.
    #[error("Queue {index} has {size} entries, at most {max} are possible")]
    QueueSize {
        /// Number of the queue.
        index: u16,
        /// Entries that the driver wants.
        size: u16,
        /// Entries that the device allows.
        max: u16,
    },
    /// The ring is not one.
    #[error("Queue {index} is not usable")]
    Queue {
        /// Number of the queue.
        index: u16,
        /// Which rule it breaks.
        source: QueueError,
    },
    /// The host refused a thread or a file descriptor.
    #[error("The host has no resources for queue {index}; raise its limits (ulimit -n, ulimit -u)")]
    Host {
        /// Number of the queue.
        index: u16,
        /// What it said.
        source: io::Error,
    },
}
