//! The two 8259s, for an operating system that does without the IOAPIC.
//!
//! ```text
//!   line 8-15 --> second PIC --line 2--> first PIC --LINT0 (ExtINT)--> local APIC --> vector 48 + line - 8
//! ```
//!
//! Spec: Intel 8259A datasheet; 82371AB (PIIX4) datasheet, 4.2.2.3 "ELCR"; Intel SDM volume 3, 12.5.1 "Local Vector Table".

use crate::apic;
use crate::cpu::output;

const FIRST: u16 = 0x20;
const SECOND: u16 = 0xa0;
/// Edge/level control of lines 8 to 15.
const SECOND_LEVELS: u16 = 0x4d1;
const CASCADE: u8 = 2;
const FIRST_VECTOR: u8 = 40;
const SECOND_VECTOR: u8 = 48;
const LINT0: u64 = 0x350;
const EXTINT: u32 = 0x700;

/// Takes a line of the second PIC, as a level, and no other; its vector.
pub fn take_level(line: u8) -> u8 {
    apic::route(line.into(), 0);
    apic::write(LINT0, EXTINT);
    for (pic, vector, cascade) in [(FIRST, FIRST_VECTOR, 1 << CASCADE), (SECOND, SECOND_VECTOR, CASCADE)] {
        // ICW1: cascaded, ICW4 follows; ICW2: vectors; ICW3; ICW4: 8086.
        output(pic, 0x11_u8);
        output(pic + 1, vector);
        output(pic + 1, cascade);
        output(pic + 1, 1_u8);
    }
    let bit = 1_u8 << (line & 7);
    output(SECOND_LEVELS, bit);
    output(FIRST + 1, !(1_u8 << CASCADE));
    output(SECOND + 1, !bit);
    SECOND_VECTOR + (line & 7)
}

/// Tells both that the interrupt in service is done.
pub fn end_of_interrupt() {
    output(SECOND, 0x20_u8);
    output(FIRST, 0x20_u8);
}
