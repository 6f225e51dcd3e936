//! What sits at the other end of a guest's console.
//!
//! ```text
//!   UART, virtio-console <--> Port <--> terminal, file, pty, socket
//! ```
#![forbid(unsafe_code)]

mod back_end;
mod port;

pub use back_end::{BackEnd, UnknownBackEnd};
pub use port::{Port, Size};
