//! A boot as phases, from what the guest printed and what it accessed. The guest is as it comes.
//!
//! ```text
//!   set-up | decompression | kernel | processors | drivers | virtio | init | root | init | ready | shut-down
//!        "vcpus"      stamp 0.000000                "Run /init"                  "login:"
//! ```
//!
//! A kernel keeps its first lines until it has a console, and then says that it has: these are placed by their stamps, back
//! from there. Later lines come when they are meant, and their stamps are of no use: until a kernel trusts a clock, its own
//! stands still, and jumps.
//! A kernel that prints nothing (`quiet`) shows by its first exit, and by the first status that it writes to a device.
//!
//! Source: the words of Linux 5.10 to 6.18, of systemd, sysvinit and BusyBox. A machine that starts again: its first boot.
//! Left out: which program of the root file system took how long.

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

/// The kernel unpacks itself.
pub(super) const DECOMPRESSION: &str = "guest: decompression";
/// One that is not packed goes to its first words.
const EARLY: &str = "guest: early setup";
/// The kernel unpacks its initrd, which it does beside other things.
pub(super) const INITRD: &str = "kernel: initrd unpacked, drivers";
const KERNEL: &str = "kernel: memory, interrupts, clocks";
const INITRD_INIT: &str = "init, from the initrd";
const VIRTIO: &str = "virtio drivers";
const ROOT: &str = "root file system";
const INIT: &str = "init, from the root file system";
const READY: &str = "a shell or a login";

/// What begins with the kernel's line that has these words; in the order of a boot.
const MILESTONES: &[(&str, &[&str])] = &[
    (KERNEL, &["Linux version"]),
    ("kernel: other processors", &["smp: Bringing up secondary"]),
    ("kernel: drivers", &["smp: Brought up", "Brought up 1 node"]),
    (INITRD, &["Unpacking initramfs", "Trying to unpack rootfs"]),
    ("kernel: more drivers", &["Freeing initrd memory"]),
    (INITRD_INIT, &["Run /init as init"]),
    (ROOT, &["VFS: Mounted root", "mounted filesystem", "Mounting V5 Filesystem", "BTRFS info (device vd"]),
    (INIT, &["Run /sbin/init as init", "Run /bin/sh as init", "systemd[1]: systemd "]),
];
/// Words with which a system ends.
const ENDS: &[&str] = &[
    "The system is going down",
    "systemd-shutdown[1]:",
    "Reached target Shutdown",
    "reboot: Power down",
    "reboot: Restarting system",
    "reboot: System halted",
];
/// The scripts of an initrd, which print lines of their own.
const INITRD_SCRIPTS: &[&str] = &["Begin: ", "done.", "Loading, please wait", "Starting systemd-udevd"];

/// The phases of a trace's boot, as far as they show; none if no machine was set up in it.
pub fn phases(timeline: &Timeline) -> Vec<Phase> {
    let Some(boot) = Boot::find(timeline) else { return Vec::new() };
    let status = timeline.marks.iter().filter(|mark| timeline.word(mark.kind) == "virtio_status").map(|mark| mark.at);
    let virtio = status.filter(|at| boot.holds(*at)).min();
    let mut begins = vec![("AxVM: set-up", boot.from)];
    begins.push((if timeline.kernel.starts_with("bzImage") { DECOMPRESSION } else { EARLY }, boot.runs));
    // Without a word from the kernel, its first exit is all that tells it from its decompressor.
    begins.extend(boot.first_exit.filter(|_| !boot.is_told() && virtio.is_some()).map(|at| ("kernel", at)));
    for (what, words) in MILESTONES {
        begins.extend(boot.says(words).filter(|line| line.stamp.is_some()).map(|line| (*what, line.meant)));
    }
    begins.extend(virtio.map(|at| (VIRTIO, at)));
    begins.extend(programs(&boot, &begins));
    begins.extend(boot.says(ENDS).map(|line| ("shut-down", line.meant)));
    begins.sort_by_key(|(_, at)| *at);
    let ends = begins.iter().skip(1).map(|(_, at)| *at).chain([boot.to]);
    begins.iter().zip(ends).map(|(&(what, from), to)| Phase { what, from, to: to.max(from) }).collect()
}

