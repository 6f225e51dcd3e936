//! HTTP/1.1 as bytes in and bytes out: no socket, no clock, so that tests and fuzzing reach all of it.
//!
//! ```text
//!   bytes --> Reader::push --> Reader::next --> Request | the client waits for 100 | Refusal: answer, then close
//!   Response --> Response::bytes --> bytes
//! ```
//!
//! Spec: RFC 9112 "HTTP/1.1", 2 to 6, 9; RFC 9110 "HTTP Semantics", 8.6, 10.1.1, 15.
//! Left out: chunked request bodies (411 asks for a length), trailers, `Host` (the socket is the host).

mod read;
mod write;

pub use read::{Progress, Reader, Refusal, Request};
pub use write::{CONTINUE, LAST_CHUNK, Response, SWITCHING, chunk};

/// Longest request line with headers, in bytes.
pub const HEAD_LIMIT: usize = 8 << 10;
/// Longest request body, in bytes.
pub const BODY_LIMIT: usize = 64 << 10;
/// Most headers in a request.
pub const HEADER_LIMIT: usize = 32;
