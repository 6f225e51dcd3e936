//! The agent as a program, at a Unix socket: the test is the host.

mod commands;
mod common;
mod hostile;
mod terminal;
