//! The processor of this host, as /proc/cpuinfo describes it. The text is read by [`axvm_arch::cpuinfo`].

use std::fs;

use axvm_arch::cpuinfo;

/// Empty where /proc is not mounted: then nothing is known.
fn text() -> String {
    fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

/// The processor's name, such as `Intel(R) Xeon(R) CPU E5-2670 v2 @ 2.50GHz`.
pub fn processor_name() -> Option<String> {
    cpuinfo::processor_name(&text()).map(str::to_owned)
}

/// Whether the processor offers virtualization to this machine: VMX or SVM among its flags.
pub fn has_virtualization() -> bool {
    cpuinfo::virtualization(&text()).is_some()
}
