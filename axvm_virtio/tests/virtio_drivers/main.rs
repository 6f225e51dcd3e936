//! Our devices under drivers that others wrote: the `virtio-drivers` crate, in this process.
//!
//! ```text
//!   VirtIOBlk, VirtIORng --Transport--> registers (BusDevice) --> device --> worker, live
//!   (their drivers)      --Hal--------> pages of our guest RAM
//! ```
//!
//! They poll; interrupts are tested beside this, in `block.rs` and `rng.rs`.

mod block;
mod guest;
mod rng;
