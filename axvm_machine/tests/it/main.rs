//! The machine as a library: guests of our own, started in this process.
//!
//! Needs /dev/kvm; without it each test says that it was skipped.

mod carry;
mod guest;
mod life;
