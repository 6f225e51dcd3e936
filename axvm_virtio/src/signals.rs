//! How a running device reaches its driver, and the user, without its transport's lock.
//!
//! ```text
//!   worker --QueueIrq::raise--> interrupt status bit 0 --+--> Irq (eventfd), or MSI-X vector --> guest
//!   device --ConfigIrq::raise-> configuration generation |
//!   worker --FaultReporter::report> NEEDS_RESET bit         |
//!                               interrupt status bit 1 --+
//!                               one event, at most one a second
//! ```
//!
//! Spec: virtio 1.2, 2.1.2 "Device Requirements: Device Status Field", 4.2.2 "MMIO Device Register Layout".

use std::error::Error;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axvm_devices::Irq;
use axvm_events::rules::Rule;
use axvm_events::tape::Tape;
use axvm_events::{Event, Events};
use axvm_memory::GuestRam;

use crate::check::{Findings, rules};
use crate::queue::{Checked, RingCheck};
use crate::state::{StateError, VectorsState};
use crate::vectors::{Cause, VectorMap};

/// Interrupt status: the device used a buffer.
pub(crate) const USED_BUFFER: u32 = 1;
/// Interrupt status: the configuration, or the device status, changed.
pub(crate) const CONFIG_CHANGE: u32 = 2;

/// All bits of the interrupt status.
pub(crate) const INTERRUPTS: u32 = USED_BUFFER | CONFIG_CHANGE;

/// The way of a device's interrupts to its driver.
pub(crate) enum Line {
    /// One line for all of them; the driver reads the interrupt status to learn which.
    Edge(Irq),
    /// A vector for each cause.
    Msix(VectorMap),
}

/// What the workers of a device and its transport share.
pub(crate) struct DeviceSignals {
    name: Arc<str>,
    line: Line,
    interrupt: AtomicU32,
    needs_reset: AtomicBool,
    generation: AtomicU32,
    events: Events,
    faults: RateLimit,
    warnings: RateLimit,
}

impl DeviceSignals {
    pub(crate) fn new(name: &str, line: Line, events: Events) -> Arc<DeviceSignals> {
        let (interrupt, needs_reset, generation) = Default::default();
        let (faults, warnings) = Default::default();
        let name = name.into();
        Arc::new(DeviceSignals { name, line, interrupt, needs_reset, generation, events, faults, warnings })
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// The driver broke a rule of the standard; nothing happens unless rules are checked.
    pub(crate) fn broke(&self, rule: &'static Rule, seen: impl FnOnce() -> String) {
        self.events.broke(rule, &self.name, seen);
    }

    /// Where the check of registers tells what it finds, if rules are checked.
    #[inline]
    pub(crate) fn findings(&self) -> Option<Findings<'_>> {
        self.events.checks_rules().then_some(Findings { events: &self.events, device: &self.name })
    }

    /// The InterruptStatus register.
    pub(crate) fn interrupt_status(&self) -> u32 {
        self.interrupt.load(Ordering::Acquire)
    }

    /// The InterruptACK register. Acquire: a driver that takes a bit away sees what was written before the bit was set;
    /// a bit that is set later comes with an interrupt of its own.
    pub(crate) fn acknowledge(&self, bits: u32) {
        self.interrupt.fetch_and(!bits, Ordering::AcqRel);
    }

    /// PCI's ISR status: reading takes the bits away, with the ordering of [`Self::acknowledge`].
    pub(crate) fn take_interrupts(&self) -> u32 {
        self.interrupt.swap(0, Ordering::AcqRel)
    }

    /// The way of the interrupts.
    pub(crate) fn line(&self) -> &Line {
        &self.line
    }

