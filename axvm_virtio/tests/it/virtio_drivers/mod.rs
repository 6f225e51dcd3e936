//! Our devices under drivers that others wrote: the `virtio-drivers` crate, in this process.
//!
//! ```text
//!   VirtIOBlk, VirtIORng, VirtIOConsole --Transport--> registers (BusDevice) --> device --> worker, live
//!   (their drivers) ---------------------Hal--------> pages of our guest RAM
//! ```
//!
//! They poll; interrupts are tested beside this, in `block.rs`, `console.rs` and `rng.rs`.

mod block;
mod console;
mod guest;
mod rng;
