//! The network card: frames between the guest's rings and a link of the host.
//!
//! ```text
//!   driver: empty buffers --receiveq (2n)----> filled with a frame    <-- inbox  <--.
//!   driver: frames --------transmitq (2n+1)--> one call each          --> outbox --> Link: tap, stream, datagrams
//!   driver: commands ------controlq----------> answer (control)
//!   user: NetHandle --up, down--> status in the configuration space --config interrupt--> driver
//!         '-- counters
//!
//!   queues:  receive 0 | transmit 0 | receive 1 | transmit 1 | .. | control       of a driver without MQ: control is 2
//!   workers: '---- net0-q0 -------'   '---- net0-q1 -------'        net0-q0
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
//! Left out: notices of a new place, speed and duplex, hash reports.

mod boxes;
mod control;
mod handle;
mod header;
mod link;
mod worker;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axvm_sync::lock;

use crate::device::{Activation, DeviceId, LiveQueue, StartError, VirtioDevice, read_fields};
use crate::limiter::{self, Limiter};
use crate::queue::QueueState;
use crate::state::{DeviceState, NetState, PairState, StateError};
use crate::worker::{StillBusy, WorkerGroup};
use boxes::Boxes;
use control::{Chosen, number};
use header::HEADER_LEN;
use worker::NetWork;

pub use axvm_tap::{Offloads, Tap, TapError};
pub use handle::{NetCount, NetHandle};
pub use link::{Link, LinkKind, MAX_FRAME, MAX_PAIRS, MIN_FRAME};

/// Entries of a queue for frames.
const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
const CONTROL_SIZE: u16 = 64;

/// Feature bits, as masks (5.1.3).
mod feature {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const GUEST_ECN: u64 = 1 << 9;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const HOST_ECN: u64 = 1 << 13;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
    pub(super) const CTRL_VQ: u64 = 1 << 17;
    pub(super) const CTRL_RX: u64 = 1 << 18;
    pub(super) const MQ: u64 = 1 << 22;
    pub(super) const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub(super) const GUEST_USO4: u64 = 1 << 54;
    pub(super) const GUEST_USO6: u64 = 1 << 55;
    pub(super) const HOST_USO: u64 = 1 << 56;
    /// What a host may leave to a driver.
    pub(super) const GUEST: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;
}

/// The bit in the status field of the configuration space (5.1.4).
const LINK_UP: u16 = 1;

/// The feature bits of what a link offers, both ways.
fn offload_features(offloads: Offloads) -> u64 {
    use feature::*;
    let bits = [
        (true, CSUM | GUEST_CSUM | CTRL_GUEST_OFFLOADS),
        (offloads.tso4, HOST_TSO4 | GUEST_TSO4),
        (offloads.tso6, HOST_TSO6 | GUEST_TSO6),
        (offloads.ecn, HOST_ECN | GUEST_ECN),
        (offloads.uso, HOST_USO | GUEST_USO4 | GUEST_USO6),
    ];
    let offered = bits.into_iter().filter(|(offered, _)| *offered).fold(0, |all, (_, bits)| all | bits);
    if offloads.checksum { offered } else { 0 }
}

/// What a host may leave to the driver that agreed on these feature bits.
fn guest_offloads(features: u64) -> Offloads {
    use feature::*;
    let has = |bits| features & bits == bits;
    Offloads {
        checksum: has(GUEST_CSUM),
        tso4: has(GUEST_TSO4),
        tso6: has(GUEST_TSO6),
        ecn: has(GUEST_ECN),
        // The kernel knows only both.
        uso: has(GUEST_USO4 | GUEST_USO6),
    }
}

/// What driver and device agreed on.
#[derive(Clone, Copy, Debug)]
struct Agreed {
    /// What the driver may leave to the host.
    host: Offloads,
    /// What the host may leave to the driver at most, as feature bits: what it may now is in [`Chosen`].
    guest: u64,
    /// The driver may say that it be less.
    changeable: bool,
    /// A frame may lie in several chains.
    mergeable: bool,
    /// There may be several queue pairs.
    several: bool,
}

