//! A single file out of a package: kernels that are not Linux.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{apt, place};
use crate::project;

/// The file at `path` in `package`: from the cache, or from apt.
pub fn packaged(package: &str, path: &str) -> Result<PathBuf> {
    let file = path.rsplit('/').next().unwrap_or(path);
    let kept = project::cache().join("packaged").join(package).join(file);
    if kept.exists() {
        return Ok(kept);
    }
    ensure!(apt::present(), "no apt here for the package {package}");
    let dir = project::cache().join(format!("{package}.unpacked"));
    let _ = fs::remove_dir_all(&dir);
    apt::unpack(package, &dir)?;
    let bytes = fs::read(dir.join(path)).with_context(|| format!("No {path} in the package {package}"))?;
    let parent = kept.parent().context("A path in the cache")?;
    fs::create_dir_all(parent).with_context(|| format!("Cannot create {}", parent.display()))?;
    place(&kept, &bytes)?;
    let _ = fs::remove_dir_all(&dir);
    Ok(kept)
}
