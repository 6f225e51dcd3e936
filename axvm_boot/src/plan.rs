//! The plan: which parts a machine has, and who sits where, before anything of it exists.
//!
//! ```text
//!   what is wanted                 the plan                                   who reads it
//!   disks, rng, balloon  --new-->  COM1   ports 0x3f8..0x3ff   line 4    -->  ACPI tables, command line
//!   console, ACPI or not           ...                                   -->  the board, which wires each part
//!                                  vda    0xd000_0000, 0x200   line 5    -->  `axvm run -v`, status, limits
//!                                  vdb    0xd000_1000, 0x200   line 10
//! ```
//!
//! A pure value: no KVM, no file, no eventfd. Nothing else decides an address or counts devices.
//!
//! Sources: `axvm_arch::layout` for every fixed place; virtio 1.2, 4.2.2 "MMIO Device Register Layout" for the length
//! of a window. Left out: the processors, which the MADT lists; interrupts of PCI functions, whose numbers no guest sees.

use std::fmt;
use std::sync::Arc;

use axvm_arch::Gpa;
use axvm_arch::layout::{self, gsi, port};
use thiserror::Error;

use crate::acpi_extent::Acpi;

/// Devices of PCI's bus, the bridge included.
const PCI_DEVICES: u8 = 32;
/// Functions of that bus behind the bridge's device.
const FUNCTIONS: usize = (PCI_DEVICES as usize - 1) * 8;
/// Distance between two BARs at power-on, in bytes; none is longer.
const PCI_BAR_STRIDE: u64 = 0x1_0000;

/// One part of a machine: a chip of the PC, or a virtio device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What people, threads and messages call it, such as `COM1` or `vda`; no two parts share a name.
    pub name: Arc<str>,
    /// What it is.
    pub kind: Kind,
    /// Where the guest finds its registers; no two places overlap.
    pub places: Vec<Place>,
    /// Its interrupt line, as a global system interrupt. Two parts share one only if KVM provides both.
    pub line: Option<u32>,
}

/// What a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The pair of 8259 interrupt controllers (in KVM).
    Pic,
    /// The i8254 timer (in KVM).
    Pit,
    /// The IOAPIC (in KVM).
    IoApic,
    /// The local APICs, one for each processor at the same address (in KVM).
    LocalApic,
    /// The 16550A serial port.
    Uart,
    /// The MC146818 clock with its CMOS RAM.
    Rtc,
    /// The keyboard controller, for its reset line.
    I8042,
    /// ACPI's power management registers.
    AcpiPm,
    /// ACPI's power management timer.
    PmTimer,
    /// The panic notifier.
    Pvpanic,
    /// The configuration ports of PCI, with the reset register among them.
    PciHost,
    /// The configuration spaces of PCI in memory.
    PciEcam,
    /// Addresses where PCI functions may be seen.
    PciWindow,
    /// The hotplug controller of PCI, with the slots that it serves.
    PciHotplug,
    /// The port by which a guest ends its machine with a code.
    DebugExit,
    /// The port that takes letters.
    DebugConsole,
    /// A virtio device.
    Virtio(VirtioKind),
}

/// What a virtio device does (virtio 1.2, 5 "Device Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtioKind {
    /// Disk number n, from 0.
    Block(usize),
    /// The entropy source.
    Entropy,
    /// The memory balloon.
    Balloon,
    /// A console beside the serial port.
    Console,
    /// Network card number n, from 0.
    Net(usize),
    /// The socket device.
    Vsock,
    /// The port of the guest's agent.
    AgentPort,
}

/// Where registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// I/O ports.
    Ports {
        /// The first.
        first: u16,
        /// How many.
        count: u16,
    },
    /// Guest-physical addresses.
    Mmio {
        /// The first byte.
        base: Gpa,
        /// Length in bytes.
        len: u64,
    },
    /// A function on the bus of PCI.
    Pci {
        /// Device (5 bits) and function (3 bits).
        devfn: u8,
        /// Where its registers are at power-on; a guest may move them.
        bar: Gpa,
    },
}

