//! The core of every transport: everything about the registers of one virtio device that MMIO and PCI share.
//!
//! ```text
//!   register decoder --> TransportCore: Status, queue claims --DRIVER_OK: claims proven--> VirtioDevice
//!   (mmio, pci)                   ^                                                     |
//!                                 '---------------- ring indices, at stop --------------'
//! ```
//!
//! A live queue is enabled, disabled or reset by one act: stop the device, change the claim, start it again with
//! the ring indices it gave back. A pause is the same act, cut in two. A saved state takes the place of what a driver
//! says: it is put into a fresh device between the two halves.
//!
//! Spec: virtio 1.2, 2.1 "Device Status Field", 2.6.1 "Virtqueue Reset", 3.1 "Device Initialization".

mod check;
mod glance;
mod saved;
mod shared;

use std::sync::Arc;
use std::time::Instant;

use axvm_events::Event;
use axvm_memory::GuestRam;

use crate::claim::{Area, QueueClaim};
use crate::device::{Activation, LiveQueue, StartError, VirtioDevice, feature};
use crate::queue::{QueueFeatures, QueueState, VirtQueue};
use crate::signals::{ConfigIrq, DeviceSignals, FaultReporter, QueueIrq, whole};
use crate::status::{DEVICE_NEEDS_RESET, DriverStatus, Transition};
use crate::worker::{StillBusy, WorkerList};
use axvm_sync::EventFd;

pub use glance::{Glance, QueueGlance, QueueInterrupt};
pub use shared::Transport;
pub(crate) use shared::{Registers, Selectors};

/// Status, features, queues and configuration of one device.
pub(crate) struct TransportCore {
    device: Box<dyn VirtioDevice>,
    ram: Arc<GuestRam>,
    status: DriverStatus,
    queues: Vec<QueueClaim>,
    /// The queues that the device has now.
    live: Vec<usize>,
    /// The device gets no queue before it is resumed, whatever the driver asks for.
    paused: bool,
    signals: Arc<DeviceSignals>,
    kicks: Arc<[Arc<EventFd>]>,
    workers: Arc<WorkerList>,
    /// A saved state was put in, and the device has not run since.
    restored: bool,
    /// What is known of the driver for the check of its rules.
    check: check::DriverCheck,
}

impl TransportCore {
    /// A device at power-on. `kicks`: one for each queue.
    pub(crate) fn new(
        mut device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        signals: Arc<DeviceSignals>,
        kicks: Arc<[Arc<EventFd>]>,
        workers: Arc<WorkerList>,
    ) -> TransportCore {
        device.plugged(&ram);
        let status = DriverStatus::new(device.features() | feature::TRANSPORT);
        let queues = device.queue_sizes().iter().map(|&max| QueueClaim::new(max)).collect();
        TransportCore {
            device,
            ram,
            status,
            queues,
            live: Vec::new(),
            paused: false,
            signals,
            kicks,
            workers,
            restored: false,
            check: check::DriverCheck::default(),
        }
    }

    /// The device.
    pub(crate) fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    /// Half `select` of the features on offer.
    pub(crate) fn offered(&self, select: u32) -> u32 {
        self.status.offered(select)
    }

    /// Half `select` of the features that the driver wrote.
    pub(crate) fn accepted_half(&self, select: u32) -> u32 {
        self.status.accepted().checked_shr(select.saturating_mul(32)).unwrap_or(0) as u32
    }

    /// The driver writes half `select` of its features.
    pub(crate) fn accept(&mut self, select: u32, value: u32) {
        self.check_features(select, value);
        self.status.accept(select, value);
    }

    /// The status register.
    pub(crate) fn status(&self) -> u32 {
        self.status.bits() | if self.signals.needs_reset() { DEVICE_NEEDS_RESET } else { 0 }
    }

