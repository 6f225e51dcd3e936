//! What a boot could do without, and what that would save.
//!
//! ```text
//!   exits of one kind in a row:  |AxVM|--guest--|AxVM|--guest--|AxVM|   all of it is saved with them
//!   phases, kernel's lines    -> what is known to take long
//! ```
//!
//! What it would save is an upper limit: the guest may do something else in that time, too.
//!
//! Source: Linux Documentation/admin-guide/kernel-parameters.txt; what was measured with AxVM.

use std::collections::HashMap;

use super::phases::{DECOMPRESSION, INITRD, Phase, booted, silences};
use super::read::Timeline;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// Nanoseconds at most.
    pub saves: u64,
    /// What takes it, and what to do.
    pub words: String,
}

/// Exits that a setting would save: beginning of the register's name, which of them tells that it is so, what to do.
const EXITS: &[(&str, &str, &str)] = &[
    (
        "COM1 ",
        "COM1 THR",
        "printing on the serial port: each letter is an exit; --append quiet, or --virtio-console stdio",
    ),
    (
        "PCI host ",
        "PCI host ",
        "looking for devices on PCI by ports: a kernel without PCI, or --append pci=off on a machine with MMIO",
    ),
    ("port 0x80", "port 0x80", "short waits of old drivers: --append io_delay=none"),
    ("i8042 ", "i8042 ", "looking for a keyboard: --append i8042.nokbd"),
    (
        "ACPI timer",
        "ACPI timer",
        "reading the time by exits: let the guest use kvm-clock or the TSC (--append clocksource=tsc)",
    ),
    ("RTC ", "RTC ", "reading the clock of the date: a kernel without CONFIG_RTC_HCTOSYS, if kvm-clock tells the date"),
];

/// Exits of which so many are nothing to talk about.
const FEW: u64 = 50;
/// Between two exits of one kind: a longer time is another matter.
const APART: u64 = 1_000_000;

/// Phases that can be shorter: name, what to do.
const PHASES: &[(&str, &str)] = &[
    (DECOMPRESSION, "the kernel unpacks itself: a vmlinux, which is not packed, or one packed with LZ4"),
    (INITRD, "the initrd is unpacked: a smaller one, or none and the drivers in the kernel"),
];

/// Silences of the kernel: words before or after them, what to do.
const SILENCES: &[(&str, &str)] = &[
    ("raid6: ", "RAID's fastest loop is looked for: a kernel with CONFIG_RAID6_PQ_BENCHMARK=n"),
    ("xor: measuring", "XOR's fastest loop is looked for: a kernel without RAID and btrfs"),
    ("IP-Config: ", "the kernel waits for its network (ip=): let a program of the guest set it up"),
    (
        "Waiting for root device",
        "the driver of the disk comes late, or never: axvm inspect shows what the kernel lacks",
    ),
    ("i8042: ", "a keyboard is looked for: --append i8042.nokbd"),
];

/// What is too short to talk about: a hundredth of the boot.
const SHARE: u64 = 100;

/// What would save most comes first.
pub fn advice(timeline: &Timeline, phases: &[Phase]) -> Vec<Advice> {
    let least = booted(phases) / SHARE;
    let mut all = of_exits(timeline);
    for (name, words) in PHASES {
        let phase = phases.iter().find(|phase| phase.what == *name);
        let saves = phase.map_or(0, |phase| phase.to - phase.from);
        all.push(Advice { saves, words: (*words).to_owned() });
    }
    for silence in silences(timeline, phases) {
        let known =
            SILENCES.iter().find(|(word, _)| silence.after.starts_with(word) || silence.before.starts_with(word));
        all.extend(known.map(|(_, words)| Advice { saves: silence.took, words: (*words).to_owned() }));
    }
    all.retain(|advice| advice.saves > least);
    all.sort_by_key(|advice| std::cmp::Reverse(advice.saves));
    all
}

/// One piece of advice for each kind of exit of which there are many.
fn of_exits(timeline: &Timeline) -> Vec<Advice> {
    let kind = |name: &String| {
        let kind = EXITS.iter().position(|(part, ..)| name.starts_with(part))?;
        Some((kind, name.starts_with(EXITS[kind].1)))
    };
    let kinds: Vec<_> = timeline.names.iter().map(kind).collect();
    let mut sums = [Sum::default(); EXITS.len()];
    let mut before: HashMap<u32, (usize, u64)> = HashMap::new();
    for exit in &timeline.exits {
        let last = before.remove(&exit.lane);
        let Some((kind, tells)) = kinds.get(exit.name as usize).copied().flatten() else { continue };
        let between = last.filter(|(same, _)| *same == kind).map_or(0, |(_, last)| exit.at.saturating_sub(last));
        let sum = &mut sums[kind];
        sum.count += 1;
        sum.telling += u64::from(tells);
        sum.time = sum.time.saturating_add(exit.took).saturating_add(if between < APART { between } else { 0 });
        before.insert(exit.lane, (kind, exit.at.saturating_add(exit.took)));
    }
    let told = EXITS.iter().zip(sums).filter(|(_, sum)| sum.telling >= FEW);
    told.map(|((.., words), sum)| Advice { saves: sum.time, words: format!("{} exits: {words}", sum.count) }).collect()
}

/// Exits of one kind.
#[derive(Clone, Copy, Default)]
struct Sum {
    count: u64,
    /// Those that tell what they are for.
    telling: u64,
    /// In AxVM and between them.
    time: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::phases::phases;
    use crate::timeline::read::tests::file;

    #[test]
    fn exits_in_a_row_count_with_what_lies_between_them() {
        let timeline = Timeline::read(&*file()).unwrap();
        let advice = advice(&timeline, &phases(&timeline));
        let words: Vec<_> =
            advice.iter().map(|advice| (advice.saves, advice.words.split(':').next().unwrap())).collect();
        // 81 letters, one each 100 us; 1 ms from the first instruction to the kernel's clock.
        assert_eq!(words, [(8_002_000, "81 exits"), (1_000_000, "the kernel unpacks itself")]);
    }

    #[test]
    fn a_guest_that_waits_for_input_prints_nothing() {
        let mut timeline = Timeline::read(&*file()).unwrap();
        timeline.names.iter_mut().filter(|name| *name == "COM1 THR").for_each(|name| *name = "COM1 LSR".into());
        assert_eq!(advice(&timeline, &phases(&timeline)).len(), 1, "the decompression alone");
    }

    #[test]
    fn nothing_is_advised_without_a_reason() {
        let mut timeline = Timeline::read(&*file()).unwrap();
        timeline.exits.truncate(9);
        timeline.steps.clear();
        assert_eq!(advice(&timeline, &[]), []);
    }
}
