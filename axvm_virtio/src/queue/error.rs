//! What a driver can do wrong with a ring: one rule, one variant, one section of the standard.
//!
//! ```text
//!   layout: Size, Placement    saved indices: State    available ring: AvailIndex
//!   chain:  Index, Loop, Bytes, Order, Buffer, Indirect..
//! ```
//!
//! Spec: virtio 1.2, 2.7 "Split Virtqueues"; the numbers in the messages are its sections.

use axvm_arch::Gpa;
use axvm_memory::AccessError;
use thiserror::Error;

/// The driver (or a saved state) broke a rule of the ring; the queue is dead until the device is reset.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum QueueError {
    /// The size is not one a queue can have.
    #[error("Queue size {0} is not a power of two from 1 to 32768 (virtio 1.2, 2.7)")]
    Size(u16),
    /// A part of the ring is unaligned or not in RAM.
    #[error("The {part} is misplaced (virtio 1.2, 2.7): {reason}")]
    Placement {
        /// Name of the part.
        part: &'static str,
        /// Alignment or RAM; part of the message, as one line is all that a guest's fault gets.
        reason: AccessError,
    },
    /// A saved position is one that no queue of this size reaches.
    #[error("Cannot resume a queue of {size} with {in_flight} chains in flight")]
    State {
        /// Queue size.
        size: u16,
        /// Chains taken and not returned, by the saved indices.
        in_flight: u16,
    },
    /// The available index moved back, or ahead of what the ring can hold.
    #[error(
        "The available index went from {from} to {to}: more than the {room} chains that a queue still has room for, or backwards (virtio 1.2, 2.7.6.1)"
    )]
    AvailIndex {
        /// Chains taken so far, modulo 2^16.
        from: u16,
        /// What the driver wrote.
        to: u16,
        /// Queue size less the chains in flight.
        room: u16,
    },
    /// A head or a `next` field lies outside its table.
    #[error("Descriptor {index} is outside a table of {count} (virtio 1.2, 2.7.5)")]
    Index {
        /// The index the driver gave.
        index: u16,
        /// Descriptors in the table.
        count: usize,
    },
    /// More descriptors were linked than the table has.
    #[error("The chain at descriptor {head} loops (virtio 1.2, 2.7.5.2)")]
    Loop {
        /// Head of the chain.
        head: u16,
    },
    /// The buffers add up to more than 2^32 bytes.
    #[error("The chain at descriptor {head} is longer than 2^32 bytes (virtio 1.2, 2.7.5.2)")]
    Bytes {
        /// Head of the chain.
        head: u16,
    },
    /// A device-readable buffer follows a device-writable one.
    #[error("The chain at descriptor {head} has a readable buffer after a writable one (virtio 1.2, 2.7.4.2)")]
    Order {
        /// Head of the chain.
        head: u16,
    },
    /// A buffer, or an indirect table, is not RAM of one region.
    #[error("The {len} bytes at {gpa} of the chain at descriptor {head} are not in guest RAM (virtio 1.2, 2.7.5)")]
    Buffer {
        /// Head of the chain.
        head: u16,
        /// First address.
        gpa: Gpa,
        /// Length in bytes.
        len: u32,
    },
    /// An indirect table although the driver did not accept VIRTIO_F_INDIRECT_DESC.
    #[error("Descriptor chain {head} has an indirect table that was not negotiated (virtio 1.2, 2.7.5.3.1)")]
    IndirectUnasked {
        /// Head of the chain.
        head: u16,
    },
    /// INDIRECT together with NEXT.
    #[error("Descriptor chain {head} goes on after its indirect table (virtio 1.2, 2.7.5.3.1)")]
    IndirectNext {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect table inside an indirect table.
    #[error("Descriptor chain {head} has an indirect table inside an indirect table (virtio 1.2, 2.7.5.3.1)")]
    IndirectNested {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect table without descriptors, with a part of one, or with too many.
    #[error(
        "Descriptor chain {head} has an indirect table of {len} bytes, not 1 to 32768 descriptors of 16 (virtio 1.2, 2.7.5.3)"
    )]
    IndirectLen {
        /// Head of the chain.
        head: u16,
        /// Length of the table in bytes.
        len: u32,
    },
}
