//! Why a machine cannot be built or started.

use std::io;

use axvm_boot::acpi::AcpiError;
use axvm_boot::linux::BootError;
use axvm_boot::plan::PlanError;
use axvm_devices::PlugError;
use axvm_kvm::KvmError;
use axvm_memory::RamError;
use axvm_virtio::block::DiskError;
use thiserror::Error;

use crate::saved::MismatchError;

/// A machine that cannot be; the host or the specification is the reason, never a guest.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MachineError {
    /// There is no place for all parts.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// KVM refuses.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// More vCPUs than KVM runs.
    #[error("--cpus {count}: KVM on this host runs at most {limit} vCPUs in one machine")]
    Vcpus {
        /// How many were asked for.
        count: u32,
        /// How many are possible.
        limit: u32,
    },
    /// Guest RAM is not to be had.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A disk image does not open.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A kernel or an initrd is not to be read.
    #[error("Cannot read {what} {path}: {why}")]
    Image {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file, for people.
        path: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The kernel does not fit the machine.
    #[error("Cannot boot {kernel}")]
    Boot {
        /// The file, for people.
        kernel: String,
        /// Why not.
        source: BootError,
    },
    /// Its caller wanted an end before it was built.
    #[error("The set-up of the machine was interrupted")]
    Interrupted,
    /// The ACPI tables do not fit.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Two parts claim one address: the plan is wrong.
    #[error("The plan of the machine contradicts itself, a bug of AxVM")]
    Plug(#[from] PlugError),
    /// The host's hard limit of open files is too low.
    #[error(
        "This machine needs up to {needed} open files, and the host's limit is {limit}; raise it: ulimit -n {needed}"
    )]
    OpenFiles {
        /// How many may be needed at a time.
        needed: u64,
        /// How many the host allows.
        limit: u64,
    },
    /// The soft limit of open files cannot be raised.
    #[error("Cannot raise the limit of open files to {needed}; raise it before: ulimit -n {needed}")]
    RaiseOpenFiles {
        /// How many may be needed at a time.
        needed: u64,
        /// What the host said.
        source: io::Error,
    },
    /// A second console was specified, and no port given for it.
    #[error("The machine has a virtio console or a debug console, but no port for it was given")]
    NoPort,
    /// A network card was specified, and no link given for it.
    #[error("The machine has a network card net{0}, but no link for it was given")]
    NoLink(usize),
    /// A socket device was specified, and no host's end given for it.
    #[error("The machine has a socket device, but no host's end for it was given")]
    NoVsockHost,
    /// A port for the agent was specified, and no host's end given for it.
    #[error("The machine has a port for the guest's agent, but no host's end for it was given")]
    NoAgentPortHost,
    /// The host has no descriptor or the like for a part.
    #[error("Cannot make {what}")]
    Host {
        /// The part.
        what: String,
        /// What the host said.
        source: io::Error,
    },
    /// A saved machine does not fit.
    #[error(transparent)]
    Mismatch(#[from] MismatchError),
    /// A machine that was to begin paused does not stand still.
    #[error("The vCPUs of a restored machine do not stand still; the host is overloaded, try again")]
    NotStill,
    /// The host has no thread for a vCPU.
    #[error("Cannot start the thread of vCPU {vcpu}; give fewer --cpus, or raise a limit (ulimit -u, ulimit -v)")]
    VcpuThread {
        /// Number of the vCPU.
        vcpu: u32,
        /// What the host said.
        source: io::Error,
    },
}

impl MachineError {
    /// The host has nothing to make `what` from.
    pub(crate) fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> MachineError {
        let what = what.into();
        move |source| MachineError::Host { what, source }
    }
}
