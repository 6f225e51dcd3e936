//! x86-64 in nouns: the words the other crates speak.
//!
//! Nothing here acts. Guest-physical addresses, the memory layout, the registers of a CPU at
//! power-on, MSR numbers, CPUID leaves, the words of /proc/cpuinfo: types and constants, each with its source.
//!
//! Left out: anything that needs a system call, an allocation of guest memory, or a decision.
#![forbid(unsafe_code)]

pub mod cpuid;
pub mod cpuinfo;
pub mod layout;
pub mod msr;
pub mod registers;

mod gpa;

pub use gpa::Gpa;
