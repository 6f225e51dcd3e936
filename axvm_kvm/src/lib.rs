//! `/dev/kvm`, and nothing else: a VM, its vCPUs, and why they stop.
//!
//! ```text
//!   Kvm::open ----> Kvm --create_vm(ram)--> Vm --create_vcpu(id)--> KvmVcpu --run()--> Exit
//!   capabilities,         memory slots,      |    CPUID, MSRs,         |
//!   supported CPUID       irqchip, PIT       |    registers            +--kicker()--> Kicker
//!                                            |
//!                        irqfd, ioeventfd <--+
//!
//!   state: KvmVcpu::save --> VcpuState --> Vm::restore_vcpu        Vm::save --> VmState --> Vm::restore
//! ```
//!
//! Callers see registers, exits and errors in the project's own words; no binding type leaves.
//! The virtual CPU behind a run loop is the trait [`Vcpu`], so the loop also runs on a scripted one.
//!
//! Spec: Linux Documentation/virt/kvm/api.rst (API version 12).
//! Left out: split irqchip, nested state, dirty logging; other processors than x86-64.

mod capabilities;
mod debug;
mod debug_support;
mod error;
mod exit;
pub mod failure;
mod kick;
mod registers;
mod rest;
mod routes;
mod run_page;
pub mod state;
mod system;
mod teardown;
mod tsc;
mod vcpu;
mod vm;

pub use capabilities::{CAPABILITIES, Capabilities, Capability, Survey};
pub use debug::{DebugControl, HARDWARE_COUNT, LONG_TRAP, SHORT_TRAP, Trap, Watch};
pub use debug_support::{DebugSupport, Stopping};
pub use error::{KvmError, Owner};
pub use exit::{Exit, Vcpu};
pub use kick::Kicker;
pub use rest::Rest;
pub use routes::Routes;
pub use state::{VcpuState, VmState};
pub use system::Kvm;
pub use teardown::Teardown;
pub use tsc::tsc;
pub use vcpu::{KvmVcpu, VcpuSetup};
pub use vm::{Doorbells, LevelLine, Vm};
