//! The thread `api`: one poll loop for every client of the control socket.
//!
//! ```text
//!   poll: events or stop | listeners | clients (64 at most)  -->  a turn for each client that is ready
//! ```
//!
//! When all places are taken, the client that was silent longest makes room: a program that opens connections and
//! says nothing takes them from itself.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axvm_sandbox::Role;
use axvm_socket::{Socket, SocketError, is_own};
use axvm_sync::{EventFd, lock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::connection::{Connection, Next};
use crate::control::Control;
use crate::events::{EventFeed, SUBSCRIPTION_LIMIT};
use crate::http::Response;
use crate::session::Api;

/// Clients at once.
pub const CONNECTION_LIMIT: usize = 64;
/// Clients taken in before those who are in have a turn.
const ACCEPTED_AT_ONCE: usize = 8;
/// How long to leave the listeners alone when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Its path.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Its thread, or what that needs.
    #[error("Cannot start the thread of the control socket: no more descriptors or threads (see ulimit -n and -u)")]
    Thread(#[source] io::Error),
}

/// Control sockets that listen and are not served yet: clients wait. Dropping removes them.
#[derive(Debug)]
pub struct Bound(Vec<Socket>);

/// The control socket of a running machine. Dropping stops it and removes its files.
pub struct ApiServer {
    sockets: Vec<Socket>,
    /// Signalled, the thread ends.
    stop: Arc<EventFd>,
    /// What the thread will take.
    turns: Arc<Mutex<Option<Loop>>>,
    thread: OnceCell<JoinHandle<()>>,
}

impl ApiServer {
    /// Listens at every path, for this user only. Before the machine is built, so that an error comes early.
    pub fn bind<P: AsRef<Path>>(paths: &[P]) -> Result<Bound, ApiError> {
        paths
            .iter()
            .map(|path| Socket::listen(path.as_ref()))
            .collect::<Result<_, _>>()
            .map(Bound)
            .map_err(ApiError::Socket)
    }

    /// Readable when the first client is there: then it is time to [start](ApiServer::start). Empty from then on.
    pub fn first_clients(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().filter(|_| self.thread.get().is_none()).map(Socket::as_fd)
    }

    /// Starts the thread `api`, the only one that reads the feed, unless it runs already. Most machines have no client: so
    /// it is not there before the first.
    pub fn start(&self) -> Result<(), ApiError> {
        if self.thread.get().is_none() {
            let turns = Arc::clone(&self.turns);
            let run = move || {
                let turns = lock(&turns).take();
                turns.into_iter().for_each(Loop::run);
            };
            let thread = axvm_sandbox::spawn(Role::Api, "api", run).map_err(ApiError::Thread)?;
            let _ = self.thread.set(thread);
        }
        Ok(())
    }

    /// Ends the thread; answers that are ready still go out.
    pub fn stop(self) {}
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
        self.sockets.clear();
    }
}

impl Bound {
    /// What will serve clients, with the events of `feed`, once it is [started](ApiServer::start).
    pub fn serve(self, control: Arc<dyn Control>, feed: Arc<EventFeed>) -> Result<ApiServer, ApiError> {
        let listeners = self.0.iter().map(Socket::listener).collect::<io::Result<_>>().map_err(ApiError::Thread)?;
        let stop = Arc::new(EventFd::new().map_err(ApiError::Thread)?);
        let api = Api::new(control, feed.clone());
        let connections = Vec::new();
        let turns = Loop { listeners, api, feed, stop: stop.clone(), connections, accept_from: Instant::now() };
        Ok(ApiServer { sockets: self.0, stop, turns: Arc::new(Mutex::new(Some(turns))), thread: OnceCell::new() })
    }
}

/// What the thread knows.
struct Loop {
    listeners: Vec<UnixListener>,
    api: Api,
    feed: Arc<EventFeed>,
    stop: Arc<EventFd>,
    connections: Vec<Connected>,
    /// Until then no client is taken in.
    accept_from: Instant,
}

struct Connected {
    connection: Connection,
    next: Next,
}

impl Loop {
    fn run(mut self) {
        loop {
            let ready = match self.wait() {
                Ok(ready) if !ready.stop => ready,
                _ => break,
            };
            self.feed.calm();
            let now = Instant::now();
            for (client, ready) in self.connections.iter_mut().zip(ready.clients) {
                client.next = client.connection.turn(ready, now, &self.api);
            }
            self.connections.retain(|client| client.next != Next::Close);
            if ready.listeners {
                self.accept(now);
            }
        }
        for client in &mut self.connections {
            client.connection.finish(&self.api);
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) -> io::Result<Ready> {
        let now = Instant::now();
        let accepting = if now >= self.accept_from { PollFlags::IN } else { PollFlags::empty() };
        let feed = self.feed.ready_fd();
        let mut fds = vec![PollFd::new(&*self.stop, PollFlags::IN), PollFd::from_borrowed_fd(feed, PollFlags::IN)];
        fds.extend(self.listeners.iter().map(|listener| PollFd::from_borrowed_fd(listener.as_fd(), accepting)));
        let clients = self.connections.iter().map(|client| &client.connection);
        fds.extend(clients.map(|client| PollFd::from_borrowed_fd(client.fd(), client.interest())));
        let limit = self.limit(now).map(|limit| Timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let (listeners, clients) = fds[2..].split_at(self.listeners.len());
        Ok(Ready {
            stop: !fds[0].revents().is_empty(),
            listeners: listeners.iter().any(|listener| !listener.revents().is_empty()),
            clients: clients.iter().map(PollFd::revents).collect(),
        })
    }

    /// How long to wait at most; none: for ever.
    fn limit(&self, now: Instant) -> Option<Duration> {
        if self.connections.iter().any(|client| client.next == Next::Again) {
            return Some(Duration::ZERO);
        }
        let deadlines = self.connections.iter().filter_map(|client| client.connection.deadline());
        let paused = Some(self.accept_from).filter(|&from| from > now);
        let first = deadlines.chain(paused).min()?;
        // Rounded up, so that the deadline has passed when the wait ends.
        Some(first.saturating_duration_since(now) + Duration::from_millis(1))
    }

    /// Takes in some of those who wait.
    fn accept(&mut self, now: Instant) {
        for n in 0..self.listeners.len() {
            for _ in 0..ACCEPTED_AT_ONCE {
                match self.listeners[n].accept() {
                    Ok((stream, _)) => self.admit(stream, now),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => {
                        self.accept_from = now + ACCEPT_PAUSE;
                        return;
                    }
                }
            }
        }
    }

    fn admit(&mut self, stream: UnixStream, now: Instant) {
        if self.connections.len() >= CONNECTION_LIMIT {
            self.make_room();
        }
        let is_own = is_own(&stream);
        let Ok(mut connection) = Connection::new(stream, now) else { return };
        if !is_own {
            connection.end(&Response::fault(403, "This machine belongs to another user"));
        }
        // What it has sent already is looked at in the next turn.
        self.connections.push(Connected { connection, next: Next::Wait });
    }

    /// Gives up the client that was silent longest. There is one: streams of events cannot take every place.
    fn make_room(&mut self) {
        const { assert!(SUBSCRIPTION_LIMIT < CONNECTION_LIMIT) };
        let silent = |(n, client): (usize, &Connected)| Some((client.connection.idle_since()?, n));
        if let Some((_, n)) = self.connections.iter().enumerate().filter_map(silent).min() {
            self.connections.swap_remove(n);
        }
    }
}

/// Whose descriptors are ready.
struct Ready {
    stop: bool,
    listeners: bool,
    clients: Vec<PollFlags>,
}
