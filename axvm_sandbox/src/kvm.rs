//! The requests that AxVM makes of KVM, by the threads that make them.
//!
//! ```text
//!   main     makes a machine at each start, restores one     create, set, connect
//!   vcpuN    runs its vCPU, saves what it is told to         run, get, flush interrupts; with PCI: route, move doorbells
//!   console, api, main    press the power button             set a line
//! ```
//!
//! A request that is not here stops the thread. So a thread of a vCPU that a guest has taken over cannot give the guest
//! other memory, make a second VM, or load what it likes into another vCPU. What learns a new request adds it here, for
//! the thread that makes it.
//!
//! Spec: Linux `include/uapi/linux/kvm.h`; the whole number counts, for some differ only in direction and length.

/// Of a vCPU's thread. The first is the one that counts: each way into the guest.
pub(crate) const VCPU: &[u64] = &[
    0xae80,      // KVM_RUN
    0x8004_ae98, // KVM_GET_MP_STATE: whether an AP was started
    0xaead,      // KVM_KVMCLOCK_CTRL: after a pause
    0xae9a,      // KVM_NMI: of its own vCPU
    0x4008_ae61, // KVM_IRQ_LINE: a guest that enables or clears a reason of the SCI
    // To save, from the vCPU's own thread.
    0x8090_ae81, // KVM_GET_REGS
    0x8138_ae83, // KVM_GET_SREGS
    0x8040_ae9f, // KVM_GET_VCPU_EVENTS
    0x8080_aea1, // KVM_GET_DEBUGREGS
    0x9000_aea4, // KVM_GET_XSAVE
    0x8188_aea6, // KVM_GET_XCRS
    0xc008_ae88, // KVM_GET_MSRS
    0x8400_ae8e, // KVM_GET_LAPIC
    0xc008_ae91, // KVM_GET_CPUID2
    0xaea3,      // KVM_GET_TSC_KHZ
    0xc208_ae62, // KVM_GET_IRQCHIP
    0x8070_ae9f, // KVM_GET_PIT2
    0x8030_ae7c, // KVM_GET_CLOCK
    // To debug: registers that the user sets, steps and breakpoints of its own guest.
    0x4090_ae82, // KVM_SET_REGS
    0x4004_ae99, // KVM_SET_MP_STATE: a step ends a HLT
    0x4040_aea0, // KVM_SET_VCPU_EVENTS: a HLT that is stepped over ends what an STI holds back
    0x4048_ae9b, // KVM_SET_GUEST_DEBUG
    0x4020_ae76, // KVM_IRQFD: taken off and put back, all edges have arrived then
];

/// Of a vCPU's thread, on a machine with PCI.
pub(crate) const PCI: &[u64] = &[
    0x4008_ae6a, // KVM_SET_GSI_ROUTING: a guest that writes the message of an interrupt
    0x4040_ae79, // KVM_IOEVENTFD: a guest that moves registers, and doorbells with them
];

/// Of the control socket's thread, on a machine with PCI: a device that comes, or is taken away by force.
pub(crate) const HOTPLUG: &[u64] = &[
    0x4020_ae76, // KVM_IRQFD: its interrupts
    0x4008_ae6a, // KVM_SET_GSI_ROUTING: those of one that could not be made whole
    0x4040_ae79, // KVM_IOEVENTFD: doorbells
];

/// Of each thread that may press the power button: KVM_IRQ_LINE.
pub(crate) const BUTTON: &[u64] = &[0x4008_ae61];

/// Of main alone: a new machine at a reset, or one that was saved.
pub(crate) const MAKER: &[u64] = &[
    0xae00,      // KVM_GET_API_VERSION
    0xae01,      // KVM_CREATE_VM
    0xc004_ae02, // KVM_GET_MSR_INDEX_LIST
    0xae03,      // KVM_CHECK_EXTENSION
    0xae04,      // KVM_GET_VCPU_MMAP_SIZE
    0xc008_ae05, // KVM_GET_SUPPORTED_CPUID
    0xae41,      // KVM_CREATE_VCPU
    0x4020_ae46, // KVM_SET_USER_MEMORY_REGION
    0xae47,      // KVM_SET_TSS_ADDR
    0x4008_ae48, // KVM_SET_IDENTITY_MAP_ADDR
    0xae60,      // KVM_CREATE_IRQCHIP
    0x4040_ae77, // KVM_CREATE_PIT2
    0x4008_ae6a, // KVM_SET_GSI_ROUTING
    0x4040_ae79, // KVM_IOEVENTFD
    0x4068_aea3, // KVM_ENABLE_CAP: 32-bit APIC ids, no performance counters
    0x4008_ae90, // KVM_SET_CPUID2
    0x4008_ae89, // KVM_SET_MSRS
    0x4090_ae82, // KVM_SET_REGS
    0x4138_ae84, // KVM_SET_SREGS
    0x4400_ae8f, // KVM_SET_LAPIC
    // To restore.
    0x4004_ae99, // KVM_SET_MP_STATE
    0x4040_aea0, // KVM_SET_VCPU_EVENTS
    0x4080_aea2, // KVM_SET_DEBUGREGS
    0x5000_aea5, // KVM_SET_XSAVE
    0x4188_aea7, // KVM_SET_XCRS
    0xaea2,      // KVM_SET_TSC_KHZ
    0x8208_ae63, // KVM_SET_IRQCHIP
    0x4070_aea0, // KVM_SET_PIT2
    0x4030_ae7b, // KVM_SET_CLOCK
];
