//! MSRs as firmware leaves them: memory is write-back, string instructions are fast.
//!
//! Source: Intel SDM volume 3, 12.11 "Memory Type Range Registers"; volume 4, IA32_MISC_ENABLE.
//! Left out: fixed and variable MTRRs. All of memory has the default type, as EPT and NPT do it anyway.

use axvm_arch::msr::{MISC_ENABLE, MISC_ENABLE_FAST_STRING, MTRR_DEF_TYPE, MTRR_ENABLE, MTRR_WRITE_BACK, Msr};

/// IA32_MISC_ENABLE: no branch trace storage, no precise event sampling.
const MISC_ENABLE_NO_BTS_NO_PEBS: u64 = 0b11 << 11;

/// What to load into every vCPU; `supported` is KVM's list (`KVM_GET_MSR_INDEX_LIST`).
///
/// MTRR_DEF_TYPE is loaded always: every KVM has it, but older ones do not list it.
pub fn msrs(supported: &[u32]) -> Vec<Msr> {
    let mut msrs = vec![Msr { index: MTRR_DEF_TYPE, value: MTRR_ENABLE | MTRR_WRITE_BACK }];
    if supported.contains(&MISC_ENABLE) {
        msrs.push(Msr { index: MISC_ENABLE, value: MISC_ENABLE_FAST_STRING | MISC_ENABLE_NO_BTS_NO_PEBS });
    }
    msrs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_write_back_even_where_kvm_does_not_list_the_mtrrs() {
        assert_eq!(msrs(&[]), [Msr { index: 0x2ff, value: 0x806 }]);
    }

    #[test]
    fn misc_enable_is_loaded_where_kvm_knows_it() {
        assert_eq!(msrs(&[0x10, 0x1a0])[1], Msr { index: 0x1a0, value: 0x1801 });
    }
}
