//! All that page tables map in a range: the walk of each page, joined where linear and physical addresses go on together.
//!
//! ```text
//!   linear    |2M|2M|2M|..  |4K|4K|      |4K|
//!   physical  |2M|2M|2M|..  |4K|4K|   elsewhere |4K|
//!             one Mapping    another       a third
//! ```
//!
//! Where an entry is not present, all that it would translate is passed over at once, so the empty half of an address space
//! costs a few walks. Tables that a hostile guest made can still map more than anyone wants to look at: the number of walks
//! is limited, and the answer says where it ended.
//!
//! Spec: as the walk's.

use super::{Fault, Paging, ReadPhysical};
use crate::Gpa;

/// A run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its first linear address.
    pub linear: u64,
    /// Where that is in guest-physical memory.
    pub physical: Gpa,
    /// Bytes.
    pub len: u64,
}

impl Paging {
    /// What is mapped from `first` to `last`, in order, found by at most `walks` walks.
    pub fn mappings(&self, first: u64, last: u64, walks: usize, read: ReadPhysical<'_>) -> Vec<Mapping> {
        let mut all: Vec<Mapping> = Vec::new();
        let mut at = first;
        for _ in 0..walks {
            let walk = self.walk(at, read);
            let span = match walk.end {
                Ok(page) => page.len,
                Err(Fault::NotCanonical) => 1 << (self.scheme.linear_bits() - 1),
                Err(_) => walk.steps.last().map_or(0x1000, |step| self.span(step.level)),
            };
            // Up to the end of what this entry translates.
            let Some(len) = (at | (span - 1)).checked_sub(at).map(|len| len.min(last - at)) else { break };
            if let Ok(page) = walk.end {
                match all.last_mut() {
                    Some(run) if run.linear + run.len == at && run.physical.0 + run.len == page.gpa.0 => {
                        run.len += len + 1
                    }
                    _ => all.push(Mapping { linear: at, physical: page.gpa, len: len + 1 }),
                }
            }
            match at.checked_add(len + 1).filter(|&next| next <= last) {
                Some(next) => at = next,
                None => break,
            }
        }
        all
    }

    /// How much an entry of this level translates.
    fn span(&self, level: super::Level) -> u64 {
        let shift = self.scheme.levels().iter().find(|(own, ..)| *own == level);
        1 << shift.map_or(12, |(_, shift, _)| *shift)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Scheme;
    use super::super::entry::{P, PS, W};
    use super::*;
    use std::collections::HashMap;

    /// Four-level tables at 0x1000 (PML4), with these entries.
    fn found(entries: &[(u64, u64)], walks: usize) -> Vec<(u64, u64, u64)> {
        let memory: HashMap<u64, u64> = entries.iter().copied().collect();
        let read = |at: Gpa, bytes: &mut [u8]| {
            bytes.copy_from_slice(&memory.get(&at.0).copied().unwrap_or(0).to_le_bytes()[..bytes.len()]);
            true
        };
        let paging = Paging::new(Scheme::FourLevel, 0x1000, 40);
        let all = paging.mappings(0xffff_8000_0000_0000, u64::MAX, walks, &read);
        all.into_iter().map(|Mapping { linear, physical, len }| (linear, physical.0, len)).collect()
    }

    #[test]
    fn pages_that_go_on_together_are_one_mapping() {
        let entries = [
            // The last 2 GiB: two pages of 2 MiB in a row, then a table of three 4 KiB pages, one of them elsewhere.
            (0x1ff8, 0x2000 | P | W),
            (0x2ff0, 0x3000 | P | W),
            (0x3000, 0x0100_0000 | P | PS),
            (0x3008, 0x0120_0000 | P | PS),
            (0x3010, 0x4000 | P),
            (0x4000, 0x0140_0000 | P),
            (0x4008, 0x0990_0000 | P),
            (0x4018, 0x0140_3000 | P),
        ];
        let text = 0xffff_ffff_8000_0000;
        assert_eq!(
            found(&entries, 4000),
            [
                (text, 0x0100_0000, 0x40_1000),
                (text + 0x40_1000, 0x0990_0000, 0x1000),
                (text + 0x40_3000, 0x0140_3000, 0x1000)
            ]
        );
        assert_eq!(found(&[], 4000), [], "256 walks find that there is nothing");
    }

    #[test]
    fn the_last_byte_there_is_belongs_to_a_page() {
        let entries = [
            (0x1ff8, 0x2000 | P),
            (0x2ff8, 0x3000 | P),
            (0x3ff8, 0x4000 | P),
            (0x4ff8, 0x7000 | P),
            (0x4ff0, 0x6000 | P),
        ];
        assert_eq!(found(&entries, 4000), [(0u64.wrapping_sub(0x2000), 0x6000, 0x2000)]);
    }

    #[test]
    fn tables_that_map_too_much_are_not_walked_to_their_end() {
        // A table that is each of its levels: everything is mapped, page by page.
        let entries: Vec<_> = (0..512).map(|n| (0x1000 + n * 8, 0x1000 | P)).collect();
        let all = found(&entries, 1000);
        assert_eq!(all.iter().map(|(.., len)| len).sum::<u64>(), 1000 * 0x1000);
    }
}
