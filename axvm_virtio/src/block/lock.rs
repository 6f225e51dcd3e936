//! One writer or many readers: an image is locked before it is used, and who has it is named.
//!
//! ```text
//!   flock --> ours
//!     '-----> taken: by this process? --> refused at once: a disk that is given twice
//!                    by another one?  --> again for a second, as udev holds a new device for a moment --> refused
//! ```
//!
//! The kernel says in /proc/locks which process took a lock, if it is in the same PID namespace; a lock is listed by
//! device and inode of the file it is on. Where nothing is found, no process is blamed.
//!
//! Source: flock(2), proc_locks(5).

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use super::image::is_unsupported;

/// How long a lock of another process is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// Why there is no lock.
pub(super) enum LockError {
    /// Taken, and by whom, in words.
    Taken(String),
    /// The host said something else.
    Host(io::Error),
}

/// Locks `file` against writers, and against readers unless it is `shared`.
pub(super) fn lock(file: &File, shared: bool) -> Result<(), LockError> {
    let since = Instant::now();
    loop {
        match if shared { file.try_lock_shared() } else { file.try_lock() } {
            Ok(()) => return Ok(()),
            // A file system without locks: nothing can be promised, and nothing is gained by refusing.
            Err(TryLockError::Error(error)) if is_unsupported(&error) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(LockError::Host(error)),
            Err(TryLockError::WouldBlock) => {}
        }
        let holder = holder(file);
        if holder == Some(std::process::id()) {
            return Err(LockError::Taken("another disk of this machine".into()));
        }
        if since.elapsed() >= PATIENCE {
            return Err(LockError::Taken(holder.and_then(described).unwrap_or("another program".into())));
        }
        thread::sleep(PAUSE);
    }
}

/// `None` for a process that has ended, and left the lock to one that it had started.
fn described(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("process {pid} ({})", name.trim()))
}

/// Which process has locked `file`.
fn holder(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let (major, minor) = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    holder_in(&fs::read_to_string("/proc/locks").ok()?, &format!("{major:02x}:{minor:02x}:{}", metadata.ino()))
}

/// The same, from the text of /proc/locks: `1: FLOCK  ADVISORY  WRITE 4711 08:01:4194 0 EOF`. One that waits for a lock
/// has an arrow before its kind.
fn holder_in(locks: &str, place: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, at, ..] = words[..] else { return None };
        // Of a process in another PID namespace the kernel says 0, or nothing.
        (at == place).then(|| pid.parse().ok()).flatten().filter(|&pid| pid != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_found_by_device_and_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 08:01:77 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 12 08:01:77 0 EOF\n\
                     3: FLOCK  ADVISORY  READ  13 08:01:78 0 EOF\n4: FLOCK  ADVISORY  READ  0 08:01:77 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE 14 08:01:77 0 EOF\n6: FLOCK\n\n";
        assert_eq!(holder_in(locks, "08:01:77"), Some(14));
        assert_eq!(holder_in(locks, "08:01:78"), Some(13));
        assert_eq!(holder_in(locks, "08:01:79"), None);
    }
}
