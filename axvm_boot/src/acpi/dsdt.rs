//! DSDT: the devices that cannot be found by looking, as an AML namespace.
//!
//! ```text
//!  \_SB_.C000 ...  processors (ACPI0007), _UID as in the MADT
//!       .COM1      16550A (PNP0501): ports 0x3f8-0x3ff, IRQ 4
//!       .RTC_      MC146818 (PNP0B00): ports 0x70-0x71, IRQ 8
//!       .PEVT      pvpanic (QEMU0001): port 0x505
//!       .V000 ...  virtio-mmio (LNRO0005): a window of registers, a GSI
//!       .PCI0      PCI Express root (PNP0A08): bus 0, its configuration ports, its windows
//!           .S05_ ...  slots of that bus: _ADR, _SUN, _STA, _EJ0
//!           .HPEV      tells the guest what came and what is to go
//!       .GED_      events by an interrupt of their own (ACPI0013): calls HPEV
//!       .HPR_      the registers behind it (PNP0A06)
//!       .ECAM      what no driver may have (PNP0C02): the configuration spaces of PCI
//!  \_S5_           what to write to PM1a control to turn the machine off
//! ```
//!
//! With [`Acpi::Cpus`](super::Acpi::Cpus) `_S5_` is all: for kernels that fail over devices in AML.
//!
//! Nothing here is code, so that no OS has to run anything but lookups; but for the slots of PCI, which cannot be without
//! methods.
//!
//! Spec: ACPI 6.5, 5.2.11.1 "Differentiated System Description Table (DSDT)", 6.1 "Device
//! Identification Objects", 6.4 "Resource Data Types for ACPI", 7.4.2 "\_Sx (System States)", 8.4
//! "Declaring Processors". The power button is no device: it is fixed hardware, see the FADT.
//! Left out: the PIT and the PICs, which no OS looks up here.

use acpi_tables::Aml;
use acpi_tables::aml::{AddressSpace, AddressSpaceCacheable, EISAName, IO, Name, Package, ResourceTemplate, Scope};
use axvm_arch::layout::acpi::SLEEP_TYPE_S5;

use super::hotplug;
use super::objects::{device, name, resources};
use super::root::table;
use crate::plan::{Kind, Part, Place, Plan};

/// Revision 2 and above: integers have 64 bits.
const REVISION: u8 = 2;
/// `_STA`: present, enabled, shown, working.
const PRESENT: u8 = 0xf;

/// The DSDT of a machine with so many processors and these parts.
pub(super) fn dsdt(processors: usize, plan: &Plan) -> Vec<u8> {
    let mut body = Vec::new();
    if plan.acpi().has_devices() {
        body = Scope::raw("_SB_".into(), devices(processors, plan));
    }
    // SLP_TYP for the PM1a and the PM1b control register, and two reserved values.
    let sleep_types = Package::new(vec![&SLEEP_TYPE_S5, &SLEEP_TYPE_S5, &0_u8, &0_u8]);
    Name::new("_S5_".into(), &sleep_types).to_aml_bytes(&mut body);
    table(*b"DSDT", REVISION, &body)
}

/// Everything below `_SB_`.
fn devices(processors: usize, plan: &Plan) -> Vec<u8> {
    let mut devices = Vec::new();
    for uid in 0..processors {
        processor(&mut devices, uid as u32);
    }
    let mut windows = 0..;
    for part in plan.parts() {
        match part.kind {
            Kind::Uart => com1(&mut devices, part),
            Kind::Rtc => device(&mut devices, "RTC_", &[&name("_HID", &EISAName::new("PNP0B00")), &resources(part)]),
            Kind::DebugExit | Kind::DebugConsole => {}
            Kind::Pvpanic => device(&mut devices, "PEVT", &[&name("_HID", &"QEMU0001"), &resources(part)]),
            Kind::PciHost if plan.has_pci() => pci_root(&mut devices, part, plan),
            Kind::PciHotplug => hotplug::event_device(&mut devices, part),
            Kind::PciEcam => {
                device(&mut devices, "ECAM", &[&name("_HID", &EISAName::new("PNP0C02")), &resources(part)])
            }
            // Found by looking.
            Kind::Virtio(_) if plan.has_pci() => {}
            Kind::Virtio(_) => windows.by_ref().take(1).for_each(|uid| virtio_mmio(&mut devices, uid, part)),
            // Found by looking, by the MADT or by the FADT.
            Kind::Pic | Kind::Pit | Kind::IoApic | Kind::LocalApic => {}
            Kind::I8042 | Kind::AcpiPm | Kind::PmTimer | Kind::PciHost | Kind::PciWindow => {}
        }
    }
    devices
}

fn processor(aml: &mut Vec<u8>, uid: u32) {
    device(aml, &format!("C{uid:03X}"), &[&name("_HID", &"ACPI0007"), &name("_UID", &uid)]);
}

fn com1(aml: &mut Vec<u8>, part: &Part) {
    let (hid, uid, sta) = (name("_HID", &EISAName::new("PNP0501")), name("_UID", &1_u8), name("_STA", &PRESENT));
    device(aml, "COM1", &[&hid, &uid, &sta, &resources(part)]);
}

fn virtio_mmio(aml: &mut Vec<u8>, uid: u32, part: &Part) {
    device(aml, &format!("V{uid:03X}"), &[&name("_HID", &"LNRO0005"), &name("_UID", &uid), &resources(part)]);
}

/// The root of PCI. No `_PRT`: functions have no interrupt pins. No `_OSC`: no service of PCI Express is offered.
fn pci_root(aml: &mut Vec<u8>, part: &Part, plan: &Plan) {
    let bus = AddressSpace::new_bus_number(0_u16, 0);
    let ports = part.places.iter().filter_map(|place| match *place {
        Place::Ports { first, count } => Some(IO::new(first, first, 1, count as u8)),
        Place::Mmio { .. } | Place::Pci { .. } => None,
    });
    let ports: Vec<_> = ports.collect();
    let windows = plan.parts().iter().filter(|part| part.kind == Kind::PciWindow).filter_map(Part::window);
    let windows: Vec<_> = windows
        .map(|(base, len)| {
            let last = base.0 + len - 1;
            AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, base.0, last, None)
        })
        .collect();
    let ports = ports.iter().map(|ports| -> &dyn Aml { ports });
    let windows = windows.iter().map(|window| -> &dyn Aml { window });
    let resources = [&bus as &dyn Aml].into_iter().chain(ports).chain(windows).collect();
    let (hid, cid) = (name("_HID", &EISAName::new("PNP0A08")), name("_CID", &EISAName::new("PNP0A03")));
    let zero = |of| name(of, &0_u8);
    let crs = name("_CRS", &ResourceTemplate::new(resources));
    let slots = hotplug::Slots(plan);
    device(aml, "PCI0", &[&hid, &cid, &zero("_SEG"), &zero("_UID"), &zero("_BBN"), &crs, &slots]);
}
