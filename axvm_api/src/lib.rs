//! The control socket: a running machine over HTTP.
//!
//! ```text
//!   curl, axvm ctl, SDKs --- Unix socket --> server --bytes--> session: http --request--> routes --> dyn Control
//!                                                                                    |
//!   axvm_events::Events --> events --lines--> GET /events                            `--> openapi
//! ```
//!
//! Where Firecracker's API has a resource for a thing, ours has the same path, body and status codes, for its
//! clients are the field's common ground. What only AxVM has stands beside it. One thread, no async runtime.
//!
//! Specs: RFC 9110 "HTTP Semantics", RFC 9112 "HTTP/1.1"; Firecracker API 1.17 (its `firecracker.yaml`); OpenAPI 3.1.
//! Left out: configuration before boot, chunked request bodies, TLS (the socket belongs to one user).
#![forbid(unsafe_code)]

pub mod client;
mod connection;
pub mod control;
pub mod events;
mod examined;
pub mod http;
mod openapi;
pub mod registry;
mod routes;
mod server;
pub mod session;
pub mod testing;
pub mod types;

pub use client::{Client, ClientError};
pub use control::{Attach, Control, ControlError};
pub use events::EventFeed;
pub use registry::Registry;
pub use server::{ApiError, ApiServer, Bound, CONNECTION_LIMIT};
