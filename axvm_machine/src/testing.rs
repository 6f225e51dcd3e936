//! The vCPU loop without a machine, for the bench of exits.
//!
//! ```text
//!   a vCPU that is played --Exit--> the loop --> buses of the caller's chips
//! ```
//!
//! No specification.

use std::io;
use std::sync::{Arc, OnceLock};

use axvm_devices::{Bus, StopReason, StopSwitch};
use axvm_events::Events;
use axvm_events::tape::Tape;
use axvm_kvm::Vcpu;

use crate::exit_tape::Off;
use crate::gate::{Gate, Order};
use crate::halt::Activity;
use crate::stops::Stops;
use crate::unclaimed::Space;
use crate::vcpu::{AddressSpace, Exits, VcpuShared, run};

/// What the vCPUs of a machine share, and nothing else of it.
pub struct Loop(VcpuShared);

impl Loop {
    /// A loop over these buses, without a subscriber of events.
    pub fn new(ports: Bus, mmio: Bus) -> io::Result<Loop> {
        let events = Events::default();
        Ok(Loop(VcpuShared {
            ports: AddressSpace::new(Space::Port, ports, &events),
            mmio: AddressSpace::new(Space::Mmio, mmio, &events),
            stop: Arc::new(StopSwitch::new()?),
            gate: Arc::new(Gate::new(Order::Run)),
            activity: Activity::new()?,
            stops: Stops::new()?,
            crash: OnceLock::new(),
            events,
        }))
    }

    /// Runs `vcpu` as vCPU 0 until it gives an exit that ends a machine; why it stopped.
    pub fn run(&self, vcpu: &mut dyn Vcpu) -> Option<StopReason> {
        run(0, vcpu, &Exits::default(), &self.0, &mut Off);
        self.0.stop.reason()
    }

    /// The same with a tape.
    pub fn run_taped(&self, vcpu: &mut dyn Vcpu, mut tape: Tape) -> Option<StopReason> {
        run(0, vcpu, &Exits::default(), &self.0, &mut tape);
        self.0.stop.reason()
    }
}
