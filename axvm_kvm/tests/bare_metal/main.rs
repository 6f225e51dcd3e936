//! Guests of a few instructions on the real KVM: does what the API promises happen?

#[path = "../common/mod.rs"]
mod common;

mod doorbells;
mod exits;
mod interrupts;
mod kicks;
mod modes;
mod power_on;
mod refusals;
mod smp;
mod state;
mod state_interrupts;
