//! The processor of this host, as /proc/cpuinfo describes it. The text is read by [`axvm_arch::cpuinfo`].

use std::fs::File;
use std::io::Read;

use axvm_arch::cpuinfo;

/// The first processor takes a page at most, and the kernel gives at least one of them in one read.
const LEN: usize = 8 << 10;

/// What is said of the first processor: all are alike, and on a large host the whole text takes milliseconds. Empty where
/// /proc is not mounted: then nothing is known.
fn text() -> String {
    let mut bytes = [0; LEN];
    let count = File::open("/proc/cpuinfo").and_then(|mut file| file.read(&mut bytes)).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

/// The processor's name, such as `Intel(R) Xeon(R) CPU E5-2670 v2 @ 2.50GHz`.
pub fn processor_name() -> Option<String> {
    cpuinfo::processor_name(&text()).map(str::to_owned)
}

/// Whether the processor offers virtualization to this machine: VMX or SVM among its flags.
pub fn has_virtualization() -> bool {
    cpuinfo::virtualization(&text()).is_some()
}
