//! Modules: what a kernel of a distribution needs to find its disk and its vsock.
//!
//! ```text
//!   /lib/modules/RELEASE/NN-NAME.ko     those that lie there flat, in the order of their names
//!   modprobe, if the initrd or the root has it: the few that are wanted
//! ```

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::system::{finit_module, uname};

/// What leads to a root file system and to the host.
const WANTED: [&str; 6] = ["virtio_mmio", "virtio_pci", "virtio_blk", super::VSOCK, "virtio_console", "ext4"];
/// MODULE_INIT_COMPRESSED_FILE.
const COMPRESSED: i32 = 4;

/// Loads what the initrd has.
pub fn of_initrd() {
    let directory = Path::new("/lib/modules").join(uname().release().to_string_lossy().as_ref());
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".ko")));
    files.sort();
    files.iter().for_each(|path| load(path));
    probe(&WANTED);
}

fn load(path: &Path) {
    let flags = if path.extension() == Some(OsStr::new("ko")) { 0 } else { COMPRESSED };
    // What cannot be loaded is built in, there already, or missed later.
    _ = File::open(path).map(|file| finit_module(file, c"", flags));
}

/// Asks modprobe for these, if there is one.
pub fn probe(names: &[&str]) {
    let places = ["/sbin/modprobe", "/usr/sbin/modprobe", "/bin/modprobe"];
    let Some(program) = places.into_iter().find(|path| fs::exists(path).unwrap_or(false)) else { return };
    for name in names {
        // One that is built in, or unknown, is no reason not to try the next.
        let mut command = Command::new(program);
        _ = command.args(["-q", name]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}
