//! A machine that runs: start, wait, pause, visit, resume, stop.
//!
//! ```text
//!   start --> vCPU threads run <--resume-- everything stands still --visit--> one vCPU, from its own thread
//!                  |          --pause--->       |
//!                  '-----------> stop <---------'
//! ```
//!
//! A paused machine's state is in KVM, in guest RAM and in its parts: each vCPU waits at the [gate](crate::gate), each
//! virtio worker is joined and its rings' indices are given back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axvm_boot::plan::{Part, Plan};
use axvm_devices::{StopReason, StopSwitch};
use axvm_events::{Event, Events};
use axvm_inspect::crash::CrashReport;
use axvm_kvm::{KvmVcpu, Vm};
use axvm_sync::{EventFd, lock, wait_any};
use axvm_virtio::balloon::Target;
use axvm_virtio::block::FullStorage;
use axvm_virtio::{Busy, StillBusy};
use thiserror::Error;

use crate::gate::Order;
use crate::halt::Watch;
use crate::inventory::Inventory;
use crate::slots::{Card, NumberedKind, SlotError, Slots};
use crate::vcpu::{self, AddressSpace, VcpuHandle, VcpuShared};
use crate::{MachineError, Ports};

/// A machine whose vCPUs run, wait, or have stopped.
pub struct Machine {
    plan: Plan,
    inventory: Inventory,
    command_line: String,
    pub(crate) shared: Arc<VcpuShared>,
    vcpus: Vec<VcpuHandle>,
    /// When to look whether it has halted.
    pub(crate) watch: Mutex<Watch>,
    /// One pause, resume, visit or stop at a time. It may take as long as a disk does.
    change: Mutex<Threads>,
    /// What holds now; locked for a moment only, so that a status never waits.
    mode: Mutex<Mode>,
    /// The outer ends of its consoles.
    ports: Ports,
    /// Signalled when a disk waits for room on the host.
    attention: Arc<EventFd>,
    events: Events,
    /// Last, so that the VM (and with it its interrupt controllers) lives longer than its vCPUs.
    vm: Arc<Vm>,
}

/// The threads that are not joined yet.
pub(crate) type Threads = Vec<JoinHandle<()>>;

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Running,
    /// A pause began and was not completed: vCPUs and devices are held, as far as they came.
    Pausing,
    Paused(Instant),
    /// A debugger holds the vCPUs, and no device.
    Stopped(Instant),
    /// A reason to stop was taken up: no pause holds it any more.
    Stopping,
}

/// What the recipe made.
pub(crate) struct Built {
    pub(crate) plan: Plan,
    pub(crate) inventory: Inventory,
    pub(crate) command_line: String,
    pub(crate) ports: Ports,
    pub(crate) shared: Arc<VcpuShared>,
    pub(crate) attention: Arc<EventFd>,
    pub(crate) events: Events,
    pub(crate) vcpus: Vec<KvmVcpu>,
    pub(crate) vm: Arc<Vm>,
    pub(crate) first: First,
}

/// What a machine does first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    Runs,
    /// All of it waits for a [`Machine::resume`].
    Paused,
    /// Its vCPUs do, for a debugger.
    Stopped,
}

/// What ended a [`Machine::wait`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitOutcome {
    /// The machine has a reason to stop: call [`Machine::stop`].
    Stopped,
    /// The guest has halted for good, where the text says: nothing will happen but by an NMI, a reset or a stop. Told
    /// once, until it does something again.
    Halted(String),
    /// The caller's own descriptor is readable.
    Readable,
    /// The time is over.
    TimedOut,
}

/// A machine does not stand still.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PauseError {
    /// It is on its way to an end, or to a reset.
    #[error("The machine is stopping")]
    Stopping,
    /// A device has a request in the host.
    #[error(transparent)]
    Busy(#[from] StillBusy),
    /// A vCPU does not come back from what it does in the host.
    #[error("Cannot hold a vCPU still: what it asked the host for takes long; try again")]
    Vcpu,
}