    /// Whether DEVICE_NEEDS_RESET is set.
    pub(crate) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// The ConfigGeneration register: changes whenever the configuration may have changed.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// The configuration has changed. Release: who reads the new generation reads the new configuration.
    pub(crate) fn new_generation(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Device reset. No worker runs.
    pub(crate) fn reset(&self) {
        self.needs_reset.store(false, Ordering::Release);
        self.interrupt.store(0, Ordering::Release);
        if let Line::Msix(vectors) = &self.line {
            vectors.reset();
        }
    }

    /// Reset of one queue.
    pub(crate) fn forget_queue(&self, queue: u16) {
        if let Line::Msix(vectors) = &self.line {
            vectors.forget(queue);
        }
    }

    /// What the driver said of its vectors, where there are any.
    pub(crate) fn vectors(&self) -> Option<VectorsState> {
        match &self.line {
            Line::Edge(_) => None,
            Line::Msix(vectors) => Some(vectors.state()),
        }
    }

    /// Whether a state with such vectors is one of this device.
    pub(crate) fn check_vectors(&self, saved: Option<&VectorsState>) -> Result<(), StateError> {
        match (&self.line, saved) {
            (Line::Edge(_), None) => Ok(()),
            (Line::Msix(vectors), Some(saved)) => vectors.check(saved),
            (Line::Edge(_), Some(_)) => Err(StateError::Bus { saved: "PCI", here: "MMIO" }),
            (Line::Msix(_), None) => Err(StateError::Bus { saved: "MMIO", here: "PCI" }),
        }
    }

    /// What a saved state says. No worker runs.
    pub(crate) fn restore(&self, interrupt: u32, needs_reset: bool, generation: u32, vectors: Option<&VectorsState>) {
        self.needs_reset.store(needs_reset, Ordering::Release);
        self.generation.store(generation, Ordering::Release);
        self.interrupt.store(interrupt, Ordering::Release);
        if let (Line::Msix(map), Some(vectors)) = (&self.line, vectors) {
            map.restore(vectors);
        }
    }

    /// Interrupts again for what the driver has not acknowledged.
    pub(crate) fn raise_again(&self) {
        match &self.line {
            Line::Edge(irq) if self.interrupt_status() != 0 => irq.raise(),
            Line::Edge(_) => {}
            // Nothing is acknowledged there.
            Line::Msix(vectors) => vectors.raise_all(),
        }
    }

    fn raise(&self, cause: Cause) {
        match &self.line {
            Line::Edge(irq) => {
                // The bit first: the driver reads it in answer to the interrupt. Release: it then sees the used ring, too.
                self.interrupt.fetch_or(status(cause), Ordering::Release);
                irq.raise();
            }
            Line::Msix(vectors) => {
                if !vectors.raise(cause) {
                    self.interrupt.fetch_or(status(cause), Ordering::Release);
                }
            }
        }
    }
}

/// A queue's interrupt: "look at the used ring".
#[derive(Clone)]
pub struct QueueIrq {
    signals: Arc<DeviceSignals>,
    queue: u16,
}

impl QueueIrq {
    pub(crate) fn new(signals: &Arc<DeviceSignals>, queue: u16) -> QueueIrq {
        QueueIrq { signals: Arc::clone(signals), queue }
    }

    /// Interrupts the driver.
    pub fn raise(&self) {
        self.signals.raise(Cause::Queue(self.queue));
    }
}

/// A configuration change: "read the configuration space again".
#[derive(Clone)]
pub struct ConfigIrq(Arc<DeviceSignals>);

impl ConfigIrq {
    pub(crate) fn new(signals: &Arc<DeviceSignals>) -> ConfigIrq {
        ConfigIrq(Arc::clone(signals))
    }

    /// Interrupts the driver; what it reads now must be the new configuration.
    pub fn raise(&self) {
        self.0.new_generation();
        self.0.raise(Cause::Config);
    }
}

/// Where a running device reports what it cannot handle.
#[derive(Clone)]
pub struct FaultReporter(Arc<DeviceSignals>);

impl FaultReporter {
    pub(crate) fn new(signals: &Arc<DeviceSignals>) -> FaultReporter {
        FaultReporter(Arc::clone(signals))
    }

    /// The driver broke a rule: asks it for a reset. Only the first report until then counts.
    pub fn report(&self, reason: impl Display) {
        if self.0.events.checks_rules() {
            let words = reason.to_string();
            rules::of_fault(&words).into_iter().for_each(|rule| self.0.broke(rule, || words.clone()));
        }
        if self.0.needs_reset.swap(true, Ordering::AcqRel) {
            return;
        }
        self.0.raise(Cause::Config);
        if self.0.faults.allows() {
            let (device, reason) = (Arc::clone(&self.0.name), reason.to_string());
            self.0.events.warn(|| Event::VirtioNeedsReset { device, reason });
        }
    }

    /// A tape for the queue that is called `name`, if there is a recorder.
    pub(crate) fn tape(&self, name: &str) -> Option<Tape> {
        self.0.events.queue_tape(name)
    }

    /// A check of a queue, if rules are checked.
    pub(crate) fn check(&self, ram: &Arc<GuestRam>, checked: Checked) -> Option<RingCheck> {
        let DeviceSignals { events, name, .. } = &*self.0;
        events.checks_rules().then(|| RingCheck::new(events.clone(), Arc::clone(name), ram, checked))
    }

    /// The driver broke a rule, and needs no reset; nothing happens unless rules are checked.
    pub(crate) fn broke(&self, rule: &'static Rule, seen: impl FnOnce() -> String) {
        self.0.broke(rule, seen);
    }

    /// The host failed a request: tells the user, at most once a second.
    pub fn warn(&self, message: impl Display) {
        if self.0.warnings.allows() {
            self.alarm(message);
        }
    }

    /// The host failed in a way that the user must know, however much was said before. For what cannot come twice.
    pub fn alarm(&self, message: impl Display) {
        let message = format!("{}: {message}", self.0.name);
        self.0.events.warn(|| Event::Warning { from: "virtio", message });
    }

    /// The driver broke a rule that costs only itself: tells a user who wants to know everything.
    pub fn note(&self, message: impl Display) {
        self.0.events.emit(|| Event::Warning { from: "virtio", message: format!("{}: {message}", self.0.name) });
    }
}

/// The bit of the interrupt status for a cause.
fn status(cause: Cause) -> u32 {
    match cause {
        Cause::Queue(_) => USED_BUFFER,
        Cause::Config => CONFIG_CHANGE,
    }
}

/// An error and its causes, in one line.
pub(crate) fn whole(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

/// Lets one thing pass per second, so that a guest cannot flood the host's log.
#[derive(Default)]
struct RateLimit(Mutex<Option<Instant>>);

impl RateLimit {
    fn allows(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return false;
        }
        *last = Some(Instant::now());
        true
    }
}
