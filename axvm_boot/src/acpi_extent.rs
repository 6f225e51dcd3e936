//! How much the ACPI tables tell.
//!
//! ```text
//!            processors, interrupts, power     virtio devices
//!   full     MADT, FADT                        DSDT
//!   cpus     MADT, FADT                        kernel command line
//!   off      MP table                          kernel command line
//! ```
//!
//! Whatever the choice, a device is named in one place: a kernel that read of it twice would find it twice.
//!
//! No specification: the choice is AxVM's own.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What is in the ACPI tables. Its text is what command line, settings file and schema say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Acpi {
    /// Processors, power button, power-off, and every device
    #[default]
    Full,
    /// Processors, power button and power-off; devices are announced on the kernel command line
    Cpus,
    /// No tables; devices are announced on the kernel command line, and vCPUs in the MP table
    Off,
}

impl Acpi {
    /// Every choice.
    pub const ALL: [Acpi; 3] = [Acpi::Full, Acpi::Cpus, Acpi::Off];

    /// Whether there are tables, and so a power button.
    pub fn has_tables(self) -> bool {
        self != Acpi::Off
    }

    /// Whether they list the devices.
    pub fn has_devices(self) -> bool {
        self == Acpi::Full
    }
}

impl fmt::Display for Acpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Acpi::Full => "full",
            Acpi::Cpus => "cpus",
            Acpi::Off => "off",
        })
    }
}

/// A choice that there is not.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("Unknown choice of ACPI tables {0:?}: say full, cpus or off")]
pub struct UnknownAcpi(String);

impl FromStr for Acpi {
    type Err = UnknownAcpi;

    fn from_str(text: &str) -> Result<Acpi, UnknownAcpi> {
        let known = Acpi::ALL.into_iter().find(|choice| choice.to_string() == text);
        known.ok_or_else(|| UnknownAcpi(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_the_same_word_everywhere() {
        for choice in Acpi::ALL {
            let word = choice.to_string();
            assert_eq!(word.parse(), Ok(choice));
            assert_eq!(serde_json::to_value(choice).unwrap(), word);
        }
        let error = "on".parse::<Acpi>().unwrap_err().to_string();
        assert_eq!(error, "Unknown choice of ACPI tables \"on\": say full, cpus or off");
    }
}
