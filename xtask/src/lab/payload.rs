//! The payload: the disk that brings files into the lab and results out of it.
//!
//! ```text
//!   host files --mke2fs -d--> payload.img == /axvm in the lab --debugfs dump--> host files
//! ```
//!
//! Sparse and always of one size: the saved state knows the disk's size.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::assets::make_ext4;
use crate::project::cache;
use crate::tool::{output, tool};

/// Bytes for guest disks, logs and results.
pub(super) const SIZE: u64 = 8 << 30;
const OPTIONS: [&str; 5] = ["-O", "^has_journal,^resize_inode", "-N", "8192", "-Enodiscard,lazy_itable_init=1"];

/// The image of one run and the directory it works in; both go when it is dropped.
pub struct Payload {
    work: PathBuf,
}

impl Payload {
    /// Makes an image that holds `files` (host file, name in the lab) and the script as `job`.
    pub(super) fn make(files: &[(PathBuf, String)], job: &str) -> Result<Self> {
        let payload = Self { work: work_directory()? };
        let tree = payload.work.join("tree");
        let mut linked = Vec::new();
        for (host, name) in files {
            let inside = tree.join(name);
            fs::create_dir_all(inside.parent().unwrap_or(&tree))?;
            // Two links to one file would be one file in the image too.
            let link = if linked.contains(&host) {
                Err(ErrorKind::AlreadyExists.into())
            } else {
                fs::hard_link(host, &inside)
            };
            linked.push(host);
            link.or_else(|_| sparse_copy(host, &inside))
                .with_context(|| format!("Cannot bring {} into the lab", host.display()))?;
        }
        fs::create_dir_all(tree.join("out"))?;
        fs::write(tree.join("job"), job)?;
        make_ext4(&payload.image(), SIZE, &tree, &OPTIONS)?;
        fs::remove_dir_all(&tree)?;
        Ok(payload)
    }

    /// The image file.
    pub(super) fn image(&self) -> PathBuf {
        self.work.join("payload.img")
    }

    /// A place for the run's sockets.
    pub(super) fn work(&self) -> &Path {
        &self.work
    }

    /// Copies a directory of the lab (relative to `/axvm`) to the host, into `to`.
    pub fn take_directory(&self, inside: &str, to: &Path) -> Result<()> {
        let _ = fs::remove_dir_all(to);
        fs::create_dir_all(to).with_context(|| format!("Cannot create {}", to.display()))?;
        self.debugfs(&format!("rdump /{inside} {}", self.work.display()))?;
        let dumped = self.work.join(Path::new(inside).file_name().unwrap_or_default());
        output(tool("cp").args(["-r", "--sparse=always"]).arg(dumped.join(".")).arg(to))?;
        fs::remove_dir_all(&dumped).with_context(|| format!("Cannot remove {}", dumped.display()))
    }

    /// Copies one file of the lab (relative to `/axvm`) to the host.
    pub fn take_file(&self, inside: &str, to: &Path) -> Result<()> {
        let dumped = self.work.join("dumped");
        self.debugfs(&format!("dump /{inside} {}", dumped.display()))?;
        sparse_copy(&dumped, to).with_context(|| format!("Cannot take {inside} out of the lab"))?;
        fs::remove_file(&dumped).with_context(|| format!("Cannot remove {}", dumped.display()))
    }

    fn debugfs(&self, request: &str) -> Result<()> {
        output(tool("debugfs").arg("-R").arg(request).arg(self.image())).map(drop)
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.work);
    }
}

/// `runs/PID-N`; what a dead process left there is swept out.
fn work_directory() -> Result<PathBuf> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let runs = cache().join("runs");
    fs::create_dir_all(&runs).with_context(|| format!("Cannot create {}", runs.display()))?;
    for entry in runs.read_dir()?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(owner).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let work = runs.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let _ = fs::remove_dir_all(&work);
    fs::create_dir(&work).with_context(|| format!("Cannot create {}", work.display()))?;
    Ok(work)
}

fn sparse_copy(from: &Path, to: &Path) -> std::io::Result<()> {
    output(tool("cp").arg("--sparse=always").arg(from).arg(to)).map(drop).map_err(std::io::Error::other)
}
