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

/// The manual's name of an MSR, for those that matter to a guest's start and end.
pub fn name(index: u32) -> Option<&'static str> {
    NAMES.iter().find(|(number, _)| *number == index).map(|(_, name)| *name)
}

/// SYSENTER's stack pointer.
pub const SYSENTER_ESP: u32 = 0x175;
/// Where SYSENTER goes.
pub const SYSENTER_EIP: u32 = 0x176;
/// IA32_DEBUGCTL: single steps of branches, last-branch records.
pub const DEBUGCTL: u32 = 0x1d9;
/// IA32_PAT: eight memory types, one for each combination of PWT, PCD and PAT in a page table.
pub const PAT: u32 = 0x277;

const NAMES: &[(u32, &str)] = &[
    (TSC, "IA32_TIME_STAMP_COUNTER"),
    (APIC_BASE, "IA32_APIC_BASE"),
    (0x3a, "IA32_FEATURE_CONTROL"),
    (0x3b, "IA32_TSC_ADJUST"),
    (0x48, "IA32_SPEC_CTRL"),
    (0x49, "IA32_PRED_CMD"),
    (0x8b, "IA32_BIOS_SIGN_ID"),
    (0xfe, "IA32_MTRRCAP"),
    (0x10a, "IA32_ARCH_CAPABILITIES"),
    (0x10b, "IA32_FLUSH_CMD"),
    (0x174, "IA32_SYSENTER_CS"),
    (SYSENTER_ESP, "IA32_SYSENTER_ESP"),
    (SYSENTER_EIP, "IA32_SYSENTER_EIP"),
    (0x179, "IA32_MCG_CAP"),
    (0x17a, "IA32_MCG_STATUS"),
    (0x186, "IA32_PERFEVTSEL0"),
    (MISC_ENABLE, "IA32_MISC_ENABLE"),
    (DEBUGCTL, "IA32_DEBUGCTL"),
    (PAT, "IA32_PAT"),
    (MTRR_DEF_TYPE, "IA32_MTRR_DEF_TYPE"),
    (0x38f, "IA32_PERF_GLOBAL_CTRL"),
    (0x480, "IA32_VMX_BASIC"),
    (0x6a0, "IA32_U_CET"),
    (0x6a2, "IA32_S_CET"),
    (TSC_DEADLINE, "IA32_TSC_DEADLINE"),
    (0xda0, "IA32_XSS"),
    (EFER, "IA32_EFER"),
    (STAR, "IA32_STAR"),
    (LSTAR, "IA32_LSTAR"),
    (0xc000_0083, "IA32_CSTAR"),
    (0xc000_0084, "IA32_FMASK"),
    (0xc000_0100, "IA32_FS_BASE"),
    (0xc000_0101, "IA32_GS_BASE"),
    (KERNEL_GS_BASE, "IA32_KERNEL_GS_BASE"),
    (TSC_AUX, "IA32_TSC_AUX"),
    (0xc001_0015, "HWCR (AMD)"),
    (0xc001_0114, "VM_CR (AMD)"),
    (0xc001_011f, "VIRT_SPEC_CTRL (AMD)"),
    (kvm::WALL_CLOCK_OLD, "KVM's wall clock (old number)"),
    (kvm::SYSTEM_TIME_OLD, "KVM's system time (old number)"),
    (kvm::WALL_CLOCK, "KVM's wall clock"),
    (kvm::SYSTEM_TIME, "KVM's system time"),
    (0x4b56_4d02, "KVM's asynchronous page faults"),
    (0x4b56_4d03, "KVM's steal time"),
    (0x4b56_4d04, "KVM's paravirtual EOI"),
    (kvm::ASYNC_PF_ACK, "KVM's acknowledgement of a page that came late"),
];

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_has_two_names() {
        for (n, (number, name)) in NAMES.iter().enumerate() {
            assert_eq!(NAMES.iter().position(|(other, _)| other == number), Some(n), "{name}");
        }
        assert_eq!((name(0xc000_0080), name(0x9999)), (Some("IA32_EFER"), None));
    }
}
