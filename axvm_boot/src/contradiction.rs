//! Words of the kernel command line that contradict the machine, told before it starts.
//!
//! ```text
//!   --append "acpi=off root=/dev/vdb"  +  plan: ACPI tables list vda, rng ...   -->  one sentence for each such word
//! ```
//!
//! Linux obeys such a word in silence, and then misses its disk, its processors or its console: minutes of search for
//! who typed it. Each sentence names the word, what follows from it here, and what to do instead. Nothing is forbidden.
//!
//! Source: Linux Documentation/admin-guide/kernel-parameters.rst. Left out: words that only name what is not virtual
//! hardware, and words for init (after `--`).

use axvm_arch::layout::gsi;

use crate::acpi_extent::Acpi;
use crate::command_line::words;
use crate::plan::{Kind, Plan, VirtioKind};

/// One sentence for each word in `line` that contradicts a machine of this plan with so many vCPUs.
pub fn contradictions(plan: &Plan, vcpus: u32, line: &str) -> Vec<String> {
    let words = words(line).take_while(|&word| word != "--");
    words.filter_map(|word| follows(plan, vcpus, word).map(|follows| format!("{word}: {follows}"))).collect()
}

/// What follows from one word, and what to do.
fn follows(plan: &Plan, vcpus: u32, word: &str) -> Option<String> {
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    match (key, value) {
        ("acpi", "off") => without_tables(plan),
        ("pci", words) => words.split(',').find_map(|word| without_pci(plan, word)),
        ("nolapic", _) if plan.has_pci() => Some(no_messages(plan)),
        ("nosmp" | "nolapic", _) | ("maxcpus" | "nr_cpus", "0") if vcpus > 1 => Some(fewer_vcpus(1, vcpus)),
        ("maxcpus" | "nr_cpus", count) if count.parse().is_ok_and(|count: u32| (1..vcpus).contains(&count)) => {
            Some(fewer_vcpus(count.parse().ok()?, vcpus))
        }
        ("noapic" | "nolapic" | "nosmp", _) | ("maxcpus", "0") | ("acpi", "noirq") => without_ioapic(plan),
        ("virtio_mmio.device", device) => twice(plan, device),
        ("console", device) if device.split(',').next() == Some("hvc0") => {
            let there = plan.find(Kind::Virtio(VirtioKind::Console)).is_some();
            (!there)
                .then(|| "this machine has no virtio console; add --virtio-console stdio, or say console=ttyS0".into())
        }
        ("root", device) => no_such_disk(plan, device),
        _ => None,
    }
}

/// What follows for a bus that nothing else stands in for.
fn without_pci(plan: &Plan, word: &str) -> Option<String> {
    match word {
        "off" if plan.has_pci() => Some(format!(
            "the kernel then finds none of {}, which are on PCI; leave the word out, or say --bus mmio",
            devices(plan)
        )),
        "nomsi" if plan.has_pci() => Some(no_messages(plan)),
        _ => None,
    }
}

fn no_messages(plan: &Plan) -> String {
    let all = devices(plan);
    format!("the kernel then gets no interrupt of {all}, which are on PCI; leave the word out, or say --bus mmio")
}

fn without_tables(plan: &Plan) -> Option<String> {
    let no_power = "can neither power off nor see the power button";
    match plan.acpi() {
        Acpi::Full if plan.has_pci() => {
            Some(format!("the kernel then {no_power}; say --acpi off as well, or leave the word out"))
        }
        Acpi::Full => Some(format!(
            "the kernel then finds none of {}, and {no_power}; say --acpi off as well, or leave the word out",
            devices(plan)
        )),
        Acpi::Cpus => {
            Some(format!("the kernel then {no_power}; say --acpi off instead of --acpi cpus, or leave the word out"))
        }
        Acpi::Off => None,
    }
}

fn fewer_vcpus(count: u32, vcpus: u32) -> String {
    format!("the kernel then starts {count} of {vcpus} vCPUs; leave the word out, or say --cpus {count}")
}

/// Devices whose lines only the IOAPIC has.
fn without_ioapic(plan: &Plan) -> Option<String> {
    let late = names(plan, |line| line >= gsi::ISA_COUNT);
    (!late.is_empty()).then(|| {
        let lines = gsi::ISA_COUNT;
        format!(
            "the kernel then has the first {lines} interrupt lines only, and {late} would wait for ever; \
             leave the word out, or give the machine fewer disks"
        )
    })
}

/// A device that the tables list already.
fn twice(plan: &Plan, device: &str) -> Option<String> {
    let base = device.split(['@', ':']).nth(1)?;
    let base = match base.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => base.parse(),
    };
    let base = base.ok()?;
    let is_here = |part: &&crate::plan::Part| part.window().is_some_and(|(at, _)| at.0 == base);
    let name = plan.virtio().map(|(_, part)| part).find(is_here)?.name.clone();
    plan.acpi().has_devices().then(|| {
        format!("the ACPI tables list {name} too, and the kernel would find it twice; leave the word out, or say --acpi cpus")
    })
}

/// A disk beyond the last.
fn no_such_disk(plan: &Plan, device: &str) -> Option<String> {
    let disk = device.strip_prefix("/dev/")?.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let letters = disk.strip_prefix("vd")?;
    let is_disk = !letters.is_empty() && letters.bytes().all(|letter| letter.is_ascii_lowercase());
    let disks: Vec<&str> =
        plan.virtio().filter(|(kind, _)| matches!(kind, VirtioKind::Block(_))).map(|(_, part)| &*part.name).collect();
    (is_disk && !disks.contains(&disk)).then(|| match disks.as_slice() {
        [] => "this machine has no disk; add --disk FILE".into(),
        there => {
            format!("this machine has no {disk}, only {}; name one of these, or add --disk FILE", there.join(", "))
        }
    })
}

