//! What a client sees of a guest's processors and memory: the bodies of `/registers`, `/memory` and `/dump`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
