//! `cargo xtask clean`: what developer commands keep between two runs goes.
//!
//! ```text
//!   ~/.cache/axvm   kernels, initrds, disks, the lab's QEMU and its saved state --> gone, each with its size
//! ```
//!
//! Left out: what cargo builds (`cargo clean`), and bzImage, initrd.img and disk.img in the root, which are the user's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::assets;
use crate::progress::print;
use crate::project;

/// Remove what the developer commands keep in the cache: kernels, disks, the lab; they make it again when it is needed
///
/// Says what goes and how much that is. Files in the repository are left alone: bzImage, initrd.img and disk.img are
/// yours, and target/ is cargo's (cargo clean).
#[derive(Args)]
pub struct Clean {
    /// Say what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

/// Something in the cache.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    path: PathBuf,
    /// Bytes that it takes on disk.
    len: u64,
}

impl Clean {
    /// Removes it.
    pub fn run(self) -> Result<ExitCode> {
        let cache = project::cache();
        if !cache.exists() {
            print(format_args!("Nothing to remove: {} does not exist\n", cache.display()));
            return Ok(ExitCode::SUCCESS);
        }
        let lock = assets::lock()?;
        if let Some(pid) = running(&cache.join("runs"), |pid| Path::new("/proc").join(pid).exists()) {
            bail!("Cannot clean {}: process {pid} runs a lab there. End it first", cache.display());
        }
        let entries = entries(&cache)?;
        print(words(&cache, &entries, self.dry_run));
        if !self.dry_run {
            for Entry { path, .. } in &entries {
                let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
                removed.with_context(|| format!("Cannot remove {}", path.display()))?;
            }
            drop(lock);
            fs::remove_dir_all(&cache).with_context(|| format!("Cannot remove {}", cache.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A process whose run is there (`PID-N`) and that lives.
fn running(runs: &Path, lives: impl Fn(&str) -> bool) -> Option<String> {
    let names = runs.read_dir().ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.split('-').next().map(str::to_owned)).find(|pid| lives(pid))
}

/// All but the lock, the largest first.
fn entries(cache: &Path) -> Result<Vec<Entry>> {
    let listed = cache.read_dir().with_context(|| format!("Cannot list {}", cache.display()))?;
    let paths = listed.flatten().map(|entry| entry.path()).filter(|path| path.file_name() != Some("lock".as_ref()));
    let mut entries: Vec<Entry> = paths.map(|path| Entry { len: occupied(&path), path }).collect();
    entries.sort_by(|a, b| b.len.cmp(&a.len).then_with(|| a.path.cmp(&b.path)));
    Ok(entries)
}

/// Bytes on disk below `path`: images have holes.
fn occupied(path: &Path) -> u64 {
    let Ok(data) = path.symlink_metadata() else { return 0 };
    let own = data.blocks() * 512;
    if !data.is_dir() {
        return own;
    }
    path.read_dir().into_iter().flatten().flatten().map(|entry| occupied(&entry.path())).sum::<u64>() + own
}

fn words(cache: &Path, entries: &[Entry], dry_run: bool) -> String {
    let mebibytes = |len: u64| len.div_ceil(1 << 20);
    let line = |entry: &Entry| {
        let name = entry.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!("{:7} MiB  {name}\n", mebibytes(entry.len))
    };
    let all = mebibytes(entries.iter().map(|entry| entry.len).sum());
    let verb = if dry_run { "Would remove" } else { "Removing" };
    let lines: String = entries.iter().map(line).collect();
    format!("{lines}{verb} {all} MiB in {}\n", cache.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_the_lock_is_told_with_its_size() {
        let cache = std::env::temp_dir().join(format!("axvm-clean-{}", std::process::id()));
        fs::create_dir_all(cache.join("kernels/6.1")).unwrap();
        fs::write(cache.join("lock"), "").unwrap();
        fs::write(cache.join("kernels/6.1/vmlinuz"), vec![1; 3 << 20]).unwrap();
        fs::File::create(cache.join("disk.img")).unwrap().set_len(1 << 30).unwrap();
        let found = entries(&cache).unwrap();
        let text = words(&cache, &found, true);
        fs::remove_dir_all(&cache).unwrap();
        let names: Vec<_> = found.iter().map(|entry| entry.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["kernels", "disk.img"]);
        assert!((3..=4).contains(&found[0].len.div_ceil(1 << 20)), "{found:?}");
        assert!(found[1].len < 1 << 20, "a hole takes no room: {found:?}");
        assert!(text.contains("MiB  kernels\n") && text.contains("Would remove"), "{text}");
    }

    #[test]
    fn a_lab_that_runs_is_left_alone() {
        let runs = std::env::temp_dir().join(format!("axvm-clean-runs-{}", std::process::id()));
        fs::create_dir_all(runs.join("12-0")).unwrap();
        fs::create_dir_all(runs.join("34-1")).unwrap();
        assert_eq!(running(&runs, |pid| pid == "34"), Some("34".into()));
        assert_eq!(running(&runs, |_| false), None);
        fs::remove_dir_all(&runs).unwrap();
    }
}
