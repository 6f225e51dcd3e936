//! Guest RAM: where it lives on the host, and the only safe ways to touch it.
//!
//! ```text
//!   a claim (from the guest)            a proof (checked once)             what it allows
//!   Gpa, len          --range()-->      GuestRange          --copy, preadv/pwritev
//!   Gpa, count        --array()-->      GuestArray<T>       --volatile get/set, atomic load/store
//! ```
//!
//! The guest may write its RAM at any moment, so no reference into it (`&T`, `&mut T`, `&[u8]`)
//! ever exists here: accesses are copies, volatile or atomic.
//!
//! Beside it, AxVM's own memory: [`heap`].
//!
//! The layout of RAM never changes while a [`GuestRam`] lives; that is why a proof stays true.
//!
//! Spec: mmap(2), madvise(2), memfd_create(2). Left out: RAM that comes from a file, or from several NUMA nodes.

mod access;
mod array;
mod backing;
mod config;
mod discard;
mod errno;
mod file;
mod file_ring;
pub mod heap;
mod host;
mod mapping;
mod memfd;
mod parallel;
mod ram;

pub use access::{AccessError, GuestRange};
pub use array::{GuestArray, Plain};
pub use backing::Backing;
pub use config::{HugePage, PageSize, RamConfig, RamError, UnknownPageSize};
pub use file::MESSAGE_RANGES;
pub use file_ring::{Direction, ENTRY_RANGES, FileRing, Transfer};
pub use ram::{GuestMemory, GuestRam, RamRegion};
