//! Clients of the host that have connected, and have not yet said whom they want.
//!
//! ```text
//!   listener --accept--> Client: reads its line, 2 s at most --> (socket, port) for a connection
//!                                '-- no command, too late --> closed without a word
//! ```
//!
//! A line is read byte by byte, so that what follows it stays in the socket, for the guest.
//!
//! Source: accept(2), unix(7).

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::io::{Errno, read};

use super::command::{Command, Line};
use super::connection::PATIENCE;

/// How long no client is accepted after the host refused one a descriptor.
const REST: Duration = Duration::from_millis(100);

/// A client that has not said its line.
pub(super) struct Client {
    pub(super) stream: UnixStream,
    command: Command,
    deadline: Instant,
}

/// All of them, and where they come from.
pub(super) struct Clients {
    pub(super) listener: UnixListener,
    pub(super) waiting: Vec<Client>,
    rest_until: Option<Instant>,
}

impl Clients {
    pub(super) fn new(listener: UnixListener) -> io::Result<Clients> {
        listener.set_nonblocking(true)?;
        Ok(Clients { listener, waiting: Vec::new(), rest_until: None })
    }

    /// Whether there is a reason not to accept now.
    pub(super) fn is_resting(&self) -> bool {
        self.rest_until.is_some()
    }

    /// Accepts at most `room` clients. An error is the host's, and news to its user.
    pub(super) fn accept(&mut self, room: usize, now: Instant) -> io::Result<()> {
        for _ in 0..room {
            let accepted = self.listener.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            match accepted {
                Ok(stream) => {
                    let (command, deadline) = (Command::default(), now + PATIENCE);
                    self.waiting.push(Client { stream, command, deadline });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // It went away before.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.rest_until = Some(now + REST);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Reads from the clients at these positions; gives those that have said whom they want.
    pub(super) fn read(&mut self, positions: &[usize]) -> Vec<(UnixStream, u32)> {
        let mut done = Vec::new();
        // From the back: what is removed moves only those that were looked at.
        for &position in positions.iter().rev() {
            let Some(client) = self.waiting.get_mut(position) else { continue };
            let line = client.read();
            if line != Line::More {
                let client = self.waiting.swap_remove(position);
                if let Line::Port(port) = line {
                    done.push((client.stream, port));
                }
            }
        }
        done.reverse();
        done
    }

    /// Closes those that took too long.
    pub(super) fn expire(&mut self, now: Instant) {
        self.waiting.retain(|client| client.deadline > now);
        self.rest_until = self.rest_until.filter(|until| *until > now);
    }

    /// When the next one has taken too long, or a rest ends.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|client| client.deadline).chain(self.rest_until).min()
    }
}

impl Client {
    fn read(&mut self) -> Line {
        loop {
            let mut byte = [0];
            match read(&self.stream, &mut byte) {
                Ok(0) => return Line::Refused,
                Ok(_) => match self.command.push(byte[0]) {
                    Line::More => {}
                    line => return line,
                },
                Err(Errno::AGAIN) => return Line::More,
                Err(Errno::INTR) => {}
                Err(_) => return Line::Refused,
            }
        }
    }
}
