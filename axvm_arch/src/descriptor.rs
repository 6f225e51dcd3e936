//! Segments and gates in words: what an 8-byte or 16-byte descriptor says.
//!
//! ```text
//!   segment   base | limit | type, S, DPL, P, AVL, L, D/B, G     "64-bit code, readable, DPL 0"
//!   gate      selector:offset | type, DPL, P | IST               "interrupt gate to 0x10:0xffffffff81e000a0, DPL 0"
//! ```
//!
//! Spec: Intel SDM volume 3, 3.4.5 "Segment Descriptors", 3.5 "System Descriptor Types", 6.11 "IDT Descriptors", 6.14.1
//! "64-Bit Mode IDT". Left out: call gates.

use std::fmt;

use serde::Serialize;

use crate::registers::Segment;

/// Bits of a code or data segment's type.
const ACCESSED: u8 = 1 << 0;
const WRITE_OR_READ: u8 = 1 << 1;
const DOWN_OR_CONFORMING: u8 = 1 << 2;
const CODE: u8 = 1 << 3;

impl Segment {
    /// Whether this is a code segment.
    pub const fn is_code(&self) -> bool {
        self.code_or_data && self.kind & CODE != 0
    }

    /// A segment from its 8-byte descriptor, as a load of `selector` takes it into the processor.
    pub fn from_descriptor(selector: u16, descriptor: u64) -> Segment {
        let bit = |n: u32| descriptor >> n & 1 != 0;
        let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
        let granularity = bit(55);
        Segment {
            base: descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000,
            limit: if granularity { limit << 12 | 0xfff } else { limit },
            selector,
            kind: (descriptor >> 40 & 0xf) as u8,
            code_or_data: bit(44),
            dpl: (descriptor >> 45 & 3) as u8,
            present: bit(47),
            available: bit(52),
            long: bit(53),
            db: bit(54),
            granularity,
        }
    }
}

impl fmt::Display for Segment {
    /// `0x10 base 0x0 limit 0xffffffff, 64-bit code, readable, DPL 0`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Segment { base, limit, selector, .. } = self;
        write!(f, "{selector:#x} base {base:#x} limit {limit:#x}, {}", self.words())
    }
}

impl Segment {
    /// What kind of segment it is: `64-bit code, readable, DPL 0`.
    pub fn words(&self) -> String {
        let dpl = self.dpl;
        if !self.present {
            return "not usable".into();
        }
        if !self.code_or_data {
            return format!("{}, DPL {dpl}", system_type(self.kind));
        }
        let is = |bit| self.kind & bit != 0;
        let accessed = if is(ACCESSED) { "" } else { ", not accessed" };
        if !is(CODE) {
            let write = if is(WRITE_OR_READ) { "writable" } else { "read-only" };
            let down = if is(DOWN_OR_CONFORMING) { ", expand-down" } else { "" };
            return format!("{}-bit data, {write}{down}{accessed}, DPL {dpl}", if self.db { 32 } else { 16 });
        }
        let bits = match (self.long, self.db) {
            (true, false) => "64-bit",
            (true, true) => "64-and-32-bit (reserved)",
            (false, true) => "32-bit",
            (false, false) => "16-bit",
        };
        let read = if is(WRITE_OR_READ) { "readable" } else { "execute-only" };
        let conforming = if is(DOWN_OR_CONFORMING) { ", conforming" } else { "" };
        format!("{bits} code, {read}{conforming}{accessed}, DPL {dpl}")
    }
}

/// Types of system segments and gates; in long mode the 32-bit ones are of 64 bits.
const fn system_type(kind: u8) -> &'static str {
    match kind & 0xf {
        1 => "16-bit TSS (available)",
        2 => "LDT",
        3 => "16-bit TSS (busy)",
        4 => "16-bit call gate",
        5 => "task gate",
        6 => "16-bit interrupt gate",
        7 => "16-bit trap gate",
        9 => "TSS (available)",
        11 => "TSS (busy)",
        12 => "call gate",
        14 => "interrupt gate",
        15 => "trap gate",
        _ => "reserved type",
    }
}

/// An entry of the IDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Gate {
    /// The handler's code segment.
    pub selector: u16,
    /// The handler's address in it.
    pub offset: u64,
    /// Interrupt stack table: which stack of the TSS, 0 for none (64 bits only).
    pub ist: u8,
    /// Type, 4 bits: 5 task, 6 and 14 interrupt, 7 and 15 trap.
    pub kind: u8,
    /// Descriptor privilege level: who may use it with INT n.
    pub dpl: u8,
    /// P.
    pub present: bool,
    /// S; must be clear in a gate.
    pub code_or_data: bool,
}

