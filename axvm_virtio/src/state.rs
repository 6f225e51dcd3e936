//! What a paused device is made of, as plain data: all that a copy of it would need from its transport.
//!
//! ```text
//!   registers   status, features, selectors, interrupt status, configuration generation
//!   queues      where the driver put them, and how far their rings have come
//! ```
//!
//! A paused device has no request in flight: the two indices of each queue are equal, unless the device asked for a
//! reset. What the device itself knows beside this is little (a block device: its cache mode) and no part of it.
//!
//! Spec: virtio 1.2, 2.1 "Device Status Field", 2.7 "Split Virtqueues", 4.2.2 "MMIO Device Register Layout".

use crate::queue::{QueueLayout, QueueState};

/// One device, from [`MmioTransport::state`](crate::mmio::MmioTransport::state).
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// All queues, by number.
    pub queues: Vec<QueueSnapshot>,
}

/// One queue of a [`TransportState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSnapshot {
    /// Size and addresses as the driver claims them.
    pub layout: QueueLayout,
    /// QueueReady.
    pub ready: bool,
    /// How far its rings have come.
    pub indices: QueueState,
}
