//! An entry of a page table: where it points, what it allows, and which of its bits must be zero.
//!
//! ```text
//!    63  62      52 51        M M-1                12 11   9 8 7 6 5 4   3   2 1 0
//!   | XD | ignored | reserved  | frame or table      |      |G|S|D|A|PCD|PWT|U|W|P|     4- and 5-level
//!   | XD | reserved            | frame or table      |      |G|S|D|A|PCD|PWT|U|W|P|     PAE
//!                               31                 12        G S D A PCD PWT U W P      32 bits
//!   M: MAXPHYADDR, the processor's physical bits     S: in a directory, this is a large page
//! ```
//!
//! Spec: Intel SDM volume 3, tables 4-4 to 4-20; AMD APM volume 2, 5.2 to 5.4.
//! Left out: the memory type that PWT, PCD and PAT choose; protection keys.

use crate::bits::bits;

use super::{Level, Paging, Scheme};

bits! {
    /// What an entry's bits are called (SDM 3, 4.5). `PS` in an entry of the last level is PAT.
    bit {
        P = 1 << 0, "present";
        W = 1 << 1, "writes are allowed";
        U = 1 << 2, "CPL 3 is allowed";
        PWT = 1 << 3, "page write-through";
        PCD = 1 << 4, "page cache disable";
        A = 1 << 5, "accessed";
        D = 1 << 6, "written to (dirty)";
        PS = 1 << 7, "a large page; in an entry of the last level, an index bit of PAT";
        G = 1 << 8, "global: stays in the TLB when CR3 changes";
        XD = 1 << 63, "no execution";
    }
}

pub use bit::{BITS, G, P, PS, U, W, XD, bits};

impl Paging {
    /// Bits that must be zero in `raw`, a present entry of this level.
    pub fn reserved(&self, level: Level, raw: u64) -> u64 {
        let large = self.is_leaf(level, raw) && level != Level::Table;
        if self.scheme == Scheme::Bits32 {
            return if large { self.reserved_4m() } else { 0 };
        }
        let above = match self.scheme {
            // Bits 62 to 52 are the system software's own.
            Scheme::FourLevel | Scheme::FiveLevel => span(self.physical_bits, 51),
            _ => span(self.physical_bits, 62),
        };
        let execute = if self.execute_disable { 0 } else { XD };
        above
            | match (level, self.scheme) {
                (Level::Pdpt, Scheme::Pae) => XD | span(5, 8) | span(1, 2),
                (Level::Pml5 | Level::Pml4, _) => execute | PS,
                (Level::Pdpt, _) if raw & PS != 0 && !self.gib_pages => execute | PS,
                (Level::Pdpt, _) if large => execute | span(13, 29),
                (Level::Directory, _) if large => execute | span(13, 20),
                _ => execute,
            }
    }

    /// A 4 MiB page has physical bits 39:32 in bits 20:13 (PSE-36); what the processor does not have of them is reserved.
    fn reserved_4m(&self) -> u64 {
        let high = self.physical_bits.min(40).saturating_sub(32);
        span(13 + high, 21)
    }

    /// Whether `raw`, an entry of this level, says where a page is, and not where the next table is.
    pub fn is_leaf(&self, level: Level, raw: u64) -> bool {
        match level {
            Level::Table => true,
            Level::Directory if self.scheme == Scheme::Bits32 => self.large_pages && raw & PS != 0,
            Level::Directory => raw & PS != 0,
            Level::Pdpt => self.scheme != Scheme::Pae && self.gib_pages && raw & PS != 0,
            Level::Pml4 | Level::Pml5 => false,
        }
    }

    /// The frame or the table that `raw` points to; `len` is that of the frame, or 4 KiB.
    pub(super) fn target(&self, raw: u64, len: u64) -> u64 {
        let low = raw & !(len - 1);
        match (self.scheme, len > 0x1000) {
            (Scheme::Bits32, true) => low & 0xffff_ffff | (raw >> 13 & 0xff) << 32,
            (Scheme::Bits32, false) => low & 0xffff_ffff,
            _ => low & super::FRAME,
        }
    }
}

/// Bits `first` to `last`; none if the span is empty.
pub(super) const fn span(first: u8, last: u8) -> u64 {
    if first > last || first > 63 { 0 } else { (u64::MAX >> (63 - (last - first))) << first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_both_ends() {
        assert_eq!(
            [span(0, 0), span(13, 20), span(52, 51), span(63, 63), span(0, 63)],
            [1, 0x1f_e000, 0, 1 << 63, u64::MAX]
        );
    }

    #[test]
    fn a_4_mib_page_may_be_above_4_gib() {
        let paging = Paging { large_pages: true, ..Paging::new(Scheme::Bits32, 0, 40) };
        let raw = 0x0040_0083 | 0x12 << 13;
        assert_eq!(paging.target(raw, 4 << 20), 0x12_0040_0000);
        assert_eq!(paging.reserved(Level::Directory, raw), 1 << 21);
        let narrow = Paging { physical_bits: 36, ..paging };
        assert_eq!(narrow.reserved(Level::Directory, raw), span(17, 21));
        assert_eq!(Paging { large_pages: false, ..paging }.reserved(Level::Directory, raw), 0, "PS means nothing then");
    }
}
