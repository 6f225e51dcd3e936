//! What a client sees of what a guest does: the bodies of `/explain`, `/inspect`, `/registers`, `/memory`, `/symbols`,
//! `/dump` and `/trace`.
//!
//! ```text
//!   a moment: Explanation, Inspection, VcpuRegisters, MemoryContents, GuestSymbols
//!   a file:   DumpStatus, TraceRequest, TraceStatus
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `GET /registers`, for each vCPU: how it stands.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VcpuRegisters {
    /// Its number.
    pub vcpu: u32,
    /// Such as `running`, `halted`; `busy` if it did not come out of what it does in the host: then there is no more.
    pub state: String,
    /// The function that RIP is in, where the machine has symbols.
    pub function: Option<String>,
    /// Registers by name, as hexadecimal numbers.
    pub registers: BTreeMap<String, String>,
    /// All of them for people, in lines of at most 80 columns.
    pub text: String,
    /// What each bit of the control registers means that is set, a line for each.
    pub meanings: String,
}

/// `GET /memory/{space}/{address}/{len}`: a piece of the guest's memory.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MemoryContents {
    /// Its first address, as a number.
    pub address: u64,
    /// The bytes, each as two hexadecimal digits; fewer than were asked for where the memory ends.
    pub bytes: String,
    /// Why there are fewer.
    pub end: Option<String>,
    /// How the first address was translated, a line for each entry; empty for a physical one.
    pub walk: String,
    /// Bits of the code that the vCPU runs: 16, 32 or 64.
    pub bits: u32,
}

/// `GET /symbols`: what the guest's kernel calls its functions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GuestSymbols {
    /// By how much the kernel has moved itself (KASLR), as a hexadecimal number.
    pub slide: String,
    /// A line for each function in the order of addresses, as in a System.map: where it is now, `T`, its name.
    pub map: String,
}

/// `GET /dump`: how far the last `PUT /dump` is.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DumpStatus {
    /// What became of it.
    pub state: DumpState,
    /// Bytes of RAM that are done.
    pub done: u64,
    /// Bytes of RAM there are.
    pub total: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// What became of a dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DumpState {
    /// There was none.
    #[default]
    None,
    /// It is being written, and the machine stands still.
    Writing,
    /// The file is complete.
    Written,
    /// The file is of no use.
    Failed,
}

/// `GET /explain`: what a guest does, and what that usually means.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// Seconds since a vCPU last came back from the guest.
    pub quiet_seconds: u64,
    /// What likely happened and what to try, the likeliest first.
    pub causes: Vec<LikelyCause>,
    /// A line for each vCPU.
    pub vcpus: Vec<String>,
    /// A line for each vCPU whose last exits are recorded.
    #[serde(default)]
    pub last_exits: Vec<String>,
    /// A line for each interrupt line.
    pub lines: Vec<String>,
    /// A line for each virtio device and each of its queues.
    pub devices: Vec<String>,
    /// The console's last lines.
    pub console: Vec<String>,
    /// All of it for people, in lines of at most 80 columns.
    pub text: String,
}

/// `GET /inspect`: the whole machine at one moment.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Inspection {
    /// The version of the tree below; the same as of `axvm inspect --format json`.
    pub version: u32,
    /// What the machine is called.
    pub name: String,
    /// Its sections: machine, signs, memory, vcpus, clocks, lines, queues, walk; each with rows, as those of `axvm
    /// inspect`.
    pub sections: Value,
    /// All of it for people, in lines of at most 80 columns.
    pub text: String,
}

/// A likely cause.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LikelyCause {
    /// What happened.
    pub what: String,
    /// What to try.
    pub remedy: String,
}

/// `PUT /trace`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TraceRequest {
    /// What to do.
    pub action: TraceAction,
    /// What the file is called; it comes with the request, open. Not needed to stop.
    #[serde(default)]
    pub path_on_host: Option<PathBuf>,
    /// Bytes that the file has at most; without: 256 MiB.
    #[serde(default)]
    pub limit: Option<u64>,
}

/// What becomes of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TraceAction {
    /// Write what happens from now on.
    Start,
    /// End that; `GET /trace` tells when the file is complete.
    Stop,
    /// Write the last moments, which a machine with `--flight-recorder` keeps.
    Dump,
}

/// `GET /trace`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TraceStatus {
    /// What is done.
    pub state: TraceState,
    /// The file that is being written.
    pub path_on_host: Option<String>,
    /// Why the last file has no end.
    pub failed: Option<String>,
}

/// What is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TraceState {
    /// Nothing.
    Off,
    /// The last moments are kept.
    Recording,
    /// A file is being written.
    Writing,
}
