//! What a paused device is made of, as plain data: all that its copy needs, beside the guest's RAM.
//!
//! ```text
//!   TransportState
//!     registers   status, features, selectors, interrupt status, configuration generation
//!     queues      where the driver put them, how far their rings have come, whether a kick waits
//!     device      what the device itself knows (devices)
//! ```
//!
//! A paused device has no request in flight: the two indices of each queue are equal, unless the device asked for a
//! reset. A state may come from a damaged file: what does not fit the device is refused before anything starts.
//!
//! Spec: virtio 1.2, 2.1 "Device Status Field", 2.7 "Split Virtqueues", 4.2.2 "MMIO Device Register Layout".
//! Left out: names and versions of files; what lies in RAM; what a console's port holds.

mod devices;
mod error;
mod frame;

use serde::{Deserialize, Serialize};

use crate::queue::{QueueLayout, QueueState};

pub use devices::{
    AgentPortState, BalloonState, BlockState, BucketState, ConsoleState, DeviceState, EntropyState, LimiterState,
    NetState, PairState, ReportsState, SavedReport, VsockState,
};
pub use error::{RestoreError, StateError};
pub use frame::{Frame, FrameError};

/// One device, from [`Transport::state`](crate::Transport::state).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportState {
    /// The status register, DEVICE_NEEDS_RESET included.
    pub status: u32,
    /// The feature bits that the driver wrote; negotiated if the status has FEATURES_OK.
    pub driver_features: u64,
    /// DeviceFeaturesSel.
    pub device_features_sel: u32,
    /// DriverFeaturesSel.
    pub driver_features_sel: u32,
    /// QueueSel.
    pub queue_sel: u32,
    /// InterruptStatus: what the driver has not acknowledged.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// The vectors of its interrupts, where it is on PCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<VectorsState>,
    /// All queues, by number.
    pub queues: Vec<QueueSnapshot>,
    /// What the device knows beside this.
    pub device: DeviceState,
}

/// What a driver on PCI said of a [`TransportState`]'s MSI-X vectors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VectorsState {
    /// For the configuration; 0xffff: none.
    pub config: u16,
    /// For each queue.
    pub queues: Vec<u16>,
}

/// One queue of a [`TransportState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueSnapshot {
    /// Size and addresses as the driver claims them.
    pub layout: QueueLayout,
    /// QueueReady.
    pub ready: bool,
    /// How far its rings have come.
    pub indices: QueueState,
    /// The driver has kicked, and no worker has answered yet.
    pub kicked: bool,
}
