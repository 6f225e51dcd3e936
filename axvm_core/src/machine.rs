//! A machine that runs: start, pause, resume, stop.
//!
//! ```text
//!   start --> vCPU threads run <--resume-- everything stands still
//!                  |          --pause--->       |
//!                  '-----------> stop <---------'
//! ```
//!
//! A paused machine's state is all in KVM, in guest RAM and in the control planes of its devices: each vCPU waits
//! at the [gate](crate::gate), each virtio worker is joined and its rings' indices are given back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axvm_devices::{Power, PowerEvent};
use axvm_kvm::{KvmVcpu, Vm};
use axvm_virtio::balloon::Target;
use axvm_virtio::mmio::MmioTransport;

use crate::board::Chips;
use crate::gate::Order;
use crate::vcpu::{Shared, VcpuThread};

/// A machine whose vCPUs run, wait, or have stopped.
pub struct Machine {
    chips: Chips,
    shared: Arc<Shared>,
    transports: Vec<Arc<MmioTransport>>,
    balloon: Option<Target>,
    command_line: String,
    running: Mutex<Running>,
    /// Keeps the VM (and with it its interrupt controllers) alive longer than its vCPUs.
    _vm: Vm,
}

/// What changes while a machine lives; whoever holds the lock changes it alone.
struct Running {
    threads: Vec<VcpuThread>,
    paused: bool,
}

/// What the recipe made.
pub struct Parts {
    pub chips: Chips,
    pub shared: Arc<Shared>,
    pub transports: Vec<Arc<MmioTransport>>,
    pub balloon: Option<Target>,
    pub command_line: String,
    pub vcpus: Vec<KvmVcpu>,
    pub vm: Vm,
}

impl Machine {
    /// Starts every vCPU on a thread of its own, on the host CPU that `pins` gives it.
    pub fn start(parts: Parts, pins: &[usize]) -> Result<Machine> {
        let Parts { chips, shared, transports, balloon, command_line, vcpus, vm } = parts;
        let running = Mutex::new(Running { threads: Vec::with_capacity(vcpus.len()), paused: false });
        let machine = Machine { chips, shared, transports, balloon, command_line, running, _vm: vm };
        for (n, vcpu) in vcpus.into_iter().enumerate() {
            let thread = VcpuThread::spawn(n as u32, vcpu, pins.get(n).copied(), Arc::clone(&machine.shared));
            machine.running().threads.push(thread.with_context(|| {
                format!(
                    "Cannot start the thread of vCPU {n}; give fewer --cpus, or raise a limit (ulimit -u, ulimit -v)"
                )
            })?);
        }
        Ok(machine)
    }

    /// The chips that the main thread serves.
    pub fn chips(&self) -> &Chips {
        &self.chips
    }

    /// The switch that ends the machine.
    pub fn power(&self) -> &Power {
        &self.shared.power
    }

    /// The balloon's handle, if the machine has one.
    pub fn balloon(&self) -> Option<&Target> {
        self.balloon.as_ref()
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
        self.transports.iter().for_each(|transport| transport.begin_stop());
        self.transports.iter().for_each(|transport| _ = transport.pause(far()));
        running.paused = true;
        true
    }

    /// Lets the devices go on, then the vCPUs.
    pub fn resume(&self) {
        let mut running = self.running();
        if running.paused && self.shared.gate.current() != Order::Stop {
            self.transports.iter().for_each(|transport| _ = transport.resume(far()));
            running.threads.iter().for_each(VcpuThread::release);
            self.shared.gate.order(Order::Run);
            running.paused = false;
        }
    }

    /// Stops vCPUs, then devices: afterwards every completed request is in its file. Says why it stopped.
    pub fn stop(&self) -> PowerEvent {
        self.shared.gate.order(Order::Stop);
        let threads = std::mem::take(&mut self.running().threads);
        threads.iter().for_each(VcpuThread::kick);
        threads.into_iter().for_each(VcpuThread::join);
        self.transports.iter().for_each(|transport| transport.begin_stop());
        self.transports.iter().for_each(|transport| _ = transport.stop(far()));
        self.shared.power.pressed().unwrap_or(PowerEvent::Quit)
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A time that no device needs.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 60 * 60)
}

impl Drop for Machine {
    /// A machine that could not start as a whole leaves no threads behind.
    fn drop(&mut self) {
        self.stop();
    }
}
