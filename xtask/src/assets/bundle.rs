//! Programs of packages as one tar, for a guest to unpack over its root.
//!
//! ```text
//!   apt: PACKAGE, PACKAGE ...  --unpack, leave out what no program reads, usr/ to the top-->  cache/bundle-NAME-KEY.tar
//! ```
//!
//! What they depend on is theirs to name.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{apt, sweep};
use crate::project::{cache, fingerprint};
use crate::tool::{output, tool};

/// Documentation, and what the C library needs for other character sets.
const LEFT_OUT: [&str; 2] = ["--exclude=./usr/share", "--exclude=gconv"];

/// The packages' files: from the cache, or from apt.
pub fn bundle(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let prefix = format!("bundle-{name}-");
    let inputs: Vec<&[u8]> = packages.iter().map(|package| package.as_bytes()).collect();
    let path = cache().join(format!("{prefix}{}.tar", fingerprint(&inputs)));
    if path.exists() {
        return Ok(path);
    }
    ensure!(apt::present(), "no apt here for the packages of {name}");
    sweep(&prefix);
    let (dir, unfinished) = (cache().join("bundle.unpacked"), cache().join("bundle.unfinished"));
    let _ = fs::remove_dir_all(&dir);
    for package in packages {
        apt::unpack(package, &dir)?;
    }
    let mut command = tool("tar");
    command.args(["-c", "--owner=0", "--group=0", r"--transform=flags=r;s,^\./usr/,./,"]).args(LEFT_OUT);
    output(command.arg("-f").arg(&unfinished).arg("-C").arg(&dir).arg("."))?;
    fs::rename(&unfinished, &path).with_context(|| format!("Cannot put {} in place", path.display()))?;
    let _ = fs::remove_dir_all(&dir);
    Ok(path)
}
