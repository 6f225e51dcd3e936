//! What /proc/cpuinfo says about a processor, read from its text.
//!
//! ```text
//!   model name <TAB> : Intel(R) Xeon(R) CPU E5-2670 v2 @ 2.50GHz
//!   flags <TAB><TAB> : fpu vme ... vmx ...          one such block for each CPU; the first one speaks for all
//! ```
//!
//! Source: proc_cpuinfo(5).
//! Left out: reading the file; hybrid processors, whose CPUs differ.

/// The value of the first line `key : value`; other files of /proc have this form too.
pub fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
}

/// The processor's name, such as `Intel(R) Xeon(R) CPU E5-2670 v2 @ 2.50GHz`.
pub fn processor_name(text: &str) -> Option<&str> {
    field(text, "model name").filter(|name| !name.is_empty())
}

/// Whether the processor has the feature that Linux calls `flag`.
pub fn has_flag(text: &str, flag: &str) -> bool {
    field(text, "flags").is_some_and(|flags| flags.split_whitespace().any(|found| found == flag))
}

/// Which virtualization the processor offers to this machine: `vmx` (Intel) or `svm` (AMD).
pub fn virtualization(text: &str) -> Option<&'static str> {
    ["vmx", "svm"].into_iter().find(|flag| has_flag(text, flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "model\t\t: 62\nmodel name\t: Xeon E5 v2\nflags\t\t: fpu vmx vmx_tertiary\nmodel name\t: other\n";

    #[test]
    fn keys_are_found_whole() {
        assert_eq!(field(TEXT, "model name"), Some("Xeon E5 v2"));
        assert_eq!(field(TEXT, "flags"), Some("fpu vmx vmx_tertiary"));
        assert_eq!(field(TEXT, "name"), None);
    }

    #[test]
    fn flags_are_found_whole() {
        assert!(has_flag(TEXT, "fpu") && !has_flag(TEXT, "vm"));
        assert_eq!(virtualization(TEXT), Some("vmx"));
        assert_eq!(virtualization("flags : fpu svm_lock\n"), None);
    }

    #[test]
    fn a_processor_without_a_name_has_none() {
        assert_eq!((processor_name(TEXT), processor_name("model name :\n")), (Some("Xeon E5 v2"), None));
    }
}