/// A machine that cannot be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// More devices than interrupt lines.
    #[error("{} devices need an interrupt line each: {}; this machine has {lines} for them{}. Leave out {}{}",
        .names.len(), .names.join(", "), few_lines(*.acpi), .names.len() - .lines, no_lines(*.acpi))]
    Lines {
        /// All that need one, in the order in which they are served.
        names: Vec<String>,
        /// How many lines there are.
        lines: usize,
        /// What its ACPI tables list; for devices on the command line there are fewer.
        acpi: Acpi,
    },
    /// More devices than functions.
    #[error("{count} devices need a function each; the bus of PCI has {FUNCTIONS} for them. Leave out {}", .count - FUNCTIONS)]
    Functions {
        /// How many want one.
        count: usize,
    },
    /// A bus that is described in AML, for a kernel that reads none.
    #[error(
        "PCI needs its root in the ACPI tables, which --acpi cpus leaves out; say --acpi full, or --acpi off, with which \
         Linux looks for the bus itself, or --bus mmio"
    )]
    NoRoot,
    /// A port that the user chose belongs to another part.
    #[error("{name} at {place}: {} is at {} already; 0xf4 and 0x501 are usual and free", .other.name, .other.places_text())]
    Taken {
        /// The part that would be there.
        name: &'static str,
        /// Where.
        place: Place,
        /// The part that is there.
        other: Box<Part>,
    },
}

fn few_lines(acpi: Acpi) -> &'static str {
    match acpi {
        Acpi::Full => "",
        Acpi::Cpus => {
            ", because a guest that finds devices on its command line (--acpi cpus) knows the first 16 lines only"
        }
        Acpi::Off => ", because without ACPI a guest knows the first 16 lines only",
    }
}

/// The bus that needs no lines, where it can be.
fn no_lines(acpi: Acpi) -> &'static str {
    match acpi {
        Acpi::Full | Acpi::Off => ", or say --bus pci",
        Acpi::Cpus => "",
    }
}

/// All parts of a machine and their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    parts: Vec<Part>,
    acpi: Acpi,
}

impl Plan {
    /// A PC with these virtio devices, which get their lines in this order.
    pub fn new(virtio: &[VirtioKind], acpi: Acpi) -> Result<Plan, PlanError> {
        let lines: Vec<u32> =
            gsi::VIRTIO.into_iter().filter(|&line| acpi.has_devices() || line < gsi::ISA_COUNT).collect();
        if virtio.len() > lines.len() {
            let names = virtio.iter().map(|kind| kind.name()).collect();
            return Err(PlanError::Lines { names, lines: lines.len(), acpi });
        }
        let devices = virtio.iter().zip(lines).enumerate().map(|(n, (&kind, line))| Part {
            name: kind.name().into(),
            kind: Kind::Virtio(kind),
            places: vec![window(n)],
            line: Some(line),
        });
        Ok(Plan { parts: platform().into_iter().chain(devices).collect(), acpi })
    }

    /// The same devices on PCI, in this order, in a machine with `ram_len` bytes of RAM.
    pub fn on_pci(virtio: &[VirtioKind], acpi: Acpi, ram_len: u64) -> Result<Plan, PlanError> {
        if acpi == Acpi::Cpus {
            return Err(PlanError::NoRoot);
        }
        if virtio.len() > FUNCTIONS {
            return Err(PlanError::Functions { count: virtio.len() });
        }
        // Guests number their disks as they find them: by ascending function. One to a device as long as there is room.
        let per_device = if virtio.len() < usize::from(PCI_DEVICES) { 1 } else { 8 };
        let place = |n: usize| {
            let devfn = (8 * (1 + n / per_device) + n % per_device) as u8;
            Place::Pci { devfn, bar: Gpa(layout::PCI_WINDOW.0 + n as u64 * PCI_BAR_STRIDE) }
        };
        let devices = virtio.iter().enumerate().map(|(n, &kind)| Part {
            name: kind.name().into(),
            kind: Kind::Virtio(kind),
            places: vec![place(n)],
            line: None,
        });
        let mut parts: Vec<_> = platform().into_iter().chain(pci(ram_len)).collect();
        // Slots are found and told of by methods in the tables.
        if acpi == Acpi::Full && virtio.len() < FUNCTIONS {
            parts.push(hotplug());
        }
        parts.extend(devices);
        Ok(Plan { parts, acpi })
    }

