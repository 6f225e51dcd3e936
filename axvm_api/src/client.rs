//! The other end: a client of the control socket that blocks, for `axvm ctl` and `axvm ps`.

use std::fmt;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::routes::CONSOLE_PROTOCOL;
use crate::session::DESCRIPTOR_LIMIT;
use crate::types::FaultMessage;

/// Longest head of an answer.
const HEAD_LIMIT: usize = 8 << 10;
/// Longest body of an answer.
const BODY_LIMIT: usize = 16 << 20;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer, and what to do.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No file.
    #[error("No machine listens at {0}: there is no such socket. `axvm ps` lists the machines that run")]
    NoSocket(PathBuf),
    /// A file without a process.
    #[error("No machine listens at {0}: the one that did has ended. `axvm ps` lists the machines that run")]
    Ended(PathBuf),
    /// Another user's.
    #[error("The machine at {0} is not yours: call it as the user who started it, or as root")]
    NotYours(PathBuf),
    /// The machine said no.
    #[error("The machine at {path} refuses: {message}")]
    Refused {
        /// Of the socket.
        path: PathBuf,
        /// The status of the answer.
        status: u16,
        /// What it said.
        message: String,
    },
    /// Something else answers.
    #[error("What listens at {path} does not speak as a machine does: {why}. Is this the path of a control socket?")]
    Strange {
        /// Of the socket.
        path: PathBuf,
        /// What was wrong.
        why: String,
    },
    /// Nothing came in time.
    #[error(
        "The machine at {0} gives no answer. If its process is stopped, `kill -CONT` lets it go on; `kill` ends it"
    )]
    Silent(PathBuf),
    /// The conversation broke.
    #[error("The machine at {path} does not answer: {source}. If it hangs, `kill` ends it")]
    Broken {
        /// Of the socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A connection to a machine.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
}

/// The head of an answer.
struct Head {
    status: u16,
    body_len: usize,
}

impl Client {
    /// Connects to the machine whose socket is at `path`.
    pub fn connect(path: impl AsRef<Path>) -> Result<Client, ClientError> {
        Client::connect_within(path, PATIENCE)
    }

    /// Like [`Client::connect`]; the connection, and each answer, may take so long.
    pub fn connect_within(path: impl AsRef<Path>, patience: Duration) -> Result<Client, ClientError> {
        let path = path.as_ref().to_owned();
        let stream = match axvm_socket::connect(&path, patience) {
            Ok(stream) => stream,
            Err(error) => {
                return Err(match error.kind() {
                    io::ErrorKind::NotFound => ClientError::NoSocket(path),
                    io::ErrorKind::ConnectionRefused => ClientError::Ended(path),
                    io::ErrorKind::PermissionDenied => ClientError::NotYours(path),
                    io::ErrorKind::WouldBlock => ClientError::Silent(path),
                    _ => ClientError::Strange { path, why: error.to_string() },
                });
            }
        };
        let client = Client { stream, path };
        client.set_patience(Some(patience))?;
        Ok(client)
    }

    /// How long an answer may take; none: for ever.
    pub fn set_patience(&self, patience: Option<Duration>) -> Result<(), ClientError> {
        let both = self.stream.set_read_timeout(patience).and_then(|()| self.stream.set_write_timeout(patience));
        both.map_err(|error| self.broken(error))
    }

    /// Asks for a resource, such as `get::<Status>("/status")`.
    pub fn get<T: DeserializeOwned>(&mut self, resource: &str) -> Result<T, ClientError> {
        let value = self.request("GET", resource, None)?;
        serde_json::from_value(value).map_err(|error| self.strange(error))
    }

