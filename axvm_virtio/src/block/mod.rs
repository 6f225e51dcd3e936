//! The block device: a disk image on the host, a disk in the guest.
//!
//! ```text
//!   DiskImage (opened and locked once)  <--- Block (one for each start of the guest)
//!        ^ preadv, pwritev, fdatasync,         |  features, configuration space (config)
//!        | fallocate (image)                   '--start--> workers vda-q0 ...     DiskHandle: no room? (handle)
//!        '---------------- RequestExecutor: one chain, one request (request, executor)
//! ```
//!
//! Spec: virtio 1.2, 5.2 "Block Device".
//! Left out: secure erase, lifetime information, zoned disks.

mod check;
mod config;
mod direct;
mod disk_config;
mod error;
mod executor;
mod format;
mod handle;
mod image;
mod lock;
mod overlay;
mod request;
mod transfers;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::device::{Activation, DeviceId, StartError, VirtioDevice};
use crate::queue::QueueState;
use crate::state::{BlockState, DeviceState, StateError};
use crate::worker::{StillBusy, WorkerGroup};
use axvm_sync::{EventFd, lock};

pub use disk_config::{Cache, DiskConfig, DiskConfigError, Engine, Format, OnFull, parts};
pub use error::DiskError;
pub use handle::{DiskHandle, FullStorage};
pub use image::DiskImage;

use config::{BlockConfig, feature};
use executor::RequestExecutor;
use handle::DiskLink;
use work::DiskWork;

/// Entries of a queue.
const QUEUE_SIZE: u16 = 256;

/// A virtio block device over an image that outlives it.
pub struct Block {
    image: Arc<DiskImage>,
    link: Arc<DiskLink>,
    config: BlockConfig,
    /// The writeback field of the configuration space, which the worker reads too.
    writeback: Arc<AtomicBool>,
    queue_sizes: Vec<u16>,
    workers: WorkerGroup<DiskWork>,
}

impl Block {
    /// A device at power-on.
    pub fn new(image: Arc<DiskImage>) -> Block {
        Block::calling(image, None)
    }

    /// The same; it signals `attention` when a request must wait for room on the host: pausing and resuming the device
    /// has it tried again.
    pub fn calling(image: Arc<DiskImage>, attention: Option<Arc<EventFd>>) -> Block {
        let config = BlockConfig::new(&image, QUEUE_SIZE);
        let link = DiskLink::new(Arc::clone(&image), attention);
        let (writeback, workers) = Default::default();
        Block { image, link, config, writeback, queue_sizes: vec![QUEUE_SIZE], workers }
    }

    /// The same with so many queues, and a worker for each.
    pub fn with_queues(mut self, count: u16) -> Block {
        self.queue_sizes = vec![QUEUE_SIZE; usize::from(count.max(1))];
        self.config.set_queues(count);
        self
    }

    /// The user's handle on it.
    pub fn handle(&self) -> DiskHandle {
        DiskHandle(Arc::clone(&self.link))
    }

    /// Relaxed, as are the loads: the worker sees it through the ring, other vCPUs through the transport's lock.
    fn set_writeback(&self, on: bool) {
        self.writeback.store(on, Ordering::Relaxed);
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.config.features()
    }

    fn negotiated(&mut self, features: u64) {
        // A driver that cannot flush must find its data safe after every write (5.2.5.2, 5.2.6.2).
        self.set_writeback(self.image.cache() == Cache::WriteBack && features & feature::FLUSH != 0);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(self.image.size(), self.writeback.load(Ordering::Relaxed), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (config::WRITEBACK, [value]) = (offset, data) {
            self.set_writeback(value & 1 != 0);
        }
    }

    fn start(&mut self, mut live: Activation) -> Result<(), StartError> {
        self.link.forget_all();
        let queues = std::mem::take(&mut live.queues);
        *lock(&self.link.kicks) = queues.iter().map(|live| Arc::clone(&live.kick)).collect();
        for queue in queues {
            let index = queue.index;
            let executor = RequestExecutor::new(&self.link, index, &live.ram, &self.writeback, &live.fault);
            let worker = live.spawn(format!("{}-q{index}", live.name), vec![queue], DiskWork::new(executor))?;
            self.workers.add(vec![index], worker);
        }
        self.link.notice.connect(live.config);
        Ok(())
    }

    fn stop(&mut self, deadline: Option<Instant>) -> Result<Vec<QueueState>, StillBusy> {
        let states = self.workers.take(deadline)?;
        self.link.notice.disconnect();
        lock(&self.link.kicks).clear();
        self.image.limiter().rest();
        Ok(states)
    }

    fn reset(&mut self) {
        self.link.forget_all();
        self.set_writeback(false);
    }

    fn state(&self) -> DeviceState {
        let (size, block_size, missed) = (self.image.size(), self.image.block_size(), self.link.notice.missed());
        let (writeback, rate) = (self.writeback.load(Ordering::Relaxed), self.image.limiter().state());
        DeviceState::Block(BlockState { size, block_size, writeback, missed, rate })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Block(state) = state else {
            return Err(StateError::Kind { saved: state.kind(), here: self.state().kind() });
        };
        let image = &self.image;
        for (what, saved, here) in [
            ("size of the disk in bytes", state.size, image.size()),
            ("block size of the disk in bytes", state.block_size.into(), image.block_size().into()),
        ] {
            if saved != here {
                return Err(StateError::Differs { what, saved, here });
            }
        }
        self.image.limiter().restore(&state.rate)?;
        self.set_writeback(state.writeback);
        self.link.notice.set_missed(state.missed);
        Ok(())
    }
}
