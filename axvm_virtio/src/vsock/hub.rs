//! All connections, and their sockets on the host. It knows no ring.
//!
//! ```text
//!   host_events: sockets, clients, connector --> connections --> next_packet: RSTs first, then one packet for each
//!   packet: from the guest ---------------------^    |           connection in turn
//!                                                    '--> bytes to sockets
//! ```
//!
//! Only what can make progress is watched: a socket with bytes for a guest that has no room is left alone, and one
//! that is full is watched only while bytes wait for it.
//!
//! Spec: virtio 1.2, 5.10.6 "Device Operation".

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axvm_events::rules::Rule;
use rustix::event::PollFlags;

use super::clients::Clients;
use super::connection::{Connection, Outcome};
use super::connector::Connector;
use super::entry::{Entry, Standing};
use super::packet::{HOST_CID, Header, Op, STREAM};
use crate::check::rules;
use crate::worker::Sources;

/// Most connections.
pub(super) const MAX_CONNECTIONS: usize = 1023;
/// Most clients that have not said whom they want. They take no place of a connection until then: half a line must not
/// keep the guest from connecting.
pub(super) const MAX_CLIENTS: usize = 128;
/// The first port of a client.
pub(super) const FIRST_PORT: u32 = 1 << 30;
/// The last one: the number after it means any port.
pub(super) const LAST_PORT: u32 = u32::MAX - 1;
/// RSTs that may wait for a buffer before no more of the guest's packets are looked at.
const MAX_RESETS: usize = 256;

/// The name of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    host_port: u32,
    guest_port: u32,
}

/// What a sleep waits for.
enum Watched {
    Connector,
    Listener,
    Client(usize),
    Connection(Key),
}

/// What is known of a connector that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectorEnd {
    Unknown,
    Seen,
    Told,
}

/// See the module's head.
pub(super) struct Hub {
    guest_cid: u64,
    connector: Box<dyn Connector>,
    clients: Clients,
    entries: BTreeMap<Key, Entry>,
    /// RSTs for the guest, and the type that they name.
    resets: VecDeque<(Key, u16)>,
    /// What the connector was asked, and for which incarnation.
    asked: VecDeque<(Key, u64)>,
    serial: u64,
    next_port: u32,
    /// Those that may have a packet, in this turn.
    active: VecDeque<Key>,
    /// The last one that sent a packet.
    cursor: Key,
    /// Whether the connector is there, and its end was told.
    connector_end: ConnectorEnd,
    /// How many connections there are, for those who look from outside.
    count: Arc<AtomicUsize>,
}

impl Hub {
    pub(super) fn new(listener: UnixListener, connector: Box<dyn Connector>) -> io::Result<Hub> {
        Ok(Hub {
            guest_cid: 0,
            connector,
            clients: Clients::new(listener)?,
            entries: BTreeMap::new(),
            resets: VecDeque::new(),
            asked: VecDeque::new(),
            serial: 0,
            next_port: FIRST_PORT,
            active: VecDeque::new(),
            cursor: Key::default(),
            connector_end: ConnectorEnd::Unknown,
            count: Arc::default(),
        })
    }

    /// The guest that is served from now on; it has no connections yet.
    pub(super) fn serve_guest(&mut self, cid: u64) {
        self.guest_cid = cid;
        self.forget();
    }

