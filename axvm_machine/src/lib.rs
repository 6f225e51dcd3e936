//! The machine as a library: describe it, build it, run it, hold it, end it.
//!
//! ```text
//!   MachineSpec --plan()--> Plan        pure values: what there is, and who sits where
//!        |                    |
//!        +---> Resources -----+--build()--> Machine --wait()--> why it stopped
//!              /dev/kvm, RAM,               vCPU threads, parts by name
//!              disks, kernel                pause, resume, visit, stop
//!              (outlive a reset)            (one start of the guest)
//!                         ^                    |
//!                         '--restore()-- SavedMachine <--save()
//! ```
//!
//! A reset is a new machine from the same resources. The example `boot` does all of it in forty lines.
//!
//! Left out: where consoles go, signals, sockets, settings: that is a program's business (`axvm_core`).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start threads of their own"))]

mod board;
mod build_config;
pub mod cpuinfo;
mod crash;
mod debug;
mod error;
mod examine;
mod exit_tape;
mod gate;
mod halt;
mod hang;
mod image;
mod inventory;
mod machine;
mod pci;
mod power_on;
mod processor;
mod recipe;
mod resources;
mod saved;
mod slots;
mod spec;
mod stops;
#[doc(hidden)]
pub mod testing;
mod unclaimed;
mod vcpu;

pub use build_config::without_mmio;
pub use debug::Step;
pub use error::MachineError;
pub use examine::DumpError;
pub use hang::View;
pub use image::Image;
pub use inventory::{Chip, Inventory, Item};
pub use machine::{Machine, PauseError, WaitOutcome};
pub use power_on::{Placed, PowerOn};
pub use processor::ProcessorModel;
pub use recipe::Ports;
pub use resources::Resources;
pub use saved::{ChipState, MismatchError, SaveError, SavedMachine, SavedPart, SlotState, SlotsState};
pub use slots::{Addition, Additions, Card, NumberedKind, SlotError, Slots};
pub use spec::{BALLOON, KernelSource, MachineSpec};
pub use stops::{Hit, Stops};
