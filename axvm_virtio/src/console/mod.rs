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
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use axvm_console::Port;
use axvm_sandbox::Role;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::device::{Activation, DeviceId, StartError, VirtioDevice};
use crate::queue::QueueState;
use worker::{Progress, Worker};

/// Entries of receiveq and transmitq.
const QUEUE_SIZES: [u16; 2] = [64; 2];
/// Queue numbers.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

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
    progress: Progress,
    running: Option<Running>,
}

/// The worker's thread, and how to end it.
struct Running {
    stop: Arc<AtomicBool>,
    wake: Arc<EventFd>,
    queues: usize,
    thread: JoinHandle<(Vec<QueueState>, Progress)>,
}

impl Console {
    /// A device at power-on, with `port` as its line; once a driver is ready the port calls this device.
    pub fn new(port: Port) -> Console {
        Console { port, progress: Progress::default(), running: None }
    }

    fn join(&mut self) -> Vec<QueueState> {
        let Some(running) = self.running.take() else { return Vec::new() };
        self.port.connect(|| {});
        running.stop.store(true, Ordering::SeqCst);
        let _ = running.wake.write(1);
        // A panic in there is our bug: the guest was told, and the queues start anew.
        let (states, progress) = running.thread.join().unwrap_or_default();
        self.progress = progress;
        if states.is_empty() { vec![QueueState::default(); running.queues] } else { states }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.join();
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

    fn negotiated(&mut self, _: u64) {
        self.progress = Progress::new(self.port.size());
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let size = self.port.size();
        let fields = [size.columns.to_le_bytes(), size.rows.to_le_bytes()];
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(fields.as_flattened().iter().skip(from)) {
            *byte = *value;
        }
    }

    /// An emergency write works at any time, from a driver that has set up nothing (5.3.4).
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Some(character) = data.first().filter(|_| offset == EMERG_WR) else { return };
        if self.port.send(&[*character]) == 0 {
            self.port.count_lost(1);
        }
    }

    fn start(&mut self, live: Activation) -> Result<(), StartError> {
        let host = |source| StartError::Host { index: RECEIVE, source };
        let wake = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(host)?);
        let stop = Arc::<AtomicBool>::default();
        let (name, queues) = (Arc::clone(&live.name), live.queues.len());
        let (port, progress) = (self.port.clone(), self.progress);
        let worker = Worker::new(live, port, progress, Arc::clone(&wake), Arc::clone(&stop)).map_err(host)?;
        let thread = Builder::new().name(name.to_string()).spawn(move || {
            axvm_sandbox::enter(Role::Queue);
            worker.run()
        });
        let thread = thread.map_err(host)?;
        let bell = Arc::clone(&wake);
        self.port.connect(move || _ = bell.write(1));
        // What happened before the port knew whom to call.
        let _ = wake.write(1);
        self.running = Some(Running { stop, wake, queues, thread });
        Ok(())
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.join()
    }
}
