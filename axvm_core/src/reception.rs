//! The control socket before its first client: the main thread listens, so that a machine without clients has no thread
//! for them.
//!
//! ```text
//!   listeners --main: poll--> a client is there --> the thread api, which lets it in and serves from then on
//! ```

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use axvm_api::ApiServer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::speech::try_tell;

/// How long clients wait where the host gives no thread.
const PAUSE: Duration = Duration::from_secs(1);

/// Who waits for the first client.
pub struct Reception<'a> {
    server: Option<&'a ApiServer>,
    closed_until: Option<Instant>,
}

impl<'a> Reception<'a> {
    /// Waits for the first client of `server`, if there is a control socket.
    pub fn of(server: Option<&'a ApiServer>) -> Reception<'a> {
        Reception { server, closed_until: None }
    }

    /// What to wait for.
    pub fn listeners(&self) -> impl Iterator<Item = BorrowedFd<'a>> {
        self.server.filter(|_| self.closed_until.is_none()).into_iter().flat_map(ApiServer::first_clients)
    }

    /// When to look although no client came.
    pub fn next_look(&self) -> Option<Instant> {
        self.closed_until
    }

    /// Lets the first client in, if it is there.
    pub fn look(&mut self) {
        if self.closed_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.closed_until = None;
        let mut fds: Vec<_> =
            self.listeners().map(|listener| PollFd::from_borrowed_fd(listener, PollFlags::IN)).collect();
        if !fds.is_empty() && poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0) {
            self.open();
        }
    }

    /// Has the server take clients, whether there are any or not.
    pub fn open(&mut self) {
        if let Some(Err(error)) = self.server.map(ApiServer::start) {
            try_tell(format_args!("{error}; clients wait"));
            self.closed_until = Some(Instant::now() + PAUSE);
        }
    }
}
