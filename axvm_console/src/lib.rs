//! What sits at the other end of a guest's console.
//!
//! ```text
//!   UART, virtio-console <--> Port <--> terminal, file, pty, socket
//! ```
#![forbid(unsafe_code)]

mod port;

pub use port::{Port, Size};
