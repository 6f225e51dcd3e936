//! Guests of a few instructions on the real KVM: does what the API promises happen?

#[path = "../common/mod.rs"]
mod common;

mod exits;
