//! Model-specific registers: numbers, and values that firmware leaves in them.
//!
//! Spec: Intel SDM volume 4, chapter 2 "Model-Specific Registers (MSRs)"; volume 3, 12.11 "Memory Type Range Registers
//! (MTRRs)"; Linux Documentation/virt/kvm/x86/msr.rst "KVM-specific MSRs".
//! Left out: registers that no part of AxVM names; a state carries them by number.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One MSR and the value to load.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Msr {
    /// MSR number (ECX of RDMSR/WRMSR).
    pub index: u32,
    /// 64-bit value.
    pub value: u64,
}

impl fmt::Debug for Msr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} = {:#x}", self.index, self.value)
    }
}

/// IA32_TIME_STAMP_COUNTER.
pub const TSC: u32 = 0x10;
/// IA32_APIC_BASE.
pub const APIC_BASE: u32 = 0x1b;
/// IA32_MISC_ENABLE.
pub const MISC_ENABLE: u32 = 0x1a0;
/// IA32_MISC_ENABLE bit 0: fast string operations.
pub const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
/// First of the variable-range MTRRs: pairs of base and mask, one after the other.
pub const MTRR_VARIABLE: u32 = 0x200;
/// The eleven fixed-range MTRRs: 64 KiB, 16 KiB and 4 KiB pieces of the first MiB.
pub const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// IA32_MTRR_DEF_TYPE.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled.
pub const MTRR_ENABLE: u64 = 1 << 11;
/// Memory type write-back.
pub const MTRR_WRITE_BACK: u64 = 6;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_EFER.
pub const EFER: u32 = 0xc000_0080;
/// IA32_STAR: segment selectors of SYSCALL.
pub const STAR: u32 = 0xc000_0081;
/// IA32_LSTAR: where a 64-bit SYSCALL goes.
pub const LSTAR: u32 = 0xc000_0082;
/// IA32_KERNEL_GS_BASE: what SWAPGS exchanges.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// IA32_TSC_AUX: what RDTSCP and RDPID read.
pub const TSC_AUX: u32 = 0xc000_0103;

/// Registers that KVM adds for guests that know it.
pub mod kvm {
    /// Where KVM writes the time of the boot, once, when this is written; the first number it had.
    pub const WALL_CLOCK_OLD: u32 = 0x11;
    /// Where KVM keeps the time of a vCPU; the first number it had.
    pub const SYSTEM_TIME_OLD: u32 = 0x12;
    /// Where KVM writes the time of the boot, once, when this is written.
    pub const WALL_CLOCK: u32 = 0x4b56_4d00;
    /// Where KVM keeps the time of a vCPU (kvmclock).
    pub const SYSTEM_TIME: u32 = 0x4b56_4d01;
    /// The guest says that it has seen a page that came late.
    pub const ASYNC_PF_ACK: u32 = 0x4b56_4d07;
}