/// What programs print, whose lines have no stamp: after the root file system is mounted, or without a word of the kernel
/// about that after its drivers came.
fn programs(boot: &Boot<'_>, begins: &[(&'static str, u64)]) -> Vec<(&'static str, u64)> {
    let at = |wanted: &str| begins.iter().find(|(what, _)| *what == wanted).map(|(_, at)| *at);
    let drivers = at(VIRTIO).filter(|_| at(INITRD_INIT).is_none());
    let Some(after) = at(INIT).or(at(ROOT)).or(drivers) else { return Vec::new() };
    let mut lines = boot.lines.iter().filter(|line| line.stamp.is_none() && line.meant >= after);
    let of_initrd = |line: &Line<'_>| INITRD_SCRIPTS.iter().any(|words| line.text.contains(words));
    let init = lines.clone().find(|line| at(INIT).is_none() && !of_initrd(line)).map(|line| (INIT, line.meant));
    let ready = lines.find(|line| is_ready(line.text)).map(|line| (READY, line.meant));
    init.into_iter().chain(ready).collect()
}

/// When the machine was of use: a shell or a login, else the root file system's init, else the end.
pub fn booted(phases: &[Phase]) -> u64 {
    let at = |wanted: &str| phases.iter().find(|phase| phase.what == wanted).map(|phase| phase.from);
    at(READY).or(at(INIT)).or(phases.last().map(|phase| phase.to)).unwrap_or(0)
}

/// The time between two lines of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence<'a> {
    /// When the first was meant.
    pub at: u64,
    /// Until the second.
    pub took: u64,
    /// The first one's words.
    pub after: &'a str,
    /// The second one's.
    pub before: &'a str,
}

/// So many are told.
const SILENCES: usize = 5;

/// The longest silences of the kernel during the boot; the longest first.
pub fn silences<'a>(timeline: &'a Timeline, phases: &[Phase]) -> Vec<Silence<'a>> {
    let Some(boot) = Boot::find(timeline) else { return Vec::new() };
    let end = booted(phases);
    let lines: Vec<_> = boot.lines.iter().filter(|line| line.stamp.is_some() && line.meant <= end).collect();
    let pairs = lines.windows(2).filter_map(|pair| Some((pair.first()?, pair.last()?)));
    let silence = |(one, two): (&&Line<'a>, &&Line<'a>)| {
        let (after, before) = (words(one.text), words(two.text));
        Silence { at: one.meant, took: two.meant.saturating_sub(one.meant), after, before }
    };
    let mut silences: Vec<_> = pairs.map(silence).filter(|silence| silence.took > 0).collect();
    silences.sort_by_key(|silence| std::cmp::Reverse(silence.took));
    silences.truncate(SILENCES);
    silences
}

/// The first boot in a trace.
struct Boot<'a> {
    /// From AxVM's first step ...
    from: u64,
    /// ... by way of the guest's first instruction ...
    runs: u64,
    /// ... to the next boot, or the end.
    to: u64,
    first_exit: Option<u64>,
    lines: Vec<Line<'a>>,
}

/// A line on the console.
struct Line<'a> {
    /// When its kernel wrote it, or as it came.
    meant: u64,
    stamp: Option<u64>,
    text: &'a str,
}

impl Boot<'_> {
    fn find(timeline: &Timeline) -> Option<Boot<'_>> {
        let steps = || timeline.steps.iter();
        let vcpus = steps().filter(|step| timeline.word(step.name) == "vcpus").min_by_key(|step| step.at)?;
        let runs = vcpus.at.saturating_add(vcpus.took);
        let exits = || timeline.exits.iter().map(|exit| exit.at);
        // A trace that was begun later than the machine: its set-up is that of a reset.
        let began_later = exits().any(|at| at < vcpus.at);
        let from = if began_later { steps().map(|step| step.at).min()? } else { 0 };
        let next = steps().filter(|step| timeline.word(step.name) == "vm" && step.at > runs).map(|step| step.at).min();
        let to = next.unwrap_or(timeline.end);
        let within = |at: u64| (runs..=to).contains(&at);
        let console = || timeline.console().filter(|(at, _)| within(*at));
        // Lines up to this one were kept until the console was there: the first came as soon as the last was meant. The one
        // that says so is written before the others are printed (Linux 6.12), or after (6.1).
        let says_so = |text: &str| text.contains(" console [") && text.ends_with("] enabled");
        let last = console().position(|(_, text)| says_so(text));
        let before = console().take(last.unwrap_or(0)).filter_map(|(_, text)| stamp(text)).last();
        let kept = last.zip(before);
        let zero = console().next().zip(kept).map(|((first, _), (_, stamp))| first.saturating_sub(stamp));
        let line = |(n, (at, text)): (usize, (u64, _))| {
            let stamp = stamp(text);
            let back = kept.filter(|(last, _)| n <= *last).and(zero).zip(stamp);
            Line { meant: back.map_or(at, |(zero, stamp)| zero.saturating_add(stamp).min(at)), stamp, text }
        };
        let lines = console().enumerate().map(line).collect();
        Some(Boot { from, runs, to, first_exit: exits().filter(|at| within(*at)).min(), lines })
    }

    /// Whether the kernel says what it does; with `quiet` it may still warn.
    fn is_told(&self) -> bool {
        self.lines.iter().any(|line| line.stamp.is_some() && line.text.contains("Linux version"))
    }

    fn holds(&self, at: u64) -> bool {
        (self.runs..=self.to).contains(&at)
    }

    /// The first line with any of these words.
    fn says(&self, words: &[&str]) -> Option<&Line<'_>> {
        self.lines.iter().find(|line| words.iter().any(|word| line.text.contains(word)))
    }
}