impl Machine {
    /// Starts every vCPU on a thread of its own, on the host CPU that `pins` gives it. They run, or wait at a gate whose
    /// order is to pause: then the machine comes into being paused.
    pub(crate) fn start(built: Built, pins: &[usize]) -> Result<Machine, MachineError> {
        let Built { plan, inventory, command_line, ports, shared, attention, events, vcpus: kvm_vcpus, vm, first } =
            built;
        let paused = first != First::Runs;
        let mode = match first {
            First::Runs => Mode::Running,
            First::Paused => Mode::Paused(Instant::now()),
            First::Stopped => Mode::Stopped(Instant::now()),
        };
        let (change, mode) = (Mutex::default(), Mutex::new(mode));
        let watch = Mutex::new(Watch::new(Instant::now()));
        let vcpus = Vec::with_capacity(kvm_vcpus.len());
        let mut machine =
            Machine { plan, inventory, command_line, shared, vcpus, watch, change, mode, ports, attention, events, vm };
        for (vcpu, kvm_vcpu) in (0..).zip(kvm_vcpus) {
            let pin = pins.get(vcpu as usize).copied();
            let error = |source| MachineError::VcpuThread { vcpu, source };
            // Before its first instruction.
            kvm_vcpu.hold_back(paused);
            let (handle, thread) = vcpu::spawn(vcpu, kvm_vcpu, pin, Arc::clone(&machine.shared)).map_err(error)?;
            machine.vcpus.push(handle);
            machine.change().push(thread);
        }
        if paused && !machine.shared.gate.wait_until_still(Instant::now() + PATIENCE) {
            return Err(MachineError::NotStill);
        }
        Ok(machine)
    }

