//! x86-64 in nouns: the words the other crates speak.
//!
//! ```text
//!   place      Gpa, layout                     a processor   registers, control, msr, cpuid, cpuinfo
//!   in words   bits, mode, descriptor, exception                translation   paging: a walk, told step by step
//!   interrupt  irqchip (PIC, IOAPIC, LAPIC)    time          pit         opaque bytes   HexBytes
//! ```
//!
//! Nothing here acts: types, constants and pure functions, each with its source. What belongs to a saved machine has serde.
//!
//! Spec: Intel SDM volumes 2 to 4; each file names its chapter, or the chip's datasheet.
//! Left out: anything that needs a system call, an allocation of guest memory, or a decision.
#![forbid(unsafe_code)]

pub mod bits;
pub mod control;
pub mod cpu_features;
pub mod cpuid;
pub mod cpuinfo;
pub mod descriptor;
pub mod exception;
pub mod irqchip;
pub mod layout;
pub mod mode;
pub mod msi;
pub mod msr;
pub mod paging;
pub mod pit;
pub mod registers;

mod gpa;
mod hex;

pub use gpa::Gpa;
pub use hex::{HexBytes, NotHex};