    /// Replaces or starts something, such as `put("/actions", &ActionRequest { .. })`.
    pub fn put(&mut self, resource: &str, body: &impl Serialize) -> Result<Value, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.strange(error))?;
        self.request("PUT", resource, Some(body))
    }

    /// Adds something that is open here: its descriptors go with the request.
    pub fn add<T: DeserializeOwned>(
        &mut self,
        resource: &str,
        body: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<T, ClientError> {
        let value = self.give(resource, body, descriptors)?;
        serde_json::from_value(value).map_err(|error| self.strange(error))
    }

    /// The same, where nothing is answered.
    pub fn send_with(
        &mut self,
        resource: &str,
        body: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        self.give(resource, body, descriptors).map(drop)
    }

    fn give(
        &mut self,
        resource: &str,
        body: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<serde_json::Value, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.strange(error))?;
        // With the first byte of the request; the rest of it follows as always.
        let line = format!("PUT {resource} HTTP/1.1\r\n");
        send_with(&self.stream, line.as_bytes(), descriptors).map_err(|error| self.broken(error))?;
        let rest = format!("Host: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        let head = self.send_bytes(&[rest.as_bytes(), &body].concat())?;
        self.answer(&head)
    }

    /// Removes something.
    pub fn delete(&mut self, resource: &str, body: &impl Serialize) -> Result<Value, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.strange(error))?;
        self.request("DELETE", resource, Some(body))
    }

    /// Changes something, such as `patch("/balloon", &BalloonUpdate { .. })`.
    pub fn patch(&mut self, resource: &str, body: &impl Serialize) -> Result<Value, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.strange(error))?;
        self.request("PATCH", resource, Some(body))
    }

    /// Events as they happen, one JSON object a line; ends with the machine.
    pub fn events(mut self) -> Result<EventLines, ClientError> {
        let head = self.send("GET", "/events", "", None)?;
        if head.status != 200 {
            return Err(self.refused(&head));
        }
        self.set_patience(None)?;
        let chunks = Chunks { stream: BufReader::new(self.stream), left: 0 };
        Ok(EventLines { lines: BufReader::new(chunks), path: self.path })
    }

    /// The console: what is read is the guest's output, what is written is typed.
    pub fn console(mut self) -> Result<UnixStream, ClientError> {
        let upgrade = format!("Connection: Upgrade\r\nUpgrade: {CONSOLE_PROTOCOL}\r\n");
        let head = self.send("GET", "/console", &upgrade, None)?;
        if head.status != 101 {
            return Err(self.refused(&head));
        }
        self.set_patience(None)?;
        Ok(self.stream)
    }

    fn request(&mut self, method: &str, resource: &str, body: Option<Vec<u8>>) -> Result<Value, ClientError> {
        let head = self.send(method, resource, "", body)?;
        self.answer(&head)
    }

    fn answer(&mut self, head: &Head) -> Result<Value, ClientError> {
        if head.status >= 300 {
            return Err(self.refused(head));
        }
        let body = self.body(head)?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|error| self.strange(error))
    }

    fn send(
        &mut self,
        method: &str,
        resource: &str,
        headers: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Head, ClientError> {
        let body = body.unwrap_or_default();
        let head = format!(
            "{method} {resource} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.send_bytes(&[head.as_bytes(), &body].concat())
    }

    fn send_bytes(&mut self, request: &[u8]) -> Result<Head, ClientError> {
        // A machine that turns a client away answers before it is asked.
        let sent = self.stream.write_all(request);
        let head = self.head();
        match (head, sent) {
            (Err(ClientError::Broken { .. }), Err(error)) => Err(self.broken(error)),
            (head, _) => head,
        }
    }

    /// Byte by byte, so that what follows the head stays in the socket.
    fn head(&mut self) -> Result<Head, ClientError> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).map_err(|error| self.broken(error))?;
            bytes.push(byte[0]);
            if bytes.len() > HEAD_LIMIT {
                return Err(self.strange("the head of the answer does not end"));
            }
        }
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        response.parse(&bytes).map_err(|error| self.strange(error))?;
        let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse().ok());
        Ok(Head { status: response.code.unwrap_or(0), body_len: length.unwrap_or(0) })
    }

    fn body(&mut self, head: &Head) -> Result<Vec<u8>, ClientError> {
        if head.body_len > BODY_LIMIT {
            return Err(self.strange("the answer is too long"));
        }
        let mut body = vec![0; head.body_len];
        self.stream.read_exact(&mut body).map_err(|error| self.broken(error))?;
        Ok(body)
    }

    fn refused(&mut self, head: &Head) -> ClientError {
        let status = head.status;
        let body = match self.body(head) {
            Ok(body) => body,
            Err(error) => return error,
        };
        match serde_json::from_slice(&body) {
            Ok(FaultMessage { .. }) if status == 403 => ClientError::NotYours(self.path.clone()),
            Ok(FaultMessage { fault_message: message }) => {
                ClientError::Refused { path: self.path.clone(), status, message }
            }
            Err(error) => self.strange(format!("status {status}: {error}")),
        }
    }

    fn broken(&self, source: io::Error) -> ClientError {
        if matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            return ClientError::Silent(self.path.clone());
        }
        ClientError::Broken { path: self.path.clone(), source }
    }

    fn strange(&self, why: impl fmt::Display) -> ClientError {
        ClientError::Strange { path: self.path.clone(), why: why.to_string() }
    }
}

/// Sends all of `bytes`, with `descriptors`.
fn send_with(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    let sent = sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    // What comes after the first byte needs no descriptors.
    let mut rest = stream;
    rest.write_all(&bytes[sent..])
}

/// Lines of `GET /events`.
#[derive(Debug)]
pub struct EventLines {
    lines: BufReader<Chunks>,
    path: PathBuf,
}

impl Iterator for EventLines {
    type Item = Result<String, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(Ok(line.trim_end().to_owned())),
            Err(source) => Some(Err(ClientError::Broken { path: self.path.clone(), source })),
        }
    }
}

/// A chunked body as plain bytes (RFC 9112, 7.1).
#[derive(Debug)]
struct Chunks {
    stream: BufReader<UnixStream>,
    /// Of the chunk that is being read.
    left: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let mut size = String::new();
            self.stream.read_line(&mut size)?;
            let size = size.trim_end();
            // The machine may end without the last chunk.
            self.left = if size.is_empty() { 0 } else { usize::from_str_radix(size, 16).map_err(io::Error::other)? };
            if self.left == 0 {
                return Ok(0);
            }
        }
        let len = buffer.len().min(self.left);
        let len = self.stream.read(&mut buffer[..len])?;
        self.left -= len;
        if self.left == 0 {
            self.stream.read_exact(&mut [0; 2])?;
        }
        Ok(len)
    }
}