    /// Waits until there is a reason to stop, one of `others` is readable, or `limit` has passed; serves the clock meanwhile, and
    /// pauses the machine when a disk waits for room on the host.
    /// Call it from one thread, again and again.
    pub fn wait(&self, others: &[BorrowedFd<'_>], limit: Option<Duration>) -> io::Result<WaitOutcome> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let rtc = self.inventory.rtc();
        let (stop, activity) = (self.shared.stop.event_fd().as_fd(), self.shared.activity.event_fd().as_fd());
        // The guest's activity is the second, what the caller waits for comes last.
        let own = [Some(stop), Some(activity), Some(self.attention.as_fd()), rtc.map(|rtc| rtc.timer_fd())];
        let sources: Vec<_> = own.into_iter().flatten().chain(others.iter().copied()).collect();
        loop {
            // A guest that is held does nothing, halted or not; its resume begins anew.
            let look = if self.is_held() { None } else { lock(&self.watch).next() };
            let untidy = self.inventory.slots().is_some_and(|slots| slots.is_untidy() && slots.tidy());
            let again = untidy.then(|| Instant::now() + SOON);
            let ready = wait_any(&sources, deadline.into_iter().chain(look).chain(again).min())?;
            if self.takes_up_a_stop() {
                return Ok(WaitOutcome::Stopped);
            }
            if self.attention.take() {
                self.pause_for_room();
            }
            rtc.inspect(|rtc| rtc.tick());
            if let Some(place) = self.look_for_halt(ready.get(1) == Some(&true)) {
                return Ok(WaitOutcome::Halted(place));
            }
            if ready.iter().rev().take(others.len()).any(|ready| *ready) {
                return Ok(WaitOutcome::Readable);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(WaitOutcome::TimedOut);
            }
        }
    }

    pub(crate) fn is_held(&self) -> bool {
        matches!(self.mode(), Mode::Pausing | Mode::Paused(_) | Mode::Stopped(_))
    }

    /// Whether there is a reason to stop that counts now. From then on no pause succeeds; and while a pause holds, what
    /// only the guest asked for waits: [`Machine::resume`] brings it up again.
    fn takes_up_a_stop(&self) -> bool {
        let stop = &self.shared.stop;
        let mut mode = lock(&self.mode);
        if matches!(*mode, Mode::Pausing | Mode::Paused(_) | Mode::Stopped(_)) {
            // Taken before the look, so that none that comes after it is missed.
            stop.event_fd().take();
            if stop.can_wait() {
                return false;
            }
        }
        if stop.reason().is_none() {
            return false;
        }
        *mode = Mode::Stopping;
        stop.event_fd().signal();
        true
    }

    /// Who sits where.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Every part by name.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Where a reason to stop is put.
    pub fn stop_switch(&self) -> &StopSwitch {
        &self.shared.stop
    }

    /// Why a vCPU could not go on, if that is how the machine ended.
    pub fn crash_report(&self) -> Option<&CrashReport> {
        self.shared.crash.get()
    }

    /// Presses the power button: the guest is asked to power off. False without ACPI: no guest can find
    /// the button then.
    pub fn press_power_button(&self) -> bool {
        let pressed = self.inventory.acpi_pm().inspect(|pm| pm.press_power_button()).is_some();
        pressed && self.plan.acpi().has_tables()
    }

    /// Puts a card into a free slot of the bus, and tells the guest. Where it is now.
    pub fn plug(&self, name: &str, card: Card) -> Result<Part, SlotError> {
        self.with_slots(|slots| slots.plug(name, card))
    }

    /// Whether a card of this kind can come now, and would be called `name`: to ask before it is made.
    pub fn check_next(&self, kind: NumberedKind, name: &str) -> Result<(), SlotError> {
        self.with_slots(|slots| slots.check_next(kind, name))
    }

    /// Asks the guest to let go of a device that was added; with `force` takes it away at once.
    pub fn unplug(&self, name: &str, force: bool) -> Result<(), SlotError> {
        self.with_slots(|slots| slots.unplug(name, force))
    }

    /// No pause and no stop comes in between.
    fn with_slots<T>(&self, act: impl FnOnce(&Slots) -> Result<T, SlotError>) -> Result<T, SlotError> {
        let slots = self.inventory.slots().ok_or(match self.plan.has_pci() {
            true => SlotError::NoSlots,
            false => SlotError::Mmio,
        })?;
        let _change = self.change();
        match self.mode() {
            Mode::Running => act(slots),
            Mode::Pausing | Mode::Paused(_) | Mode::Stopped(_) | Mode::Stopping => Err(SlotError::NotRunning),
        }
    }

    /// The balloon's handle, if the machine has one.
    pub fn balloon(&self) -> Option<&Target> {
        self.inventory.balloon()
    }

    /// What the kernel was told.
    pub fn command_line(&self) -> &str {
        &self.command_line
    }

    /// How often each vCPU came back from the guest.
    pub fn exits(&self) -> Vec<u64> {
        self.vcpus.iter().map(VcpuHandle::exits).collect()
    }

    /// The last exits of a vCPU that is held, for people: the latest last; none where nothing is recorded.
    pub(crate) fn last_exits(&self, vcpu: u32) -> Vec<String> {
        let last = self.vcpus.get(vcpu as usize).map(VcpuHandle::last_exits).unwrap_or_default();
        last.iter().map(|exit| self.shared.words(exit)).collect()
    }

    /// The threads of devices with a request in the host, and since when.
    pub fn busy(&self) -> Vec<Busy> {
        self.inventory.busy()
    }

    /// Whether it stands still.
    pub fn is_paused(&self) -> bool {
        self.paused_since().is_some()
    }

    /// Since when it stands still, if it does.
    pub fn paused_since(&self) -> Option<Instant> {
        match self.mode() {
            Mode::Paused(since) | Mode::Stopped(since) => Some(since),
            _ => None,
        }
    }

    /// Whether devices are held, too: then a [`Machine::resume`] starts threads.
    pub fn holds_devices(&self) -> bool {
        matches!(self.mode(), Mode::Pausing | Mode::Paused(_))
    }

    /// Holds first the vCPUs, then the devices; twice is once. When this succeeds, all stands still until
    /// [`Machine::resume`], or until the user or the host has a reason to stop it. One that only the guest has, such as a
    /// reset that it asked for just before, waits.
    ///
    /// A device that is still busy at `deadline` is an error, and the machine is held as far as it came: pausing it again
    /// goes on waiting, [`Machine::resume`] lets it go on.
    pub fn pause(&self, deadline: Instant) -> Result<(), PauseError> {
        let change = self.change();
        self.pause_held(&change, deadline)
    }

    /// A disk waits for room on the host: all stands still until [`Machine::resume`], and then it tries again.
    fn pause_for_room(&self) {
        let change = self.change();
        let was_paused = self.is_paused();
        // A pause and its end may have come first.
        if !self.inventory.is_full() {
            return;
        }
        if let Err(PauseError::Busy(_) | PauseError::Vcpu) = self.pause_held(&change, Instant::now() + MOMENT) {
            // Another device hangs in the host: again, after a look at what else there is.
            return self.attention.signal();
        }
        if !self.inventory.is_full() && !was_paused {
            // There was room again before the worker stood still. Devices that do stand still come back at once.
            let _ = self.resume_held(&change, Instant::now() + MOMENT);
        }
        for (device, FullStorage { action, path, error, free }) in self.inventory.newly_full() {
            let path = path.display().to_string();
            self.events.warn(|| Event::DiskFull { device, action, path, error, free });
        }
    }

    fn pause_held(&self, _change: &MutexGuard<'_, Threads>, deadline: Instant) -> Result<(), PauseError> {
        if matches!(self.mode(), Mode::Paused(_)) {
            return Ok(());
        }
        self.change_mode(Mode::Pausing)?;
        self.shared.gate.order(Order::Pause);
        self.vcpus.iter().for_each(VcpuHandle::kick);
        if !self.shared.gate.wait_until_still(deadline) {
            return Err(self.held_up());
        }
        self.inventory.pause(deadline)?;
        self.change_mode(Mode::Paused(Instant::now()))
    }

    /// Holds the vCPUs, and lets the devices go on, until a [`Machine::resume`]. A machine that is paused stays so.
    pub fn hold_vcpus(&self, deadline: Instant) -> Result<(), PauseError> {
        let _change = self.change();
        match self.mode() {
            Mode::Paused(_) => return Ok(()),
            // Not all came then.
            Mode::Stopped(_) => {}
            _ => self.change_mode(Mode::Stopped(Instant::now()))?,
        }
        self.shared.gate.order(Order::Pause);
        self.vcpus.iter().for_each(VcpuHandle::kick);
        if self.shared.gate.wait_until_still(deadline) { Ok(()) } else { Err(self.held_up()) }
    }

    /// Makes one vCPU come back, at the gate or in a step.
    pub(crate) fn kick_one(&self, index: u32) {
        self.vcpus.get(index as usize).into_iter().for_each(VcpuHandle::kick);
    }

    /// A vCPU does not come to the gate: it waits for a device that the guest has reset.
    fn held_up(&self) -> PauseError {
        match self.busy().into_iter().max_by_key(|busy| busy.duration) {
            Some(Busy { thread, duration }) => StillBusy { thread, duration }.into(),
            None => PauseError::Vcpu,
        }
    }

    /// Acts on vCPU number `index` of a paused machine, from that vCPU's own thread. `None` if the machine is not
    /// paused, or the thread has ended.
    pub fn visit<T: Send + 'static>(&self, index: u32, act: impl FnOnce(&KvmVcpu) -> T + Send + 'static) -> Option<T> {
        let _still = self.hold()?;
        self.visit_held(index, act)
    }