    /// Where the number of connections is told.
    pub(super) fn count(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.count)
    }

    /// Tells it.
    pub(super) fn tell_count(&self) {
        self.count.store(self.entries.len(), Ordering::Relaxed);
    }

    /// The port that the next client gets, if it is free.
    pub(super) fn next_port(&self) -> u32 {
        self.next_port
    }

    pub(super) fn set_next_port(&mut self, port: u32) {
        self.next_port = port;
    }

    /// All connections end, and the guest is not told.
    pub(super) fn forget(&mut self) {
        self.entries.clear();
        self.clients.waiting.clear();
        self.resets.clear();
        self.active.clear();
        self.tell_count();
    }

    /// Connections that may be made.
    fn room(&self) -> usize {
        MAX_CONNECTIONS.saturating_sub(self.entries.len())
    }

    /// Clients that may be accepted; the others wait to be.
    fn client_room(&self) -> usize {
        self.room().min(MAX_CLIENTS).saturating_sub(self.clients.waiting.len())
    }

    /// What a sleep waits for, in a fixed order. `dry`: the guest has no buffer for a packet.
    fn watched(&self, dry: bool) -> impl Iterator<Item = (Watched, PollFlags)> {
        let connector = (!self.asked.is_empty()).then_some((Watched::Connector, PollFlags::IN));
        let accepts = self.client_room() > 0 && !self.clients.is_resting();
        let listener = accepts.then_some((Watched::Listener, PollFlags::IN));
        let clients = (0..self.clients.waiting.len()).map(|client| (Watched::Client(client), PollFlags::IN));
        let connections = self.entries.iter().filter_map(move |(key, entry)| {
            let flags = entry.interest(dry)?;
            Some((Watched::Connection(*key), flags))
        });
        connector.into_iter().chain(listener).chain(clients).chain(connections)
    }

    /// Names what a sleep waits for.
    pub(super) fn sources<'a>(&'a self, dry: bool, sources: &mut Sources<'a>) {
        for (watched, flags) in self.watched(dry) {
            match watched {
                Watched::Connector => sources.add(&self.connector, flags),
                Watched::Listener => sources.add(&self.clients.listener, flags),
                Watched::Client(position) => sources.add(&self.clients.waiting[position].stream, flags),
                Watched::Connection(key) => {
                    if let Some(stream) = self.entries.get(&key).and_then(|entry| entry.stream.as_ref()) {
                        sources.add(stream, flags);
                    }
                }
            }
        }
    }

    /// Serves what a sleep found: `ready` knows it by position. An error is the host's, and news to its user.
    pub(super) fn host_events(&mut self, ready: impl Fn(usize) -> bool, dry: bool, now: Instant) -> io::Result<()> {
        let list = self.watched(dry).enumerate().filter(|(position, _)| ready(*position));
        let list = list.map(|(_, (watched, _))| watched).collect::<Vec<_>>();
        let (mut positions, mut accepts) = (Vec::new(), false);
        for watched in list {
            match watched {
                Watched::Connector => self.take_answers(),
                Watched::Listener => accepts = true,
                Watched::Client(position) => positions.push(position),
                Watched::Connection(key) => self.serve_host(key, now),
            }
        }
        for (stream, port) in self.clients.read(&positions) {
            self.request(stream, port, now);
        }
        match accepts {
            true => self.clients.accept(self.client_room(), now),
            false => Ok(()),
        }
    }

    fn take_answers(&mut self) {
        while let Some(answer) = self.connector.answer() {
            let Some((key, serial)) = self.asked.pop_front() else { continue };
            // The guest may have given up, and even asked anew.
            let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.serial == serial) else { continue };
            match answer {
                Ok(stream) => entry.connect(stream),
                Err(error) => {
                    self.note(&error);
                    self.reset(key);
                }
            }
        }
    }

    /// A refusal may be the connector's end.
    fn note(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::BrokenPipe && self.connector_end == ConnectorEnd::Unknown {
            self.connector_end = ConnectorEnd::Seen;
        }
    }

    /// Whether the connector has ended and its user does not know yet.
    pub(super) fn has_lost_connector(&mut self) -> bool {
        let is_news = self.connector_end == ConnectorEnd::Seen;
        if is_news {
            self.connector_end = ConnectorEnd::Told;
        }
        is_news
    }

    /// A client wants `guest_port`. Where the guest took the last place meanwhile, it is closed.
    fn request(&mut self, stream: UnixStream, guest_port: u32, now: Instant) {
        if self.room() == 0 {
            return;
        }
        let key = Key { host_port: self.take_port(), guest_port };
        self.serial += 1;
        self.entries.insert(key, Entry::new(Connection::requested(now), Some(stream), self.serial));
    }

    /// A port that no connection uses: there are more ports than connections.
    fn take_port(&mut self) -> u32 {
        loop {
            let host_port = self.next_port;
            self.next_port = if host_port >= LAST_PORT { FIRST_PORT } else { host_port + 1 };
            let all = Key { host_port, guest_port: 0 }..=Key { host_port, guest_port: u32::MAX };
            if self.entries.range(all).next().is_none() {
                return host_port;
            }
        }
    }

    fn serve_host(&mut self, key: Key, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&key) {
            let standing = entry.serve_host(now);
            self.settle(key, standing);
        }
    }

    /// Whether there is space for what a packet of the guest may bring about.
    pub(super) fn takes_packets(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// A packet of the guest; `payload` is shorter than it says if it lies. The rule of the standard that it broke, if the
    /// guest would not learn of it.
    pub(super) fn packet(&mut self, header: &Header, payload: &[u8], now: Instant) -> Option<&'static Rule> {
        if header.src_cid != self.guest_cid {
            return Some(&rules::VSOCK_SOURCE);
        }
        if header.dst_cid != HOST_CID {
            return None;
        }
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        let op = header.op();
        if header.kind != STREAM {
            if op != Some(Op::Rst) {
                self.resets.push_back((key, header.kind));
            }
            return None;
        }
        match (self.entries.get_mut(&key), op) {
            (Some(entry), _) => match entry.connection.packet(header, payload, key.host_port, now) {
                Outcome::Keep => {
                    let standing = entry.flush(now);
                    self.settle(key, standing);
                }
                Outcome::Reset => self.reset(key),
                Outcome::Overrun => {
                    self.reset(key);
                    return Some(&rules::VSOCK_CREDIT);
                }
                Outcome::Drop => drop(self.entries.remove(&key)),
            },
            (None, Some(Op::Request)) => self.dial(key, header, now),
            (None, Some(Op::Rst)) => {}
            (None, _) => self.resets.push_back((key, STREAM)),
        }
        None
    }

    /// The guest wants a port of the host.
    fn dial(&mut self, key: Key, header: &Header, now: Instant) {
        let is_full = self.room() == 0 || self.asked.len() >= MAX_CONNECTIONS;
        let asked = if is_full { Err(io::ErrorKind::WouldBlock.into()) } else { self.connector.ask(key.host_port) };
        if let Err(error) = asked {
            self.note(&error);
            self.resets.push_back((key, STREAM));
            return;
        }
        self.serial += 1;
        self.asked.push_back((key, self.serial));
        self.entries.insert(key, Entry::new(Connection::dialing(header, now), None, self.serial));
    }

    /// Ends a connection, and tells the guest.
    fn reset(&mut self, key: Key) {
        if self.entries.remove(&key).is_some() {
            self.resets.push_back((key, STREAM));
        }
    }

    fn settle(&mut self, key: Key, standing: Standing) {
        if standing == Standing::Over {
            self.reset(key);
        }
    }

    /// Ends what took too long.
    pub(super) fn expire(&mut self, now: Instant) {
        self.clients.expire(now);
        let late = |entry: &Entry| entry.connection.deadline().is_some_and(|deadline| deadline <= now);
        let late = self.entries.iter().filter(|(_, entry)| late(entry)).map(|(key, _)| *key).collect::<Vec<_>>();
        late.into_iter().for_each(|key| self.reset(key));
    }

    /// When something takes too long next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let connections = self.entries.values().filter_map(|entry| entry.connection.deadline());
        connections.chain(self.clients.deadline()).min()
    }

    /// Looks for those that may have a packet: each gets its turn, from the one after the last.
    pub(super) fn gather(&mut self) {
        let may = self.entries.iter().filter(|(_, entry)| entry.may_send()).map(|(key, _)| *key);
        let (before, after): (Vec<_>, Vec<_>) = may.partition(|key| *key <= self.cursor);
        self.active.clear();
        self.active.extend(after.into_iter().chain(before));
    }

    /// Whether [`Hub::next_packet`] may have one.
    pub(super) fn may_send(&self) -> bool {
        !self.resets.is_empty() || !self.active.is_empty()
    }

    /// The next packet for the guest, whose data are the first `len` bytes of `data`.
    pub(super) fn next_packet(&mut self, data: &mut [u8], now: Instant) -> Option<Header> {
        loop {
            if let Some((key, kind)) = self.resets.pop_front() {
                return Some(Header { kind, ..self.header(key, Op::Rst, 0) });
            }
            let key = self.active.pop_front()?;
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            let Ok(packet) = entry.next_packet(data, now) else {
                self.reset(key);
                continue;
            };
            let Some((op, flags, len)) = packet else { continue };
            let (buf_alloc, fwd_cnt) = entry.connection.tell_credit();
            let standing = entry.settle();
            if entry.may_send() {
                self.active.push_back(key);
            }
            self.settle(key, standing);
            self.cursor = key;
            return Some(Header { len, buf_alloc, fwd_cnt, ..self.header(key, op, flags) });
        }
    }

    fn header(&self, key: Key, op: Op, flags: u32) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: key.host_port,
            dst_port: key.guest_port,
            kind: STREAM,
            op: op as u16,
            flags,
            ..Header::default()
        }
    }
}
