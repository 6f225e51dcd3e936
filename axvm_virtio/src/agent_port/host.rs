//! The host's end of the agent's port: it outlives the device, as the program outlives a reset of its guest.
//!
//! ```text
//!   AgentPortHost (listener, client)
//!      |  reset: the client's connection ends
//!      |  start: the worker takes it      its end, however: it gives it back
//! ```
//!
//! No specification: the standard knows nothing of the host's side. Left out: the file of the listener.

use std::io::{self, ErrorKind};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axvm_sync::lock;
use rustix::io::{Errno, read};
use rustix::net::{SendFlags, send};

/// What a client says first, as to a vsock.
const COMMAND: &[u8] = b"CONNECT ";
/// Most bytes of that line.
const LINE: usize = 32;
/// How long a client may take for it, while others wait.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the module's head. A clone is the same end.
#[derive(Clone, Debug)]
pub struct AgentPortHost(Arc<Mutex<Option<Ends>>>);

/// The listener, and the client whose turn it is.
#[derive(Debug)]
pub(super) struct Ends {
    listener: UnixListener,
    pub(super) client: Option<Client>,
}

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: UnixStream,
    /// What it has said of its line, and since when it may.
    line: Vec<u8>,
    since: Instant,
    /// The line was good.
    pub(super) asks: bool,
}

impl AgentPortHost {
    /// Clients come from `listener` as soon as a driver is ready.
    pub fn new(listener: UnixListener) -> io::Result<AgentPortHost> {
        listener.set_nonblocking(true)?;
        Ok(AgentPortHost(Arc::new(Mutex::new(Some(Ends { listener, client: None })))))
    }

    /// Ends the connection, while no worker has it.
    pub(super) fn hang_up(&self) {
        if let Some(ends) = lock(&self.0).as_mut() {
            ends.client = None;
        }
    }

    /// For a worker, unless one has it.
    pub(super) fn take(&self) -> Option<HeldEnds> {
        lock(&self.0).take().map(|ends| HeldEnds { host: self.clone(), ends: Some(ends) })
    }
}

/// The ends in the hands of a worker: they come back however it ends, or if it never began.
pub(super) struct HeldEnds {
    host: AgentPortHost,
    /// Some until it is dropped.
    ends: Option<Ends>,
}

impl HeldEnds {
    pub(super) fn get(&self) -> &Ends {
        self.ends.as_ref().expect("it is there until it is dropped")
    }

    pub(super) fn get_mut(&mut self) -> &mut Ends {
        self.ends.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for HeldEnds {
    fn drop(&mut self) {
        *lock(&self.host.0) = self.ends.take();
    }
}

impl Ends {
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Takes the next client, if there is none and one waits.
    pub(super) fn accept(&mut self) -> io::Result<()> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                self.client = Some(Client { stream, line: Vec::new(), since: Instant::now(), asks: false });
                Ok(())
            }
            Err(error)
                if [ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::ConnectionAborted]
                    .contains(&error.kind()) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes more of the client's line. One that says something else, or nothing for long, loses its turn.
    pub(super) fn listen(&mut self, now: Instant) {
        let Some(client) = self.client.as_mut().filter(|client| !client.asks) else { return };
        if !client.listen() || (!client.asks && now >= client.since + PATIENCE) {
            self.client = None;
        }
    }

    /// When the client's time for its line is over.
    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        let client = self.client.as_ref().filter(|client| !client.asks)?;
        Some((client.since + PATIENCE).saturating_duration_since(now))
    }
}

impl Client {
    /// Byte by byte: what follows the line is for the guest. False if it is no such line.
    fn listen(&mut self) -> bool {
        loop {
            let mut byte = [0];
            match read(&self.stream, &mut byte) {
                Ok(1) if byte == *b"\n" => {
                    self.asks = self.line.to_ascii_uppercase().starts_with(COMMAND);
                    return self.asks;
                }
                Ok(1) if self.line.len() < LINE => self.line.push(byte[0]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                _ => return false,
            }
        }
    }

    /// Tells it that it is connected; false if it has gone.
    pub(super) fn welcome(&mut self) -> bool {
        send(&self.stream, b"OK 0\n", SendFlags::NOSIGNAL) == Ok(5)
    }
}
