//! The root disk: an ext4 image filled without mounting it, so without being root.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{busybox, sweep, vsock_trial};
use crate::progress::Progress;
use crate::project::{cache, fingerprint};
use crate::tool::{self, output, tool};

/// Files of ours on the disk: path, permission bits, content.
const FILES: [(&str, u32, &str); 11] = [
    ("etc/inittab", 0o644, include_str!("../../files/guest/inittab")),
    ("etc/profile", 0o644, include_str!("../../files/guest/profile")),
    ("etc/motd", 0o644, include_str!("../../files/guest/motd")),
    ("etc/init.d/start", 0o755, include_str!("../../files/guest/start")),
    // Where acpid looks for what to do.
    ("etc/acpi/PWRF/00000080", 0o755, include_str!("../../files/guest/power-button")),
    ("etc/udhcpc", 0o755, include_str!("../../files/guest/udhcpc")),
    ("etc/init.d/stop", 0o755, include_str!("../../files/guest/stop")),
    ("etc/init.d/check", 0o755, include_str!("../../files/guest/check")),
    ("bin/vsock-python", 0o755, include_str!("../../files/trial/vsock.py")),
    ("etc/init.d/allowed", 0o644, include_str!("../../files/guest/allowed")),
    ("etc/init.d/allowed.lab", 0o644, include_str!("../../files/guest/allowed.lab")),
];
const SMALL_FILES: [(&str, &str); 4] = [
    ("etc/hostname", "axvm\n"),
    ("etc/hosts", "127.0.0.1 localhost axvm\n"),
    ("etc/passwd", "root::0:0:root:/root:/bin/sh\n"),
    ("etc/group", "root:x:0:\n"),
];
const DIRECTORIES: [&str; 15] = [
    "bin",
    "dev",
    "etc",
    "etc/acpi",
    "etc/acpi/PWRF",
    "etc/init.d",
    "lib",
    "mnt",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "var",
];
const SIZE: u64 = 256 << 20;

/// The image to copy from: busybox as `/sbin/init` and everything else, and our start, stop and check scripts.
pub fn root_disk() -> Result<PathBuf> {
    let (busybox, trial) = (busybox()?, vsock_trial()?);
    let mut inputs: Vec<&[u8]> = FILES.iter().map(|file| file.2.as_bytes()).collect();
    inputs.extend(SMALL_FILES.iter().map(|file| file.1.as_bytes()));
    let size = SIZE.to_string();
    inputs.push(size.as_bytes());
    // Its name has the key of its source.
    inputs.push(trial.as_os_str().as_bytes());
    let path = cache().join(format!("disk-{}.img", fingerprint(&inputs)));
    if !path.exists() {
        let _progress = Progress::spinner("Making the root disk");
        sweep("disk-");
        let tree = cache().join("disk.tree");
        let _ = fs::remove_dir_all(&tree);
        fill(&tree, &busybox, &trial)
            .with_context(|| format!("Cannot make the root disk's tree in {}", tree.display()))?;
        let unfinished = cache().join("disk.unfinished");
        make_ext4(&unfinished, SIZE, &tree, &["-L", "axvm-root"])?;
        fs::rename(&unfinished, &path)?;
        let _ = fs::remove_dir_all(&tree);
    }
    Ok(path)
}

fn fill(tree: &Path, busybox: &Path, trial: &Path) -> Result<()> {
    for dir in DIRECTORIES {
        fs::create_dir_all(tree.join(dir))?;
    }
    for (path, mode, text) in FILES.into_iter().chain(SMALL_FILES.map(|(path, text)| (path, 0o644, text))) {
        fs::write(tree.join(path), text)?;
        fs::set_permissions(tree.join(path), fs::Permissions::from_mode(mode))?;
    }
    fs::copy(busybox, tree.join("bin/busybox"))?;
    fs::set_permissions(tree.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    fs::copy(trial, tree.join("bin/vsock-trial"))?;
    for applet in output(tool(&busybox.to_string_lossy()).arg("--list"))?.lines() {
        symlink("busybox", tree.join("bin").join(applet)).or_else(already_there)?;
    }
    for applet in ["init", "poweroff", "reboot", "halt"] {
        symlink("../bin/busybox", tree.join("sbin").join(applet))?;
    }
    Ok(())
}

fn already_there(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

/// A sparse ext4 image of `size` bytes with the tree's content.
pub fn make_ext4(image: &Path, size: u64, tree: &Path, options: &[&str]) -> Result<()> {
    if tool::find("mke2fs").is_none() {
        tool::apt_install(&["e2fsprogs"])?;
    }
    let file = File::create(image).with_context(|| format!("Cannot create {}", image.display()))?;
    file.set_len(size)?;
    let mut command = tool("mke2fs");
    command
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0"])
        .args(options)
        .arg("-d")
        .arg(tree)
        .arg(image);
    output(&mut command).map(drop)
}
