//! The processor of this host, as /proc/cpuinfo describes it. The text is read by [`axvm_arch::cpuinfo`].

use std::fs::File;
use std::io::Read;
use std::sync::OnceLock;

use axvm_arch::cpuinfo;

/// The first processor takes a page at most, and the kernel gives at least one of them in one read.
const LEN: usize = 8 << 10;

/// What is asked of it: the kernel writes the text anew for each reader, and looks at its processors for that.
struct Facts {
    name: Option<String>,
    virtualization: bool,
}

/// What is said of the first processor: all are alike, and on a large host the whole text takes milliseconds. Nothing is
/// known where /proc is not mounted.
fn facts() -> &'static Facts {
    static FACTS: OnceLock<Facts> = OnceLock::new();
    FACTS.get_or_init(|| {
        let mut bytes = [0; LEN];
        let count = File::open("/proc/cpuinfo").and_then(|mut file| file.read(&mut bytes)).unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[..count]);
        Facts {
            name: cpuinfo::processor_name(&text).map(str::to_owned),
            virtualization: cpuinfo::virtualization(&text).is_some(),
        }
    })
}

/// The processor's name, such as `Intel(R) Xeon(R) CPU E5-2670 v2 @ 2.50GHz`.
pub fn processor_name() -> Option<&'static str> {
    facts().name.as_deref()
}

/// Whether the processor offers virtualization to this machine: VMX or SVM among its flags.
pub fn has_virtualization() -> bool {
    facts().virtualization
}
