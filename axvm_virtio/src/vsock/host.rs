//! The host's end of a socket device: it outlives the device, as the program outlives a reset of its guest.
//!
//! ```text
//!   VsockHost (listener, connector, connections)
//!      |  Vsock::new: connections end
//!      |  start: the worker takes it      its end, however: it gives it back
//!      '--> device of the first guest, of the next one ..
//! ```
//!
//! No specification: the standard knows nothing of the host's side. Left out: the file of the listener, whose owner
//! removes it.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axvm_sync::lock;

use super::connector::Connector;
use super::hub::{Hub, MAX_CLIENTS, MAX_CONNECTIONS};

/// See the module's head. A clone is the same end.
#[derive(Clone)]
pub struct VsockHost(Arc<Inner>);

struct Inner {
    /// None while a worker has it.
    hub: Mutex<Option<Hub>>,
    connections: Arc<AtomicUsize>,
}

impl VsockHost {
    /// Descriptors that a device may have open: one for each connection and client, and a few of its own.
    pub const DESCRIPTORS: u64 = (MAX_CONNECTIONS + MAX_CLIENTS + 10) as u64;

    /// Clients come from `listener` as soon as a driver is ready, and `connector` makes the connections that a guest
    /// asks for.
    pub fn new(listener: UnixListener, connector: impl Connector) -> io::Result<VsockHost> {
        let hub = Hub::new(listener, Box::new(connector))?;
        let connections = hub.count();
        Ok(VsockHost(Arc::new(Inner { hub: Mutex::new(Some(hub)), connections })))
    }

    /// Connections that there are, those that are being made included.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// Works on the connections, while no worker has them.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Hub) -> T) -> Option<T> {
        lock(&self.0.hub).as_mut().map(work)
    }

    /// For a worker, unless one has them.
    pub(super) fn take(&self) -> Option<HeldHub> {
        lock(&self.0.hub).take().map(|hub| HeldHub { host: self.clone(), hub: Some(hub) })
    }
}

/// The connections in the hands of a worker: they come back however it ends, or if it never began.
pub(super) struct HeldHub {
    host: VsockHost,
    /// Some until it is dropped.
    hub: Option<Hub>,
}

impl Deref for HeldHub {
    type Target = Hub;

    fn deref(&self) -> &Hub {
        self.hub.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for HeldHub {
    fn deref_mut(&mut self) -> &mut Hub {
        self.hub.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for HeldHub {
    fn drop(&mut self) {
        *lock(&self.host.0.hub) = self.hub.take();
    }
}

impl fmt::Debug for VsockHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockHost").field("connections", &self.connections()).finish_non_exhaustive()
    }
}
