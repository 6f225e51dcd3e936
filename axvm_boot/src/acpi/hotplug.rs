//! The AML of PCI's slots: what came, what is to go, and how the guest lets go of it.
//!
//! ```text
//!   line --GED_._EVT--> PCI0.HPEV: HPUP, HPDN are read and cleared --> Notify(S05_, 1)    look: a device came
//!                                                                      Notify(S05_, 3)    let it go
//!   S05_._STA  bit 5 of HPTH: is it there?        S05_._EJ0  writes bit 5 of HPTH: it may be taken away
//! ```
//!
//! The registers are those of `axvm_devices::pci::PciHotplug`.
//!
//! Spec: ACPI 6.5, 5.6.9.2 "Event Method for Interrupts", 6.1.11 "_SUN (Slot User Number)", 6.3.3 "_EJx (Eject)", 6.3.7
//! "_STA (Device Status)".

use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local, Method,
    MethodCall, Notify, OpRegion, OpRegionSpace, Path, Return, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};
use axvm_arch::layout::port;

use super::objects::{device, name, part_line, places, template};
use crate::plan::{Part, Plan};

/// Of a slot's `_STA`: present, enabled, shown, working.
const PRESENT: u8 = 0xf;
/// What a slot is notified of: it is to be looked at; it is to be emptied.
const CHECK: u8 = 1;
const EJECT: u8 = 3;

/// The device whose event the controller's line is, and the one whose registers are its. (Linux takes no event device
/// with more than lines.)
pub(super) fn event_device(aml: &mut Vec<u8>, part: &Part) {
    let call = MethodCall::new(Path::new("\\_SB_.PCI0.HPEV"), Vec::new());
    let event = Method::new("_EVT".into(), 1, true, vec![&call]);
    let line = template(part_line(part));
    device(aml, "GED_", &[&name("_HID", &"ACPI0013"), &name("_UID", &0_u8), &line, &event]);
    let generic = EISAName::new("PNP0A06");
    device(aml, "HPR_", &[&name("_HID", &generic), &name("_UID", &1_u8), &template(places(part))]);
}

/// What the root of PCI has of a machine's slots: nothing if it has none.
pub(super) struct Slots<'a>(pub(super) &'a Plan);

impl Aml for Slots<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let slots = self.0.slots();
        if slots.is_empty() {
            return;
        }
        OpRegion::new("HPRG".into(), OpRegionSpace::SystemIO, &port::PCI_HOTPLUG, &12_u8).to_aml_bytes(sink);
        let register = |name| FieldEntry::Named(name, 32);
        let registers = vec![register(*b"HPUP"), register(*b"HPDN"), register(*b"HPTH")];
        let (access, lock, rest) = (FieldAccessType::DWord, FieldLockRule::NoLock, FieldUpdateRule::WriteAsZeroes);
        Field::new("HPRG".into(), access, lock, rest, registers).to_aml_bytes(sink);
        slots.iter().for_each(|&slot| self::slot(sink, slot));

        let mut events = Vec::new();
        for (register, reason) in [("HPUP", CHECK), ("HPDN", EJECT)] {
            // What is cleared is what was read.
            Store::new(&Local(0), &Path::new(register)).to_aml_bytes(&mut events);
            Store::new(&Path::new(register), &Local(0)).to_aml_bytes(&mut events);
            for &slot in &slots {
                let (object, bit) = (path(slot), 1_u32 << slot);
                let notify = Notify::new(&object, &reason);
                If::new(&And::new(&ZERO, &Local(0), &bit), vec![&notify]).to_aml_bytes(&mut events);
            }
        }
        Method::new("HPEV".into(), 0, true, vec![&Raw(events)]).to_aml_bytes(sink);
    }
}

fn path(slot: u8) -> Path {
    Path::new(&format!("S{slot:02X}_"))
}

fn slot(sink: &mut dyn AmlSink, slot: u8) {
    let (there, bit) = (Path::new("HPTH"), 1_u32 << slot);
    let is_there = And::new(&ZERO, &there, &bit);
    let present = Return::new(&PRESENT);
    let (yes, no) = (If::new(&is_there, vec![&present]), Return::new(&ZERO));
    let status = Method::new("_STA".into(), 0, false, vec![&yes, &no]);
    let write = Store::new(&there, &bit);
    let eject = Method::new("_EJ0".into(), 1, false, vec![&write]);
    let (address, number) = (name("_ADR", &(u32::from(slot) << 16)), name("_SUN", &slot));
    Device::new(path(slot), vec![&address, &number, &status, &eject]).to_aml_bytes(sink);
}

/// AML that is bytes already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}
