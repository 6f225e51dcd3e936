//! The PC's own chips, and the bus they sit on.
//!
//! Each chip is a file; each talks to the world through [`Irq`] (an eventfd) and [`Power`], so
//! every chip runs in a plain test without KVM.
//!
//! Left out: PIC, IOAPIC, local APIC and PIT, which KVM itself provides.
#![forbid(unsafe_code)]

mod bus;
mod irq;
mod power;
mod uart;

pub use bus::{Bus, BusBuilder, BusDevice, PlugError};
pub use irq::Irq;
pub use power::{Power, PowerEvent};
pub use uart::Uart;
