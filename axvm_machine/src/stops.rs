//! The vCPUs that have met a breakpoint, until a debugger takes note of it.
//!
//! ```text
//!   vCPU n: Exit::Debug --> hit: gate closed, event --> waits at the gate, again if another thread opens it
//!   debugger: event --> Machine::hold_vcpus --> take: where and why --> Machine::resume --> vCPU n goes on
//! ```
//!
//! Source: KVM API, `KVM_SET_GUEST_DEBUG`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use axvm_kvm::Vcpu;
use axvm_sync::{EventFd, lock};

use crate::gate::{Gate, Order, Passage};

/// Where a vCPU stopped by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Linear address of the next instruction.
    pub pc: u64,
    /// Debug register 6.
    pub dr6: u64,
    /// 1 #DB, 3 #BP.
    pub exception: u32,
}

/// The vCPUs that have stopped by themselves, until the debugger takes note.
#[derive(Debug)]
pub struct Stops {
    hits: Mutex<BTreeMap<u32, Hit>>,
    ready: EventFd,
}

impl Stops {
    pub(crate) fn new() -> io::Result<Stops> {
        Ok(Stops { hits: Mutex::default(), ready: EventFd::new()? })
    }

    /// Readable when there is one.
    pub fn event_fd(&self) -> &EventFd {
        &self.ready
    }

    /// Takes note of all: their vCPUs wait no longer than the gate lets them. Hold the machine first.
    pub fn take(&self) -> BTreeMap<u32, Hit> {
        self.ready.take();
        std::mem::take(&mut *lock(&self.hits))
    }

    /// The vCPU stands still at a breakpoint.
    pub(crate) fn hit(&self, index: u32, hit: Hit, vcpu: &mut dyn Vcpu, gate: &Gate) -> Passage {
        lock(&self.hits).insert(index, hit);
        loop {
            gate.order(Order::Pause);
            self.ready.signal();
            match gate.pass(index, vcpu) {
                Passage::Closed => return Passage::Closed,
                _ if !lock(&self.hits).contains_key(&index) => return Passage::Reopened,
                _ => {}
            }
        }
    }
}
