//! Guests of a few instructions on the real KVM: does what the API promises happen?
#![allow(clippy::disallowed_methods, reason = "tests start threads of their own")]

mod common;

mod debug;
mod doorbells;
mod exits;
mod interrupts;
mod kicks;
mod modes;
mod power_on;
mod refusals;
mod rests;
mod smp;
mod state;
mod state_interrupts;
