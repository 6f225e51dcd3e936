//! The agent's port: a console device without a console, whose one named port joins a program of the host with one of
//! the guest, for guests whose kernel has no vsock.
//!
//! ```text
//!   guest: /dev/vport0p1, named org.axvm.agent          worker          host: a client of the listener at <path>
//!     open             --PORT_OPEN 1 (control)-->
//!                                                               <-- "CONNECT 348\n"
//!                                                               --> "OK 0\n"
//!     read, write      <------- rings 0, 1 ----------------------> bytes
//!     close            --PORT_OPEN 0 ----------->               --> end, once what was written is through
//!     read gives 0     <-PORT_OPEN 0 ------------               <-- end
//!                      <-PORT_OPEN 1 ------------   as soon as the guest has closed: it may open again
//! ```
//!
//! A port is one stream, so there is one connection at a time; other clients wait in the listener. The guest's close and
//! the next open separate them: what one connection left on either side never reaches the next.
//!
//! Clients speak as to a vsock's socket, so that one `axvm exec` serves both.
//!
//! Spec: virtio 1.2, 5.3 "Console Device", with VIRTIO_CONSOLE_F_MULTIPORT.
//! Left out: consoles, sizes, more than one port, ports that come and go.

mod control;
mod host;
mod worker;

use std::io;
use std::time::Instant;

use crate::device::{Activation, DeviceId, StartError, VirtioDevice, read_fields};
use crate::queue::QueueState;
use crate::state::{AgentPortState, DeviceState, StateError};
use crate::worker::{StillBusy, Worker};
use worker::AgentPortWork;

pub use host::AgentPortHost;

/// What the port is called in the guest.
pub const NAME: &str = "org.axvm.agent";

/// Entries of the port's queues, and of those for control messages.
const QUEUE_SIZES: [u16; 4] = [64, 64, 16, 16];
/// Queue numbers (5.3.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;

/// VIRTIO_CONSOLE_F_MULTIPORT, as a mask (5.3.3).
const MULTIPORT: u64 = 1 << 1;

/// A console device with the agent's port.
pub struct AgentPort {
    host: AgentPortHost,
    /// What is known while no worker runs.
    state: AgentPortState,
    worker: Option<Worker<AgentPortWork>>,
}

impl AgentPort {
    /// A device at power-on. What an earlier guest had at `host` ends.
    pub fn new(host: &AgentPortHost) -> AgentPort {
        host.hang_up();
        AgentPort { host: host.clone(), state: AgentPortState::default(), worker: None }
    }
}

impl VirtioDevice for AgentPort {
    fn id(&self) -> DeviceId {
        DeviceId::Console
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        MULTIPORT
    }

    /// cols, rows, max_nr_ports (5.3.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_fields(&[0, 0, 0, 0, 1, 0, 0, 0], offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn start(&mut self, mut live: Activation) -> Result<(), StartError> {
        // Without the feature there is no port: the first two queues would be a console's.
        if live.features & MULTIPORT == 0 || live.queues.is_empty() {
            return Ok(());
        }
        let lost = || StartError::Host { index: RECEIVE, source: io::Error::other("its worker has not ended") };
        let held = self.host.take().ok_or_else(lost)?;
        let work = AgentPortWork::new(&live, held, self.state);
        let queues = std::mem::take(&mut live.queues);
        self.worker = live.spawn(live.name.to_string(), queues, work)?;
        Ok(())
    }

    fn stop(&mut self, deadline: Option<Instant>) -> Result<Vec<QueueState>, StillBusy> {
        let ended = Worker::take(&mut self.worker, deadline)?;
        if let Some(work) = ended.work {
            self.state = work.state();
        }
        Ok(ended.queues)
    }

    fn reset(&mut self) {
        self.state = AgentPortState::default();
        self.host.hang_up();
    }

    fn state(&self) -> DeviceState {
        DeviceState::AgentPort(self.state)
    }

    /// A saved state has no client: the guest's program is told that it has gone.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::AgentPort(state) = *state else {
            return Err(StateError::Kind { saved: state.kind(), here: self.state().kind() });
        };
        self.state = state;
        self.host.hang_up();
        Ok(())
    }
}