    /// The driver writes the status register. A reset is over when this returns: it waits for the workers, if need be
    /// for ever.
    pub(crate) fn write_status(&mut self, value: u32) {
        if value == 0 {
            // Without a deadline, nothing is given up.
            let _ = self.reset(None);
            return;
        }
        self.check_status(value);
        let from = self.status();
        let had_agreed = self.status.has_agreed();
        let transition = self.status.write(value);
        if self.status.has_agreed() && !had_agreed {
            self.device.negotiated(self.status.negotiated());
        }
        if transition == Transition::Start {
            self.start();
        }
        self.tell_status(from);
    }

    /// Device reset: workers joined, everything as at power-on. Nothing but the stop has begun if it gives up.
    pub(crate) fn reset(&mut self, deadline: Option<Instant>) -> Result<(), StillBusy> {
        self.park(deadline)?;
        let from = self.status();
        self.device.reset();
        self.status.write(0);
        self.signals.reset();
        self.check_anew();
        for claim in &mut self.queues {
            *claim = QueueClaim::new(claim.max);
        }
        self.tell_status(from);
        Ok(())
    }

    /// The largest size of queue `index`; 0 if there is no such queue.
    pub(crate) fn queue_max(&self, index: u32) -> u32 {
        self.claim(index).map_or(0, |claim| claim.max.into())
    }

    /// The size that the driver chose for queue `index`, or the largest; 0 if there is no such queue.
    pub(crate) fn queue_size(&self, index: u32) -> u32 {
        self.claim(index).map_or(0, |claim| claim.layout.size.into())
    }

    /// The address that the driver gave for queue `index`.
    pub(crate) fn queue_address(&self, index: u32, area: Area) -> u64 {
        self.claim(index).map_or(0, |claim| claim.address(area))
    }

    /// Whether queue `index` is enabled.
    pub(crate) fn queue_ready(&self, index: u32) -> bool {
        self.claim(index).is_some_and(|claim| claim.ready)
    }

    /// The driver chooses a size. What does not fit a ring is found at DRIVER_OK.
    pub(crate) fn set_queue_size(&mut self, index: u32, size: u32) {
        self.check_size(index, size);
        if let Some(claim) = self.idle_claim(index) {
            claim.layout.size = u16::try_from(size).unwrap_or(u16::MAX);
        }
    }

    /// The driver writes one half of an address.
    pub(crate) fn set_queue_address(&mut self, index: u32, area: Area, high: bool, value: u32) {
        self.check_claim(index, "address");
        let Some(claim) = self.idle_claim(index) else { return };
        claim.set_address(area, high, value);
    }

    /// The driver enables or disables a queue; disabling is over when this returns.
    pub(crate) fn set_queue_ready(&mut self, index: u32, ready: bool) {
        self.check_ready(index, ready);
        if self.claim(index).is_none_or(|claim| claim.ready == ready) {
            return;
        }
        // Without a deadline, nothing is given up.
        let _ = self.park(None);
        let claim = &mut self.queues[index as usize];
        claim.ready = ready;
        claim.state = QueueState::default();
        if self.status.is_live() {
            self.start();
        }
    }

    /// The driver resets a queue; over when this returns. Nothing happens if it did not take the feature.
    pub(crate) fn reset_queue(&mut self, index: u32) {
        if self.status.negotiated() & feature::RING_RESET != 0 && self.claim(index).is_some() {
            self.set_queue_ready(index, false);
            let claim = &mut self.queues[index as usize];
            *claim = QueueClaim::new(claim.max);
            self.signals.forget_queue(index as u16);
        }
    }

    /// Changes whenever the configuration may have changed.
    pub(crate) fn config_generation(&self) -> u32 {
        self.signals.generation()
    }