/// A line that asks for a login, or begins with a shell's prompt: `axvm login:`, `root@axvm:~# `, `/ # ls`, `sh-5.2$`.
fn is_ready(line: &str) -> bool {
    let is_prompt = |word: &str| word.ends_with(['#', '$']);
    let mut words = line.split(' ');
    let (first, second) = (words.next().unwrap_or_default(), words.next());
    let has_more = first.chars().any(char::is_alphanumeric) || first.contains(['/', '~']);
    line.contains("login:") || (has_more && is_prompt(first)) || (has_more && second.is_some_and(is_prompt))
}

/// A kernel's line without its stamp.
fn words(line: &str) -> &str {
    line.split_once("] ").map_or(line, |(_, words)| words)
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
    use crate::timeline::chrome::{Chrome, Scale};
    use crate::timeline::read::tests::file;
    use axvm_events::tape::{Kind, Record};
    use std::time::Duration;

    #[test]
    fn lines_of_a_kernel_place_its_phases() {
        let timeline = Timeline::read(&*file()).unwrap();
        let phases = phases(&timeline);
        assert!(phases.len() == 4, "{phases:?}");
        let at = |what: &str| phases.iter().find(|phase| phase.what == what).map(|phase| (phase.from, phase.to));
        // No line says that there is a console: lines are meant when they come.
        assert_eq!(at("AxVM: set-up"), Some((0, 2_000_000)));
        assert_eq!(at(DECOMPRESSION), Some((2_000_000, 3_000_000)));
        assert_eq!(at("kernel: memory, interrupts, clocks"), Some((3_000_000, 6_400_000)));
        assert_eq!(at("init, from the initrd"), Some((6_400_000, 22_000_000)));
        assert!(phases.windows(2).all(|pair| pair[0].to == pair[1].from), "{phases:?}");
    }

    /// A trace of a machine that is set up in 10 ms, in which these things happen: time in ms, kind, words.
    fn boot(events: &[(u64, &str, &str)]) -> Timeline {
        let mut chrome = Chrome::new(Scale { start: 0, tick: 1.0 }, u64::MAX);
        chrome.step(8_000_000, Duration::from_millis(1), "boot", "bzImage, boot protocol 2.15");
        chrome.step(10_000_000, Duration::from_millis(2), "vcpus", "");
        let vcpu = chrome.lane("vcpu0");
        let (kind, address, value) = (Kind::PortWrite, 0xcf8, 0);
        let first = Record { at: 70_000_000, took: 900, kind, size: 1, count: 1, address, value, rip: 0 };
        chrome.record(vcpu, &first, |_, _| None);
        for (at, kind, words) in events {
            chrome.instant(vcpu, at * 1_000_000, kind, words);
        }
        chrome.end(900_000_000);
        Timeline::read(&*chrome.take()).unwrap()
    }

    /// Names of phases, and when they begin, in ms.
    fn begins(timeline: &Timeline) -> Vec<(&'static str, u64)> {
        phases(timeline).iter().map(|phase| (phase.what, phase.from / 1_000_000)).collect()
    }

    #[test]
    fn a_distribution_shows_each_phase_from_set_up_to_shut_down() {
        let console = |at, words| (at, "console", words);
        let timeline = boot(&[
            console(180, "[    0.000000] Linux version 6.12.1 (debian)"),
            console(181, "[    0.050000] smp: Bringing up secondary CPUs ..."),
            console(182, "[    0.060000] smp: Brought up 1 node, 2 CPUs"),
            console(182, "[    0.100000] Console: colour dummy device 80x25"),
            console(183, "[    0.100000] printk: legacy console [ttyS0] enabled"),
            // This kernel's clock stands still from here on, and jumps.
            console(190, "[    0.100000] Unpacking initramfs..."),
            console(240, "[    0.160000] Freeing initrd memory: 5092K"),
            console(260, "[    9.180000] Run /init as init process"),
            console(270, "Loading, please wait..."),
            (290, "virtio_status", "vda: status 0x0 -> 0x1"),
            console(320, "[    9.240000] EXT4-fs (vda): mounted filesystem 1 r/w with ordered data mode"),
            console(330, "Begin: Running /scripts/local-bottom ... done."),
            console(340, "Welcome to Debian GNU/Linux 12 (bookworm)!"),
            console(350, "[    0.270000] systemd-journald[80]: Received client request"),
            console(500, "axvm login: root"),
            console(600, "root@axvm:~# poweroff"),
            console(700, "[    0.620000] reboot: Power down"),
        ]);
        let wanted = [
            ("AxVM: set-up", 0),
            ("guest: decompression", 10),
            ("kernel: memory, interrupts, clocks", 80),
            ("kernel: other processors", 130),
            ("kernel: drivers", 140),
            ("kernel: initrd unpacked, drivers", 190),
            ("kernel: more drivers", 240),
            ("init, from the initrd", 260),
            ("virtio drivers", 290),
            ("root file system", 320),
            ("init, from the root file system", 340),
            ("a shell or a login", 500),
            ("shut-down", 700),
        ];
        assert_eq!(begins(&timeline), wanted);
        let phases = phases(&timeline);
        assert_eq!(booted(&phases), 500_000_000);
        let longest = &silences(&timeline, &phases)[0];
        assert_eq!(
            (longest.took, longest.before),
            (60_000_000, "EXT4-fs (vda): mounted filesystem 1 r/w with ordered data mode")
        );
        assert_eq!((longest.at, longest.after), (260_000_000, "Run /init as init process"));
    }

    #[test]
    fn kept_lines_are_placed_whenever_the_kernel_says_that_it_has_a_console() {
        for enabled in
            ["[    0.100000] printk: legacy console [ttyS0] enabled", "[    7.900000] printk: console [ttyS0] enabled"]
        {
            let timeline = boot(&[
                (180, "console", "[    0.000000] Linux version 6.1.0"),
                (185, "console", "[    0.100000] Console: colour dummy device 80x25"),
                (190, "console", enabled),
                (195, "console", "[    7.910000] smp: Bringing up secondary CPUs ..."),
            ]);
            assert_eq!(begins(&timeline)[2..], [(KERNEL, 80), ("kernel: other processors", 195)], "{enabled}");
        }
    }

    #[test]
    fn a_quiet_kernel_shows_by_what_it_accesses() {
        let timeline = boot(&[
            (90, "virtio_status", "vda: status 0x0 -> 0x1"),
            (95, "console", "hello"),
            (99, "console", "/ # ls"),
        ]);
        let wanted = [
            ("AxVM: set-up", 0),
            ("guest: decompression", 10),
            ("kernel", 70),
            ("virtio drivers", 90),
            ("init, from the root file system", 95),
            ("a shell or a login", 99),
        ];
        assert_eq!(begins(&timeline), wanted);
    }

    #[test]
    fn a_trace_without_a_start_has_no_boot() {
        let mut timeline = boot(&[]);
        assert_eq!(begins(&timeline), [("AxVM: set-up", 0), ("guest: decompression", 10)]);
        timeline.kernel = "ELF".into();
        assert_eq!(begins(&timeline), [("AxVM: set-up", 0), ("guest: early setup", 10)]);
        timeline.steps.clear();
        assert_eq!(begins(&timeline), []);
    }

    #[test]
    fn a_prompt_is_one_and_other_words_are_none() {
        for yes in ["axvm login:", "/ # ", "/ # ls", "~ # x", "root@axvm:~# poweroff", "sh-5.2$", "[root@axvm ~]# ls"] {
            assert!(is_ready(yes), "{yes}");
        }
        for no in ["", "# comment", "#### x", "# #", "CHECK end: ok", "costs 5 $ in all"] {
            assert!(!is_ready(no), "{no}");
        }
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
