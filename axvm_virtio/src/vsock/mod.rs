//! Socket device (virtio-vsock): stream connections between the guest and programs of the host, without a network.
//!
//! ```text
//!   guest: connect(CID 2, port P) --REQUEST--> worker --ask(P)--> Connector --> a program that listens at <path>_P
//!   guest: listen(port P)        <--REQUEST--- worker <--"CONNECT P\n"-- a client of the listener at <path>
//!                                --RESPONSE-->        --"OK <host port>\n"-->
//! ```
//!
//! On the host, connections are Unix sockets: no kernel module, and the host's own addresses are out of reach. What a
//! guest does to a connection costs that connection: a lie about lengths or credit, an operation that does not exist or
//! does not fit ends it with an RST. A client or program that is slow costs its connection time, and no other.
//!
//! A stop keeps all connections: bytes for the host stay here, bytes for the guest in the host's sockets, and
//! packets that the driver has not seen are made again from bits. A saved state has none: the guest that is restored is
//! told TRANSPORT_RESET, and gets no packet before it has taken that event.
//!
//! Spec: virtio 1.2, 5.10 "Socket Device".
//! Left out: SEQPACKET, guests that talk to each other. A program with a sandbox needs a child process beside this, that
//! connects: `connector.rs` says why.

mod clients;
mod command;
mod connection;
mod connector;
mod credit;
mod entry;
mod host;
mod hub;
mod packet;
mod remote;
mod worker;

use std::io;
use std::time::Instant;

use crate::device::{Activation, DeviceId, StartError, VirtioDevice, read_fields};
use crate::queue::QueueState;
use crate::state::{DeviceState, StateError, VsockState};
use crate::worker::{StillBusy, Worker};
use hub::{FIRST_PORT, Hub, LAST_PORT};
use worker::VsockWork;

pub use connector::{Connector, PathConnector};
pub use host::VsockHost;
pub use remote::{RemoteConnector, serve};

/// Entries of the queues for packets to the guest, packets from it, and events.
const QUEUE_SIZES: [u16; 3] = [256; 3];
/// Queue numbers (5.10.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;

/// VIRTIO_VSOCK_F_STREAM, as a mask (5.10.3).
const STREAM: u64 = 1 << 0;

/// A socket device.
pub struct Vsock {
    guest_cid: u64,
    /// The connections, while no worker has them.
    host: VsockHost,
    /// The guest must be told that its connections are gone.
    reset_owed: bool,
    worker: Option<Worker<VsockWork>>,
}

impl Vsock {
    /// A device at power-on. The guest is `guest_cid`; what an earlier guest had at `host` ends.
    pub fn new(guest_cid: u32, host: &VsockHost) -> Vsock {
        let guest_cid = u64::from(guest_cid);
        host.with(|hub| hub.serve_guest(guest_cid));
        Vsock { guest_cid, host: host.clone(), reset_owed: false, worker: None }
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> DeviceId {
        DeviceId::Vsock
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        STREAM
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_fields(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn start(&mut self, mut live: Activation) -> Result<(), StartError> {
        if live.queues.is_empty() {
            return Ok(());
        }
        let lost = || StartError::Host { index: RECEIVE, source: io::Error::other("its worker has not ended") };
        let hub = self.host.take().ok_or_else(lost)?;
        let work = VsockWork::new(&live, hub, std::mem::take(&mut self.reset_owed));
        let queues = std::mem::take(&mut live.queues);
        self.worker = live.spawn(live.name.to_string(), queues, work)?;
        Ok(())
    }

    fn stop(&mut self, deadline: Option<Instant>) -> Result<Vec<QueueState>, StillBusy> {
        let ended = Worker::take(&mut self.worker, deadline)?;
        if let Some(work) = ended.work {
            self.reset_owed = work.owes_reset();
        }
        Ok(ended.queues)
    }

    fn reset(&mut self) {
        self.reset_owed = false;
        self.host.with(Hub::forget);
    }

    fn state(&self) -> DeviceState {
        let next_port = self.host.with(|hub| hub.next_port()).unwrap_or(FIRST_PORT);
        DeviceState::Vsock(VsockState { next_port })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Vsock(VsockState { next_port }) = *state else {
            return Err(StateError::Kind { saved: state.kind(), here: self.state().kind() });
        };
        if !(FIRST_PORT..=LAST_PORT).contains(&next_port) {
            return Err(StateError::Value { what: "next port of the host", value: next_port.into() });
        }
        self.host.with(|hub| hub.set_next_port(next_port));
        self.reset_owed = true;
        Ok(())
    }
}