impl Gate {
    /// Length of a gate in bytes.
    pub const fn len(long_mode: bool) -> usize {
        if long_mode { 16 } else { 8 }
    }

    /// The gate in these bytes: the 8 of protected mode, or the 16 of long mode, where `upper` are the last 8.
    pub const fn decode(lower: u64, upper: Option<u64>) -> Gate {
        let high = match upper {
            Some(upper) => upper & 0xffff_ffff,
            None => 0,
        };
        Gate {
            selector: (lower >> 16) as u16,
            offset: lower & 0xffff | lower >> 32 & 0xffff_0000 | high << 32,
            ist: if upper.is_some() { (lower >> 32 & 7) as u8 } else { 0 },
            kind: (lower >> 40 & 0xf) as u8,
            dpl: (lower >> 45 & 3) as u8,
            present: lower >> 47 & 1 != 0,
            code_or_data: lower >> 44 & 1 != 0,
        }
    }

    /// Why an event cannot go through it, if so.
    pub fn fault(&self, long_mode: bool) -> Option<&'static str> {
        let known = if long_mode { matches!(self.kind, 14 | 15) } else { matches!(self.kind, 5 | 6 | 7 | 14 | 15) };
        match self {
            Gate { code_or_data: true, .. } => Some("it is a segment, not a gate"),
            _ if !known => Some("it is no interrupt, trap or task gate"),
            Gate { present: false, .. } => Some("it is not present"),
            Gate { selector: 0..=3, .. } => Some("its code segment is the null selector"),
            _ => None,
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gate { selector, offset, dpl, .. } = self;
        if *self == Gate::decode(0, None) {
            return f.write_str("empty (all zero)");
        }
        write!(f, "{} to {selector:#x}:{offset:#x}, DPL {dpl}", system_type(self.kind))?;
        if self.ist > 0 {
            write!(f, ", IST {}", self.ist)?;
        }
        f.write_str(if self.present { "" } else { ", not present" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_have_words() {
        for (segment, words) in [
            (Segment::code64(0x10), "64-bit code, readable, DPL 0"),
            (
                Segment { dpl: 3, kind: 0xc, ..Segment::code32(0x10) },
                "32-bit code, execute-only, conforming, not accessed, DPL 3",
            ),
            (Segment { db: true, ..Segment::code64(0x10) }, "64-and-32-bit (reserved) code, readable, DPL 0"),
            (Segment { kind: 5, ..Segment::data(0x18) }, "32-bit data, read-only, expand-down, DPL 0"),
            (Segment::tss(0x20, 0), "TSS (busy), DPL 0"),
            (Segment::default(), "not usable"),
        ] {
            assert_eq!(segment.words(), words);
        }
        assert_eq!(Segment::data(0x18).to_string(), "0x18 base 0x0 limit 0xffffffff, 32-bit data, writable, DPL 0");
    }

    #[test]
    fn a_segment_survives_its_descriptor() {
        let odd = Segment { base: 0x1234_5678, limit: 0x4_3210, dpl: 2, available: true, ..Segment::tss(0x28, 0) };
        for segment in [Segment::code32(0x10), Segment::code64(8), Segment::data(0x18), odd] {
            assert_eq!(Segment::from_descriptor(segment.selector, segment.descriptor()), segment);
        }
    }

    #[test]
    fn a_gate_is_decoded_in_both_sizes() {
        let gate = Gate::decode(0x81e0_8e01_0010_00a0, Some(0xffff_ffff));
        assert_eq!(gate.to_string(), "interrupt gate to 0x10:0xffffffff81e000a0, DPL 0, IST 1");
        assert_eq!(gate.fault(true), None);
        let gate = Gate::decode(0x0012_ef00_0008_3456, None);
        assert_eq!(gate.to_string(), "trap gate to 0x8:0x123456, DPL 3");
        assert_eq!(Gate::decode(0, Some(0)).to_string(), "empty (all zero)");
    }

    #[test]
    fn an_unusable_gate_says_why() {
        let good = Gate::decode(0x0012_8e00_0008_3456, None);
        for (gate, long, word) in [
            (Gate { present: false, ..good }, true, "not present"),
            (Gate { kind: 6, ..good }, true, "no interrupt"),
            (Gate { code_or_data: true, ..good }, false, "a segment"),
            (Gate { selector: 3, ..good }, false, "null selector"),
            (Gate::decode(0, None), true, "no interrupt"),
        ] {
            assert!(gate.fault(long).is_some_and(|why| why.contains(word)), "{gate:?}");
        }
        assert_eq!(Gate { kind: 6, ..good }.fault(false), None);
    }
}
