//! The machine as a library: guests of our own, started in this process.
//!
//! Needs /dev/kvm; without it each test says that it was skipped.
#![allow(clippy::disallowed_methods, reason = "tests start threads of their own")]

mod carry;
mod guest;
mod life;
