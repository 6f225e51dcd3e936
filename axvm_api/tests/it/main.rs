//! The control socket, tried by its clients: one binary, so that it is linked once.

mod api;
mod common;
mod hostile;
