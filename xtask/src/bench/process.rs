//! What the host's kernel says of a process: memory, page faults, time of its threads.
//!
//! ```text
//!   /proc/PID/smaps             each mapping; those of 64 MiB and more are guest RAM and not counted,
//!                               and so are 2 MiB right before one
//!   /proc/PID/stat              minor faults
//!   /proc/PID/status            VmHWM: the most that was resident
//!   /proc/PID/task/*/schedstat  nanoseconds on a processor; vCPUs are told by their names
//! ```
//!
//! Each reader is a function of the text, so that its tests need no process. Spec: proc(5).

use std::fs;

use anyhow::{Context, Result};

/// Guest RAM is at least so long; no part of a program or its heap is.
const RAM_KB: u64 = 64 << 10;
/// A huge page.
const HUGE: u64 = 2 << 20;

/// Kilobytes beside guest RAM.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// In RAM, shared pages too.
    pub resident: u64,
    /// In RAM, written and of this process alone.
    pub private_dirty: u64,
}

/// Memory of a process beside guest RAM.
pub fn memory(pid: u32) -> Result<Memory> {
    Ok(memory_of(&read(pid, "smaps")?))
}

/// Minor page faults since it began.
pub fn faults(pid: u32) -> Result<u64> {
    faults_of(&read(pid, "stat")?).with_context(|| format!("No faults in /proc/{pid}/stat"))
}

/// Kilobytes that were resident at most.
pub fn peak(pid: u32) -> Result<u64> {
    peak_of(&read(pid, "status")?).with_context(|| format!("No VmHWM in /proc/{pid}/status"))
}

/// Nanoseconds that threads other than vCPUs' were on a processor. A thread that ends meanwhile is left out.
pub fn time_beside_vcpus(pid: u32) -> Result<u64> {
    let dir = format!("/proc/{pid}/task");
    let tasks = fs::read_dir(&dir).with_context(|| format!("Cannot list {dir}"))?;
    let time = tasks.flatten().filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let time = fs::read_to_string(task.path().join("schedstat")).ok()?;
        (!is_vcpu(&name)).then(|| time.split_whitespace().next()?.parse::<u64>().ok()).flatten()
    });
    Ok(time.sum())
}

/// The thread of vCPU 0: the first one that is named as vCPUs are, or the only one.
pub fn vcpu(pid: u32) -> Result<u32> {
    let dir = format!("/proc/{pid}/task");
    let tasks = fs::read_dir(&dir).with_context(|| format!("Cannot list {dir}"))?;
    let vcpus = tasks.flatten().filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        is_vcpu(&name).then(|| task.file_name().to_str()?.parse().ok()).flatten()
    });
    Ok(vcpus.min().unwrap_or(pid))
}

fn read(pid: u32, name: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{name}");
    fs::read_to_string(&path).with_context(|| format!("Cannot read {path}"))
}

/// A line of smaps with addresses begins a mapping; the lines after it tell about that.
#[derive(Default)]
struct Mapping {
    start: u64,
    end: u64,
    memory: Memory,
}

impl Mapping {
    fn is_large(&self) -> bool {
        self.end - self.start >= RAM_KB << 10
    }

    /// Guest RAM is one mapping, or its first 2 MiB are another one, which has no huge page.
    fn is_ram(&self, next: Option<&Mapping>) -> bool {
        let begins = self.start.is_multiple_of(HUGE) && self.end - self.start == HUGE;
        self.is_large() || begins && next.is_some_and(|next| next.start == self.end && next.is_large())
    }
}

fn memory_of(smaps: &str) -> Memory {
    let mut mappings: Vec<Mapping> = Vec::new();
    let addresses = |word: &str| {
        let (start, end) = word.split_once('-')?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    };
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(name) = words.next() else { continue };
        if let Some((start, end)) = addresses(name) {
            mappings.push(Mapping { start, end, memory: Memory::default() });
        }
        let value = words.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(mapping), Some(value)) = (mappings.last_mut(), value) else { continue };
        match name {
            "Rss:" => mapping.memory.resident = value,
            "Private_Dirty:" => mapping.memory.private_dirty = value,
            _ => {}
        }
    }
    let beside = mappings.iter().enumerate().filter(|(n, mapping)| !mapping.is_ram(mappings.get(n + 1)));
    beside.fold(Memory::default(), |sum, (_, Mapping { memory, .. })| Memory {
        resident: sum.resident + memory.resident,
        private_dirty: sum.private_dirty + memory.private_dirty,
    })
}

/// The tenth field; the second is a name, and may have spaces and brackets in it.
fn faults_of(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()
}

fn peak_of(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()
}

/// AxVM's, Firecracker's (`fc_vcpu 0`) and QEMU's (`CPU 0/KVM`).
fn is_vcpu(name: &str) -> bool {
    let name = name.trim().to_lowercase();
    name.contains("vcpu") || name.starts_with("cpu ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_not_counted() {
        let smaps = "55d0000-55da000 r-xp 0 08:01 3 /bin/vmm\nSize:   40 kB\nRss:  20 kB\nPrivate_Dirty:   4 kB\n\
                     7f0000000-7f0200000 rw-p 0 00:00 0\nSize: 2048 kB\nRss: 48 kB\nPrivate_Dirty: 48 kB\n\
                     7f0200000-7f8200000 rw-p 0 00:00 0\nSize: 131072 kB\nRss: 500 kB\nPrivate_Dirty: 500 kB\n\
                     7f9000000-7f9002000 rw-p 0 00:00 0\nSize: 8 kB\nRss: 8 kB\nPrivate_Dirty: 8 kB\nVmFlags: rd wr\n";
        assert_eq!(memory_of(smaps), Memory { resident: 28, private_dirty: 12 });
        assert_eq!(memory_of(""), Memory::default());
    }

    #[test]
    fn fields_are_found_behind_any_name() {
        assert_eq!(faults_of("7 (a) b (c)) S 1 2 3 4 5 6 1234 0 0"), Some(1234));
        assert_eq!(faults_of("7 S"), None);
        assert_eq!(peak_of("Name:\tx\nVmHWM:\t   5088 kB\n"), Some(5088));
    }

    #[test]
    fn vcpus_are_told_by_name() {
        assert!(["vcpu0\n", "fc_vcpu 0", "CPU 0/KVM", "axvm-vcpu3"].iter().all(|name| is_vcpu(name)));
        assert!(["axvm", "firecracker", "qemu-system-x86", "vda"].iter().all(|name| !is_vcpu(name)));
    }

    #[test]
    fn this_process_has_memory_and_faults() {
        let pid = std::process::id();
        assert!(memory(pid).unwrap().resident > 0 && faults(pid).unwrap() > 0 && peak(pid).unwrap() > 0);
    }
}
