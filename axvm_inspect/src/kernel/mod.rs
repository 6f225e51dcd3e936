//! What a guest's kernel and initrd have, and what the machine needs of them.
//!
//! ```text
//!   kernel  --unpack--> scan  ----> KernelFacts: drivers, file systems ... each with what shows it
//!   initrd  --unpack--> cpio  ----> InitrdFacts: modules
//!   plan, command line -----------> Needs
//!                                     '-- lint --> "root=/dev/vda will wait for ever: virtio_blk is a module ..."
//! ```
//!
//! A kernel and an initrd are untrusted files: whatever they hold, what is read of them is an error or a fact, memory
//! stays within bounds, and nothing panics. Opening them costs what the kernel's own decompressor does, a tenth of a
//! second and more: the start of a machine does not wait for it.

pub mod config;
pub mod facts;
pub mod feature;
pub mod initrd;
mod input;
pub mod kallsyms;
mod needs;
#[cfg(test)]
mod packed;
pub(crate) mod payload;
mod rules;
mod scan;
pub mod unpack;

pub use facts::{Answer, Beside, Evidence, KernelFacts, Presence, examine, release};
pub use initrd::InitrdFacts;
pub use input::Input;
pub use needs::{FileSystem, Needs};
pub use rules::{Finding, lint};
