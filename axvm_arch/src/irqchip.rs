//! Interrupt controllers as values: two PICs, the IOAPIC, and the page of a local APIC.
//!
//! ```text
//!   line --> PIC     IRR request -> IMR masked? -> ISR in service --> INTR
//!        \-> IOAPIC  pin -> redirection entry -----------------------> local APIC   TMR ISR IRR, timer, LVT
//!
//!   redirection entry   63..56        16      15        14      13       12       11       10..8      7..0
//!                       destination   masked  trigger   remote  polarity pending  logical  delivery   vector
//! ```
//!
//! What a save carries is what an explanation shows: "is my interrupt masked, and where does it go".
//!
//! Spec: Intel 8259A datasheet (1988); Intel 82093AA (IOAPIC) datasheet (1996), 3.2.4 "IOREDTBL"; Intel SDM volume 3,
//! 11.4.1 "The Local APIC Block Diagram". Left out: how they behave; KVM does that.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::HexBytes;

/// One of the two 8259A. Bitmaps have bit n for line n of this chip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PicState {
    /// Levels of the lines when they were last looked at.
    pub levels: u8,
    /// IRR: lines that ask.
    pub requested: u8,
    /// IMR: lines that are masked.
    pub masked: u8,
    /// ISR: lines whose handler has not said EOI.
    pub in_service: u8,
    /// The line of highest priority, 0 unless priorities were rotated.
    pub first_priority: u8,
    /// Vector of line 0 (ICW2).
    pub vector_base: u8,
    /// A read of the command port gives ISR, not IRR (OCW3).
    pub reads_in_service: bool,
    /// The next read is a poll (OCW3).
    pub polls: bool,
    /// Special mask mode (OCW3).
    pub special_mask: bool,
    /// The initialization word that comes next, 0 when initialized.
    pub init_step: u8,
    /// EOI comes by itself (ICW4).
    pub auto_eoi: bool,
    /// Automatic EOI rotates priorities (OCW2).
    pub rotates_on_auto_eoi: bool,
    /// Special fully nested mode (ICW4).
    pub special_fully_nested: bool,
    /// ICW1 said that ICW4 follows.
    pub expects_icw4: bool,
    /// ELCR: lines that are level-triggered.
    pub level_triggered: u8,
    /// Lines that may be level-triggered.
    pub level_allowed: u8,
}

/// How the IOAPIC hands an interrupt to a local APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum DeliveryMode {
    /// To all processors named, with the vector.
    #[default]
    Fixed = 0,
    /// To the one of those named that has the least important work.
    LowestPriority = 1,
    /// System management interrupt.
    Smi = 2,
    /// No mode (011).
    Reserved3 = 3,
    /// Non-maskable interrupt.
    Nmi = 4,
    /// INIT.
    Init = 5,
    /// No mode (110).
    Reserved6 = 6,
    /// The PIC has the vector.
    ExtInt = 7,
}

impl DeliveryMode {
    /// The mode of three bits; more are ignored.
    const fn from_bits(bits: u64) -> DeliveryMode {
        match bits & 7 {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            2 => DeliveryMode::Smi,
            3 => DeliveryMode::Reserved3,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            6 => DeliveryMode::Reserved6,
            _ => DeliveryMode::ExtInt,
        }
    }
}

/// Where one pin of the IOAPIC leads.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedirectionEntry {
    /// Interrupt vector.
    pub vector: u8,
    /// What kind of message goes out.
    pub delivery: DeliveryMode,
    /// The destination is a set of logical APIC ids, not one physical id.
    pub logical: bool,
    /// Sent, and not yet accepted.
    pub pending: bool,
    /// The line is active low.
    pub active_low: bool,
    /// A local APIC has accepted a level-triggered interrupt and has not said EOI.
    pub remote_irr: bool,
    /// Level-triggered, not edge.
    pub level: bool,
    /// Nothing comes through.
    pub masked: bool,
    /// APIC id or set of ids.
    pub destination: u8,
    /// Bits 17 to 55 as the guest wrote them; they mean nothing, but read back.
    #[serde(default)]
    pub reserved: u64,
}

impl RedirectionEntry {
    /// Bits that have no meaning.
    const RESERVED: u64 = 0x00ff_ffff_fffe_0000;

    /// The entry that a 64-bit register holds.
    pub const fn from_bits(bits: u64) -> RedirectionEntry {
        RedirectionEntry {
            vector: bits as u8,
            delivery: DeliveryMode::from_bits(bits >> 8),
            logical: bits >> 11 & 1 != 0,
            pending: bits >> 12 & 1 != 0,
            active_low: bits >> 13 & 1 != 0,
            remote_irr: bits >> 14 & 1 != 0,
            level: bits >> 15 & 1 != 0,
            masked: bits >> 16 & 1 != 0,
            destination: (bits >> 56) as u8,
            reserved: bits & Self::RESERVED,
        }
    }

