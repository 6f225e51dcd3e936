//! A kernel's build configuration, as text: `.config`, `/boot/config-*`, or unpacked from the image.
//!
//! ```text
//!   CONFIG_VIRTIO_BLK=m             # CONFIG_VIRTIO_MMIO is not set
//!   CONFIG_NR_CPUS=8192             what is not there at all depends on something that is not set: the same as not set
//! ```
//!
//! Spec: Linux Documentation/kbuild/kconfig.rst. Left out: hexadecimal numbers.

use std::collections::BTreeMap;

/// Most bytes of a configuration; distributions' have a quarter of that.
pub const LIMIT: usize = 1 << 20;

/// What the options are set to, without `CONFIG_`. Options that are not set are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildConfig(BTreeMap<String, String>);

impl BuildConfig {
    /// Reads it; none if the text is no configuration of a kernel.
    pub fn parse(text: &str) -> Option<BuildConfig> {
        let option = |line: &str| {
            let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
            Some((name.to_owned(), value.trim().to_owned()))
        };
        let options: BTreeMap<_, _> = text.lines().filter_map(option).collect();
        // Every kernel for a PC has set one of these; a list of a few options is no configuration.
        (options.contains_key("X86") || options.contains_key("X86_64")).then_some(BuildConfig(options))
    }

    /// What an option is set to.
    pub fn value(&self, option: &str) -> Option<&str> {
        self.0.get(option).map(String::as_str)
    }

    /// A number.
    pub fn number(&self, option: &str) -> Option<u32> {
        self.value(option)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_what_is_not_set_is_not_there() {
        let text = "#\n# Linux/x86 9.9.9 Kernel Configuration\n#\nCONFIG_X86_64=y\nCONFIG_VIRTIO_BLK=m\n\
                    # CONFIG_SMP is not set\nCONFIG_NR_CPUS=64\nCONFIG_CMDLINE=\"a=b c\"\n";
        let config = BuildConfig::parse(text).unwrap();
        assert_eq!((config.value("VIRTIO_BLK"), config.value("SMP")), (Some("m"), None));
        assert_eq!((config.number("NR_CPUS"), config.number("CMDLINE")), (Some(64), None));
        assert_eq!(config.value("CMDLINE"), Some("\"a=b c\""));
    }

    #[test]
    fn what_is_no_configuration_proves_nothing() {
        for text in ["", "CONFIG_SMP=y\n", "# CONFIG_X86_64 is not set\n", "X86_64=y\n", "\0\u{fffd}"] {
            assert_eq!(BuildConfig::parse(text), None, "{text:?}");
        }
    }
}
