//! The initrd: busybox, the virtio modules of one or more kernels, and an `/init` that finds the root disk.
//!
//! ```text
//!   /init   /bin/busybox   /axvm-agent   /dev/console   /lib/modules/RELEASE/{01-virtio.ko, 02-virtio_ring.ko, ...}
//! ```
//!
//! One archive serves all the kernels it was made for: `/init` loads the modules of the kernel that runs, in the order
//! of their numbers.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use axvm_cpio::Cpio;

use super::kernel::Kernel;
use super::{busybox, place, sweep};
use crate::progress::Progress;
use crate::project::{cache, fingerprint};

const INIT: &str = include_str!("../../files/guest/initrd-init");
/// What a root disk behind virtio-mmio or PCI needs (on most kernels some of it is built in; ext4 asks for its checksum by name
/// only), then the other devices, the power
/// button and its way to acpid, and the word to the host when the kernel panics.
const MODULES: [&str; 14] = [
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "crc32c_generic",
    "ext4",
    "virtio_rng",
    "virtio_balloon",
    "virtio_console",
    "virtio_net",
    "af_packet",
    "button",
    "evdev",
    "pvpanic_mmio",
    "vmw_vsock_virtio_transport",
];

/// The initrd for these kernels, with the agent that runs commands for the host.
pub fn initrd(kernels: &[&Kernel], agent: &[u8]) -> Result<PathBuf> {
    let releases = kernels.iter().map(|kernel| kernel.release.as_str()).collect::<Vec<_>>().join(" ");
    let present =
        kernels.iter().map(|kernel| kernel.modules.as_ref().map_or(Vec::new(), |tree| tree.present(&MODULES)));
    let present = present.map(|names| names.join(" ")).collect::<Vec<_>>().join(";");
    let key = fingerprint(&[releases.as_bytes(), INIT.as_bytes(), present.as_bytes(), agent]);
    let path = cache().join(format!("initrd-{key}.img"));
    if !path.exists() {
        let _progress = Progress::spinner(&format!("Making the initrd for {releases}"));
        sweep("initrd-");
        place(&path, &build(kernels, agent)?)?;
    }
    Ok(path)
}

/// Whether this archive was made here: it carries our `/init`, of whatever version.
pub fn is_our_initrd(archive: &[u8]) -> bool {
    let sign = INIT.lines().nth(1).unwrap_or_default().as_bytes();
    archive.windows(sign.len()).any(|window| window == sign)
}

fn build(kernels: &[&Kernel], agent: &[u8]) -> Result<Vec<u8>> {
    let busybox = busybox()?;
    let mut archive = skeleton(&fs::read(&busybox).with_context(|| format!("Cannot read {}", busybox.display()))?);
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("axvm-agent", 0o755, agent);
    for kernel in kernels {
        add_modules(&mut archive, kernel, &MODULES)?;
    }
    Ok(archive.finish())
}

/// The directories, the console and busybox.
pub fn skeleton(busybox: &[u8]) -> Cpio {
    let mut archive = Cpio::default();
    for dir in ["bin", "dev", "etc", "lib", "lib/modules", "mnt", "proc", "root", "sys", "tmp"] {
        archive.directory(dir);
    }
    archive.device("dev/console", 5, 1);
    archive.file("bin/busybox", 0o755, busybox);
    archive.symlink("bin/sh", "busybox");
    archive
}

/// The wanted modules below `lib/modules/RELEASE`, numbered in load order.
pub fn add_modules(archive: &mut Cpio, kernel: &Kernel, wanted: &[&str]) -> Result<()> {
    let dir = format!("lib/modules/{}", kernel.release);
    archive.directory(&dir);
    let Some(tree) = &kernel.modules else { return Ok(()) };
    for (number, module) in tree.load_order(wanted)?.into_iter().enumerate() {
        archive.file(&format!("{dir}/{number:02}-{}.ko", module.name), 0o644, &module.bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_initrd_is_known_by_its_init() {
        let mut archive = skeleton(b"busybox");
        archive.file("init", 0o755, INIT.as_bytes());
        assert!(is_our_initrd(&archive.finish()));
        assert!(!is_our_initrd(&skeleton(b"busybox").finish()));
    }
}
