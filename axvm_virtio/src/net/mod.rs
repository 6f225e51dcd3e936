//! The network card: frames between the guest's rings and a link of the host.
//!
//! ```text
//!   driver: empty buffers --receiveq (0)--> filled with a frame    <-- inbox  <--.
//!   driver: frames --------transmitq (1)--> one call each          --> outbox --> Link: tap, stream, datagrams
//!   user: NetHandle --up, down--> status in the configuration space --config interrupt--> driver
//!         '-- counters
//! ```
//!
//! A guest without buffers holds the host back: the frame that came stays in the inbox, and the link is not looked at
//! before the guest gives buffers. A host that is behind holds the guest back by its own ring. So neither a pause nor a
//! slow side loses a frame; what is dropped (no frame, too long for a buffer, refused by the host) is counted.
//!
//! A link that ends is a cable that was pulled: the driver sees it down, the user gets one warning, the machine goes on.
//! A link that the user took down is not looked at, and frames of the guest are dropped.
//!
//! Spec: virtio 1.2, 5.1 "Network Device".
//! Left out: offloads (CSUM, GUEST_CSUM, TSO, USO; a tap can: the features would come from [`LinkKind`], and the
//! header would pass through the boxes of the link), a control queue, several queue pairs, notices of a new place.

mod header;
mod link;
mod worker;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axvm_sync::{EventFd, lock};

use crate::device::{Activation, DeviceId, StartError, VirtioDevice};
use crate::notice::ConfigNotice;
use crate::queue::QueueState;
use crate::state::{DeviceState, NetState, StateError};
use crate::worker::{StillBusy, Worker};
use link::Boxes;
use worker::NetWork;

pub use link::{Link, LinkKind, MAX_FRAME, MIN_FRAME};

/// Entries of receiveq and transmitq.
const QUEUE_SIZES: [u16; 2] = [256; 2];
/// Number of the queue for frames to the guest.
const RECEIVE: u16 = 0;

/// Feature bits, as masks (5.1.3).
mod feature {
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
}

/// The bit in the status field of the configuration space (5.1.4).
const LINK_UP: u16 = 1;

/// What a guest is told of its card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Its address.
    pub mac: [u8; 6],
    /// Largest packet that the link carries, if the guest is to know.
    pub mtu: Option<u16>,
}

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

/// Counts of frames, as they are written.
#[derive(Debug, Default)]
struct Counter {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Counter {
    fn add(&self, len: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
    }

    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> NetCount {
        let [frames, bytes, dropped] =
            [&self.frames, &self.bytes, &self.dropped].map(|count| count.load(Ordering::Relaxed));
        NetCount { frames, bytes, dropped }
    }
}

/// A link, and the user's control of it. It outlives the device, as a cable outlives a computer's reset.
#[derive(Clone)]
pub struct NetHandle(Arc<Shared>);

struct Shared {
    link: Link,
    /// Locked for a turn of the worker, and when the device is saved or restored.
    boxes: Mutex<Boxes>,
    /// The user wants the link up.
    wanted: AtomicBool,
    /// The link has come to its end.
    broken: AtomicBool,
    notice: ConfigNotice,
    to_guest: Counter,
    from_guest: Counter,
    /// Wakes the worker after a change by the user.
    wake: EventFd,
}

impl NetHandle {
    /// A link that is up.
    pub fn new(link: Link) -> io::Result<NetHandle> {
        let wake = EventFd::new()?;
        let (boxes, wanted, broken) = (Mutex::new(Boxes::new()), AtomicBool::new(true), AtomicBool::new(false));
        let (notice, to_guest, from_guest) = Default::default();
        Ok(NetHandle(Arc::new(Shared { link, boxes, wanted, broken, notice, to_guest, from_guest, wake })))
    }

    /// Plugs the cable in, or pulls it.
    pub fn set_up(&self, up: bool) {
        self.0.change(|| self.0.wanted.store(up, Ordering::Release));
        self.0.wake.signal();
    }

    /// Whether the guest's link is up: the user wants it so, and it has not ended.
    pub fn is_up(&self) -> bool {
        self.0.is_up()
    }

    /// Whether the link has come to its end.
    pub fn is_broken(&self) -> bool {
        self.0.broken.load(Ordering::Acquire)
    }

