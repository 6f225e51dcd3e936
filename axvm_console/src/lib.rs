//! What sits at the other end of a guest's console.
//!
//! ```text
//!   UART, virtio-console <--> Port <--> terminal, file, pty, socket
//! ```
//!
//! [`Port`] is what a device sees; [`Console`] connects it with a [`BackEnd`]. Whatever the back end, clients may be
//! attached to the running console ([`Attacher`]): each sees the last 64 KiB first.
#![forbid(unsafe_code)]

mod back_end;
mod client;
mod console;
mod hub;
mod input;
mod keys;
mod log_file;
mod open_again;
mod port;
mod port_state;
mod pty;
mod replay;
mod shared;
mod terminal;
mod writer;

pub use back_end::{BackEnd, BackEndError, FileLimit};
pub use console::{Console, ConsoleError, Opened, Stdio};
pub use keys::Key;
pub use log_file::LogFileError;
pub use open_again::opened_again;
pub use port::Port;
pub use port_state::{PortState, PortStateError, Size};
pub use shared::{Attacher, Hooks};
pub use terminal::{Terminal, is_raw, restore_terminal, restore_terminal_in_handler, size};