    /// The 64-bit register.
    pub const fn bits(&self) -> u64 {
        self.vector as u64
            | (self.delivery as u64) << 8
            | (self.logical as u64) << 11
            | (self.pending as u64) << 12
            | (self.active_low as u64) << 13
            | (self.remote_irr as u64) << 14
            | (self.level as u64) << 15
            | (self.masked as u64) << 16
            | self.reserved & Self::RESERVED
            | (self.destination as u64) << 56
    }
}

impl fmt::Debug for RedirectionEntry {
    /// `0x44 Fixed edge -> physical 0x0`, and after it what is not as usual.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trigger, ids) =
            (if self.level { "level" } else { "edge" }, if self.logical { "logical" } else { "physical" });
        let RedirectionEntry { vector, delivery, destination, .. } = *self;
        write!(f, "{vector:#04x} {delivery:?} {trigger} -> {ids} {destination:#x}")?;
        let unusual = [
            (self.masked, "masked"),
            (self.active_low, "active low"),
            (self.pending, "pending"),
            (self.remote_irr, "remote IRR"),
        ];
        unusual.iter().filter(|(is, _)| *is).try_for_each(|(_, word)| write!(f, ", {word}"))?;
        if self.reserved != 0 { write!(f, ", reserved {:#x}", self.reserved) } else { Ok(()) }
    }
}

/// The IOAPIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoapicState {
    /// Address of its window.
    pub base: u64,
    /// IOREGSEL: the register that the window shows.
    pub selected: u32,
    /// Its APIC id.
    pub id: u32,
    /// Pins that ask and were not delivered yet, one bit each.
    pub requested: u32,
    /// One entry for each pin; always 24.
    pub pins: Vec<RedirectionEntry>,
}

impl IoapicState {
    /// Number of pins.
    pub const PINS: usize = 24;
}

/// The registers of a local APIC: one at each 16th byte of a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LapicState(pub HexBytes);

impl LapicState {
    /// Length in bytes of the part of the page that has registers.
    pub const LEN: usize = 0x400;
    /// Offset of the spurious-interrupt vector register (SVR).
    pub const SVR: usize = 0xf0;
    /// Offset of the in-service register (ISR): 8 registers, one bit for each vector.
    pub const ISR: usize = 0x100;
    /// Offset of the interrupt request register (IRR), alike.
    pub const IRR: usize = 0x200;
    /// Offset of the local vector table's entry for the timer.
    pub const LVT_TIMER: usize = 0x320;
    /// Offset of the local vector table's entry for LINT0.
    pub const LVT_LINT0: usize = 0x350;
    /// Offset of the local vector table's entry for LINT1.
    pub const LVT_LINT1: usize = 0x360;

    /// The 32-bit register at `offset`; 0 where there is none.
    pub fn register(&self, offset: usize) -> u32 {
        let bytes = offset.checked_add(4).and_then(|end| self.0.0.get(offset..end));
        bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_entry_reads_as_the_datasheet_says() {
        let entry = RedirectionEntry::from_bits(0x0300_0000_0001_ad44);
        let expected = RedirectionEntry {
            vector: 0x44,
            delivery: DeliveryMode::Init,
            logical: true,
            active_low: true,
            level: true,
            masked: true,
            destination: 3,
            ..RedirectionEntry::default()
        };
        assert_eq!(entry, expected);
        assert_eq!(format!("{entry:?}"), "0x44 Init level -> logical 0x3, masked, active low");
        assert_eq!(
            format!("{:?}", RedirectionEntry::from_bits(0x20_5031)),
            "0x31 Fixed edge -> physical 0x0, pending, remote IRR, reserved 0x200000"
        );
    }

    #[test]
    fn apic_registers_are_found_by_offset_and_none_is_beyond() {
        let mut page = vec![0; LapicState::LEN];
        page[LapicState::SVR..LapicState::SVR + 4].copy_from_slice(&0x1ff_u32.to_le_bytes());
        let lapic = LapicState(HexBytes(page));
        let seen = [LapicState::SVR, LapicState::LEN - 2, LapicState::LEN, usize::MAX].map(|at| lapic.register(at));
        assert_eq!(seen, [0x1ff, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn any_64_bits_come_back_through_an_entry(bits: u64) {
            let entry = RedirectionEntry::from_bits(bits);
            prop_assert_eq!(entry.bits(), bits);
            let text = serde_json::to_string(&entry).unwrap();
            prop_assert_eq!(serde_json::from_str::<RedirectionEntry>(&text).unwrap(), entry);
        }
    }
}
