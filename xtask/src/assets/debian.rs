//! A whole distribution with its own kernel, initrd and systemd, made by the script that the documentation names.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::sweep;
use crate::progress::Progress;
use crate::project::{self, cache, fingerprint};
use crate::tool::{self, output, tool};

const SCRIPT: &str = "docs/examples/debian.sh";
const CHECK: &str = include_str!("../../files/guest/systemd-check.service");

/// What the script leaves; the disk also holds a service that says how the system came up, and powers off.
pub struct Debian {
    /// The package's bzImage.
    pub kernel: PathBuf,
    /// Made in the tree by Debian's own tools.
    pub initrd: PathBuf,
    /// ext4, 1 GiB.
    pub disk: PathBuf,
}

impl Debian {
    /// From the cache, or made now: two minutes, most of them downloads.
    pub fn get() -> Result<Self> {
        let script = project::root().join(SCRIPT);
        let text = fs::read_to_string(&script).with_context(|| format!("Cannot read {}", script.display()))?;
        let dir = cache().join(format!("debian-{}", fingerprint(&[text.as_bytes(), CHECK.as_bytes()])));
        if !dir.exists() {
            let missing: Vec<_> =
                ["mmdebstrap", "fakeroot"].into_iter().filter(|it| tool::find(it).is_none()).collect();
            if !missing.is_empty() {
                tool::apt_install(&missing)?;
            }
            let _progress = Progress::spinner("Making a Debian with systemd for the lab (two minutes)");
            sweep("debian-");
            let unfinished = cache().join("unfinished.debian");
            let _ = fs::remove_dir_all(&unfinished);
            output(tool("sh").arg(&script).arg(&unfinished))?;
            add_check(&unfinished)?;
            fs::rename(&unfinished, &dir).with_context(|| format!("Cannot put {} in place", dir.display()))?;
        }
        Ok(Self { kernel: dir.join("vmlinuz"), initrd: dir.join("initrd.img"), disk: dir.join("disk.img") })
    }
}

/// Puts the service on the disk without mounting it.
fn add_check(dir: &std::path::Path) -> Result<()> {
    let (unit, commands) = (dir.join("axvm-check.service"), dir.join("commands"));
    fs::write(&unit, CHECK)?;
    let text = format!(
        "cd /etc/systemd/system\nwrite {} axvm-check.service\ncd multi-user.target.wants\n\
         symlink axvm-check.service /etc/systemd/system/axvm-check.service\n",
        unit.display()
    );
    fs::write(&commands, text)?;
    output(tool("debugfs").arg("-w").arg("-f").arg(&commands).arg(dir.join("disk.img")))?;
    fs::remove_file(&unit)?;
    fs::remove_file(&commands)?;
    Ok(())
}
