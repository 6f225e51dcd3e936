//! What follows when a guest does not power off: it resets, crashes, panics, or halts for good.
//!
//! ```text
//!   guest --reset--> --on-reboot   --crash--> --on-crash   --pvpanic--> --on-panic   --HLT, all vCPUs--> --on-halt
//! ```
//!
//! One list of words each, for the command line, the settings file and its schema.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a reset by the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnReboot {
    /// Start the machine again, in place
    Restart,
    /// End AxVM with exit code 3
    // The word of earlier versions.
    #[serde(alias = "exit")]
    #[schemars(extend("x-formerly" = "exit"))]
    End,
}

/// What a crash of the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnCrash {
    /// End AxVM with exit code 5
    End,
    /// Start the machine again, in place
    Restart,
}

/// What a panic of the guest's kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnPanic {
    /// End AxVM with exit code 4
    End,
    /// Start the machine again, in place
    Restart,
    /// Leave it to the guest, which may reset itself (panic=5) or save a dump
    Continue,
}

/// Whether kernel and initrd are looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Lint {
    /// If standard error is a terminal
    Auto,
    /// Yes
    On,
    /// No
    Off,
}

/// Whether the guest's virtio drivers are held to the standard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VirtioCheck {
    /// Rules are not checked
    Off,
    /// Tell each rule that is broken, once, and count
    Log,
    /// The first rule that is broken ends AxVM with exit code 7
    Stop,
}

/// What a guest does whose vCPUs are all halted for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnHalt {
    /// End AxVM with exit code 6
    End,
    /// Say so and wait for an NMI, a reset or an end from outside
    Wait,
}