    /// The same with the ports for kernels that test themselves: debug exit from port `exit` on, and a debug console.
    pub fn with_debug(mut self, exit: Option<u16>, console: bool) -> Result<Plan, PlanError> {
        let exit = exit.map(|first| ("debug exit", Kind::DebugExit, first, port::DEBUG_EXIT_COUNT));
        let console = console.then_some(("debug console", Kind::DebugConsole, port::DEBUG_CONSOLE, 1));
        for (name, kind, first, count) in console.into_iter().chain(exit) {
            let place = Place::Ports { first, count };
            let is_taken = |part: &&Part| part.places.iter().any(|other| other.overlaps(&place));
            if let Some(other) = self.parts.iter().find(is_taken) {
                return Err(PlanError::Taken { name, place, other: Box::new(other.clone()) });
            }
            self.parts.push(Part { name: name.into(), kind, places: vec![place], line: None });
        }
        Ok(self)
    }

    /// Every part: the PC's own, then the virtio devices in their order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The virtio devices with their windows, in their order.
    pub fn virtio(&self) -> impl Iterator<Item = (VirtioKind, &Part)> {
        self.parts.iter().filter_map(|part| match part.kind {
            Kind::Virtio(kind) => Some((kind, part)),
            _ => None,
        })
    }

    /// The part of this kind, if the machine has one.
    pub fn find(&self, kind: Kind) -> Option<&Part> {
        self.parts.iter().find(|part| part.kind == kind)
    }

    /// Whether its devices are on PCI.
    pub fn has_pci(&self) -> bool {
        self.find(Kind::PciEcam).is_some()
    }

    /// The devices of PCI's bus that may come and go while the guest runs, by number: those that nothing is in at the start.
    pub fn slots(&self) -> Vec<u8> {
        if self.find(Kind::PciHotplug).is_none() {
            return Vec::new();
        }
        let places = self.parts.iter().flat_map(|part| &part.places);
        let taken = |place: &Place| if let Place::Pci { devfn, .. } = *place { Some(devfn >> 3) } else { None };
        let taken: Vec<u8> = places.filter_map(taken).collect();
        (1..PCI_DEVICES).filter(|device| !taken.contains(device)).collect()
    }

    /// Where a device in one of the [slots](Plan::slots) is at power-on: behind all others.
    pub fn slot_place(device: u8) -> Place {
        let bar = Gpa(layout::PCI_WINDOW.0 + (FUNCTIONS as u64 + u64::from(device)) * PCI_BAR_STRIDE);
        Place::Pci { devfn: device << 3, bar }
    }

    /// What ACPI tables tell the guest of the parts. Where they do not list the devices, the command line announces them.
    pub fn acpi(&self) -> Acpi {
        self.acpi
    }
}

/// Virtio-mmio window number `n`.
fn window(n: usize) -> Place {
    let base = Gpa(layout::VIRTIO_MMIO.0 + n as u64 * layout::VIRTIO_MMIO_STRIDE);
    Place::Mmio { base, len: layout::VIRTIO_MMIO_LEN }
}

