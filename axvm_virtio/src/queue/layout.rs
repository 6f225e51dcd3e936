//! What a queue is made from: where the driver put it, what was negotiated, how far it had come.
//!
//! ```text
//!   QueueLayout (a claim) + QueueFeatures + QueueState --VirtQueue::new: proven--> a queue that goes on
//! ```
//!
//! Spec: virtio 1.2, 2.7 "Split Virtqueues", 6 "Reserved Feature Bits".

use axvm_arch::Gpa;
use serde::{Deserialize, Serialize};

/// Largest queue (virtio 1.2, 2.7).
pub const MAX_SIZE: u16 = 32768;

/// Where the driver says its queue is: a claim, until [`VirtQueue::new`](super::VirtQueue::new) proves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueLayout {
    /// Number of descriptors and of ring entries.
    pub size: u16,
    /// Descriptor table: 16 bytes for each entry, aligned to 16.
    #[serde(with = "address")]
    pub descriptors: Gpa,
    /// Available ring: 6 bytes and 2 for each entry, aligned to 2.
    #[serde(with = "address")]
    pub avail: Gpa,
    /// Used ring: 6 bytes and 8 for each entry, aligned to 4.
    #[serde(with = "address")]
    pub used: Gpa,
}

/// Feature bits that change how a ring works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueFeatures {
    /// VIRTIO_F_EVENT_IDX (bit 29): event indices instead of flags say who wants to be woken.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC (bit 28): a descriptor may point to a table of descriptors.
    pub indirect: bool,
}

/// How far a queue has come: all that must survive a stop, for a later start to go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// Chains taken, modulo 2^16.
    pub next_avail: u16,
    /// Chains returned and published, modulo 2^16.
    pub next_used: u16,
}

/// A guest-physical address as a number.
mod address {
    use axvm_arch::Gpa;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(gpa: &Gpa, serializer: S) -> Result<S::Ok, S::Error> {
        gpa.0.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Gpa, D::Error> {
        u64::deserialize(deserializer).map(Gpa)
    }
}
