//! A console and its back ends, on real terminals, pipes and sockets: one binary, so that it is linked once.
//!
//! `idle.rs` is a binary of its own: it counts the threads of its process.
#![allow(clippy::disallowed_methods, reason = "tests start threads of their own")]

mod clients;
mod common;
mod pty;
mod stdio;
mod terminal;
