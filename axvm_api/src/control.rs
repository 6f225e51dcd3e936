//! What the control socket needs from a machine.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use thiserror::Error;

use crate::types::{
    Added, Balloon, BalloonStatistics, DriveUpdate, DumpStatus, Explanation, GuestSymbols, Inspection, MemoryContents,
    NetworkUpdate, NewDrive, NewNetwork, Removal, Status, TraceRequest, TraceStatus, VcpuRegisters, VmConfig,
};

/// A running machine, as the control socket sees it.
///
/// Calls come from the one thread `api`, one at a time, and may take some milliseconds. An error becomes
/// `400 {"fault_message": ...}`.
pub trait Control: Send + Sync {
    /// What the machine is and does now.
    fn status(&self) -> Result<Status, ControlError>;
    /// What the guest does, and why that may be no progress.
    fn explain(&self) -> Result<Explanation, ControlError>;
    /// The whole machine at one moment; and how the first vCPU translates an address, which is a number, a register or a
    /// symbol.
    fn inspect(&self, walk: Option<&str>) -> Result<Inspection, ControlError>;
    /// Each vCPU's registers.
    fn registers(&self) -> Result<Vec<VcpuRegisters>, ControlError>;
    /// `len` bytes of the guest's memory from `address`, which is a number, a register or a symbol, in `space`: `physical`,
    /// or `vcpu0` for linear addresses as the first vCPU has them.
    fn memory(&self, space: &str, address: &str, len: &str) -> Result<MemoryContents, ControlError>;
    /// What the guest's kernel calls its functions, and where they are.
    fn symbols(&self) -> Result<GuestSymbols, ControlError>;
    /// Begins to write memory and registers into a file that the client has opened, as an ELF core.
    fn dump(&self, descriptors: Vec<OwnedFd>) -> Result<(), ControlError>;
    /// Serves gdb at the other end of a stream that the client has made.
    fn debug(&self, descriptors: Vec<OwnedFd>) -> Result<(), ControlError>;
    /// How far that is.
    fn dump_status(&self) -> Result<DumpStatus, ControlError>;
    /// Begins or ends a trace, or writes what was kept, to the file that the client has opened.
    fn trace(&self, request: &TraceRequest, descriptors: Vec<OwnedFd>) -> Result<(), ControlError>;
    /// What is recorded and written.
    fn tracing(&self) -> Result<TraceStatus, ControlError>;
    /// What the machine was built from.
    fn config(&self) -> Result<VmConfig, ControlError>;
    /// Stops every vCPU and worker at a point from which all state could be read. Done when it returns; twice is once.
    fn pause(&self) -> Result<(), ControlError>;
    /// Undoes [`Control::pause`]; a running machine stays as it is.
    fn resume(&self) -> Result<(), ControlError>;
    /// Presses the power button: the guest is asked to power off.
    fn power_button(&self) -> Result<(), ControlError>;
    /// Gives the first vCPU a non-maskable interrupt.
    fn nmi(&self) -> Result<(), ControlError>;
    /// Sends a BREAK on the serial port.
    fn serial_break(&self) -> Result<(), ControlError>;
    /// Resets the machine, whether the guest likes it or not.
    fn reset(&self) -> Result<(), ControlError>;
    /// Ends the machine at once: completed flushes are on disk, the guest is not asked.
    fn stop(&self) -> Result<(), ControlError>;
    /// The balloon and its target.
    fn balloon(&self) -> Result<Balloon, ControlError>;
    /// Asks the guest to give up `amount_mib` of its memory.
    fn set_balloon(&self, amount_mib: u32) -> Result<(), ControlError>;
    /// Looks at the size of a disk's image again, and tells the guest if it grew.
    fn update_drive(&self, update: &DriveUpdate) -> Result<(), ControlError>;
    /// Adds a disk, whose image the client has opened.
    fn add_drive(&self, drive: &NewDrive, descriptors: Vec<OwnedFd>) -> Result<Added, ControlError>;
    /// Adds a network card, whose cable the client has opened.
    fn add_network(&self, network: &NewNetwork, descriptors: Vec<OwnedFd>) -> Result<Added, ControlError>;
    /// Asks the guest to let go of a disk or a network card that was added, or takes it away.
    fn remove(&self, removal: &Removal) -> Result<(), ControlError>;
    /// Plugs the cable of a network card in, or pulls it.
    fn update_network(&self, update: &NetworkUpdate) -> Result<(), ControlError>;
    /// What the guest last said about its memory.
    fn balloon_statistics(&self) -> Result<BalloonStatistics, ControlError>;
    /// Seconds between two such reports.
    fn set_statistics_interval(&self, seconds: u32) -> Result<(), ControlError>;
    /// A way onto the console, or why there is none. The answer `101` is written before it is called.
    fn attach_console(&self) -> Result<Attach, ControlError>;
}

/// Takes a stream onto the console, with the bytes that the client already typed.
///
/// It runs on the thread `api`, so it must not wait for the client; the stream comes in blocking mode.
pub type Attach = Box<dyn FnOnce(UnixStream, Vec<u8>) + Send>;

/// Why a request was not granted: one sentence for people, with what to do.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ControlError(pub String);

impl From<String> for ControlError {
    fn from(message: String) -> ControlError {
        ControlError(message)
    }
}

impl From<&str> for ControlError {
    fn from(message: &str) -> ControlError {
        ControlError(message.into())
    }
}