impl Agreed {
    fn new(features: u64) -> Agreed {
        use feature::*;
        let has = |bits| features & bits == bits;
        let host = Offloads {
            checksum: has(CSUM),
            tso4: has(HOST_TSO4),
            tso6: has(HOST_TSO6),
            ecn: has(HOST_ECN),
            uso: has(HOST_USO),
        };
        Agreed {
            host,
            guest: features & GUEST,
            changeable: has(CTRL_VQ | CTRL_GUEST_OFFLOADS),
            mergeable: has(MRG_RXBUF),
            several: has(CTRL_VQ | MQ),
        }
    }
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueueRole {
    /// Frames for the guest.
    Receive,
    /// Frames of the guest.
    Transmit,
    /// Commands.
    Control,
    /// Nothing that was agreed on.
    None,
}

impl QueueRole {
    /// Of queue `index` of a card with so many queue pairs in use at most, and the worker that serves it (5.1.2).
    fn of(index: u16, pairs: u16) -> (QueueRole, u16) {
        match index {
            _ if index > 2 * pairs => (QueueRole::None, 0),
            _ if index == 2 * pairs => (QueueRole::Control, 0),
            _ if index.is_multiple_of(2) => (QueueRole::Receive, index / 2),
            _ => (QueueRole::Transmit, index / 2),
        }
    }
}

/// What a guest is told of its card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Its address.
    pub mac: [u8; 6],
    /// Largest packet that the link carries, if the guest is to know.
    pub mtu: Option<u16>,
}

/// A virtio network card.
pub struct Net {
    config: NetConfig,
    handle: NetHandle,
    chosen: Arc<Chosen>,
    queue_sizes: Vec<u16>,
    workers: WorkerGroup<NetWork>,
}

impl Net {
    /// A card at power-on, with the link of `handle`.
    pub fn new(handle: NetHandle, config: NetConfig) -> Net {
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * usize::from(handle.pairs())];
        queue_sizes.push(CONTROL_SIZE);
        let chosen = Arc::new(Chosen::new(config.mac));
        Net { config, handle, chosen, queue_sizes, workers: WorkerGroup::default() }
    }

    /// Has the link give what the driver takes, in as many queues as it uses. A host that refuses costs frames, which
    /// are counted, and the user is told.
    fn set_link(&self, live: &Activation) {
        let (shared, guest) = (&self.handle.0, self.chosen.guest_offloads());
        let done = shared.pairs[0].link.set_offloads(guest).and_then(|()| shared.set_active(self.chosen.active()));
        // Of one that has ended, the user knows.
        if let Err(error) = done
            && !self.handle.is_broken()
        {
            live.fault.warn(format_args!(
                "cannot set up the tap for this driver: {error}; frames may be lost. See what holds it (ip -d link)"
            ));
        }
    }

    fn check_frames(&self, state: &NetState) -> Result<(), StateError> {
        let (saved, here) = (state.pairs.len() as u64, u64::from(self.handle.pairs()));
        if saved != here {
            return Err(StateError::Differs { what: "number of queue pairs", saved, here });
        }
        if !(1..=self.handle.pairs()).contains(&state.active) {
            return Err(StateError::Value { what: "number of queue pairs in use", value: state.active.into() });
        }
        if state.offloads & !(self.features() & feature::GUEST) != 0 {
            return Err(StateError::Value { what: "offloads in force", value: state.offloads });
        }
        state.pairs.iter().try_for_each(check_pair)
    }
}

/// What a saved state may hold of frames.
fn check_pair(pair: &PairState) -> Result<(), StateError> {
    let received = pair.received.iter().map(|frame| frame.0.len().wrapping_sub(HEADER_LEN));
    let mut lengths = received.chain(pair.unsent.iter().map(|frame| frame.0.len()));
    if let Some(len) = lengths.find(|len| !(MIN_FRAME..=MAX_FRAME).contains(len)) {
        return Err(StateError::Value { what: "length of a frame", value: len as u64 });
    }
    if !Boxes::can_hold(&pair.received) {
        return Err(StateError::Value { what: "number of waiting frames", value: pair.received.len() as u64 });
    }
    Ok(())
}

impl VirtioDevice for Net {
    fn id(&self) -> DeviceId {
        DeviceId::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        use feature::*;
        let always = MAC | STATUS | MRG_RXBUF | CTRL_VQ | CTRL_RX | CTRL_MAC_ADDR;
        let mtu = if self.config.mtu.is_some() { MTU } else { 0 };
        let several = if self.handle.pairs() > 1 { MQ } else { 0 };
        always | mtu | several | offload_features(self.handle.0.offloads)
    }

