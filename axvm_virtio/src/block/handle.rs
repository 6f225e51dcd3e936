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
        let (_, action, error) = link.lock().kept.first().cloned()?;
        let (path, free) = (link.image.storage().to_owned(), link.image.free());
        Some(FullStorage { action, path, error, free })
    }

    /// The same, once: until nothing waits any more, the second caller is given none.
    pub fn newly_full(&self) -> Option<FullStorage> {
        let full = self.full()?;
        let was_told = std::mem::replace(&mut self.0.lock().told, true);
        (!was_told).then_some(full)
    }

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
        lock(&self.0.kicks).iter().for_each(|kick| kick.signal());
    }
}

/// The requests that wait for room.
#[derive(Default)]
pub(super) struct Waiting {
    /// One of a queue at most: its queue, what is to be done, and why it is not.
    kept: Vec<(u16, &'static str, String)>,
    /// The user knows.
    told: bool,
}

/// Between a disk and its workers.
pub(super) struct DiskLink {
    pub(super) image: Arc<DiskImage>,
    waiting: Mutex<Waiting>,
    /// Signalled when a request is kept.
    attention: Option<Arc<EventFd>>,
    /// The way to the driver.
    pub(super) notice: ConfigNotice,
    /// Wake the workers, while there are any.
    pub(super) kicks: Mutex<Vec<Arc<EventFd>>>,
}

impl DiskLink {
    pub(super) fn new(image: Arc<DiskImage>, attention: Option<Arc<EventFd>>) -> Arc<DiskLink> {
        let (waiting, notice, kicks) = Default::default();
        Arc::new(DiskLink { image, waiting, attention, notice, kicks })
    }

    /// For a worker: a request of `queue` must wait for room. It may say so again, as a kick makes it try again before it
    /// stands still.
    pub(super) fn keep(&self, queue: u16, action: &'static str, error: &io::Error) {
        let mut waiting = self.lock();
        waiting.kept.retain(|(kept, ..)| *kept != queue);
        waiting.kept.push((queue, action, error.to_string()));
        drop(waiting);
        self.attention.iter().for_each(|attention| attention.signal());
    }

    /// Nothing of `queue` is kept: it was done, or will be tried again.
    pub(super) fn forget(&self, queue: u16) {
        let mut waiting = self.lock();
        waiting.kept.retain(|(kept, ..)| *kept != queue);
        waiting.told &= !waiting.kept.is_empty();
    }

    /// The same for all queues.
    pub(super) fn forget_all(&self) {
        *self.lock() = Waiting::default();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::DiskConfig;

    #[test]
    fn what_one_queue_keeps_another_does_not_forget() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 16).unwrap();
        let link = DiskLink::new(DiskImage::open(&DiskConfig::new(file.path())).unwrap(), None);
        let handle = DiskHandle(Arc::clone(&link));
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        for (queue, action) in [(0, "write"), (1, "zero"), (0, "write")] {
            link.keep(queue, action, &full());
        }
        assert_eq!(handle.full().unwrap().action, "zero");
        link.forget(1);
        assert_eq!(handle.full().unwrap().action, "write");
        link.forget(0);
        assert_eq!(handle.full(), None);
        link.keep(3, "write", &full());
        link.forget_all();
        assert_eq!(handle.full(), None);
    }

    #[test]
    fn what_is_kept_is_told_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 16).unwrap();
        let link = DiskLink::new(DiskImage::open(&DiskConfig::new(file.path())).unwrap(), None);
        let handle = DiskHandle(Arc::clone(&link));
        let keep = |queue| link.keep(queue, "write", &io::ErrorKind::StorageFull.into());
        keep(0);
        assert!(handle.newly_full().is_some());
        // A kick came before the worker stood still, and another queue had no room either.
        keep(0);
        keep(1);
        link.forget(0);
        assert!(handle.full().is_some());
        assert_eq!(handle.newly_full(), None);
        link.forget(1);
        keep(0);
        assert!(handle.newly_full().is_some(), "it found room, and has none again");
        link.forget_all();
        keep(0);
        assert!(handle.newly_full().is_some(), "the machine was resumed");
    }
}
