//! Which bus the virtio devices are on.
//!
//! ```text
//!            found by                                     interrupts
//!   mmio     DSDT, or the kernel command line             a line each, of 14 (6 without ACPI)
//!   pci      looking: ECAM (ACPI's MCFG), or type 1       MSI-X, one for each queue
//!   auto     mmio, as long as there are lines for all, and the kernel may have a driver; then pci
//! ```
//!
//! No specification: the choice is AxVM's own.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where virtio devices are. Its text is what command line, settings file and schema say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// As mmio; as pci if there are more devices than interrupt lines, or the kernel is known to have no virtio-mmio
    #[default]
    Auto,
    /// Registers and an interrupt line for each device; the first disk is on IRQ 5
    Mmio,
    /// A PCI bus with MSI-X: room for 248 devices, and an interrupt for each queue
    Pci,
}

impl Bus {
    /// Every choice.
    pub const ALL: [Bus; 3] = [Bus::Auto, Bus::Mmio, Bus::Pci];
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bus::Auto => "auto",
            Bus::Mmio => "mmio",
            Bus::Pci => "pci",
        })
    }
}

/// A choice that there is not.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("Unknown bus {0:?}: say auto, mmio or pci")]
pub struct UnknownBus(String);

impl FromStr for Bus {
    type Err = UnknownBus;

    fn from_str(text: &str) -> Result<Bus, UnknownBus> {
        let known = Bus::ALL.into_iter().find(|choice| choice.to_string() == text);
        known.ok_or_else(|| UnknownBus(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_the_same_word_everywhere() {
        for choice in Bus::ALL {
            let word = choice.to_string();
            assert_eq!(word.parse(), Ok(choice));
            assert_eq!(serde_json::to_value(choice).unwrap(), word);
        }
        assert_eq!("PCI".parse::<Bus>().unwrap_err().to_string(), "Unknown bus \"PCI\": say auto, mmio or pci");
    }
}
