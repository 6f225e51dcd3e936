//! The user's handle on a disk in its machine, and what it shares with the disk's worker.
//!
//! ```text
//!   worker: no room on the host --keep--> kept, attention --> the machine pauses; full() says why
//!           the worker starts anew <--------- resume ---------'     forget: it tries again
//!   user:   set_rate --> limiter, kick --> worker
//!           resize --> the image is measured again: it grew --> config interrupt, capacity --> driver
//! ```
//!
//! Spec: virtio 1.2, 5.2.4 "Device configuration layout". Source: fstatfs(2), lseek(2).

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use axvm_sync::{EventFd, lock};

use super::error::DiskError;
use super::image::DiskImage;
use crate::limiter::RateLimit;
use crate::notice::ConfigNotice;

/// A request that waits for room on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullStorage {
    /// What is to be done: "write", "zero".
    pub action: &'static str,
    /// The file, or the directory of the temporary file, whose file system is full.
    pub path: PathBuf,
    /// What the host said.
    pub error: String,
    /// Bytes that are free there now; `None` for a block device.
    pub free: Option<u64>,
}

/// The user's handle on a disk, good for as long as there is a machine.
#[derive(Clone)]
pub struct DiskHandle(pub(super) Arc<DiskLink>);

impl DiskHandle {
    /// What waits for room on the host, if something does.
    pub fn full(&self) -> Option<FullStorage> {
        let link = &self.0;
        let (action, error) = link.lock().clone()?;
        let (path, free) = (link.image.storage().to_owned(), link.image.free());
        Some(FullStorage { action, path, error, free })
    }
}

impl DiskHandle {
    /// What the guest is told, in bytes.
    pub fn size(&self) -> u64 {
        self.0.image.size()
    }

    /// Whether what the guest writes is gone when AxVM ends.
    pub fn is_ephemeral(&self) -> bool {
        self.0.image.is_ephemeral()
    }

    /// Tells the guest of an image that grew on the host; of one that did not, nothing.
    pub fn resize(&self) -> Result<(), DiskError> {
        if self.0.image.remeasure()? {
            self.0.notice.changed();
        }
        Ok(())
    }

    /// What limits its requests.
    pub fn rate(&self) -> RateLimit {
        self.0.image.limiter().limit()
    }

    /// From now on, with full buckets. A request that waits is looked at again.
    pub fn set_rate(&self, rate: RateLimit) {
        self.0.image.limiter().set(rate);
        lock(&self.0.kick).iter().for_each(|kick| kick.signal());
    }
}

/// Between a disk and its worker.
pub(super) struct DiskLink {
    pub(super) image: Arc<DiskImage>,
    /// The request that is kept: what is to be done, and why it is not.
    kept: Mutex<Option<(&'static str, String)>>,
    /// Signalled when a request is kept.
    attention: Option<Arc<EventFd>>,
    /// The way to the driver.
    pub(super) notice: ConfigNotice,
    /// Wakes the worker, while there is one.
    pub(super) kick: Mutex<Option<Arc<EventFd>>>,
}

impl DiskLink {
    pub(super) fn new(image: Arc<DiskImage>, attention: Option<Arc<EventFd>>) -> Arc<DiskLink> {
        let (kept, notice, kick) = Default::default();
        Arc::new(DiskLink { image, kept, attention, notice, kick })
    }

    /// For the worker: a request must wait for room.
    pub(super) fn keep(&self, action: &'static str, error: &io::Error) {
        *self.lock() = Some((action, error.to_string()));
        self.attention.iter().for_each(|attention| attention.signal());
    }

    /// Nothing is kept: it was done, or will be tried again.
    pub(super) fn forget(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<(&'static str, String)>> {
        lock(&self.kept)
    }
}