    /// The driver reads the configuration space. `data` arrives zeroed.
    pub(crate) fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    /// The driver writes the configuration space.
    pub(crate) fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.check_config_write(offset, data.len());
        self.device.write_config(offset, data);
        self.signals.new_generation();
    }

    /// Takes the queues back from the device until [`TransportCore::resume`]: every request taken is completed, every
    /// worker joined, when this succeeds. From the call on no queue is given out.
    pub(crate) fn pause(&mut self, deadline: Option<Instant>) -> Result<(), StillBusy> {
        self.paused = true;
        self.park(deadline)
    }

    /// Hands the queues to the device again, if the driver still wants that. Workers that were asked to stop, but have
    /// not ended, go on; if some have ended, the others are waited for.
    pub(crate) fn resume(&mut self, deadline: Option<Instant>) -> Result<(), StillBusy> {
        if !self.paused && !self.workers.is_stopping() {
            return Ok(());
        }
        if self.workers.cancel_stop() {
            self.paused = false;
            return Ok(());
        }
        self.park(deadline)?;
        self.paused = false;
        if std::mem::take(&mut self.restored) {
            // The interrupt controller's state may be older than the device's: one interrupt too many, but none lost.
            self.signals.raise_again();
        }
        if self.status.is_live() {
            self.start();
        }
        Ok(())
    }

    /// Whether the device is held still: paused, and no worker is left.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused && self.live.is_empty() && self.workers.is_empty()
    }

    /// The features that the driver wrote, agreed on or not.
    pub(crate) fn accepted(&self) -> u64 {
        self.status.accepted()
    }

    fn claim(&self, index: u32) -> Option<&QueueClaim> {
        self.queues.get(index as usize)
    }

    /// The claim of a queue that is not enabled: only such a claim may change.
    fn idle_claim(&mut self, index: u32) -> Option<&mut QueueClaim> {
        self.queues.get_mut(index as usize).filter(|claim| !claim.ready)
    }

    /// Hands the enabled queues to the device. After a fault it waits for a reset instead; in a pause for its end, but
    /// what cannot be a queue is found now: a paused device that is live has proven queues.
    fn start(&mut self) {
        if self.signals.needs_reset() {
            return;
        }
        let live = (0..self.queues.len()).filter(|&index| self.queues[index].ready).collect::<Vec<_>>();
        let started = match self.activation(&live) {
            Ok(_) if self.paused => return,
            Ok(activation) => self.device.start(activation),
            Err(error) => Err(error),
        };
        match started {
            Ok(()) => self.live = live,
            Err(error) => {
                self.check_start(&error);
                FaultReporter::new(&self.signals).report(whole(&error));
            }
        }
    }

    fn activation(&self, live: &[usize]) -> Result<Activation, StartError> {
        let queues = live.iter().map(|&index| self.prove(index)).collect::<Result<_, _>>()?;
        Ok(Activation {
            ram: Arc::clone(&self.ram),
            features: self.status.negotiated(),
            queues,
            config: ConfigIrq::new(&self.signals),
            fault: FaultReporter::new(&self.signals),
            id: self.device.id(),
            name: Arc::clone(self.signals.name()),
            workers: Arc::clone(&self.workers),
        })
    }

    /// Turns a claim into a queue, or says why it is none.
    fn prove(&self, number: usize) -> Result<LiveQueue, StartError> {
        let (claim, index) = (&self.queues[number], number as u16);
        let (size, max) = (claim.layout.size, claim.max);
        if size > max {
            return Err(StartError::QueueSize { index, size, max });
        }
        let negotiated = self.status.negotiated();
        let features = QueueFeatures {
            event_idx: negotiated & feature::EVENT_IDX != 0,
            indirect: negotiated & feature::INDIRECT_DESC != 0,
        };
        let queue = VirtQueue::new(&self.ram, &claim.layout, features, claim.state)
            .map_err(|source| StartError::Queue { index, source })?;
        let kick = Arc::clone(&self.kicks[number]);
        Ok(LiveQueue { index, queue, kick, irq: QueueIrq::new(&self.signals, index) })
    }

    /// Takes the queues back from the device: all its workers are asked to stop before the first is waited for.
    fn park(&mut self, deadline: Option<Instant>) -> Result<(), StillBusy> {
        self.workers.ask_stop();
        let states = self.device.stop(deadline)?;
        for (index, state) in self.live.drain(..).zip(states) {
            self.queues[index].state = state;
        }
        Ok(())
    }

    fn tell_status(&self, from: u32) {
        let to = self.status();
        if from != to {
            let device = Arc::clone(self.signals.name());
            self.signals.events().emit(|| Event::VirtioStatus { device, from, to });
        }
    }
}
