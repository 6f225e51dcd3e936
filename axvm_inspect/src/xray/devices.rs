//! The device table: where each part of the machine answers, its interrupt line, and what Linux will call it.
//!
//! ```text
//!   Plan: vda, virtio-blk, 0xd0000000, line 5  -->  vda  /dev/vda   found by ACPI (LNRO0005)
//! ```
//!
//! No specification: names are those of Linux's drivers. Left out: names that a guest's udev gives (enp0s3 and its like).

use axvm_boot::plan::{Kind, Part, Place, Plan, VirtioKind, disk_name};

use super::{Facts, Row, Section};

pub(super) fn section(facts: &Facts) -> Section {
    let rows = facts.plan.parts().iter().map(|part| device(facts.plan, part)).collect();
    let about = "Every part of the machine: where it answers, its interrupt line (GSI), what Linux will call it.";
    Section { id: "devices", title: "Devices", about: about.into(), rows }
}

fn device(plan: &Plan, part: &Part) -> Row {
    let name = guest_name(part.kind);
    let means = match name.is_empty() {
        true => found(plan, part.kind).to_owned(),
        false => format!("{name}; {}", found(plan, part.kind)),
    };
    let mut rows: Vec<Row> = part.places.iter().map(place).collect();
    rows.extend(part.line.map(|line| Row::new("line").value(line.into()).means(line_words(part.kind, line))));
    let owner = if part.kind.is_in_kvm() { "KVM" } else { "AxVM" };
    Row::new(&*part.name).text(part.kind.to_string()).means(means).owner(owner).rows(rows)
}

fn line_words(kind: Kind, line: u32) -> String {
    match kind {
        Kind::AcpiPm => format!("GSI {line}, level: held until it is answered"),
        Kind::Pit => format!("GSI {line}; at the IOAPIC it arrives at pin 2"),
        _ => format!("GSI {line}, edge: an eventfd that KVM listens to (irqfd)"),
    }
}

fn place(place: &Place) -> Row {
    match *place {
        Place::Ports { first, count } => {
            let row = Row::new("ports").at(first.into()).len(count.into());
            row.means(place.to_string())
        }
        Place::Mmio { base, len } => Row::new("memory").at(base.0).len(len).means(place.to_string()),
        Place::Pci { devfn, bar } => Row::new("PCI").at(bar.0).value(devfn.into()).means(place.to_string()),
    }
}

/// What Linux calls it; empty if it has no name there.
fn guest_name(kind: Kind) -> String {
    match kind {
        Kind::Uart => "/dev/ttyS0".into(),
        Kind::Rtc => "/dev/rtc0".into(),
        Kind::PmTimer => "clocksource acpi_pm".into(),
        Kind::Virtio(VirtioKind::Block(number)) => format!("/dev/{}", disk_name(number)),
        Kind::Virtio(VirtioKind::Entropy) => "/dev/hwrng".into(),
        Kind::Virtio(VirtioKind::Console) => "/dev/hvc0".into(),
        Kind::Virtio(VirtioKind::Net(number)) => format!("eth{number}"),
        Kind::Virtio(VirtioKind::Vsock) => "/dev/vsock".into(),
        Kind::Virtio(VirtioKind::AgentPort) => "a port in /dev/virtio-ports".into(),
        _ => String::new(),
    }
}

/// How the kernel finds it.
fn found(plan: &Plan, kind: Kind) -> &'static str {
    let acpi = plan.acpi();
    match kind {
        Kind::Pic | Kind::Pit | Kind::I8042 | Kind::PciHost => "where every PC has it",
        Kind::IoApic | Kind::LocalApic if acpi.has_tables() => "found by the MADT",
        Kind::IoApic | Kind::LocalApic => "found by the MP table",
        Kind::AcpiPm | Kind::PmTimer if acpi.has_tables() => "found by the FADT",
        Kind::AcpiPm | Kind::PmTimer => "not told of, for want of ACPI",
        Kind::Uart | Kind::Rtc if acpi.has_devices() => "found by the DSDT, and where every PC has it",
        Kind::Uart | Kind::Rtc => "where every PC has it",
        Kind::Pvpanic | Kind::PciHotplug if acpi.has_devices() => "found by the DSDT",
        Kind::Pvpanic | Kind::PciHotplug => "not told of, for want of ACPI",
        Kind::PciEcam if acpi.has_tables() => "found by the MCFG",
        Kind::PciEcam | Kind::PciWindow => "part of PCI",
        Kind::DebugExit | Kind::DebugConsole => "for kernels that know of it",
        Kind::Virtio(_) if plan.has_pci() => "found on PCI's bus",
        Kind::Virtio(_) if acpi.has_devices() => "found by the DSDT",
        Kind::Virtio(_) => "announced on the command line",
    }
}
