//! A whole distribution with its own kernel, initrd and systemd, made by what its page of the documentation says.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::sweep;
use crate::progress::Progress;
use crate::project::{cache, fingerprint};
use crate::tool::{self, output, tool};

const PAGE: &str = include_str!("../../../docs/distribution.md");
const CHECK: &str = include_str!("../../files/guest/systemd-check.service");

/// What the page's commands leave; the disk also holds a service that says how the system came up, and powers off.
pub struct Debian {
    /// The package's bzImage.
    pub kernel: PathBuf,
    /// Made in the tree by Debian's own tools.
    pub initrd: PathBuf,
    /// ext4.
    pub disk: PathBuf,
}

impl Debian {
    /// From the cache, or made now: two minutes, most of them downloads.
    pub fn get() -> Result<Self> {
        let commands = commands(PAGE)?;
        let dir = cache().join(format!("debian-{}", fingerprint(&[commands.as_bytes(), CHECK.as_bytes()])));
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
            fs::create_dir_all(&unfinished).with_context(|| format!("Cannot create {}", unfinished.display()))?;
            output(tool("sh").args(["-e", "-c", &commands]).current_dir(&unfinished))?;
            fs::remove_file(unfinished.join("debian.tar"))?;
            add_check(&unfinished)?;
            fs::rename(&unfinished, &dir).with_context(|| format!("Cannot put {} in place", dir.display()))?;
        }
        Ok(Self { kernel: dir.join("vmlinuz"), initrd: dir.join("initrd.img"), disk: dir.join("debian.img") })
    }
}

/// The page's first block, but for the line that installs programs.
fn commands(page: &str) -> Result<String> {
    let block = page
        .split("```sh\n")
        .nth(1)
        .and_then(|text| text.split("```").next())
        .context("No commands in docs/distribution.md")?;
    Ok(block.lines().filter(|line| !line.starts_with("sudo apt install")).map(|line| format!("{line}\n")).collect())
}

/// Puts the service on the disk without mounting it.
fn add_check(dir: &Path) -> Result<()> {
    let (unit, commands) = (dir.join("axvm-check.service"), dir.join("commands"));
    fs::write(&unit, CHECK)?;
    let text = format!(
        "cd /etc/systemd/system\nwrite {} axvm-check.service\ncd multi-user.target.wants\n\
         symlink axvm-check.service /etc/systemd/system/axvm-check.service\n",
        unit.display()
    );
    fs::write(&commands, text)?;
    output(tool("debugfs").arg("-w").arg("-f").arg(&commands).arg(dir.join("debian.img")))?;
    fs::remove_file(&unit)?;
    fs::remove_file(&commands)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{PAGE, commands};

    #[test]
    fn the_page_has_the_commands() {
        let commands = commands(PAGE).unwrap();
        assert!(commands.starts_with("mmdebstrap ") && commands.ends_with("rm -r root'\n"), "{commands}");
    }
}