/// All virtio devices.
fn devices(plan: &Plan) -> String {
    plan.virtio().map(|(_, part)| &*part.name).collect::<Vec<_>>().join(", ")
}

/// The virtio devices with such a line.
fn names(plan: &Plan, with: impl Fn(u32) -> bool) -> String {
    let parts = plan.virtio().filter(|(_, part)| part.line.is_some_and(&with));
    parts.map(|(_, part)| &*part.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(disks: usize, acpi: Acpi) -> Plan {
        let devices: Vec<_> = (0..disks).map(VirtioKind::Block).chain([VirtioKind::Entropy]).collect();
        Plan::new(&devices, acpi).unwrap()
    }

    fn told(line: &str) -> Vec<String> {
        contradictions(&plan(1, Acpi::Full), 4, line)
    }

    #[test]
    fn a_kernel_without_the_tables_that_list_its_disk_is_told_of() {
        let [one] = &told("quiet acpi=off")[..] else { panic!() };
        assert!(
            one.starts_with("acpi=off: the kernel then finds none of vda, rng, and can neither power off"),
            "{one}"
        );
        assert!(one.contains("say --acpi off as well, or leave the word out"), "{one}");
        let cpus = contradictions(&plan(1, Acpi::Cpus), 4, "acpi=off");
        assert!(cpus.len() == 1 && cpus[0].contains("--acpi off instead of --acpi cpus"), "{cpus:?}");
        assert!(contradictions(&plan(1, Acpi::Off), 4, "acpi=off").is_empty());
    }

    #[test]
    fn words_that_leave_vcpus_unused_say_how_many_start() {
        for (word, count) in [("nosmp", 1), ("nolapic", 1), ("maxcpus=0", 1), ("maxcpus=1", 1), ("nr_cpus=3", 3)] {
            let expected =
                format!("{word}: the kernel then starts {count} of 4 vCPUs; leave the word out, or say --cpus {count}");
            assert_eq!(told(word), [expected]);
        }
        assert!(told("maxcpus=4 maxcpus=5 nr_cpus=x maxcpus=").is_empty());
        assert!(contradictions(&plan(1, Acpi::Full), 1, "nosmp maxcpus=1").is_empty());
    }

    #[test]
    fn devices_on_late_lines_need_the_ioapic() {
        assert!(told("noapic acpi=noirq").is_empty(), "all lines are the 8259s'");
        for word in ["noapic", "acpi=noirq", "nosmp"] {
            let told = contradictions(&plan(7, Acpi::Full), 1, word);
            assert!(told.len() == 1 && told[0].contains("and vdg, rng would wait for ever"), "{told:?}");
        }
    }

    #[test]
    fn no_device_is_announced_that_the_tables_list() {
        let [one] = &told("virtio_mmio.device=512@0xd0000000:5")[..] else { panic!() };
        assert!(one.contains("list vda too") && one.contains("--acpi cpus"), "{one}");
        assert!(told("virtio_mmio.device=512@0xd8000000:5 virtio_mmio.device=x virtio_mmio.device").is_empty());
        assert!(contradictions(&plan(1, Acpi::Cpus), 1, "virtio_mmio.device=512@0xd0000000:5").is_empty());
    }

    #[test]
    fn consoles_and_disks_that_are_not_there_are_named() {
        assert!(told("console=hvc0,115200")[0].contains("add --virtio-console stdio"));
        assert!(told("root=/dev/vdb1")[0].contains("has no vdb, only vda"));
        assert!(contradictions(&plan(0, Acpi::Full), 1, "root=/dev/vda")[0].contains("has no disk"));
        assert!(
            told("root=/dev/vda1 root=/dev/sda root=LABEL=vdz root=/dev/vd console=ttyS0 console=hvc00").is_empty()
        );
        let consoles = Plan::new(&[VirtioKind::Console], Acpi::Full).unwrap();
        assert!(contradictions(&consoles, 1, "console=hvc0").is_empty());
    }

    #[test]
    fn words_that_take_pci_away_are_told_of_where_it_is() {
        let devices = [VirtioKind::Block(0), VirtioKind::Entropy];
        let pci = Plan::on_pci(&devices, Acpi::Full, 1 << 30).unwrap();
        let told = |line: &str| contradictions(&pci, 2, line);
        let [off] = &told("pci=noaer,off")[..] else { panic!() };
        assert!(off.starts_with("pci=noaer,off: the kernel then finds none of vda, rng, which are on PCI"), "{off}");
        for word in ["pci=nomsi", "nolapic"] {
            assert!(told(word).iter().any(|told| told.contains("no interrupt of vda, rng")), "{word}");
        }
        assert!(told("noapic pci=noaer pci=conf1 virtio_mmio.device=512@0xc0000000:5").is_empty());
        let [acpi] = &told("acpi=off")[..] else { panic!() };
        assert!(acpi.starts_with("acpi=off: the kernel then can neither power off"), "{acpi}");
        assert!(self::told("pci=off pci=nomsi").is_empty(), "nothing is on PCI");
        let line = crate::command_line::default_command_line(&pci, crate::command_line::Defaults::default());
        assert_eq!(line, "console=ttyS0 root=/dev/vda rw", "found by looking");
    }

    #[test]
    fn words_for_init_and_quoted_ones_contradict_nothing() {
        assert!(told("quiet -- acpi=off nosmp").is_empty());
        assert!(told("x=\"a acpi=off b\" acpi=force myacpi=off acpi").is_empty());
        assert_eq!(told("nosmp acpi=off").len(), 2, "one each");
    }
}
