//! The root file system: the disk that the kernel command line names, or the initrd itself.
//!
//! ```text
//!   root=/dev/vda  wait for it --> mount at /axvm-root --> /dev, /proc, /sys move there --> it becomes /
//!                  '-> it does not come: /sys tells which driver is missing, and on which bus the disks are
//!   root=none, or no root=         the initrd stays
//! ```
//!
//! Spec: Linux Documentation/admin-guide/kernel-parameters.rst (`root=`, `rootfstype=`, `rootflags=`, `ro`);
//! Documentation/filesystems/ramfs-rootfs-initramfs.rst ("switch_root").
//! Left out: `root=UUID=` and the like, for which no kernel has a way either; swap, volumes, encryption.

use std::env;
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount, mount_move, mount_remount};
use rustix::process::chroot;

use crate::Error;

/// How long a disk may take to be found.
const PATIENCE: Duration = Duration::from_secs(10);
const PLACE: &str = "/axvm-root";

/// What a kernel command line says about the root.
#[derive(Debug, PartialEq, Eq)]
struct Wanted<'a> {
    device: &'a str,
    kinds: Option<&'a str>,
    options: &'a str,
    read_only: bool,
}

impl Wanted<'_> {
    /// None: the initrd is the root.
    fn read(line: &str) -> Option<Wanted<'_>> {
        let value = |name: &str| {
            line.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let last = line.split_ascii_whitespace().rev().find(|word| ["ro", "rw"].contains(word));
        let device = value("root").filter(|device| *device != "none")?;
        let options = value("rootflags").unwrap_or_default();
        Some(Wanted { device, kinds: value("rootfstype"), options, read_only: last != Some("rw") })
    }
}

/// Makes the disk that `line` names the root.
pub fn enter(line: &str) -> Result<(), Error> {
    let Some(wanted) = Wanted::read(line) else { return Ok(()) };
    let device = wanted.device;
    if !device.starts_with("/dev/") {
        return Err(format!("Cannot find root={device}: name the device, such as root=/dev/vda1").into());
    }
    let until = Instant::now() + PATIENCE;
    while !fs::exists(device).unwrap_or(false) {
        if Instant::now() > until {
            let why = why_absent(Path::new("/sys"));
            return Err(format!("There is no disk {device}: {why}. root=none keeps the initrd").into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    mount_disk(&wanted)?;
    for at in ["/dev", "/proc", "/sys"] {
        let inside = format!("{PLACE}{at}");
        // A root without it gets it; where that cannot be, it is mounted anew later, or missing.
        _ = fs::create_dir_all(&inside);
        _ = mount_move(at, inside.as_str());
    }
    env::set_current_dir(PLACE)?;
    mount_move(".", "/")?;
    chroot(".")?;
    env::set_current_dir("/")?;
    Ok(())
}

/// Why a disk is not there, as the drivers and devices in `sys` tell.
fn why_absent(sys: &Path) -> String {
    let has = |driver: &str| fs::exists(sys.join("bus").join(driver)).unwrap_or(false);
    let (mmio, pci) = (has("platform/drivers/virtio-mmio"), has("pci/drivers/virtio-pci"));
    // A machine has one virtio device at least: where none is found, its bus has no driver.
    let found = !entries(&sys.join("bus/virtio/devices")).is_empty();
    let disks = entries(&sys.join("block"));
    let mut names: Vec<_> = disks.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    names.retain(|name| name.starts_with("vd"));
    names.sort_unstable();
    let other = |has, lacks| {
        format!(
            "this kernel has a driver for virtio-{has} and none for virtio-{lacks}, where the machine's devices are; \
             start AxVM with --bus {has}"
        )
    };
    match (found, mmio, pci) {
        (false, false, true) => other("pci", "mmio"),
        (false, true, false) => other("mmio", "pci"),
        (false, ..) => {
            "its driver is missing: the kernel or its initrd needs virtio_blk, and virtio_mmio or virtio_pci".into()
        }
        _ if !has("virtio/drivers/virtio_blk") => {
            "its driver is missing: the kernel or its initrd needs virtio_blk".into()
        }
        _ if names.is_empty() => "the machine has no disk, give it one: --disk FILE".into(),
        _ => format!("the machine has {}", names.join(", ")),
    }
}

/// What is in a directory; nothing if it is not there.
fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

fn mount_disk(wanted: &Wanted<'_>) -> Result<(), Error> {
    let Wanted { device, kinds, options, read_only } = *wanted;
    let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let options = CString::new(options)?;
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let kinds = match kinds {
        Some(kinds) => kinds.split(',').collect(),
        // Those that live on a disk; the first of them is a module in most kernels.
        None => {
            ["ext4"].into_iter().chain(known.lines().filter_map(|line| line.strip_prefix('\t'))).collect::<Vec<_>>()
        }
    };
    fs::create_dir_all(PLACE)?;
    let mut failed = None;
    for kind in kinds {
        match mount(device, PLACE, kind, flags, &*options) {
            Ok(()) => return Ok(()),
            Err(error) => _ = failed.get_or_insert((kind, error)),
        }
    }
    let (kind, error) = failed.ok_or("This kernel knows no file system for a disk")?;
    let why = "is there a file system on it, and does the kernel know it (rootfstype=)? root=none keeps the initrd";
    Err(format!("Cannot mount {device} as {kind}: {error}; {why}").into())
}

/// Before the power goes: nothing more is written.
pub fn make_read_only() {
    if Path::new("/proc/mounts").exists() {
        _ = mount_remount("/", MountFlags::RDONLY, c"");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_a_kind_counts() {
        let read = |line| Wanted::read(line);
        assert_eq!(read("console=ttyS0 quiet"), None);
        assert_eq!(read("root=/dev/vda root=none"), None);
        let wanted = Wanted { device: "/dev/vdb", kinds: None, options: "", read_only: true };
        assert_eq!(read("root=/dev/vda rw root=/dev/vdb ro"), Some(wanted));
        let wanted = Wanted { device: "/dev/vda", kinds: Some("xfs,ext4"), options: "a=b,c", read_only: false };
        assert_eq!(read("root=/dev/vda rootfstype=xfs,ext4 rootflags=a=b,c rw"), Some(wanted));
    }
    #[test]
    fn what_is_missing_for_a_disk_is_told_by_what_the_kernel_has() {
        let (mmio, pci) = ("bus/platform/drivers/virtio-mmio", "bus/pci/drivers/virtio-pci");
        let (block, device) = ("bus/virtio/drivers/virtio_blk", "bus/virtio/devices/virtio0");
        let told = |there: &[&str]| {
            let sys = tempfile::tempdir().unwrap();
            for path in there {
                let path = sys.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            why_absent(sys.path())
        };
        let drivers = "needs virtio_blk, and virtio_mmio or virtio_pci";
        for (there, expected) in [
            (&[][..], drivers),
            (&[block], drivers),
            (&[mmio, pci, block], drivers),
            (&[pci, block], "start AxVM with --bus pci"),
            (&[pci], "start AxVM with --bus pci"),
            (&[mmio, block], "start AxVM with --bus mmio"),
            (&[mmio, device], "the kernel or its initrd needs virtio_blk"),
            (&[pci, device], "the kernel or its initrd needs virtio_blk"),
            (&[mmio, device, block], "the machine has no disk, give it one: --disk FILE"),
            (&[pci, device, block, "block/vdb", "block/vda", "block/loop0"], "the machine has vda, vdb"),
        ] {
            let why = told(there);
            assert!(why.ends_with(expected), "{there:?}: {why}");
        }
    }
}
