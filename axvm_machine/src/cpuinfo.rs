//! What /proc/cpuinfo says about the host's processor.
//!
//! Source: proc_cpuinfo(5).

use std::fs;

/// The value of the first line of /proc/cpuinfo that starts with `key`.
fn cpuinfo(key: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    value(&text, key).map(str::to_owned)
}

fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim())
}

/// The processor's name, such as `Intel(R) Xeon(R) CPU E5-2670 v2 @ 2.50GHz`.
pub fn processor_name() -> Option<String> {
    cpuinfo("model name").filter(|name| !name.is_empty())
}

/// Whether the processor offers virtualization to this machine: VMX or SVM among its flags.
pub fn has_virtualization() -> bool {
    cpuinfo("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "vmx" || flag == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_whole() {
        let text = "model\t\t: 62\nmodel name\t: Xeon E5 v2\nflags\t\t: fpu vmx\nmodel name\t: other\n";
        assert_eq!(value(text, "model name"), Some("Xeon E5 v2"));
        assert_eq!(value(text, "flags"), Some("fpu vmx"));
        assert_eq!(value(text, "name"), None);
    }
}
