//! One static program that is the whole userspace.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{apt, place};
use crate::project;

/// A busybox that needs no library: from the cache, from apt, or this machine's own if it is static.
pub fn busybox() -> Result<PathBuf> {
    let kept = project::cache().join("busybox");
    if kept.exists() {
        return Ok(kept);
    }
    let bytes = if apt::present() { from_apt()? } else { from_host()? };
    place(&kept, &bytes)?;
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o755))?;
    Ok(kept)
}

fn from_apt() -> Result<Vec<u8>> {
    let dir = project::cache().join("busybox.unpacked");
    let _ = fs::remove_dir_all(&dir);
    apt::unpack("busybox-static", &dir)?;
    let found = ["bin/busybox", "usr/bin/busybox"].map(|path| dir.join(path)).into_iter().find(|path| path.exists());
    let bytes = fs::read(found.context("No busybox in the package busybox-static")?)?;
    let _ = fs::remove_dir_all(&dir);
    Ok(bytes)
}

fn from_host() -> Result<Vec<u8>> {
    for path in ["/bin/busybox", "/usr/bin/busybox", "/usr/lib/initcpio/busybox", "/usr/sbin/busybox"] {
        if let Ok(bytes) = fs::read(Path::new(path))
            && !wants_loader(&bytes)
        {
            return Ok(bytes);
        }
    }
    let kept = project::cache().join("busybox");
    bail!("Cannot find a static busybox: no apt here, and none of this machine's own. Put one at {}", kept.display())
}

/// A dynamic program carries the path of its loader.
fn wants_loader(program: &[u8]) -> bool {
    let head = &program[..program.len().min(4096)];
    head.windows(5).any(|window| window == b"/lib/" || window == b"/lib6")
}
