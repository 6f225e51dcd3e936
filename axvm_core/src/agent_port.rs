//! The host's end of the port of a guest's agent: a socket that listens.
//!
//! ```text
//!   axvm exec --"CONNECT 348"--> socket at PATH --> the device's worker --> /dev/vport0p1 of the guest
//! ```
//!
//! The worker accepts by itself: nothing here needs a path once the socket is open.

use std::time::Instant;

use anyhow::{Context, Result};
use axvm_events::{Event, Events};
use axvm_socket::Socket;
use axvm_virtio::agent_port::AgentPortHost;

use crate::config::Config;

/// The socket; dropped, it is removed.
pub struct AgentPortSocket {
    _socket: Socket,
    host: AgentPortHost,
}

impl AgentPortSocket {
    /// Listens, if the machine has such a port.
    pub fn open(config: &Config, events: &Events) -> Result<Option<AgentPortSocket>> {
        let (Some(path), since) = (&config.agent_port, Instant::now()) else { return Ok(None) };
        let socket = Socket::listen(path)?;
        let listener = socket.listener().context("Cannot make a port for the guest's agent")?;
        let host = AgentPortHost::new(listener).context("Cannot make a port for the guest's agent")?;
        let detail = || format!("listens at {}", path.display());
        events.emit(|| Event::BootStep { what: "agent port", detail: detail(), took: since.elapsed() });
        Ok(Some(AgentPortSocket { _socket: socket, host }))
    }

    /// The device's end.
    pub fn host(&self) -> AgentPortHost {
        self.host.clone()
    }
}
