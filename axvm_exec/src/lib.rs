//! A command in a guest: what AxVM on the host and its agent in the guest say to each other, as values.
//!
//! ```text
//!   host                                   guest
//!   hello(version)  ------><------  hello(version)          both at once; they speak the lower version
//!   Request         ------>
//!                          <------  Grant(n) | Refused      the command runs, and takes n bytes of input | no command
//!   Stdin, StdinEnd ------><------  Stdout, Stderr, Grant
//!   Resize, Signal  ------>
//!                          <------  Exit                    the last word; who gets it closes
//! ```
//!
//! One connection is one command; any stream of bytes will do. Output flows as the stream does: a reader that is slow
//! holds up its own command. Input needs a grant, so that a signal always gets through to a command that reads nothing.
//!
//! Neither side trusts the other: [`HostEnd`] and [`GuestEnd`] check each frame's length before there is memory for it,
//! and the order of frames. `docs/exec.md` is the specification.
//!
//! Left out: reading and writing; what a terminal is.
#![forbid(unsafe_code)]

mod end;
mod frame;
mod message;
mod outcome;

pub use end::{GuestEnd, HostEnd};
pub use frame::{ProtocolError, VERSION};
pub use message::{FromGuest, FromHost, Request, Size};
pub use outcome::{Outcome, Refusal};

/// Where the agent listens, a port of AF_VSOCK: the letters of AxVM, added. Below 1024, so that in a guest only root can
/// listen there, and no other user of it is taken for the agent.
pub const PORT: u32 = b'A' as u32 + b'x' as u32 + b'V' as u32 + b'M' as u32;
/// Most bytes of input on their way to a command.
pub const WINDOW: u32 = 64 << 10;
/// Most bytes in one frame of input or output.
pub const CHUNK: usize = 32 << 10;
