//! The file systems that a Linux system has beside its disk.

use std::fs;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// What the agent itself needs.
pub fn of_kernel() {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        add(kind, at);
    }
}

/// What programs expect, in the root that they see.
pub fn of_system() {
    of_kernel();
    for (kind, at) in [("devpts", "/dev/pts"), ("tmpfs", "/dev/shm"), ("tmpfs", "/run")] {
        add(kind, at);
    }
}

/// Mounts one, unless it is there.
fn add(kind: &str, at: &str) {
    if is_mounted(at) {
        return;
    }
    // The root may be read-only, and have it.
    _ = fs::create_dir_all(at);
    match mount(kind, at, kind, MountFlags::empty(), None) {
        Ok(()) | Err(Errno::BUSY) => {}
        Err(error) => eprintln!("axvm-agent: Cannot mount {kind} at {at}: {error}"),
    }
}

fn is_mounted(at: &str) -> bool {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(at))
}
