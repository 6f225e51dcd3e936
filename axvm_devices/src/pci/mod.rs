//! PCI: one bus of functions without bridges, found by type 1 accesses or in the ECAM, interrupting by MSI-X.
//!
//! ```text
//!   ports 0xcf8, 0xcfc --+                    +--> bridge 00:00.0
//!                        +--> PciHost --------+--> PciFunction 00:01.0: ConfigSpace, Msix
//!   ECAM, 4 KiB each ----+     | windows      +--> ...                        |
//!   32-bit, 64-bit window -----'--> BAR of the function that is there         '--> MsiRouter, irqfds
//!   ports of PciHotplug: functions that come and go
//! ```
//!
//! The buses of the machine are frozen: ECAM and windows stay where they are, and what a guest moves moves inside them.
//!
//! Spec: PCI Local Bus 3.0; PCI Express Base 3.0, 7.2.2 "PCI Express Enhanced Configuration Access Mechanism".
//! Left out: bridges and more buses, INTx, I/O BARs, ROMs, power management, bus mastering as a switch (the RAM of a
//! device that the guest has started is its to use).

mod config;
mod function;
mod host;
mod hotplug;
mod msix;
#[cfg(test)]
mod properties;

pub use config::{Capability, ConfigSpace, Identity};
pub use function::{PciFunction, PciFunctionParts, PciFunctionState};
pub use host::{Bridge, PciHost, PciHostState};
pub use hotplug::{PciHotplug, PciHotplugState};
pub use msix::{MsiRouter, Msix, MsixEntry, MsixRoute, MsixState, MsixVector};
