//! The control socket, tried by its clients: one binary, so that it is linked once.
#![allow(clippy::disallowed_methods, reason = "tests start threads of their own")]

mod api;
mod common;
mod hostile;
