//! The user's handle on a link, and what it shares with the workers of the card.
//!
//! ```text
//!   NetHandle --up, down--> wanted --notice--> driver          Pair 0: descriptor, boxes, counters <--> worker net0-q0
//!             <--counters----------------------------------    Pair 1: ..                          <--> worker net0-q1
//! ```
//!
//! It outlives the device, as a cable outlives a computer's reset.
//!
//! Spec: virtio 1.2, 5.1.4 "Device configuration layout".

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axvm_sync::{EventFd, lock};
use axvm_tap::Offloads;
use rustix::io::Errno;

use super::boxes::Boxes;
use super::link::{Link, LinkEnd};
use crate::limiter::{Limiter, RateLimit};
use crate::notice::ConfigNotice;

/// Frames of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCount {
    /// Frames that arrived.
    pub frames: u64,
    /// Bytes in these.
    pub bytes: u64,
    /// Frames that did not.
    pub dropped: u64,
}

impl NetCount {
    fn plus(self, other: NetCount) -> NetCount {
        NetCount {
            frames: self.frames + other.frames,
            bytes: self.bytes + other.bytes,
            dropped: self.dropped + other.dropped,
        }
    }
}

/// Counts of frames, as they are written.
#[derive(Debug, Default)]
pub(super) struct Counter {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Counter {
    pub(super) fn add(&self, len: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
    }

    pub(super) fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> NetCount {
        let [frames, bytes, dropped] =
            [&self.frames, &self.bytes, &self.dropped].map(|count| count.load(Ordering::Relaxed));
        NetCount { frames, bytes, dropped }
    }
}

/// A link, and the user's control of it. It outlives the device.
#[derive(Clone)]
pub struct NetHandle(pub(super) Arc<Shared>);

impl NetHandle {
    /// A link that is up.
    pub fn new(link: Link) -> io::Result<NetHandle> {
        let Link { ends, offloads } = link;
        let pairs = ends.into_iter().map(Pair::new).collect::<io::Result<_>>()?;
        let (wanted, broken, notice) = (AtomicBool::new(true), AtomicBool::new(false), ConfigNotice::default());
        let (rx, tx) = Default::default();
        Ok(NetHandle(Arc::new(Shared { pairs, offloads, wanted, broken, notice, rx, tx })))
    }

    /// What limits frames for the guest.
    pub fn rx_rate(&self) -> RateLimit {
        self.0.rx.limit()
    }

    /// What limits frames of the guest.
    pub fn tx_rate(&self) -> RateLimit {
        self.0.tx.limit()
    }

    /// Limits frames for the guest from now on, with full buckets. What waits is looked at again.
    pub fn set_rx_rate(&self, rate: RateLimit) {
        self.0.rx.set(rate);
        self.0.wake();
    }

    /// Limits frames of the guest from now on, with full buckets. What waits is looked at again.
    pub fn set_tx_rate(&self, rate: RateLimit) {
        self.0.tx.set(rate);
        self.0.wake();
    }

    /// Plugs the cable in, or pulls it.
    pub fn set_up(&self, up: bool) {
        self.0.change(|| self.0.wanted.store(up, Ordering::Release));
        self.0.wake();
    }

    /// Whether the guest's link is up: the user wants it so, and it has not ended.
    pub fn is_up(&self) -> bool {
        self.0.is_up()
    }

    /// Whether the link has come to its end.
    pub fn is_broken(&self) -> bool {
        self.0.broken.load(Ordering::Acquire)
    }

    /// The link has come to its end, as its other side's keeper knows. False if that is known here already.
    pub fn end(&self) -> bool {
        let mut first = false;
        self.0.change(|| first = !self.0.broken.swap(true, Ordering::AcqRel));
        self.0.wake();
        first
    }

    /// How many queue pairs the card has.
    pub fn pairs(&self) -> u16 {
        self.0.pairs.len() as u16
    }

    /// Frames for the guest.
    pub fn to_guest(&self) -> NetCount {
        self.0.count(|pair| &pair.to_guest)
    }

    /// Frames of the guest.
    pub fn from_guest(&self) -> NetCount {
        self.0.count(|pair| &pair.from_guest)
    }
}

pub(super) struct Shared {
    pub(super) pairs: Vec<Pair>,
    /// What the link offers beyond whole frames.
    pub(super) offloads: Offloads,
    /// The user wants the link up.
    pub(super) wanted: AtomicBool,
    /// The link has come to its end.
    pub(super) broken: AtomicBool,
    pub(super) notice: ConfigNotice,
    /// Of frames for the guest, all queue pairs together.
    pub(super) rx: Limiter,
    /// Of frames of the guest.
    pub(super) tx: Limiter,
}

/// What one queue pair has of the link.
pub(super) struct Pair {
    pub(super) link: LinkEnd,
    /// Locked for a turn of the worker, when the queue is switched on or off, and when the device is saved or restored.
    pub(super) boxes: Mutex<Boxes>,
    pub(super) to_guest: Counter,
    pub(super) from_guest: Counter,
    /// Wakes the worker after a change that it does not see otherwise.
    pub(super) wake: EventFd,
}

impl Pair {
    fn new(link: LinkEnd) -> io::Result<Pair> {
        let (boxes, wake) = (Mutex::new(Boxes::new(link.kind)), EventFd::new()?);
        Ok(Pair { link, boxes, to_guest: Counter::default(), from_guest: Counter::default(), wake })
    }
}

impl Shared {
    pub(super) fn is_up(&self) -> bool {
        self.wanted.load(Ordering::Acquire) && !self.broken.load(Ordering::Acquire)
    }

    /// Changes the state of the link, and tells the driver if that is one for it.
    pub(super) fn change(&self, change: impl FnOnce()) {
        let before = self.is_up();
        change();
        if self.is_up() != before {
            self.notice.changed();
        }
    }

    /// All workers look again.
    pub(super) fn wake(&self) {
        self.pairs.iter().for_each(|pair| pair.wake.signal());
    }

    /// The first `count` queue pairs are in use, the others get no frames. No caller holds a pair's boxes.
    pub(super) fn set_active(&self, count: u16) -> Result<(), Errno> {
        for (number, pair) in self.pairs.iter().enumerate() {
            let (attached, mut boxes) = (number < usize::from(count), lock(&pair.boxes));
            if boxes.attached != attached {
                pair.link.set_attached(attached)?;
                boxes.attached = attached;
            }
        }
        self.wake();
        Ok(())
    }

    /// Once this has returned, each worker is in a turn that began after the call. No caller holds a pair's boxes.
    pub(super) fn settle(&self) {
        self.pairs.iter().for_each(|pair| drop(lock(&pair.boxes)));
    }

    fn count(&self, direction: impl Fn(&Pair) -> &Counter) -> NetCount {
        self.pairs.iter().map(|pair| direction(pair).read()).fold(NetCount::default(), NetCount::plus)
    }
}
