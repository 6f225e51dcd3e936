//! virtio over MMIO: a window of 32-bit registers, and the configuration space behind it.
//!
//! ```text
//!   0x000  magic, version, ids, features     \
//!   0x030  one queue at a time: QueueSel      |  aligned 32-bit accesses only
//!   0x050  QueueNotify (ioeventfd: no exit)   |
//!   0x060  interrupts, 0x070 status           |
//!   0x080  addresses of the selected queue   /
//!   0x100  configuration space of the device: 8, 16, 32, 64 bits
//! ```
//!
//! A thin decoder: what the registers mean is in `transport`.
//!
//! Spec: virtio 1.2, 4.2.2 "MMIO Device Register Layout", version 2.
//! Left out: the legacy interface (4.2.4); shared memory regions (no device has one).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use axvm_devices::{BusDevice, Irq};
use axvm_events::Events;
use axvm_memory::GuestRam;

use crate::claim::Area;
use crate::device::VirtioDevice;
use crate::signals::DeviceSignals;
use crate::state::{RestoreError, TransportState};
use crate::transport::TransportCore;
use crate::worker::{Busy, StillBusy, WorkerList};
use axvm_sync::EventFd;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "AxVM", little-endian. The field is free for the maker of the device.
const VENDOR: u32 = u32::from_le_bytes(*b"AxVM");

/// Register offsets, named as in table 4.1.
mod reg {
    pub(super) const MAGIC_VALUE: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00c;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_NUM_MAX: u64 = 0x034;
    pub(super) const QUEUE_NUM: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(super) const SHM_LEN_LOW: u64 = 0x0b0;
    pub(super) const SHM_LEN_HIGH: u64 = 0x0b4;
    pub(super) const SHM_BASE_LOW: u64 = 0x0b8;
    pub(super) const SHM_BASE_HIGH: u64 = 0x0bc;
    pub(super) const QUEUE_RESET: u64 = 0x0c0;
    pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(super) const CONFIG: u64 = 0x100;
}

/// Offset of QueueNotify: where an ioeventfd goes, matching the queue's number in 32 bits.
pub const QUEUE_NOTIFY: u64 = reg::QUEUE_NOTIFY;

/// A virtio device behind a window of registers.
///
/// Interrupt registers and kicks take no lock; the others share one, which no worker ever takes.
pub struct MmioTransport {
    registers: Mutex<Registers>,
    signals: Arc<DeviceSignals>,
    kicks: Arc<[Arc<EventFd>]>,
    workers: Arc<WorkerList>,
}

struct Registers {
    core: TransportCore,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

impl MmioTransport {
    /// Puts `device` behind registers. `name` is for people and thread names, such as `vda`.
    pub fn new(
        name: &str,
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        irq: Irq,
        events: Events,
    ) -> io::Result<MmioTransport> {
        let signals = DeviceSignals::new(name, irq, events);
        let kick = |_: &u16| EventFd::blocking().map(Arc::new);
        let kicks: Arc<[Arc<EventFd>]> = device.queue_sizes().iter().map(kick).collect::<io::Result<_>>()?;
        let workers = Arc::<WorkerList>::default();
        let core = TransportCore::new(device, ram, Arc::clone(&signals), Arc::clone(&kicks), Arc::clone(&workers));
        let registers = Registers { core, device_features_sel: 0, driver_features_sel: 0, queue_sel: 0 };
        Ok(MmioTransport { registers: Mutex::new(registers), signals, kicks, workers })
    }

    /// Name of the device.
    pub fn name(&self) -> &str {
        self.signals.name()
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
        let registers = self.lock();
        let core = &registers.core;
        core.is_paused().then(|| TransportState {
            status: core.status(),
            driver_features: core.accepted(),
            device_features_sel: registers.device_features_sel,
            driver_features_sel: registers.driver_features_sel,
            queue_sel: registers.queue_sel,
            interrupt_status: self.signals.interrupt_status(),
            config_generation: core.config_generation(),
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
        registers.device_features_sel = state.device_features_sel;
        registers.driver_features_sel = state.driver_features_sel;
        registers.queue_sel = state.queue_sel;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, unless a vCPU that waits for a worker keeps it until `deadline`. No lock of the standard library has a
    /// deadline, so this looks every millisecond.
    fn lock_until(&self, deadline: Instant) -> Result<MutexGuard<'_, Registers>, StillBusy> {
        loop {
            match self.registers.try_lock() {
                Ok(registers) => return Ok(registers),
                Err(TryLockError::Poisoned(error)) => return Ok(error.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::park_timeout(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => return Err(self.still_busy()),
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

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.lock().core.read_config(offset, data);
        } else if data.len() == 4 {
            let value = match offset {
                reg::INTERRUPT_STATUS => self.signals.interrupt_status(),
                _ => self.lock().read(offset),
            };
            data.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.lock().core.write_config(offset, data);
        } else if let Ok(bytes) = data.try_into() {
            let value = u32::from_le_bytes(bytes);
            match offset {
                reg::QUEUE_NOTIFY => {
                    if let Some(kick) = self.kicks.get(value as usize) {
                        kick.signal();
                    }
                }
                reg::INTERRUPT_ACK => self.signals.acknowledge(value),
                _ => self.lock().write(offset, value),
            }
        }
    }
}

impl Registers {
    fn read(&self, offset: u64) -> u32 {
        let core = &self.core;
        match offset {
            reg::MAGIC_VALUE => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE_ID => core.device().id() as u32,
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => core.offered(self.device_features_sel),
            reg::QUEUE_NUM_MAX => core.queue_max(self.queue_sel),
            reg::QUEUE_READY => core.queue_ready(self.queue_sel).into(),
            reg::STATUS => core.status(),
            // All ones: no such region.
            reg::SHM_LEN_LOW | reg::SHM_LEN_HIGH | reg::SHM_BASE_LOW | reg::SHM_BASE_HIGH => u32::MAX,
            // A queue reset is over before the driver can look.
            reg::QUEUE_RESET => 0,
            reg::CONFIG_GENERATION => core.config_generation(),
            // Write-only registers, gaps, unaligned accesses.
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        let (core, queue) = (&mut self.core, self.queue_sel);
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES => core.accept(self.driver_features_sel, value),
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_NUM => core.set_queue_size(queue, value),
            reg::QUEUE_READY => core.set_queue_ready(queue, value & 1 != 0),
            reg::STATUS => core.write_status(value),
            reg::QUEUE_DESC_LOW => core.set_queue_address(queue, Area::Descriptors, false, value),
            reg::QUEUE_DESC_HIGH => core.set_queue_address(queue, Area::Descriptors, true, value),
            reg::QUEUE_DRIVER_LOW => core.set_queue_address(queue, Area::Driver, false, value),
            reg::QUEUE_DRIVER_HIGH => core.set_queue_address(queue, Area::Driver, true, value),
            reg::QUEUE_DEVICE_LOW => core.set_queue_address(queue, Area::Device, false, value),
            reg::QUEUE_DEVICE_HIGH => core.set_queue_address(queue, Area::Device, true, value),
            reg::QUEUE_RESET if value & 1 != 0 => core.reset_queue(queue),
            // Read-only registers, gaps, unaligned accesses; SHMSel, for there is no region to select.
            _ => {}
        }
    }
}
