//! The console device: characters in whole buffers instead of one register access each, and the screen's size.
//!
//! ```text
//!   driver: empty buffers --receiveq (0)--> filled with what is typed      <-- Port <-- host
//!   driver: characters ----transmitq (1)--> as many as there is room for   --> Port --> host
//!   port: "input", "room", "new size" --eventfd--> worker --config interrupt--> driver reads cols, rows
//! ```
//!
//! A host that is behind holds the guest back by its own ring: the chain at its head stays there, half sent, until
//! there is room. How much of it was sent outlives a stop, so a pause neither loses nor repeats a character.
//!
//! Linux reads the size when a configuration interrupt comes, not when it finds the device. So one is raised with the
//! driver's first output, when its terminal is there.
//!
//! Spec: virtio 1.2, 5.3 "Console Device".
//! Left out: several ports (VIRTIO_CONSOLE_F_MULTIPORT).

mod worker;

use std::sync::Arc;
use std::time::Instant;

use axvm_console::Port;

use crate::device::{Activation, DeviceId, StartError, VirtioDevice, read_fields};
use crate::queue::QueueState;
use crate::state::{ConsoleState, DeviceState, StateError};
use crate::worker::{StillBusy, Worker};
use axvm_sync::EventFd;
use worker::ConsoleWork;

/// Entries of receiveq and transmitq.
const QUEUE_SIZES: [u16; 2] = [64; 2];
/// Queue numbers.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Most bytes in a chain (2.7.5.2).
const MAX_CHAIN: u64 = 1 << 32;

/// Feature bits, as masks (5.3.3).
mod feature {
    pub(super) const SIZE: u64 = 1 << 0;
    pub(super) const EMERG_WRITE: u64 = 1 << 2;
}

/// Offset of `emerg_wr` in the configuration space (5.3.4).
const EMERG_WR: u64 = 8;

/// A virtio console with one port.
pub struct Console {
    port: Port,
    /// What is known while no worker runs.
    progress: ConsoleState,
    worker: Option<Worker<ConsoleWork>>,
}

impl Console {
    /// A device at power-on, with `port` as its line; once a driver is ready the port calls this device.
    pub fn new(port: Port) -> Console {
        Console { port, progress: ConsoleState::default(), worker: None }
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> DeviceId {
        DeviceId::Console
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        feature::SIZE | feature::EMERG_WRITE
    }

    /// A driver that is new to the device finds this size in the configuration space.
    fn negotiated(&mut self, _: u64) {
        worker::note_size(&mut self.progress, self.port.size());
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let size = self.port.size();
        let fields = [size.columns.to_le_bytes(), size.rows.to_le_bytes()];
        read_fields(fields.as_flattened(), offset, data);
    }

    /// An emergency write works at any time, from a driver that has set up nothing (5.3.4).
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Some(character) = data.first().filter(|_| offset == EMERG_WR) else { return };
        if self.port.send(&[*character]) == 0 {
            self.port.count_lost(1);
        }
    }

    fn start(&mut self, mut live: Activation) -> Result<(), StartError> {
        let host = |source| StartError::Host { index: RECEIVE, source };
        let wake = Arc::new(EventFd::new().map_err(host)?);
        let work = ConsoleWork::new(&live, self.port.clone(), self.progress, Arc::clone(&wake));
        let queues = std::mem::take(&mut live.queues);
        self.worker = live.spawn(live.name.to_string(), queues, work)?;
        let notifier = Arc::clone(&wake);
        self.port.connect(move || notifier.signal());
        // What happened before the port knew whom to call.
        wake.signal();
        Ok(())
    }

    fn stop(&mut self, deadline: Option<Instant>) -> Result<Vec<QueueState>, StillBusy> {
        let ended = Worker::take(&mut self.worker, deadline)?;
        if let Some(work) = ended.work {
            self.port.connect(|| {});
            self.progress = work.progress();
        }
        Ok(ended.queues)
    }

    fn reset(&mut self) {
        self.progress = ConsoleState::default();
    }

    fn state(&self) -> DeviceState {
        DeviceState::Console(self.progress)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState::Console(progress) = state else {
            return Err(StateError::Kind { saved: state.kind(), here: self.state().kind() });
        };
        if progress.sent > MAX_CHAIN {
            return Err(StateError::Value { what: "number of bytes sent of a chain", value: progress.sent });
        }
        self.progress = *progress;
        Ok(())
    }
}
