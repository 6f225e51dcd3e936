//! One writer or many readers: an image is locked before it is used, and who has it is named.
//!
//! ```text
//!   flock --> a writer: fcntl lock of all bytes --> ours
//!     '---------------------'--> taken: by this process? --> refused at once: a disk that is given twice
//!                                       by another one?  --> again for a second, as udev holds a new device for a
//!                                                            moment --> refused
//! ```
//!
//! Two kinds of lock, as the kernel keeps them apart: flock is what AxVM, udev and others look at; the ranges of fcntl
//! (and of open file descriptions, which meet them) are what QEMU and qemu-img look at. A reader takes no range: two
//! readers of QEMU share an image by ranges of single bytes, and would be in each other's way. A range is lost when this
//! process closes any descriptor of the file, so no other part opens an image; and over a network file system both kinds
//! are one, and a file could be locked against itself: there flock is enough.
//!
//! The kernel says in /proc/locks which process took a lock, if it is in the same PID namespace; a lock is listed by
//! device and inode of the file it is on. Where nothing is found, no process is blamed.
//!
//! Source: flock(2), fcntl(2) "Advisory record locking", proc_locks(5); QEMU `block/file-posix.c` on what it locks.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock, fstatfs};
use rustix::io::Errno;

use super::error::is_unsupported;

/// How long a lock of another process is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);
/// Types of file systems over a network (statfs(2)): NFS, CIFS, SMB2, 9p.
const NETWORK: [u32; 4] = [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997];

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
        let Some(kinds) = try_both(file, shared)? else { return Ok(()) };
        let holder = holder(file, kinds);
        if holder == Some(std::process::id()) {
            return Err(LockError::Taken("another disk of this machine".into()));
        }
        if since.elapsed() >= PATIENCE {
            return Err(LockError::Taken(holder.and_then(described).unwrap_or("another program".into())));
        }
        thread::sleep(PAUSE);
    }
}

/// Gives the lock of ranges up, which belongs to this process, so that another one that gets `file` can take it. The flock
/// stays: it belongs to the open file.
pub(super) fn unlock_for_another(file: &File) {
    let _ = fcntl_lock(file, FlockOperation::NonBlockingUnlock);
}

/// Takes the lock of ranges of a file that has its flock from another process. Who has it, in words, if it is taken.
pub(super) fn lock_again(file: &File, shared: bool) -> Result<(), String> {
    if shared || fstatfs(file).is_ok_and(|about| NETWORK.contains(&(about.f_type as u32))) {
        return Ok(());
    }
    match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::AGAIN | Errno::ACCESS) => Err("another program".into()),
        _ => Ok(()),
    }
}

/// Which kinds of lock another one has, as /proc/locks calls them; `None` if all is ours.
fn try_both(file: &File, shared: bool) -> Result<Option<&'static [&'static str]>, LockError> {
    match if shared { file.try_lock_shared() } else { file.try_lock() } {
        Ok(()) => {}
        // A file system without locks: nothing can be promised, and nothing is gained by refusing.
        Err(TryLockError::Error(error)) if is_unsupported(&error) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(LockError::Host(error)),
        Err(TryLockError::WouldBlock) => return Ok(Some(&["FLOCK"])),
    }
    if shared || fstatfs(file).is_ok_and(|about| NETWORK.contains(&(about.f_type as u32))) {
        return Ok(None);
    }
    match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(Some(&["POSIX", "OFDLCK"])),
        _ => Ok(None),
    }
}

/// The loop device that the host has made of `file`, and may have mounted.
pub(super) fn loop_device(file: &File) -> Option<String> {
    let ours = file.metadata().ok()?;
    let devices = fs::read_dir("/sys/block").ok()?.flatten();
    devices.filter(|device| device.file_name().as_encoded_bytes().starts_with(b"loop")).find_map(|device| {
        let backing = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        let theirs = fs::metadata(backing.trim_end_matches('\n')).ok()?;
        let same = (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino());
        same.then(|| format!("/dev/{}", device.file_name().display()))
    })
}

/// `None` for a process that has ended, and left the lock to one that it had started.
fn described(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("process {pid} ({})", name.trim()))
}

/// Which process has locked `file`, by a lock of one of these kinds.
fn holder(file: &File, kinds: &[&str]) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let (major, minor) = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    holder_in(&fs::read_to_string("/proc/locks").ok()?, &place, kinds)
}

/// The same, from the text of /proc/locks: `1: FLOCK  ADVISORY  WRITE 4711 08:01:4194 0 EOF`. One that waits for a lock
/// has an arrow before its kind.
fn holder_in(locks: &str, place: &str, kinds: &[&str]) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, kind, _, _, pid, at, ..] = words[..] else { return None };
        // Of a process in another PID namespace the kernel says 0, or nothing; of an open file description -1.
        (at == place && kinds.contains(&kind)).then(|| pid.parse().ok()).flatten().filter(|&pid| pid != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_found_by_device_and_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 08:01:77 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 12 08:01:77 0 EOF\n\
                     3: FLOCK  ADVISORY  READ  13 08:01:78 0 EOF\n4: FLOCK  ADVISORY  READ  0 08:01:77 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE 14 08:01:77 0 EOF\n6: OFDLCK ADVISORY  READ  -1 08:01:79 100 101\n\
                     7: FLOCK\n\n";
        assert_eq!(holder_in(locks, "08:01:77", &["FLOCK"]), Some(14));
        assert_eq!(holder_in(locks, "08:01:77", &["POSIX", "OFDLCK"]), Some(11));
        assert_eq!(holder_in(locks, "08:01:78", &["FLOCK"]), Some(13));
        assert_eq!(holder_in(locks, "08:01:79", &["FLOCK", "OFDLCK"]), None);
    }
}
