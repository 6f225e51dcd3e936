//! What each kind of device must know, beside its queues and its image or port, to go on after a pause.
//!
//! ```text
//!   DeviceState --+-- Block    cache mode; whether the driver knows the size; the disk's shape, for it must be the same disk
//!                 +-- Console  how much of the chain at the head of the ring is sent; what the driver knows of the size
//!                 +-- Entropy  its rate limit, as disks and cards have, too (LimiterState)
//!                 +-- Net      address, MTU; link up or down; what the driver chose; frames on their way (PairState)
//!                 +-- Balloon  target, size, poison; statistics and when they are due (ReportsState)
//!                 +-- Vsock    the next port of the host; connections are not carried
//!                 '-- AgentPort   what driver and device know of each other; a connection is not carried
//! ```
//!
//! Spec: virtio 1.2, 5 "Device Types".

use serde::{Deserialize, Serialize};

use super::frame::Frame;
use crate::statistics::Statistics;

/// A device, by its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// Block device (5.2).
    Block(BlockState),
    /// Console (5.3).
    Console(ConsoleState),
    /// Entropy source (5.4).
    Entropy(EntropyState),
    /// Network card (5.1).
    Net(Box<NetState>),
    /// Memory balloon (5.5).
    Balloon(Box<BalloonState>),
    /// Socket device (5.10).
    Vsock(VsockState),
    /// Console device with the agent's port (5.3).
    AgentPort(AgentPortState),
}

impl DeviceState {
    /// The kind, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            DeviceState::Block(_) => "block device",
            DeviceState::Console(_) => "console",
            DeviceState::Entropy(_) => "entropy source",
            DeviceState::Net(_) => "network card",
            DeviceState::Balloon(_) => "memory balloon",
            DeviceState::Vsock(_) => "socket device",
            DeviceState::AgentPort(_) => "agent's port",
        }
    }
}

/// A rate limit; without a bucket there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimiterState {
    /// Bytes.
    pub bytes: Option<BucketState>,
    /// Operations.
    pub ops: Option<BucketState>,
}

/// A bucket of a rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketState {
    /// Most tokens that it holds.
    pub size: u64,
    /// Milliseconds in which it fills.
    pub refill_ms: u64,
    /// The burst that it began with.
    pub one_time_burst: u64,
    /// What is left of it.
    pub burst: u64,
    /// Tokens in it; below zero: a debt.
    pub tokens: i64,
}

/// An entropy source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyState {
    /// Its rate limit.
    pub rate: LimiterState,
}

/// A disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockState {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// The writeback field of the configuration space.
    pub writeback: bool,
    /// The disk grew when there was no driver to tell.
    pub missed: bool,
    /// Its rate limit.
    pub rate: LimiterState,
}

/// A console with one port. The bytes that wait in the port are the port's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleState {
    /// Bytes already sent of the chain at the head of the transmit ring.
    pub sent: u64,
    /// Where the transmit ring stood then: another ring has another chain.
    pub at: u16,
    /// Characters in a line, as the driver can know.
    pub told_columns: u16,
    /// Lines, as the driver can know.
    pub told_rows: u16,
    /// The driver has sent something.
    pub had_output: bool,
}

/// A network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetState {
    /// Its address.
    pub mac: [u8; 6],
    /// The MTU that the guest was told, if it was told one.
    pub mtu: Option<u16>,
    /// The address that the driver gave it, or its own.
    pub chosen_mac: [u8; 6],
    /// Queue pairs in use.
    pub active: u16,
    /// What the host leaves to the driver: the feature bits that it agreed on, or fewer, as it said since.
    pub offloads: u64,
    /// The user wants the link up.
    pub wanted: bool,
    /// The link is up, as the driver can know.
    pub up: bool,
    /// The link went up or down when there was no driver to tell.
    pub missed: bool,
    /// The rate limit of frames for the guest.
    pub rx: LimiterState,
    /// The rate limit of frames of the guest.
    pub tx: LimiterState,
    /// Frames on their way, for each queue pair.
    pub pairs: Vec<PairState>,
}

/// Frames on their way through a queue pair of a network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairState {
    /// Those that wait for a buffer of the guest, the oldest first; each behind a header of 12 bytes.
    pub received: Vec<Frame>,
    /// One of the guest that the link has taken part of; all of it.
    pub unsent: Option<Frame>,
}

/// A balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonState {
    /// Pages of 4 KiB that the user wants in the balloon (`num_pages`).
    pub target_pages: u32,
    /// Pages of 4 KiB that the driver says are in it (`actual`).
    pub actual_pages: u32,
    /// What free pages of the guest are filled with (`poison_val`).
    pub poison: u32,
    /// The target changed when there was no driver to tell.
    pub missed: bool,
    /// Statistics.
    pub reports: ReportsState,
}

/// What is known of the guest's statistics, and when the next are due. Times are milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportsState {
    /// Time between two reports; 0: the guest is not asked.
    pub interval_ms: u64,
    /// The last report.
    pub latest: Option<SavedReport>,
    /// Age of the buffer in the ring, if it was read already; `None`: what it says is news.
    pub known_age_ms: Option<u64>,
}

/// A report of statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedReport {
    /// The numbers.
    pub statistics: Statistics,
    /// Milliseconds since they arrived.
    pub age_ms: u64,
}

/// A socket device. Its connections end at the other side of a save; a driver that is restored is told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockState {
    /// The port that the host's next client gets, so that a restored guest does not meet an old one again.
    pub next_port: u32,
}

/// The agent's port. Its connection ends at the other side of a save; the guest's program is told so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentPortState {
    /// The driver is to be told that there is a port.
    pub add_owed: bool,
    /// The driver is to be told its name.
    pub name_owed: bool,
    /// The driver has set the port up.
    pub ready: bool,
    /// A program of the guest has opened it.
    pub open: bool,
    /// It has closed it, and what it wrote before is not through yet.
    pub closed: bool,
    /// The driver was told that the host has opened it.
    pub told_open: bool,
    /// A client of the host is connected.
    pub talking: bool,
    /// A connection has ended, and the guest's program is to close.
    pub ending: bool,
    /// Bytes already sent of the chain at the head of the transmit ring.
    pub sent: u64,
    /// Where the transmit ring stood then.
    pub at: u16,
}
