//! The features that CPUID tells, by the names that Linux has for them in /proc/cpuinfo.
//!
//! ```text
//!   leaf 7, subleaf 0, EBX 0x281 --names--> fsgsbase smep erms
//! ```
//!
//! Spec: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; Linux arch/x86/include/asm/cpufeatures.h for the names,
//! and Documentation/virt/kvm/x86/cpuid.rst for those of KVM's own leaf. Left out: answers that are numbers; features that
//! Linux has no name for.

use crate::cpuid::CpuidEntry;

/// One of the four registers of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Output {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Output {
    /// All of them, in the order of an answer.
    pub const ALL: [Output; 4] = [Output::Eax, Output::Ebx, Output::Ecx, Output::Edx];

    /// Its value in `entry`.
    pub const fn of(self, entry: &CpuidEntry) -> u32 {
        match self {
            Output::Eax => entry.eax,
            Output::Ebx => entry.ebx,
            Output::Ecx => entry.ecx,
            Output::Edx => entry.edx,
        }
    }

    /// As the manual writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Output::Eax => "EAX",
            Output::Ebx => "EBX",
            Output::Ecx => "ECX",
            Output::Edx => "EDX",
        }
    }
}

/// The names of the 32 bits of an answer, bit 0 first, `-` for one without a name; none if it is no word of features.
pub fn names(function: u32, index: u32, output: Output) -> Option<impl Iterator<Item = &'static str>> {
    let word =
        WORDS.iter().find(|(leaf, subleaf, register, _)| (*leaf, *subleaf, *register) == (function, index, output));
    word.map(|(.., names)| names.split_whitespace())
}

/// The names of the bits that are set in `value`; `bit N` for those without one.
pub fn set(function: u32, index: u32, output: Output, value: u32) -> Option<Vec<String>> {
    let names: Vec<&str> = names(function, index, output)?.collect();
    let bits = (0..32_usize).filter(|bit| value >> bit & 1 != 0);
    Some(
        bits.map(|bit| match names.get(bit) {
            Some(&name) if name != "-" => name.to_owned(),
            _ => format!("bit {bit}"),
        })
        .collect(),
    )
}

use Output::{Eax, Ebx, Ecx, Edx};

/// Words of features: leaf, subleaf, register, names from bit 0 up.
#[rustfmt::skip]
const WORDS: &[(u32, u32, Output, &str)] = &[
    (1, 0, Ecx, "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm \
                 - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand \
                 hypervisor"),
    (1, 0, Edx, "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov \
                 pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe"),
    (6, 0, Eax, "dtherm ida arat - pln - pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req"),
    (7, 0, Ebx, "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm - mpx rdt_a \
                 avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd \
                 sha_ni avx512bw avx512vl"),
    (7, 0, Ecx, "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
                 avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri \
                 movdir64b enqcmd sgx_lc -"),
    (7, 0, Edx, "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear \
                 rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 \
                 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities \
                 spec_ctrl_ssbd"),
    (7, 1, Eax, "sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - \
                 - fred lkgs wrmsrns - amx_fp16 hreset avx_ifma - - lam"),
    (0xd, 1, Eax, "xsaveopt xsavec xgetbv1 xsaves"),
    (0x4000_0001, 0, Eax, "kvmclock nop_io_delay mmu_op kvmclock2 async_pf steal_time pv_eoi pv_unhalt - pv_tlb_flush \
                           async_pf_vmexit pv_send_ipi poll_control pv_sched_yield async_pf_int msi_ext_dest_id \
                           hc_map_gpa_range migration_control - - - - - - kvmclock_stable"),
    (0x8000_0001, 0, Ecx, "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop \
                           skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc \
                           perfctr_llc mwaitx"),
    (0x8000_0001, 0, Edx, "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov \
                           pat pse36 - mp nx - mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow"),
    (0x8000_0007, 0, Edx, "ts fid vid ttp tm stc 100mhzsteps hwpstate constant_tsc cpb eff_freq_ro"),
    (0x8000_0008, 0, Ebx, "clzero irperf xsaveerptr invlpgb rdpru - mba - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp \
                           ibrs_always_on amd_stibp_always_on ibrs_preferred ibrs_same_mode - - - amd_ppin amd_ssbd \
                           virt_ssbd amd_ssb_no cppc amd_psfd btc_no ibpb_ret"),
    (0x8000_000a, 0, Edx, "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - pausefilter - \
                           pfthreshold avic - v_vmsave_vmload vgif - - - v_spec_ctrl"),
    (0x8000_0021, 0, Eax, "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - autoibrs"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_the_names_of_linux() {
        let of =
            |leaf, output, bits: &[u32]| set(leaf, 0, output, bits.iter().fold(0, |all, bit| all | 1 << bit)).unwrap();
        assert_eq!(of(1, Ecx, &[0, 5, 21, 24, 31]), ["pni", "vmx", "x2apic", "tsc_deadline_timer", "hypervisor"]);
        assert_eq!(of(1, Edx, &[0, 15, 16, 25, 26, 31]), ["fpu", "cmov", "pat", "sse", "sse2", "pbe"]);
        assert_eq!(of(7, Ebx, &[0, 7, 9, 16, 31, 13]), ["fsgsbase", "smep", "erms", "bit 13", "avx512f", "avx512vl"]);
        assert_eq!(of(7, Ecx, &[2, 16, 22]), ["umip", "la57", "rdpid"]);
        assert_eq!(of(7, Edx, &[10, 26, 31]), ["md_clear", "spec_ctrl", "spec_ctrl_ssbd"]);
        assert_eq!(of(0x8000_0001, Edx, &[11, 20, 26, 29]), ["syscall", "nx", "pdpe1gb", "lm"]);
        assert_eq!(of(0x8000_0001, Ecx, &[2, 22]), ["svm", "topoext"]);
        assert_eq!(of(0x8000_0008, Ebx, &[12, 24, 30]), ["amd_ibpb", "amd_ssbd", "ibpb_ret"]);
        assert_eq!(
            of(0x4000_0001, Eax, &[0, 5, 15, 24]),
            ["kvmclock", "steal_time", "msi_ext_dest_id", "kvmclock_stable"]
        );
        assert_eq!(set(2, 0, Eax, 1), None, "no word of features");
    }

    #[test]
    fn no_word_has_more_names_than_bits_nor_one_twice() {
        for (leaf, index, output, text) in WORDS {
            let names: Vec<&str> = text.split_whitespace().filter(|name| *name != "-").collect();
            assert!(text.split_whitespace().count() <= 32, "{leaf:#x}.{index} {output:?}");
            let mut once = names.clone();
            once.sort_unstable();
            once.dedup();
            assert_eq!(once.len(), names.len(), "{leaf:#x}.{index} {output:?}");
        }
    }
}
