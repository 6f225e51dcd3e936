//! A virtio device in its machine, whatever its bus: what a machine does with it, and what a bus's registers share.
//!
//! ```text
//!   machine: pause, resume, stop, state --+
//!                                         +--> Transport: core and selectors (one lock) | signals | kicks | workers
//!   bus: MMIO registers, or PCI's BAR ----+                                               no lock
//! ```
//!
//! Spec: virtio 1.2, 4.1 "Virtio Over PCI Bus", 4.2 "Virtio Over MMIO".

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use axvm_events::Events;
use axvm_memory::GuestRam;
use axvm_sync::EventFd;

use super::TransportCore;
use crate::check::rules;
use crate::device::{DeviceId, VirtioDevice};
use crate::signals::{DeviceSignals, Line};
use crate::state::{RestoreError, TransportState};
use crate::worker::{Busy, StillBusy, WorkerList};

/// A virtio device and all of its transport that no bus is needed for.
///
/// Interrupt registers and kicks take no lock; the others share one, which no worker ever takes.
pub struct Transport {
    registers: Mutex<Registers>,
    id: DeviceId,
    signals: Arc<DeviceSignals>,
    kicks: Arc<[Arc<EventFd>]>,
    workers: Arc<WorkerList>,
}

/// What is behind the lock.
pub(crate) struct Registers {
    pub(crate) core: TransportCore,
    pub(crate) select: Selectors,
}

/// Registers that say which part others show.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Selectors {
    pub(crate) device_features: u32,
    pub(crate) driver_features: u32,
    pub(crate) queue: u32,
}

impl Transport {
    /// `name` is for people and thread names, such as `vda`.
    pub(crate) fn new(
        name: &str,
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        line: Line,
        events: Events,
    ) -> io::Result<Transport> {
        let (id, signals) = (device.id(), DeviceSignals::new(name, line, events));
        let kick = |_: &u16| EventFd::blocking().map(Arc::new);
        let kicks: Arc<[Arc<EventFd>]> = device.queue_sizes().iter().map(kick).collect::<io::Result<_>>()?;
        let workers = Arc::<WorkerList>::default();
        let core = TransportCore::new(device, ram, Arc::clone(&signals), Arc::clone(&kicks), Arc::clone(&workers));
        let registers = Mutex::new(Registers { core, select: Selectors::default() });
        Ok(Transport { registers, id, signals, kicks, workers })
    }

    /// Name of the device.
    pub fn name(&self) -> &str {
        self.signals.name()
    }

    /// Kind of the device.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// How many queues the device has.
    pub fn queue_count(&self) -> u16 {
        self.kicks.len() as u16
    }

    /// The eventfd that wakes the worker of `queue`, which must be below [`Self::queue_count`].
    pub fn kick(&self, queue: u16) -> &EventFd {
        &self.kicks[usize::from(queue)]
    }

    /// Asks all workers to come to an end, and waits for none; a [`Self::pause`] or [`Self::stop`] must follow. Takes no
    /// lock that a worker, or a vCPU that waits for one, may hold: call it for all devices first, so that they end
    /// at the same time.
    pub fn begin_stop(&self) {
        self.workers.ask_stop();
    }

    /// The workers with a request in the host. Takes no lock that they, or a vCPU that waits for them, may hold.
    pub fn busy(&self) -> Vec<Busy> {
        self.workers.busy()
    }

    /// Resets the device: all requests taken are completed, or back in their ring, and the workers joined when this
    /// succeeds. A device that is [`StillBusy`] at `deadline` writes to the guest's RAM and to its disk until it is not:
    /// neither may be given to another machine.
    pub fn stop(&self, deadline: Instant) -> Result<(), StillBusy> {
        self.lock_until(deadline)?.core.reset(Some(deadline))
    }

    /// Holds the device still: when this succeeds, every request taken is completed and visible to the driver, or back
    /// in its ring, and the workers are joined. Kicks and interrupts are kept. Registers answer as always; a driver
    /// that gets to DRIVER_OK, or resets a queue, is served from [`Self::resume`] on. Pausing twice is pausing once.
    ///
    /// A device that is [`StillBusy`] at `deadline` begins nothing new; pausing it again goes on waiting.
    pub fn pause(&self, deadline: Instant) -> Result<(), StillBusy> {
        self.lock_until(deadline)?.core.pause(Some(deadline))
    }

    /// Ends a pause: the device goes on where it stood, with the kicks that came meanwhile. After a pause that gave up,
    /// a worker that is still at its request goes on as if there had been no pause. Only where some of several workers
    /// have ended, the others are waited for; then it can be [`StillBusy`], and stays paused.
    pub fn resume(&self, deadline: Instant) -> Result<(), StillBusy> {
        self.lock_until(deadline)?.core.resume(Some(deadline))
    }

    /// All that the transport knows of a paused device; `None` while it runs, for then the rings move.
    pub fn state(&self) -> Option<TransportState> {
        let Registers { core, select } = &*self.lock();
        core.is_paused().then(|| TransportState {
            status: core.status(),
            driver_features: core.accepted(),
            device_features_sel: select.device_features,
            driver_features_sel: select.driver_features,
            queue_sel: select.queue,
            interrupt_status: self.signals.interrupt_status(),
            config_generation: core.config_generation(),
            vectors: self.signals.vectors(),
            queues: core.snapshots(),
            device: core.device().state(),
        })
    }

    /// Puts a saved state into this device, which must be paused and untouched by a driver (`pause` right after `new`).
    /// At [`Self::resume`] it goes on where the saved one stood. A state that does not fit is refused, whatever is in it,
    /// and changes nothing.
    pub fn restore(&self, state: &TransportState) -> Result<(), RestoreError> {
        let mut registers = self.lock();
        let restored = registers.core.restore(state);
        restored.map_err(|source| RestoreError { device: Arc::clone(self.signals.name()), source })?;
        registers.select = Selectors {
            device_features: state.device_features_sel,
            driver_features: state.driver_features_sel,
            queue: state.queue_sel,
        };
        Ok(())
    }

    /// What the device's workers and its registers share without the lock.
    pub(crate) fn signals(&self) -> &DeviceSignals {
        &self.signals
    }

    /// The driver kicks; a queue that there is not is no one's.
    pub(crate) fn kicked(&self, queue: usize) {
        match self.kicks.get(queue) {
            Some(kick) => kick.signal(),
            None => self.signals.broke(&rules::KICK_NO_QUEUE, || format!("queue {queue} of {}", self.kicks.len())),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, unless another has it.
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Registers>> {
        match self.registers.try_lock() {
            Ok(registers) => Some(registers),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The lock, unless a vCPU that waits for a worker keeps it until `deadline`. No lock of the standard library has a
    /// deadline, so this looks every millisecond.
    fn lock_until(&self, deadline: Instant) -> Result<MutexGuard<'_, Registers>, StillBusy> {
        loop {
            match self.try_lock() {
                Some(registers) => return Ok(registers),
                None if Instant::now() < deadline => std::thread::park_timeout(Duration::from_millis(1)),
                None => return Err(self.still_busy()),
            }
        }
    }

    fn still_busy(&self) -> StillBusy {
        let busy = self.busy().into_iter().next();
        let Busy { thread, duration } =
            busy.unwrap_or_else(|| Busy { thread: self.name().to_owned(), duration: Duration::ZERO });
        StillBusy { thread, duration }
    }
}
