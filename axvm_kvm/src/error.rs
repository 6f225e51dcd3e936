//! What can go wrong with `/dev/kvm`, each with what the user can do about it.
//!
//! The cause (the kernel's errno) is the source of the error, never part of its message.
//!
//! Spec: KVM API (Linux Documentation/virt/kvm/api.rst), the errors of each ioctl. Left out: what the guest does wrong,
//! which is an [`Exit`](crate::Exit).

use std::path::PathBuf;
use std::{fmt, io};

use axvm_arch::Gpa;
use thiserror::Error;

/// KVM could not do what the machine needs.
#[derive(Debug, Error)]
pub enum KvmError {
    /// There is no KVM on this host.
    #[error(
        "Cannot open {path}: there is no KVM behind it. Load it (sudo modprobe kvm_intel, or kvm_amd); if that fails, \
         turn on virtualization (VT-x, AMD-V, SVM) in the firmware set-up; in a container, start it with --device /dev/kvm"
    )]
    Missing {
        /// The device file.
        path: PathBuf,
        /// What open said.
        source: io::Error,
    },
    /// KVM is there, but not for this user.
    #[error(
        "Cannot open {path}. Add yourself to the group kvm and log in again: sudo usermod -aG kvm $USER (`axvm doctor` looks whether that is the way here)"
    )]
    Permission {
        /// The device file.
        path: PathBuf,
        /// What open said.
        source: io::Error,
    },
    /// Opening failed in another way.
    #[error("Cannot open {path} for reading and writing; ls -l {path} should show a character device 10, 232")]
    Open {
        /// The device file.
        path: PathBuf,
        /// What open said.
        source: io::Error,
    },
    /// The file opens but is not a KVM of this API.
    #[error(
        "{path} answers with KVM API version {found}, AxVM speaks 12: is it really /dev/kvm (a character device 10, 232)?"
    )]
    ApiVersion {
        /// The device file.
        path: PathBuf,
        /// What `KVM_GET_API_VERSION` answered; -1 from a file that is no KVM at all.
        found: i32,
    },
    /// The kernel's KVM is too old or was built without something.
    #[error(
        "This KVM lacks {name}, which Linux has since {since}: update the kernel, or use one whose KVM has all its x86 parts"
    )]
    MissingCapability {
        /// The capability, as the KVM API calls it.
        name: &'static str,
        /// The first Linux version that has it.
        since: &'static str,
    },
    /// KVM did not answer a question about the host.
    #[error("Cannot ask KVM for {what}")]
    Query {
        /// What was asked, with the ioctl's name.
        what: &'static str,
        /// What the ioctl said.
        source: io::Error,
    },
    /// Another hypervisor owns the processor's virtualization.
    #[error(
        "Cannot create a VM: the processor's virtualization is in use by another hypervisor. Stop it (VirtualBox, \
         VMware) and try again"
    )]
    Busy(#[source] io::Error),
    /// A VM could not be created or a part of it set up.
    #[error("Cannot {step} for a new VM; the kernel log (dmesg) may say why")]
    CreateVm {
        /// The step, with the ioctl's name.
        step: &'static str,
        /// What the ioctl said.
        source: io::Error,
    },
    /// KVM did not take a piece of guest RAM.
    #[error("Cannot give KVM {len} bytes of guest RAM at {gpa} (KVM_SET_USER_MEMORY_REGION)")]
    MemorySlot {
        /// First guest-physical address.
        gpa: Gpa,
        /// Length in bytes.
        len: u64,
        /// What the ioctl said.
        source: io::Error,
    },
    /// An interrupt line could not be connected.
    #[error("Cannot connect an eventfd to interrupt line {gsi} (KVM_IRQFD); one eventfd serves one line")]
    IrqFd {
        /// Global system interrupt.
        gsi: u32,
        /// What the ioctl said.
        source: io::Error,
    },
    /// An interrupt line could not be taken.
    #[error("Cannot take interrupt line {gsi}: no more descriptors (see ulimit -n)")]
    LevelLine {
        /// Global system interrupt.
        gsi: u32,
        /// What the host said.
        source: io::Error,
    },
    /// The host has no room for another routing table.
    #[error("Cannot route the messages of PCI devices (KVM_SET_GSI_ROUTING)")]
    Routes(#[source] io::Error),
    /// More messages than KVM can route.
    #[error("Cannot give PCI devices more than {0} interrupt messages; leave out devices, or give them fewer queues")]
    Messages(u32),
    /// A doorbell could not be connected.
    #[error("Cannot connect an eventfd to writes of {len} bytes at {gpa} (KVM_IOEVENTFD); widths are 0, 1, 2 or 4")]
    IoEventFd {
        /// Address of the doorbell.
        gpa: Gpa,
        /// Width of the write, in bytes.
        len: u32,
        /// What the ioctl said.
        source: io::Error,
    },
    /// A vCPU could not be created.
    #[error(
        "Cannot create the vCPU with APIC id {id} (KVM_CREATE_VCPU): this KVM allows {max_vcpus} vCPUs in a VM, \
         with APIC ids below {max_vcpu_id}, each once"
    )]
    CreateVcpu {
        /// APIC id.
        id: u32,
        /// Most vCPUs a VM may have.
        max_vcpus: u32,
        /// First APIC id too large.
        max_vcpu_id: u32,
        /// What the ioctl said.
        source: io::Error,
    },
    /// A step of setting up a vCPU failed.
    #[error("Cannot set {step} of the vCPU with APIC id {id}")]
    VcpuSetup {
        /// APIC id.
        id: u32,
        /// What was set, with the ioctl's name.
        step: &'static str,
        /// What the ioctl said.
        source: io::Error,
    },
    /// KVM refused one MSR.
    #[error(
        "KVM does not take {value:#x} for MSR {msr:#x} of the vCPU with APIC id {id}: this host or its CPUID does not have \
         that register, or not that value"
    )]
    Msr {
        /// APIC id.
        id: u32,
        /// MSR number.
        msr: u32,
        /// The value refused.
        value: u64,
    },
    /// The means to stop a running vCPU from another thread could not be had.
    #[error("Cannot prepare to kick the vCPU with APIC id {id}")]
    Kicker {
        /// APIC id.
        id: u32,
        /// What mmap or sigaction said.
        source: io::Error,
    },
    /// A part of the state could not be read.
    #[error("Cannot save {what} of {of}; the machine goes on without having been saved")]
    Save {
        /// What was asked for, with the ioctl's name.
        what: &'static str,
        /// Whose.
        of: Owner,
        /// What the ioctl said.
        source: io::Error,
    },
    /// KVM does not take a part of a state.
    #[error(
        "Cannot restore {what} of {of}: the state was saved on another processor or by another KVM, or it is damaged; \
         restore it on a host like the one that saved it"
    )]
    Restore {
        /// What was given, with the ioctl's name.
        what: &'static str,
        /// Whose.
        of: Owner,
        /// What the ioctl said.
        source: io::Error,
    },
    /// A saved state holds what no vCPU or VM can have, or not this one.
    #[error("The saved state of {of} cannot be restored: {field} is {found}, and must be {allowed}")]
    Damaged {
        /// Whose.
        of: Owner,
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it may hold.
        allowed: String,
    },
}

/// Whose state it is, in errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The vCPU with this APIC id.
    Vcpu(u32),
    /// The VM.
    Vm,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Vcpu(id) => write!(f, "the vCPU with APIC id {id}"),
            Owner::Vm => f.write_str("the VM"),
        }
    }
}