/// The parts that every machine has.
fn platform() -> Vec<Part> {
    let ports = |first, count| Place::Ports { first, count };
    let page = |base| Place::Mmio { base, len: 0x1000 };
    let part = |name: &str, kind, places, line| Part { name: name.into(), kind, places, line };
    let pic = [ports(port::PIC_MASTER, 2), ports(port::PIC_SLAVE, 2), ports(port::ELCR, 2)];
    vec![
        part("PIC", Kind::Pic, pic.into(), None),
        part("PIT", Kind::Pit, vec![ports(port::PIT, 4), ports(port::SPEAKER, 1)], Some(gsi::TIMER)),
        part("IOAPIC", Kind::IoApic, vec![page(layout::IOAPIC)], None),
        part("local APIC", Kind::LocalApic, vec![page(layout::LAPIC)], None),
        part("i8042", Kind::I8042, vec![ports(port::I8042 + 4, 1)], None),
        // Before the RTC, whose alarm is told here.
        part("ACPI PM1a", Kind::AcpiPm, vec![ports(port::PM1A_EVENT, 6)], Some(gsi::SCI)),
        part("ACPI timer", Kind::PmTimer, vec![ports(port::PM_TIMER, 4)], None),
        part("RTC", Kind::Rtc, vec![ports(port::RTC, 2)], Some(gsi::RTC)),
        part("COM1", Kind::Uart, vec![ports(port::COM1, 8)], Some(gsi::COM1)),
        part("pvpanic", Kind::Pvpanic, vec![ports(port::PVPANIC, 1)], None),
        part("PCI host", Kind::PciHost, vec![ports(port::PCI, 8)], None),
    ]
}

/// What PCI has beside the host, which every machine has.
fn pci(ram_len: u64) -> [Part; 3] {
    let part = |name: &str, kind, base, len| {
        let places = vec![Place::Mmio { base, len }];
        Part { name: name.into(), kind, places, line: None }
    };
    let high = layout::pci_high_window(ram_len);
    [
        part("PCI ECAM", Kind::PciEcam, layout::PCI_ECAM, layout::PCI_ECAM_LEN),
        part("PCI window", Kind::PciWindow, layout::PCI_WINDOW, layout::PCI_WINDOW_LEN),
        part("PCI high window", Kind::PciWindow, high, layout::PCI_HIGH_WINDOW_LEN),
    ]
}

/// What tells the guest of devices that come and go.
fn hotplug() -> Part {
    let places = vec![Place::Ports { first: port::PCI_HOTPLUG, count: 12 }];
    Part { name: "PCI hotplug".into(), kind: Kind::PciHotplug, places, line: Some(gsi::HOTPLUG) }
}

impl Place {
    /// In which space it is, first and last.
    fn span(&self) -> (u8, u64, u64) {
        match *self {
            Place::Ports { first, count } => (0, first.into(), u64::from(first) + u64::from(count.max(1)) - 1),
            Place::Mmio { base, len } => (1, base.0, base.0.saturating_add(len.max(1) - 1)),
            Place::Pci { devfn, .. } => (2, devfn.into(), devfn.into()),
        }
    }

    fn overlaps(&self, other: &Place) -> bool {
        let ((space, first, last), (other_space, other_first, other_last)) = (self.span(), other.span());
        space == other_space && first <= other_last && other_first <= last
    }
}

impl Part {
    /// Where its registers are, for people.
    fn places_text(&self) -> String {
        self.places.iter().map(Place::to_string).collect::<Vec<_>>().join(", ")
    }

    /// The registers in guest-physical memory, if that is where they are: first byte and length.
    pub fn window(&self) -> Option<(Gpa, u64)> {
        self.places.iter().find_map(|place| match *place {
            Place::Mmio { base, len } => Some((base, len)),
            Place::Ports { .. } | Place::Pci { .. } => None,
        })
    }
}

