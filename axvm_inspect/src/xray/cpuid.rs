//! What the guest's first processor answers to CPUID, and which features differ from the host's.
//!
//! ```text
//!   KVM_GET_SUPPORTED_CPUID --cpu::leaves--> the guest's      kept back: vmx     added: hypervisor ht
//!   /proc/cpuinfo                                             host only: what KVM gives to no guest
//! ```
//!
//! Spec: Intel SDM volume 2A, CPUID; KVM API 4.46 `KVM_GET_SUPPORTED_CPUID`. Left out: the other processors, which differ
//! in their APIC id only (leaves 1, 0xB and 0x1F).

use axvm_arch::cpu_features::{self, Output};
use axvm_arch::cpuid::CpuidEntry;

use super::{CpuidFacts, Facts, Row, Section};
use crate::text::clean;

pub(super) fn section(facts: &Facts) -> Section {
    let (about, rows) = match facts.cpuid {
        Ok(known) => (
            "What the first processor answers, and what differs from what KVM supports on this host.".to_owned(),
            rows(known),
        ),
        Err(why) => (format!("Only KVM can tell, and it is not at hand: {why}."), unknown()),
    };
    Section { id: "cpuid", title: "CPUID", about: clean(&about), rows }
}

/// What holds on every host.
fn unknown() -> Vec<Row> {
    let row = |name, means| Row::new(name).means(means);
    vec![
        row("template", "--cpu host: all that KVM supports; ivybridge: no more than a Xeon E5 v2 (2013) has"),
        row("added", "hypervisor, x2apic, KVM's own leaves from 0x40000000 on, each processor's APIC id and topology"),
        row("kept back", "vmx, svm without nested=on; performance counters without pmu=on"),
    ]
}

fn rows(known: &CpuidFacts) -> Vec<Row> {
    let mut rows = vec![summary(known)];
    rows.extend(known.guest.iter().map(|leaf| {
        let host = find(&known.supported, leaf);
        let words = Output::ALL.map(|output| format!("{} {:#x}", output.name(), output.of(leaf))).join(" ");
        let index = if leaf.indexed { format!(".{:x}", leaf.index) } else { String::new() };
        let parts = Output::ALL.iter().filter_map(|output| features(leaf, host, *output));
        let row = Row::new(format!("{:#x}{index}", leaf.function)).text(words).rows(parts.collect());
        match leaf_means(leaf.function) {
            Some(means) => row.means(means),
            None => row,
        }
    }));
    rows
}

fn find<'a>(leaves: &'a [CpuidEntry], leaf: &CpuidEntry) -> Option<&'a CpuidEntry> {
    leaves.iter().find(|other| (other.function, other.index) == (leaf.function, leaf.index))
}

/// One word of features: those that the guest has, those that it lacks, those that it alone has.
fn features(leaf: &CpuidEntry, host: Option<&CpuidEntry>, output: Output) -> Option<Row> {
    let (guest, host) = (output.of(leaf), host.map_or(0, |host| output.of(host)));
    let names = |bits| cpu_features::set(leaf.function, leaf.index, output, bits).map(|names| names.join(" "));
    if guest | host == 0 {
        return None;
    }
    let mut means = names(guest)?;
    for (word, bits) in [("kept back", host & !guest), ("added", guest & !host)] {
        if bits != 0 {
            means += &format!("; {word}: {}", names(bits)?);
        }
    }
    Some(Row::new(output.name()).value(guest.into()).means(means))
}

/// What is added and kept back, all in all.
fn summary(known: &CpuidFacts) -> Row {
    let (mut added, mut kept, mut told) = (Vec::new(), Vec::new(), Vec::new());
    let extra = known.supported.iter().filter(|leaf| find(&known.guest, leaf).is_none());
    for leaf in known.guest.iter().chain(extra) {
        for output in Output::ALL {
            let bits = |leaves| find(leaves, leaf).map_or(0, |leaf| output.of(leaf));
            let (guest, host) = (bits(&known.guest), bits(&known.supported));
            let names = |bits| cpu_features::set(leaf.function, leaf.index, output, bits).unwrap_or_default();
            added.extend(names(guest & !host));
            kept.extend(names(host & !guest));
            told.extend(names(guest | host));
        }
    }
    let withheld = known.host_flags.split_whitespace().filter(|flag| !told.iter().any(|told| told == flag));
    let rows = [
        ("added", added.join(" "), "KVM does not list it for this host, and the guest is told of it"),
        ("kept back", kept.join(" "), "KVM would give it; template, options or what it stands on take it away"),
        (
            "host only",
            withheld.collect::<Vec<_>>().join(" "),
            "in the host's /proc/cpuinfo, and not among what KVM gives",
        ),
    ];
    let rows = rows.into_iter().map(|(name, features, means)| {
        let features = if features.is_empty() { "nothing" } else { &features };
        Row::new(name).means(format!("{means}: {features}"))
    });
    Row::new("differences").means("features by their names in /proc/cpuinfo").rows(rows.collect())
}

/// What a leaf tells.
fn leaf_means(function: u32) -> Option<&'static str> {
    Some(match function {
        0 => "the last leaf, and who made the processor",
        1 => "family, model, APIC id, features",
        2 => "caches and TLBs, in codes",
        4 => "caches, and how many processors share each",
        5 => "MONITOR and MWAIT",
        6 => "power and temperature",
        7 => "more features",
        0xa => "performance counters",
        0xb | 0x1f | 0x8000_0026 => "topology: where in the APIC id thread and core end",
        0xd => "extended state: what XSAVE keeps, and where",
        0x15 | 0x16 => "frequencies",
        0x4000_0000 => "the last leaf of the hypervisor, and which one it is",
        0x4000_0001 => "KVM's features",
        0x4000_0010 => "frequencies of TSC and APIC timer, in kHz",
        0x8000_0000 => "the last extended leaf",
        0x8000_0001 => "extended features",
        0x8000_0002..=0x8000_0004 => "the processor's name",
        0x8000_0005 | 0x8000_0006 | 0x8000_001d => "caches, as AMD tells them",
        0x8000_0007 => "power management; an invariant TSC",
        0x8000_0008 => "bits of addresses, count of processors, more features",
        0x8000_000a => "SVM",
        0x8000_001e => "APIC id and topology, as AMD tells them",
        0x8000_0021 => "more features of AMD",
        _ => return None,
    })
}
