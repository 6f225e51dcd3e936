//! What the host says about its memory: enough to tell a user what to change.
//!
//! ```text
//!   sysinfo(2)                  RAM and swap: could it ever
//!   /proc/meminfo               MemAvailable: could it now
//!   /sys/kernel/mm/hugepages    nr, free, resv: is the pool large enough
//!   RLIMIT_MEMLOCK              may it be locked
//! ```
//!
//! Spec: proc_meminfo(5); Linux Documentation/admin-guide/mm/hugetlbpage.rst; getrlimit(2). Left out: limits of control groups.

use std::fs::{self, File};
use std::io::{self, Read};

use crate::{HugePage, RamError};

/// Refuses `size` bytes that the host could not back without swapping.
///
/// A host that does not say (no /proc) is taken at its word: the kernel will refuse what it must.
pub(crate) fn require_available(size: u64) -> Result<(), RamError> {
    match available(&meminfo()) {
        Some(available) if available < size => {
            Err(RamError::NotEnough { size_mib: size >> 20, available_mib: available >> 20 })
        }
        _ => Ok(()),
    }
}

/// Refuses `size` bytes that the host could never back, with all its memory and swap. Less is a promise that it may
/// have to keep: a guest that uses all of it competes with all other programs.
pub(crate) fn require_possible(size: u64) -> Result<(), RamError> {
    // SAFETY: a structure of numbers.
    let mut host: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure that it is given.
    let said = unsafe { libc::sysinfo(&mut host) } == 0;
    let total = (host.totalram + host.totalswap) * u64::from(host.mem_unit);
    match said && total < size {
        true => Err(RamError::MoreThanHost { size_mib: size >> 20, host_mib: total >> 20 }),
        false => Ok(()),
    }
}

/// Empty where /proc is not mounted: then nothing is known.
fn meminfo() -> String {
    // Room for all of it: a file of /proc does not tell its length, and is read in small pieces otherwise.
    let mut text = String::with_capacity(4 << 10);
    let _ = File::open("/proc/meminfo").and_then(|mut file| file.read_to_string(&mut text));
    text
}

/// Bytes available for a new program, from the text of /proc/meminfo.
fn available(meminfo: &str) -> Option<u64> {
    field(meminfo, "MemAvailable:")
}

fn field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Why RAM of `size` bytes in `page`s could not be mapped, when mmap said `source`.
pub(crate) fn pool_error(size: u64, page: HugePage, source: io::Error) -> RamError {
    let size_mib = size >> 20;
    let needed = size / page.bytes();
    let directory = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page.bytes() >> 10);
    let count = |name: &str| fs::read_to_string(format!("{directory}/{name}")).ok()?.trim().parse::<u64>().ok();
    let pool = || Some((count("nr_hugepages")?, count("free_hugepages")?.saturating_sub(count("resv_hugepages")?)));
    match pool() {
        Some((total, free)) if free < needed => {
            RamError::Pool { size_mib, page, needed, free, total, path: format!("{directory}/nr_hugepages") }
        }
        _ => RamError::Map { size_mib, source },
    }
}

/// How much memory this process may lock, in words.
pub(crate) fn lock_limit() -> String {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the structure that it is given.
    match unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) } {
        0 if limit.rlim_cur == libc::RLIM_INFINITY => "any amount".into(),
        0 => format!("{} KiB", limit.rlim_cur >> 10),
        _ => "an unknown amount".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        let text = "MemTotal:       24683520 kB\nMemFree:        19951000 kB\nMemAvailable:   22826000 kB\n";
        assert_eq!(available(text), Some(22_826_000 * 1024));
    }

    #[test]
    fn odd_meminfo_says_nothing() {
        for text in ["", "MemAvailable:", "MemAvailable: x kB", "MemAvailable: 5", "MemAvailable: 99999999999999999 kB"]
        {
            assert_eq!(available(text), None, "{text}");
        }
    }

    #[test]
    fn more_than_the_host_has_is_refused() {
        assert!(require_available(1 << 20).is_ok());
        assert!(require_possible(1 << 20).is_ok());
        assert!(require_possible(1 << 46).unwrap_err().to_string().contains("in all"));
        let error = require_available(1 << 46).unwrap_err().to_string();
        assert!(error.starts_with("Guest RAM of 67108864 MiB cannot be backed now: the host has "), "{error}");
    }
}
