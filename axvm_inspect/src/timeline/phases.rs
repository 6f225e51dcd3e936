//! A boot as phases, from what the guest printed and what it accessed. The guest is as it comes.
//!
//! ```text
//!   set-up | decompression, early setup | kernel | processors | drivers | root | init | ready
//!          first exit                   0.000000 on the kernel's clock     "Run /init"  "login:"
//! ```
//!
//! A kernel prints its first lines late, when it has a driver for its console; its own stamps tell when they were meant.
//! A line comes when it is stamped or later: so the least difference between both clocks is when the kernel's began.
//!
//! Source: the words of Linux 5.10 to 6.12. Left out: kernels that print nothing (`quiet`), whose phases are two.

use super::read::Timeline;

/// A part of the boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What is done in it.
    pub what: &'static str,
    /// When it begins.
    pub from: u64,
    /// When the next one begins.
    pub to: u64,
}

/// What begins with a line that has these words; in the order of a boot.
const MILESTONES: &[(&str, &[&str])] = &[
    ("kernel: memory, interrupts, clocks", &["Linux version"]),
    ("kernel: other processors", &["smp: Bringing up secondary"]),
    ("kernel: drivers", &["smp: Brought up", "Brought up 1 node"]),
    ("kernel: initrd unpacked", &["Unpacking initramfs", "Trying to unpack rootfs"]),
    ("kernel: the rest", &["Freeing initrd memory"]),
    ("init, from the initrd", &["Run /init as init"]),
    ("root file system", &["VFS: Mounted root", "EXT4-fs (vd", "mounted filesystem"]),
    ("init, from the root file system", &["Run /sbin/init as init", "systemd[1]: systemd", "Run /bin/sh as init"]),
    ("a shell or a login", &["login:", "Welcome to"]),
];

/// The phases of a trace, as far as they show.
pub fn phases(timeline: &Timeline) -> Vec<Phase> {
    let first_exit = timeline.exits.iter().map(|exit| exit.at).min();
    let mut begins = vec![("AxVM: set-up", 0)];
    begins.extend(first_exit.map(|at| ("guest: decompression, early setup", at)));
    let stamped = |(at, line)| stamp(line).map(|stamp| (at, stamp));
    let zero = timeline.console().filter_map(stamped).filter_map(|(at, stamp): (u64, u64)| at.checked_sub(stamp)).min();
    for (what, words) in MILESTONES {
        let found = timeline.console().find(|(_, line)| words.iter().any(|word| line.contains(word)));
        let begin = found.map(|(at, line)| match (stamp(line), zero) {
            (Some(stamp), Some(zero)) => zero.saturating_add(stamp).min(at),
            _ => at,
        });
        // Out of order is something else with the same words.
        begins.extend(begin.filter(|at| begins.last().is_none_or(|(_, last)| last <= at)).map(|at| (*what, at)));
    }
    let ends = begins.iter().skip(1).map(|(_, at)| *at).chain([timeline.end]);
    begins.iter().zip(ends).map(|(&(what, from), to)| Phase { what, from, to: to.max(from) }).collect()
}

/// The kernel's own stamp on a line, in nanoseconds: `[    1.234567] words`.
fn stamp(line: &str) -> Option<u64> {
    let (stamp, _) = line.strip_prefix('[')?.split_once(']')?;
    let (seconds, micros) = stamp.trim().split_once('.')?;
    let (seconds, micros): (u64, u64) =
        (seconds.parse().ok()?, micros.parse().ok().filter(|micros| *micros < 1_000_000)?);
    seconds.checked_mul(1_000_000_000)?.checked_add(micros * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::read::tests::file;

    #[test]
    fn a_kernels_stamps_place_its_phases() {
        let timeline = Timeline::read(&*file()).unwrap();
        let phases = phases(&timeline);
        let at = |what: &str| phases.iter().find(|phase| phase.what == what).map(|phase| (phase.from, phase.to));
        // "Linux version" comes at 3.0 ms with stamp 0, "Run /init" at 6.4 ms with stamp 2 ms: it was late.
        assert_eq!(at("AxVM: set-up"), Some((0, 3_000_000)));
        assert_eq!(at("kernel: memory, interrupts, clocks"), Some((3_000_000, 5_000_000)));
        assert_eq!(at("init, from the initrd"), Some((5_000_000, 22_000_000)));
        assert!(phases.windows(2).all(|pair| pair[0].to == pair[1].from), "{phases:?}");
    }

    #[test]
    fn stamps_are_read_and_nothing_else_is_one() {
        assert_eq!(stamp("[    1.234567] x"), Some(1_234_567_000));
        for no in
            ["", "[1]", "x [ 1.2] y", "[99999999999999999999.0] x", "[18446744073709551615.0] x", "[1.9999999999] x"]
        {
            assert_eq!(stamp(no), None, "{no}");
        }
    }
}
