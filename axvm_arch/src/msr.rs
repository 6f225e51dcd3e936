//! Model-specific registers that firmware leaves with a value.
//!
//! Source: Intel SDM volume 4, chapter 2; volume 3, 12.11 "Memory Type Range Registers".

/// One MSR and the value to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msr {
    /// MSR number (ECX of RDMSR/WRMSR).
    pub index: u32,
    /// 64-bit value.
    pub value: u64,
}

/// IA32_MISC_ENABLE.
pub const MISC_ENABLE: u32 = 0x1a0;
/// IA32_MISC_ENABLE bit 0: fast string operations.
pub const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
/// IA32_MTRR_DEF_TYPE.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled.
pub const MTRR_ENABLE: u64 = 1 << 11;
/// Memory type write-back.
pub const MTRR_WRITE_BACK: u64 = 6;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;