    /// A driver gets all that it takes until it says otherwise.
    fn negotiated(&mut self, features: u64) {
        self.chosen.set_guest(features & feature::GUEST);
    }

    /// mac, status, max_virtqueue_pairs, mtu (5.1.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = if self.handle.is_up() { LINK_UP } else { 0 };
        let mac = self.chosen.mac();
        let numbers = [status, self.handle.pairs(), self.config.mtu.unwrap_or(0)].map(u16::to_le_bytes);
        read_fields(mac.iter().chain(numbers.as_flattened()), offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn start(&mut self, mut live: Activation) -> Result<(), StartError> {
        let agreed = Agreed::new(live.features);
        // Of a saved state, only the driver's own features are believed.
        self.chosen.set_guest(self.chosen.guest() & agreed.guest);
        self.set_link(&live);
        let pairs = if agreed.several { self.handle.pairs() } else { 1 };
        let mut by_worker: Vec<Vec<LiveQueue>> = (0..pairs).map(|_| Vec::new()).collect();
        for queue in std::mem::take(&mut live.queues) {
            let (_, worker) = QueueRole::of(queue.index, pairs);
            by_worker[usize::from(worker)].push(queue);
        }
        for (number, queues) in by_worker.into_iter().enumerate() {
            let indices = queues.iter().map(|queue| queue.index).collect();
            let work = NetWork::new(&live, &self.handle.0, &self.chosen, (number, pairs, agreed));
            let worker = live.spawn(format!("{}-q{number}", live.name), queues, work)?;
            self.workers.add(indices, worker);
        }
        self.handle.0.notice.connect(live.config.clone());
        Ok(())
    }

    fn stop(&mut self, deadline: Option<Instant>) -> Result<Vec<QueueState>, StillBusy> {
        let states = self.workers.take(deadline)?;
        self.handle.0.notice.disconnect();
        [&self.handle.0.rx, &self.handle.0.tx].into_iter().for_each(Limiter::rest);
        Ok(states)
    }

    /// What is on its way belongs to the link.
    fn reset(&mut self) {
        self.handle.0.notice.set_missed(false);
        self.chosen.set(self.config.mac, 1);
        self.chosen.set_guest(0);
        // The next driver takes whole frames until it says otherwise. A tap that refuses is gone: the worker will see.
        let _ = self.handle.0.pairs[0].link.set_offloads(Offloads::NONE);
    }

    fn state(&self) -> DeviceState {
        let shared = &self.handle.0;
        let pairs = shared.pairs.iter().map(|pair| {
            let boxes = lock(&pair.boxes);
            PairState { received: boxes.received(), unsent: boxes.unsent() }
        });
        DeviceState::Net(Box::new(NetState {
            mac: self.config.mac,
            mtu: self.config.mtu,
            chosen_mac: self.chosen.mac(),
            active: self.chosen.active(),
            offloads: self.chosen.guest(),
            wanted: shared.wanted.load(Ordering::Acquire),
            up: shared.is_up(),
            missed: shared.notice.missed(),
            rx: shared.rx.state(),
            tx: shared.tx.state(),
            pairs: pairs.collect(),
        }))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Net(state) = state else {
            return Err(StateError::Kind { saved: state.kind(), here: self.state().kind() });
        };
        let fixed = [
            ("address", number(state.mac), number(self.config.mac)),
            ("MTU", state.mtu.unwrap_or(0).into(), self.config.mtu.unwrap_or(0).into()),
        ];
        if let Some((what, saved, here)) = fixed.into_iter().find(|(_, saved, here)| saved != here) {
            return Err(StateError::Differs { what, saved, here });
        }
        self.check_frames(state)?;
        let shared = &self.handle.0;
        limiter::check(&state.tx)?;
        shared.rx.restore(&state.rx)?;
        shared.tx.restore(&state.tx)?;
        for (pair, saved) in shared.pairs.iter().zip(&state.pairs) {
            lock(&pair.boxes).restore(&pair.link, &saved.received, saved.unsent.as_ref());
        }
        self.chosen.set(state.chosen_mac, state.active);
        self.chosen.set_guest(state.offloads);
        shared.wanted.store(state.wanted, Ordering::Release);
        // The driver knows the link as it was saved.
        shared.notice.set_missed(state.missed || shared.is_up() != state.up);
        Ok(())
    }
}
