//! Answers as bytes.
//!
//! Spec: RFC 9112, 4 "Status Line", 6 "Message Body", 7.1 "Chunked Transfer Coding".

use serde::Serialize;

use crate::types::FaultMessage;

/// An answer. What is not 2xx carries a [`FaultMessage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Such as 204.
    pub status: u16,
    /// JSON, or nothing.
    pub body: Vec<u8>,
}

/// Says: send the body that you announced.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Says: from here on these are the bytes of the console.
pub const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nServer: AxVM\r\nConnection: Upgrade\r\nUpgrade: axvm-console\r\n\r\n";
/// Ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

impl Response {
    /// `200` with a body.
    pub fn json(value: &impl Serialize) -> Response {
        match serde_json::to_vec(value) {
            Ok(body) => Response { status: 200, body },
            // Our types have nothing that JSON has not; a later one might.
            Err(error) => Response::fault(500, format!("Cannot write the answer as JSON: {error}")),
        }
    }

    /// `204`: done, nothing to say.
    pub fn done() -> Response {
        Response { status: 204, body: Vec::new() }
    }

    /// A refusal and its reason.
    pub fn fault(status: u16, message: impl Into<String>) -> Response {
        let message = FaultMessage { fault_message: message.into() };
        Response { status, body: serde_json::to_vec(&message).unwrap_or_default() }
    }

    /// The answer as it goes over the socket; `close` announces that nothing follows.
    pub fn bytes(&self, close: bool) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\nServer: AxVM\r\n", self.status, reason(self.status));
        head += if close { "Connection: close\r\n" } else { "Connection: keep-alive\r\n" };
        if self.status != 204 {
            head += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", self.body.len());
        }
        head += "\r\n";
        [head.as_bytes(), &self.body].concat()
    }

    /// The head of an answer whose body comes in chunks, without end.
    pub fn stream_head() -> &'static [u8] {
        b"HTTP/1.1 200 OK\r\nServer: AxVM\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    }
}

/// One piece of a chunked body.
pub fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        403 => "Forbidden",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}
