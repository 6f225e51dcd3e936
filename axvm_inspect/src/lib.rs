//! Explaining: what AxVM knows about the place it runs in and about a guest's processor, as rows and sentences for people.
//!
//! ```text
//!   the host: files, ids, what /dev/kvm says --doctor--> rows --table--> text --wrap--> lines
//!   a vCPU: state, CPUID --snapshot--> Snapshot, Processor --registers--> each register and what its bits mean
//!                                                          --lint-------> rules of the processor that it breaks
//!   and why it cannot go on, RAM           --crash-------> the report: causes, instruction, registers, page walks
//!   all vCPUs, interrupts, rings     --hang--------> what the guest waits for
//!   vmlinux, System.map              --symbols-----> names of addresses
//!   the guest's kernel and initrd, plan ------kernel------> what the machine needs and they lack
//!   text of a guest    --text--------> the same, harmless for a terminal
//!   what its threads recorded --timeline--> a trace file, and what that tells
//! ```
//!
//! Nothing here starts a machine, and nothing needs KVM: a host without it gets rows that say so. Findings are values;
//! printing them, as text or JSON, and exit codes are the program's business (`axvm_core`).
#![forbid(unsafe_code)]

pub mod core_file;
pub mod crash;
pub mod doctor;
pub mod hang;
pub mod kernel;
pub mod lint;
pub mod listing;
pub mod registers;
pub mod snapshot;
pub mod symbol_file;
pub mod symbols;
pub mod text;
pub mod timeline;
pub mod wrap;
pub mod xray;
