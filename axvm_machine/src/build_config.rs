//! A kernel's build configuration, where a distribution lays it beside the kernel: whether there can be virtio-mmio.
//!
//! ```text
//!   /boot/vmlinuz-5.14.0-1.el9    its header says: 5.14.0-1.el9 (builder@host) ...
//!   /boot/config-5.14.0-1.el9     CONFIG_VIRTIO_PCI=y, # CONFIG_VIRTIO_MMIO is not set
//! ```
//!
//! A proof, or nothing: the name leads to the file, the image itself must say the same, and the configuration must say
//! that there is no such driver, not even as a module. What the image has packed is not looked at: that would cost each
//! start what unpacking does.
//!
//! Source: Linux Documentation/kbuild/kconfig.rst; `scripts/install.sh`, which gives both files their names.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use axvm_boot::kernel::KernelImage;

use crate::KernelSource;
use crate::image::Image;

/// Most bytes of a configuration; they have a quarter of that.
const LIMIT: u64 = 1 << 20;

/// The configuration of the kernel at `path`, if it says that this kernel has virtio-pci and cannot have virtio-mmio.
pub fn without_mmio(kernel: &Path) -> Option<PathBuf> {
    let (_, release) = kernel.file_name()?.to_str()?.split_once('-')?;
    let path = kernel.with_file_name(format!("config-{release}"));
    let file = File::open(&path).ok().filter(|file| file.metadata().is_ok_and(|found| found.is_file()))?;
    let image = Image::kernel(&KernelSource::File(kernel.to_owned())).ok()?;
    let Ok(KernelImage::BzImage(image)) = KernelImage::parse(&image) else { return None };
    if image.release.as_ref()?.split_ascii_whitespace().next() != Some(release) {
        return None;
    }
    let mut config = String::new();
    file.take(LIMIT).read_to_string(&mut config).ok()?;
    rules_out_mmio(&config).then_some(path)
}

fn rules_out_mmio(config: &str) -> bool {
    let (mut pci, mut msi, mut no_mmio) = (false, false, false);
    for line in config.lines() {
        match line {
            "CONFIG_VIRTIO_PCI=y" | "CONFIG_VIRTIO_PCI=m" => pci = true,
            "CONFIG_PCI_MSI=y" => msi = true,
            "# CONFIG_VIRTIO_MMIO is not set" => no_mmio = true,
            _ => {}
        }
    }
    pci && msi && no_mmio
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const RULED_OUT: &str = "CONFIG_PCI_MSI=y\nCONFIG_VIRTIO_PCI=m\n# CONFIG_VIRTIO_MMIO is not set\n";

    #[test]
    fn only_a_configuration_that_says_so_rules_mmio_out() {
        assert!(rules_out_mmio(RULED_OUT));
        for config in [
            "",
            "CONFIG_PCI_MSI=y\nCONFIG_VIRTIO_PCI=y\n",
            "CONFIG_PCI_MSI=y\nCONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_MMIO=m\n",
            "CONFIG_PCI_MSI=y\n# CONFIG_VIRTIO_PCI is not set\n# CONFIG_VIRTIO_MMIO is not set\n",
            "CONFIG_VIRTIO_PCI=y\n# CONFIG_VIRTIO_MMIO is not set\n",
        ] {
            assert!(!rules_out_mmio(config), "{config}");
        }
    }

    /// A bzImage whose header calls it 9.9.9.
    fn bzimage() -> Vec<u8> {
        let mut image = vec![0; 0x800];
        let mut put = |at: usize, bytes: &[u8]| image[at..][..bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[2]);
        put(0x1f4, &[0x20]);
        put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(0x202, b"HdrS\x0f\x02");
        put(0x20e, &0x100_u16.to_le_bytes());
        put(0x211, &[1]);
        put(0x214, &0x10_0000_u32.to_le_bytes());
        put(0x300, b"9.9.9 (test)");
        image
    }

    #[test]
    fn the_configuration_is_that_of_the_kernel_itself() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        fs::write(path("config-9.9.9"), RULED_OUT).unwrap();
        fs::write(path("config-9.9.8"), RULED_OUT).unwrap();
        for name in ["vmlinuz-9.9.9", "vmlinuz-9.9.8", "vmlinuz", "vmlinuz-9.9.7"] {
            fs::write(path(name), bzimage()).unwrap();
        }
        assert_eq!(without_mmio(&path("vmlinuz-9.9.9")), Some(path("config-9.9.9")));
        for name in ["vmlinuz-9.9.8", "vmlinuz", "vmlinuz-9.9.7", "vmlinuz-none"] {
            assert_eq!(without_mmio(&path(name)), None, "{name}");
        }
        fs::write(path("vmlinuz-9.9.9"), "no kernel").unwrap();
        assert_eq!(without_mmio(&path("vmlinuz-9.9.9")), None);
    }
}