    /// Keeps a paused machine paused for as long as what it returns lives; `None` if it is not paused.
    pub(crate) fn hold(&self) -> Option<MutexGuard<'_, Threads>> {
        let change = self.change();
        matches!(self.mode(), Mode::Paused(_)).then_some(change)
    }

    /// A visit to a machine that is [held](Machine::hold).
    pub(crate) fn visit_held<T: Send + 'static>(
        &self,
        index: u32,
        act: impl FnOnce(&KvmVcpu) -> T + Send + 'static,
    ) -> Option<T> {
        self.shared.gate.visit(index, |vcpu| vcpu.as_kvm().map(act)).flatten()
    }

    /// The VM, for what only KVM knows.
    pub(crate) fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// The outer ends of its consoles.
    pub(crate) fn ports(&self) -> &Ports {
        &self.ports
    }

    /// How many vCPUs there are.
    pub(crate) fn vcpu_count(&self) -> u32 {
        self.vcpus.len() as u32
    }

    /// Lets the devices go on, then the vCPUs. Nothing happens to a machine that runs or is being stopped.
    ///
    /// After a pause that did not succeed, a device may still be busy at `deadline`: then all stays as it is.
    pub fn resume(&self, deadline: Instant) -> Result<(), StillBusy> {
        let change = self.change();
        self.resume_held(&change, deadline)
    }

    fn resume_held(&self, _change: &MutexGuard<'_, Threads>, deadline: Instant) -> Result<(), StillBusy> {
        if self.is_held() {
            // A debugger stops a guest again and again, and for moments.
            let paused_since = match self.mode() {
                Mode::Paused(since) => Some(since),
                _ => None,
            };
            self.inventory.resume(deadline)?;
            self.let_go();
            if let Some(since) = paused_since {
                self.events.emit(|| Event::Resumed { after: since.elapsed() });
            }
            // Unless a stop came first.
            let _ = self.change_mode(Mode::Running);
            self.shared.activity.note();
            if self.shared.stop.reason().is_some() {
                self.shared.stop.event_fd().signal();
            }
        }
        Ok(())
    }

    /// Holds the vCPUs of a running machine while `act` looks at them. `None` if it does not run, one does not come, or
    /// a stop comes first.
    pub(crate) fn holding_vcpus<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let change = self.change();
        self.bring_vcpus(&change, |all_came| all_came.then(act)).flatten()
    }

    /// The same with those vCPUs that come, and whether all do; also of a machine that is paused.
    pub(crate) fn holding_those_who_come<T>(&self, act: impl FnOnce() -> T) -> Option<(T, bool)> {
        let change = self.change();
        match self.is_paused() {
            true => Some((act(), true)),
            false => self.bring_vcpus(&change, |all_came| (act(), all_came)),
        }
    }

    fn bring_vcpus<T>(&self, _change: &MutexGuard<'_, Threads>, act: impl FnOnce(bool) -> T) -> Option<T> {
        if self.mode() != Mode::Running {
            return None;
        }
        self.shared.gate.order(Order::Pause);
        self.vcpus.iter().for_each(VcpuHandle::kick);
        let all_came = self.shared.gate.wait_until_still(Instant::now() + BRIEFLY);
        let answer = (self.shared.gate.current() == Order::Pause).then(|| act(all_came));
        self.let_go();
        answer
    }

    /// Lets the vCPUs run that were held, or were to be.
    fn let_go(&self) {
        self.vcpus.iter().for_each(VcpuHandle::release);
        self.shared.gate.order(Order::Run);
        // The kick of a stop that came meanwhile was taken back too.
        if self.shared.gate.current() == Order::Stop {
            self.vcpus.iter().for_each(VcpuHandle::kick);
        }
    }

    /// Gives the first vCPU a non-maskable interrupt, as the NMI button of a PC does: its kernel may tell what hangs.
    /// `None` if the machine does not run, or that vCPU does not come.
    pub fn nmi(&self) -> Option<io::Result<()>> {
        self.holding_vcpus(|| self.visit_held(0, |vcpu| vcpu.nmi())).flatten()
    }

    /// Stops vCPUs, then devices: when it succeeds, every completed request is in its file, and no thread is left. Says
    /// why the machine stopped.
    ///
    /// A device that is still busy at `deadline` goes on writing to the guest's RAM and to its disk until it is not:
    /// neither may be given to another machine in this process.
    pub fn stop(&self, deadline: Instant) -> (StopReason, Result<(), StillBusy>) {
        *lock(&self.mode) = Mode::Stopping;
        self.shared.gate.order(Order::Stop);
        // A thread that is joined must not be kicked: its id may be another's by now.
        if !self.shared.gate.wait_until_empty(Instant::now()) {
            self.vcpus.iter().for_each(VcpuHandle::kick);
        }
        // A vCPU may wait for a device: all are asked to come to an end before it is waited for.
        self.inventory.begin_stop();
        let mut threads = self.change();
        let left = self.shared.gate.wait_until_empty(deadline);
        if left {
            // A panic was already reported as the reason to stop.
            threads.drain(..).for_each(|thread| _ = thread.join());
            [&self.shared.ports, &self.shared.mmio].into_iter().for_each(AddressSpace::tell_counts);
        }
        let stopped = self.inventory.stop(deadline);
        (self.shared.stop.reason().unwrap_or(StopReason::Quit), stopped)
    }

    fn change(&self) -> MutexGuard<'_, Threads> {
        lock(&self.change)
    }

    fn mode(&self) -> Mode {
        *lock(&self.mode)
    }

    /// Nothing follows [`Mode::Stopping`].
    fn change_mode(&self, to: Mode) -> Result<(), PauseError> {
        let mut mode = lock(&self.mode);
        if *mode == Mode::Stopping {
            return Err(PauseError::Stopping);
        }
        *mode = to;
        Ok(())
    }
}

impl Drop for Machine {
    /// A machine that could not start as a whole leaves no threads behind.
    fn drop(&mut self) {
        let _ = self.stop(Instant::now() + PATIENCE);
    }
}

/// How long a look at the vCPUs waits for one that asks the host for something.
const BRIEFLY: Duration = Duration::from_millis(500);
/// How long signals and the clock may wait for a pause that is for want of room.
const MOMENT: Duration = Duration::from_millis(200);
/// When a device that has gone and is busy is looked at again.
const SOON: Duration = Duration::from_millis(20);

/// How long a machine that is dropped without a [`Machine::stop`] waits for its devices.
const PATIENCE: Duration = Duration::from_secs(10);
