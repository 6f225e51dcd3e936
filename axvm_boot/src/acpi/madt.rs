//! MADT: the interrupt controllers, which include the processors.
//!
//! ```text
//!  local APIC address | PCAT_COMPAT (there are 8259s, too)
//!  type 0   processor with an APIC id below 255      UID, id      one of these
//!  type 9   processor with any other APIC id         UID, id      for each vCPU
//!  type 1   IOAPIC: GSI 0 to 23
//!  type 2   override: ISA IRQ 0 -> GSI 2 (the PIT), IRQ 9 -> GSI 9 as a level (the SCI)
//!  type 4   NMI on LINT1 of all processors; type 10 the same for those of type 9
//! ```
//!
//! The UID ties an entry to the processor object in the DSDT.
//!
//! Spec: ACPI 6.5, 5.2.12 "Multiple APIC Description Table (MADT)" and its subsections.

use acpi_tables::AmlSink;
use axvm_arch::layout::{self, gsi};

use super::root::table;

/// The highest APIC id that an entry of type 0 can hold; 255 is the xAPIC's broadcast.
pub(super) const LAST_XAPIC_ID: u32 = 254;

/// MADT revision of ACPI 6.5.
const REVISION: u8 = 6;
/// MADT flags: the machine has a pair of 8259 PICs, to be masked when the APICs are used.
const PCAT_COMPAT: u32 = 1 << 0;
/// Processor flags: enabled.
const ENABLED: u32 = 1 << 0;
/// Id of the IOAPIC, as in the register of KVM's.
const IOAPIC_ID: u8 = 0;

/// MPS INTI flags: as the bus does (ISA: edge, active high).
const CONFORMING: u16 = 0;
/// MPS INTI flags: level, active high.
const HIGH_LEVEL: u16 = 0b11_01;

/// The local APIC input where a PC's NMI arrives.
const LINT1: u8 = 1;

/// The MADT of a machine with these processors.
pub(super) fn madt(apic_ids: &[u32]) -> Vec<u8> {
    let mut body = Vec::new();
    body.dword(layout::LAPIC.0 as u32);
    body.dword(PCAT_COMPAT);
    for (uid, &id) in apic_ids.iter().enumerate() {
        processor(&mut body, uid, id);
    }
    ioapic(&mut body);
    source_override(&mut body, gsi::TIMER as u8, gsi::TIMER_PIN, CONFORMING);
    source_override(&mut body, gsi::SCI as u8, gsi::SCI, HIGH_LEVEL);
    nmi(&mut body);
    if apic_ids.last().is_some_and(|&id| id > LAST_XAPIC_ID) {
        x2apic_nmi(&mut body);
    }
    table(*b"APIC", REVISION, &body)
}

/// 5.2.12.2 "Processor Local APIC Structure" or 5.2.12.12 "Processor Local x2APIC Structure".
fn processor(body: &mut Vec<u8>, uid: usize, id: u32) {
    match u8::try_from(id) {
        // Ids ascend from 0 on, so that a UID is never above its id.
        Ok(short) if id <= LAST_XAPIC_ID => {
            body.vec(&[0, 8, uid as u8, short]);
            body.dword(ENABLED);
        }
        _ => {
            body.vec(&[9, 16, 0, 0]);
            body.dword(id);
            body.dword(ENABLED);
            body.dword(uid as u32);
        }
    }
}

/// 5.2.12.3 "I/O APIC Structure".
fn ioapic(body: &mut Vec<u8>) {
    body.vec(&[1, 12, IOAPIC_ID, 0]);
    body.dword(layout::IOAPIC.0 as u32);
    body.dword(0); // its first GSI
}

/// 5.2.12.5 "Interrupt Source Override Structure".
fn source_override(body: &mut Vec<u8>, isa_irq: u8, gsi: u32, flags: u16) {
    body.vec(&[2, 10, 0, isa_irq]); // bus 0 is ISA
    body.dword(gsi);
    body.word(flags);
}

/// 5.2.12.7 "Local APIC NMI Structure", for all processors (UID 0xff).
fn nmi(body: &mut Vec<u8>) {
    body.vec(&[4, 6, 0xff]);
    body.word(CONFORMING);
    body.byte(LINT1);
}

/// 5.2.12.13 "Local x2APIC NMI Structure", for all processors (UID 0xffffffff).
fn x2apic_nmi(body: &mut Vec<u8>) {
    body.vec(&[10, 12]);
    body.word(CONFORMING);
    body.dword(u32::MAX);
    body.vec(&[LINT1, 0, 0, 0]);
}
