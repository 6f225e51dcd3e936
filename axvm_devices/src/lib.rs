//! The PC's own chips, and the bus they sit on.
//!
//! ```text
//!   vCPU --address--> Bus --offset--> UART, RTC, PM1, PM timer, i8042, pvpanic, PCI host bridge --Irq--> KVM
//!                                       |                    \--StopSwitch--> main thread
//!                                       +--state(), restore()
//! ```
//!
//! Each chip is a file; each talks to the world through [`Irq`] (an eventfd) and [`StopSwitch`], so
//! every chip runs in a plain test without KVM. All that a chip knows it can say as a plain value, and take back.
//!
//! Spec: each file names its chip's datasheet.
//! Left out: PIC, IOAPIC, local APIC and PIT, which KVM itself provides.
#![forbid(unsafe_code)]

mod acpi_pm;
mod bus;
mod debug_console;
mod debug_exit;
mod i8042;
mod irq;
pub mod pci;
mod pm_timer;
mod pvpanic;
mod rtc;
mod state;
mod stop;
mod uart16550;
mod unclaimed;

pub use acpi_pm::{AcpiPm, Pm1State};
pub use bus::{Bus, BusBuilder, BusDevice, BusNames, InsideNames, PlugError, RegisterNames};
pub use debug_console::DebugConsole;
pub use debug_exit::DebugExit;
pub use i8042::I8042;
pub use irq::{Irq, LevelIrq};
pub use pci::{PciHost, PciHostState};
pub use pm_timer::{PmTimer, PmTimerState};
pub use pvpanic::{PanicAnswer, Pvpanic};
pub use rtc::{Rtc, RtcState};
pub use state::ChipStateError;
pub use stop::{StopReason, StopSwitch};
pub use uart16550::{Uart16550, UartState};
pub use unclaimed::port_elsewhere;