    /// Frames for the guest.
    pub fn to_guest(&self) -> NetCount {
        self.0.to_guest.read()
    }

    /// Frames of the guest.
    pub fn from_guest(&self) -> NetCount {
        self.0.from_guest.read()
    }
}

impl Shared {
    fn is_up(&self) -> bool {
        self.wanted.load(Ordering::Acquire) && !self.broken.load(Ordering::Acquire)
    }

    /// Changes the state of the link, and tells the driver if that is one for it.
    fn change(&self, change: impl FnOnce()) {
        let before = self.is_up();
        change();
        if self.is_up() != before {
            self.notice.changed();
        }
    }
}

/// A virtio network card.
pub struct Net {
    config: NetConfig,
    handle: NetHandle,
    worker: Option<Worker<NetWork>>,
}

impl Net {
    /// A card at power-on, with the link of `handle`.
    pub fn new(handle: NetHandle, config: NetConfig) -> Net {
        Net { config, handle, worker: None }
    }

    /// What a saved state may hold of frames.
    fn check_frames(state: &NetState) -> Result<(), StateError> {
        let lengths = state.received.iter().chain(&state.unsent).map(|frame| frame.0.len());
        if let Some(len) = lengths.into_iter().find(|len| !(MIN_FRAME..=MAX_FRAME).contains(len)) {
            return Err(StateError::Value { what: "length of a frame", value: len as u64 });
        }
        if !Boxes::can_hold(&state.received) {
            return Err(StateError::Value { what: "number of waiting frames", value: state.received.len() as u64 });
        }
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> DeviceId {
        DeviceId::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let mtu = if self.config.mtu.is_some() { feature::MTU } else { 0 };
        feature::MAC | feature::STATUS | feature::MRG_RXBUF | mtu
    }

    /// mac, status, max_virtqueue_pairs, mtu (5.1.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = if self.handle.is_up() { LINK_UP } else { 0 };
        let numbers = [status, 1, self.config.mtu.unwrap_or(0)].map(u16::to_le_bytes);
        let fields = self.config.mac.iter().chain(numbers.as_flattened());
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(fields.skip(from)) {
            *byte = *value;
        }
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn start(&mut self, mut live: Activation) -> Result<(), StartError> {
        let work = NetWork::new(&live, Arc::clone(&self.handle.0));
        let queues = std::mem::take(&mut live.queues);
        self.worker = live.spawn(format!("{}-q0", live.name), queues, work)?;
        self.handle.0.notice.connect(live.config.clone());
        Ok(())
    }

    fn stop(&mut self, deadline: Option<Instant>) -> Result<Vec<QueueState>, StillBusy> {
        let ended = Worker::take(&mut self.worker, deadline)?;
        self.handle.0.notice.disconnect();
        Ok(ended.queues)
    }

    /// What is on its way belongs to the link.
    fn reset(&mut self) {
        self.handle.0.notice.set_missed(false);
    }

    fn state(&self) -> DeviceState {
        let shared = &self.handle.0;
        let boxes = lock(&shared.boxes);
        DeviceState::Net(NetState {
            mac: self.config.mac,
            mtu: self.config.mtu,
            wanted: shared.wanted.load(Ordering::Acquire),
            up: shared.is_up(),
            missed: shared.notice.missed(),
            received: boxes.received(),
            unsent: boxes.unsent(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Net(state) = state else {
            return Err(StateError::Kind { saved: state.kind(), here: self.state().kind() });
        };
        let number = |mac: [u8; 6]| mac.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let fixed = [
            ("address", number(state.mac), number(self.config.mac)),
            ("MTU", state.mtu.unwrap_or(0).into(), self.config.mtu.unwrap_or(0).into()),
        ];
        if let Some((what, saved, here)) = fixed.into_iter().find(|(_, saved, here)| saved != here) {
            return Err(StateError::Differs { what, saved, here });
        }
        Net::check_frames(state)?;
        let shared = &self.handle.0;
        lock(&shared.boxes).restore(&shared.link, &state.received, state.unsent.as_ref());
        shared.wanted.store(state.wanted, Ordering::Release);
        // The driver knows the link as it was saved.
        shared.notice.set_missed(state.missed || shared.is_up() != state.up);
        Ok(())
    }
}