impl Kind {
    /// Whether the kernel's half of the machine provides it, and not this program.
    pub fn is_in_kvm(self) -> bool {
        match self {
            Kind::Pic | Kind::Pit | Kind::IoApic | Kind::LocalApic => true,
            Kind::Uart | Kind::Rtc | Kind::I8042 | Kind::AcpiPm | Kind::PmTimer => false,
            Kind::PciHost | Kind::PciEcam | Kind::PciWindow | Kind::PciHotplug => false,
            Kind::Pvpanic | Kind::DebugExit | Kind::DebugConsole | Kind::Virtio(_) => false,
        }
    }
}

impl VirtioKind {
    /// The name of the device: what Linux calls it, where it has a name there.
    pub fn name(self) -> String {
        match self {
            VirtioKind::Block(number) => disk_name(number),
            VirtioKind::Entropy => "rng".into(),
            VirtioKind::Balloon => "balloon".into(),
            VirtioKind::Console => "hvc0".into(),
            VirtioKind::Net(number) => format!("net{number}"),
            VirtioKind::Vsock => "vsock".into(),
            VirtioKind::AgentPort => "agent-port".into(),
        }
    }
}

/// The name that Linux gives to disk `number`, from 0: vda to vdz, then vdaa, vdab ...
pub fn disk_name(number: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = number + 1;
    while rest > 0 {
        letters.push(char::from(b'a' + ((rest - 1) % 26) as u8));
        rest = (rest - 1) / 26;
    }
    letters.iter().rev().fold(String::from("vd"), |name, letter| name + &letter.to_string())
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Pic => "8259",
            Kind::Pit => "i8254",
            Kind::IoApic => "ioapic",
            Kind::LocalApic => "lapic",
            Kind::Uart => "16550",
            Kind::Rtc => "mc146818",
            Kind::I8042 => "i8042",
            Kind::AcpiPm => "acpi-pm",
            Kind::PmTimer => "acpi-pm-timer",
            Kind::Pvpanic => "pvpanic",
            Kind::PciHost => "pci-host",
            Kind::PciEcam => "pci-ecam",
            Kind::PciWindow => "pci-window",
            Kind::PciHotplug => "pci-hotplug",
            Kind::DebugExit => "debug-exit",
            Kind::DebugConsole => "debug-console",
            Kind::Virtio(VirtioKind::Block(_)) => "virtio-blk",
            Kind::Virtio(VirtioKind::Entropy) => "virtio-rng",
            Kind::Virtio(VirtioKind::Balloon) => "virtio-balloon",
            Kind::Virtio(VirtioKind::Console) => "virtio-console",
            Kind::Virtio(VirtioKind::Net(_)) => "virtio-net",
            Kind::Virtio(VirtioKind::Vsock) => "virtio-vsock",
            Kind::Virtio(VirtioKind::AgentPort) => "virtio-serial",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Ports { first, count: 1 } => write!(f, "port {first:#x}"),
            Place::Ports { first, count } => write!(f, "ports {first:#x}-{:#x}", first + (count - 1)),
            Place::Mmio { base, len } => write!(f, "{base}-{:#x}", base.0 + (len - 1)),
            Place::Pci { devfn, bar } => write!(f, "pci 00:{:02x}.{}, BAR 0 at {bar}", devfn >> 3, devfn & 7),
        }
    }
}

