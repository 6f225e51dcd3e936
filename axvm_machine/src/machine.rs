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
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axvm_boot::plan::Plan;
use axvm_devices::{StopReason, StopSwitch};
use axvm_kvm::{KvmVcpu, Vcpu, Vm};
use axvm_virtio::balloon::Target;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::MachineError;
use crate::gate::Order;
use crate::inventory::Inventory;
use crate::vcpu::{Shared, VcpuThread};

/// A machine whose vCPUs run, wait, or have stopped.
pub struct Machine {
    plan: Plan,
    inventory: Inventory,
    command_line: String,
    shared: Arc<Shared>,
    running: Mutex<Running>,
    /// Keeps the VM (and with it its interrupt controllers) alive longer than its vCPUs.
    _vm: Vm,
}

/// What changes while a machine lives; one thread at a time changes it.
struct Running {
    threads: Vec<VcpuThread>,
    paused: bool,
}

/// What the recipe made.
pub(crate) struct Built {
    pub(crate) plan: Plan,
    pub(crate) inventory: Inventory,
    pub(crate) command_line: String,
    pub(crate) shared: Arc<Shared>,
    pub(crate) vcpus: Vec<KvmVcpu>,
    pub(crate) vm: Vm,
}

/// What ended a [`Machine::wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitOutcome {
    /// The machine has a reason to stop: call [`Machine::stop`].
    Stopped,
    /// The caller's own descriptor is readable.
    Readable,
    /// The time is over.
    TimedOut,
}

impl Machine {
    /// Starts every vCPU on a thread of its own, on the host CPU that `pins` gives it.
    pub(crate) fn start(built: Built, pins: &[usize]) -> Result<Machine, MachineError> {
        let Built { plan, inventory, command_line, shared, vcpus, vm } = built;
        let running = Mutex::new(Running { threads: Vec::with_capacity(vcpus.len()), paused: false });
        let machine = Machine { plan, inventory, command_line, shared, running, _vm: vm };
        for (vcpu, kvm_vcpu) in (0..).zip(vcpus) {
            let pin = pins.get(vcpu as usize).copied();
            let thread = VcpuThread::spawn(vcpu, kvm_vcpu, pin, Arc::clone(&machine.shared));
            machine.running().threads.push(thread.map_err(|source| MachineError::VcpuThread { vcpu, source })?);
        }
        Ok(machine)
    }

    /// Waits until there is a reason to stop, `other` is readable, or `limit` has passed; serves the clock meanwhile.
    /// Call it from one thread, again and again.
    pub fn wait(&self, other: Option<BorrowedFd<'_>>, limit: Option<Duration>) -> io::Result<WaitOutcome> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let rtc = self.inventory.rtc();
        let fds = [Some(self.shared.stop.event_fd().as_raw_fd()), rtc.map(|rtc| rtc.timer_fd().as_raw_fd())];
        let sources = Epoll::new()?;
        for fd in fds.into_iter().flatten() {
            sources.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        }
        if let Some(other) = other {
            sources.ctl(ControlOperation::Add, other.as_raw_fd(), EpollEvent::new(EventSet::IN, 1))?;
        }
        loop {
            let mut ready = [EpollEvent::default(); 3];
            let count = wait_for(&sources, &mut ready, deadline)?;
            if self.shared.stop.reason().is_some() {
                return Ok(WaitOutcome::Stopped);
            }
            rtc.inspect(|rtc| rtc.tick());
            if ready[..count].iter().any(|event| event.data() == 1) {
                return Ok(WaitOutcome::Readable);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(WaitOutcome::TimedOut);
            }
        }
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

    /// Presses the power button: the guest is asked to power off.
    pub fn press_power_button(&self) {
        self.inventory.acpi_pm().inspect(|pm| pm.press_power_button());
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
        self.running().threads.iter().map(VcpuThread::exits).collect()
    }

    /// Whether it stands still.
    pub fn is_paused(&self) -> bool {
        self.running().paused
    }

    /// Holds first the vCPUs, then the devices. Done when this returns; twice is once. Whether it stands still now: a
    /// machine that is being stopped does not.
    pub fn pause(&self) -> bool {
        let mut running = self.running();
        if running.paused || self.shared.gate.current() == Order::Stop {
            return running.paused;
        }
        self.shared.gate.order(Order::Pause);
        running.threads.iter().for_each(VcpuThread::kick);
        self.shared.gate.wait_until_still();
        self.inventory.pause();
        running.paused = true;
        true
    }

    /// Acts on vCPU number `index` of a paused machine, from that vCPU's own thread. `None` if the machine is not
    /// paused, or the thread has ended.
    pub fn visit<T: Send + 'static>(
        &self,
        index: u32,
        act: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
    ) -> Option<T> {
        // With the lock held, the machine cannot go on meanwhile.
        let running = self.running();
        if !running.paused {
            return None;
        }
        self.shared.gate.visit(index, act)
    }

    /// Lets the devices go on, then the vCPUs.
    pub fn resume(&self) {
        let mut running = self.running();
        if running.paused && self.shared.gate.current() != Order::Stop {
            self.inventory.resume();
            running.threads.iter().for_each(VcpuThread::release);
            self.shared.gate.order(Order::Run);
            running.paused = false;
        }
    }

    /// Stops vCPUs, then devices: afterwards every completed request is in its file. Says why it stopped.
    pub fn stop(&self) -> StopReason {
        self.shared.gate.order(Order::Stop);
        let threads = std::mem::take(&mut self.running().threads);
        threads.iter().for_each(VcpuThread::kick);
        threads.into_iter().for_each(VcpuThread::join);
        self.inventory.stop();
        self.shared.stop.reason().unwrap_or(StopReason::Quit)
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Machine {
    /// A machine that could not start as a whole leaves no threads behind.
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits until one of `sources` is ready, or `deadline` has come; how many are. A signal may end it early.
fn wait_for(sources: &Epoll, ready: &mut [EpollEvent], deadline: Option<Instant>) -> io::Result<usize> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    // Rounded up, so that the deadline has come when the wait ends.
    let millis = left.map_or(-1, |left| i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX));
    match sources.wait(millis, ready) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        count => count,
    }
}
