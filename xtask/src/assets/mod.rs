//! What a boot needs beside AxVM: a stock kernel with its modules, an initrd, a root disk. Made once, kept in the cache.
//!
//! ```text
//!   apt (or the host)          cache/kernels/RELEASE/{vmlinuz, modules, vmlinux}    kernel
//!   busybox-static        -->  cache/busybox                                        busybox
//!   modules + busybox     -->  cache/initrd-KEY.img                                 initrd
//!   busybox + our scripts -->  cache/disk-KEY.img                                   disk
//!   rustc                      cache/vsock-trial-KEY                                trial
//!   apt                        cache/packaged/PACKAGE/FILE                          kernels that are not Linux
//!   apt                        cache/bundle-NAME-KEY.tar                            programs for a guest
//!   mmdebstrap            -->  cache/debian-KEY/{vmlinuz, initrd.img, disk.img}      debian
//!   pip                        cache/alpine-VERSION/{vmlinuz, initrd.img}           alpine
//! ```
//!
//! KEY is a fingerprint of the inputs, so a changed script makes a new image and an unchanged one costs nothing. Nothing
//! here mounts or needs root, but for a first `apt-get update`.

mod alpine;
mod apt;
mod bundle;
mod busybox;
mod debian;
mod disk;
mod initrd;
mod kernel;
mod modules;
mod packaged;
mod trial;

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};

pub use alpine::Alpine;
pub use bundle::bundle;
pub use busybox::busybox;
pub use debian::Debian;
pub use disk::{make_ext4, root_disk};
pub use initrd::{add_modules, initrd, is_our_initrd, skeleton};
pub use kernel::{Kernel, Wanted};
pub use modules::ModuleTree;
pub use packaged::packaged;
pub use trial::vsock_trial;

use crate::project;

/// Held while something is put into the cache: two commands at once make it once.
pub fn lock() -> Result<File> {
    let dir = project::cache();
    fs::create_dir_all(&dir).with_context(|| format!("Cannot create {}", dir.display()))?;
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("Cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("Cannot lock {}", path.display()))?;
    Ok(file)
}

/// Throws away what earlier versions of the inputs left: entries of the cache with this prefix that are over a week old.
pub fn sweep(prefix: &str) {
    let week = std::time::Duration::from_secs(7 * 24 * 3600);
    for entry in project::cache().read_dir().into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
        if entry.file_name().to_string_lossy().starts_with(prefix) && age.is_some_and(|age| age > week) {
            let _ = fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()));
        }
    }
}

/// Puts a file in place at once: who sees it sees all of it.
fn place(path: &Path, bytes: &[u8]) -> Result<()> {
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, bytes).with_context(|| format!("Cannot write {}", unfinished.display()))?;
    fs::rename(&unfinished, path).with_context(|| format!("Cannot put {} in place", path.display()))
}