/// One line for people: `vda: virtio-blk at 0xd0000000-0xd00001ff, line 5`.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} at {}", self.name, self.kind, self.places_text())?;
        self.line.map_or(Ok(()), |line| write!(f, ", line {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::ops::Range;

    fn full() -> Plan {
        let disks = (0..gsi::VIRTIO.len()).map(VirtioKind::Block).collect::<Vec<_>>();
        Plan::new(&disks, Acpi::Full).unwrap()
    }

    #[test]
    fn the_first_disk_is_on_irq_5() {
        let plan = Plan::new(&[VirtioKind::Block(0), VirtioKind::Entropy], Acpi::Full).unwrap();
        let (_, disk) = plan.virtio().next().unwrap();
        assert_eq!(disk.to_string(), "vda: virtio-blk at 0xd0000000-0xd00001ff, line 5");
        assert_eq!(plan.find(Kind::Virtio(VirtioKind::Entropy)).unwrap().line, Some(10));
        assert_eq!(plan.find(Kind::Virtio(VirtioKind::Balloon)), None);
    }

    #[test]
    fn parts_share_neither_name_nor_line_nor_place() {
        let plan = full();
        let names: HashSet<_> = plan.parts().iter().map(|part| &part.name).collect();
        assert_eq!(names.len(), plan.parts().len());
        let lines: Vec<_> = plan.parts().iter().filter_map(|part| part.line).collect();
        assert_eq!(lines.iter().collect::<HashSet<_>>().len(), lines.len());
        assert!(lines.iter().all(|&line| line < gsi::COUNT));
        let spans = |ports: bool| {
            let places = plan.parts().iter().flat_map(|part| &part.places);
            let mut spans: Vec<Range<u64>> = places
                .filter_map(|place| match *place {
                    Place::Ports { first, count } if ports => Some(first.into()..u64::from(first + count)),
                    Place::Mmio { base, len } if !ports => Some(base.0..base.0 + len),
                    _ => None,
                })
                .collect();
            spans.sort_by_key(|span| span.start);
            spans
        };
        for spans in [spans(true), spans(false)] {
            assert!(spans.windows(2).all(|pair| pair[0].end <= pair[1].start), "{spans:x?}");
        }
        let windows = plan.virtio().map(|(_, part)| part.window().unwrap());
        assert!(windows.into_iter().all(|(base, len)| base >= layout::HOLE && base.0 + len <= layout::IOAPIC.0));
    }

    #[test]
    fn a_machine_with_too_few_lines_says_which_parts_want_them() {
        let disks = |count| (0..count).map(VirtioKind::Block).chain([VirtioKind::Entropy]).collect::<Vec<_>>();
        assert!(Plan::new(&disks(13), Acpi::Full).is_ok());
        let error = Plan::new(&disks(14), Acpi::Full).unwrap_err().to_string();
        assert!(error.starts_with("15 devices need an interrupt line each: vda, vdb, "), "{error}");
        assert!(error.ends_with(", vdn, rng; this machine has 14 for them. Leave out 1, or say --bus pci"), "{error}");
        assert!(Plan::new(&disks(5), Acpi::Off).is_ok());
        for (acpi, why) in [(Acpi::Off, "without ACPI"), (Acpi::Cpus, "on its command line (--acpi cpus)")] {
            let error = Plan::new(&disks(6), acpi).unwrap_err().to_string();
            assert!(error.contains("has 6 for them, because ") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn functions_ascend_in_the_order_of_the_devices() {
        let places = |count: usize| {
            let disks: Vec<_> = (0..count).map(VirtioKind::Block).collect();
            let plan = Plan::on_pci(&disks, Acpi::Full, 6 << 30).unwrap();
            assert!(plan.virtio().all(|(_, part)| part.line.is_none() && part.window().is_none()));
            let places = plan.virtio().map(|(_, part)| match part.places[..] {
                [Place::Pci { devfn, bar }] => (devfn, bar.0),
                _ => panic!("{part}"),
            });
            places.collect::<Vec<_>>()
        };
        assert_eq!(places(31).last(), Some(&(31 << 3, 0xc01e_0000)));
        assert_eq!(places(32)[..9].iter().map(|place| place.0).collect::<Vec<_>>(), [8, 9, 10, 11, 12, 13, 14, 15, 16]);
        let most = places(FUNCTIONS);
        assert!(most.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1) && most.last().unwrap().0 == u8::MAX);
        assert!(most.last().unwrap().1 + PCI_BAR_STRIDE <= layout::PCI_WINDOW.0 + layout::PCI_WINDOW_LEN);
        let error = Plan::on_pci(&[VirtioKind::Entropy; 250], Acpi::Off, 1 << 30).unwrap_err().to_string();
        assert_eq!(error, "250 devices need a function each; the bus of PCI has 248 for them. Leave out 2");
        assert_eq!(Plan::on_pci(&[], Acpi::Cpus, 1 << 30), Err(PlanError::NoRoot));
    }

    #[test]
    fn slots_are_what_no_device_has_and_their_bars_lie_behind_all_others() {
        let plan = |count, acpi| Plan::on_pci(&vec![VirtioKind::Entropy; count], acpi, 1 << 30).unwrap();
        assert_eq!(plan(29, Acpi::Full).slots(), [30, 31]);
        assert_eq!(plan(31, Acpi::Full).slots(), [0_u8; 0]);
        assert_eq!(plan(33, Acpi::Full).slots(), (6..32).collect::<Vec<_>>(), "eight to a device");
        assert_eq!(plan(2, Acpi::Off).slots(), [0_u8; 0], "no methods without tables");
        assert_eq!(Plan::new(&[VirtioKind::Entropy], Acpi::Full).unwrap().slots(), [0_u8; 0]);
        let bars = (1..PCI_DEVICES).map(|device| match Plan::slot_place(device) {
            Place::Pci { devfn, bar } => (devfn, bar.0),
            place => panic!("{place}"),
        });
        let (first, last) =
            (layout::PCI_WINDOW.0 + FUNCTIONS as u64 * PCI_BAR_STRIDE, layout::PCI_WINDOW.0 + layout::PCI_WINDOW_LEN);
        assert!(bars.into_iter().all(|(devfn, bar)| devfn % 8 == 0 && bar >= first && bar + PCI_BAR_STRIDE <= last));
    }

    #[test]
    fn pci_lies_above_ram_and_beside_everything_else() {
        for (ram, high) in
            [(64_u64 << 20, 4_u64 << 30), (3 << 30, 4 << 30), ((3 << 30) + 1, 5 << 30), (6 << 30, 7 << 30)]
        {
            let plan = Plan::on_pci(&[VirtioKind::Block(0)], Acpi::Full, ram).unwrap();
            let windows: Vec<_> =
                plan.parts().iter().filter(|part| part.kind == Kind::PciWindow).filter_map(Part::window).collect();
            assert_eq!(windows, [(Gpa(0xc000_0000), 0x1000_0000), (Gpa(high), 1 << 30)]);
            assert_eq!(
                plan.virtio().next().unwrap().1.to_string(),
                "vda: virtio-blk at pci 00:01.0, BAR 0 at 0xc0000000"
            );
            let places: Vec<_> = plan.parts().iter().flat_map(|part| &part.places).collect();
            let overlap = |(n, place): (usize, &&Place)| places[..n].iter().any(|other| other.overlaps(place));
            assert!(!places.iter().enumerate().any(overlap), "{plan:?}");
        }
    }

    #[test]
    fn a_debug_port_is_where_no_other_part_is() {
        let plan = |exit| full().with_debug(exit, true);
        for exit in [0xf4, 0x501, 0xe5, 0xea, 0xfffc] {
            let plan = plan(Some(exit)).unwrap();
            assert_eq!(plan.find(Kind::DebugExit).unwrap().places, [Place::Ports { first: exit, count: 4 }]);
        }
        assert_eq!(plan(None).unwrap().find(Kind::DebugExit), None);
        for (exit, name) in
            [(0x604, "ACPI PM1a is at ports 0x600-0x605"), (0x502, "pvpanic is at"), (0xe6, "debug con")]
        {
            let text = plan(Some(exit)).unwrap_err().to_string();
            assert!(text.starts_with("debug exit at ports 0x") && text.contains(name), "{text}");
        }
    }

    #[test]
    fn disks_never_run_out_of_names() {
        let names = [0, 25, 26, 51, 52, 701, 702].map(disk_name);
        assert_eq!(names, ["vda", "vdz", "vdaa", "vdaz", "vdba", "vdzz", "vdaaa"]);
    }
}
