//! The PC's own chips, and the bus they sit on.
//!
//! Each chip is a file; each talks to the world through [`Irq`] (an eventfd) and [`StopSwitch`], so
//! every chip runs in a plain test without KVM.
//!
//! Left out: PIC, IOAPIC, local APIC and PIT, which KVM itself provides.
#![forbid(unsafe_code)]

mod acpi_pm;
mod bus;
mod i8042;
mod irq;
mod pci;
mod pvpanic;
mod rtc;
mod stop;
mod uart16550;

pub use acpi_pm::AcpiPm;
pub use bus::{Bus, BusBuilder, BusDevice, PlugError};
pub use i8042::I8042;
pub use irq::Irq;
pub use pci::PciHost;
pub use pvpanic::Pvpanic;
pub use rtc::Rtc;
pub use stop::{StopReason, StopSwitch};
pub use uart16550::Uart16550;
