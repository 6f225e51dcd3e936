//! What a guest says about its memory through its balloon: sixteen numbers, each with a tag.
//!
//! ```text
//!   buffer of the driver:  | tag 2 | value 8 | tag 2 | value 8 | ..     little-endian, packed
//! ```
//!
//! Spec: virtio 1.2, 5.5.6.3 "Memory Statistics", 5.5.6.4 "Memory Statistics Tags"; tags 10 to 15: Linux 6.12,
//! `include/uapi/linux/virtio_balloon.h`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One statistic: a tag in two bytes, a value in eight.
pub(crate) const ENTRY: usize = 10;

/// The guest's numbers; each is there if the guest's driver knows it. Amounts are bytes, the others count events
/// since the guest started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// Memory read back from swap, in bytes.
    pub swap_in: Option<u64>,
    /// Memory written to swap, in bytes.
    pub swap_out: Option<u64>,
    /// Page faults that needed a disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Memory used for nothing, in bytes.
    pub free_memory: Option<u64>,
    /// All memory, in bytes; the balloon's part is not counted.
    pub total_memory: Option<u64>,
    /// Memory that programs could get without swapping, in bytes.
    pub available_memory: Option<u64>,
    /// Memory that could be got from file caches, in bytes.
    pub disk_caches: Option<u64>,
    /// Huge pages handed out.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be.
    pub hugetlb_failures: Option<u64>,
    /// Programs killed for want of memory.
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait.
    pub alloc_stall: Option<u64>,
    /// Pages looked at by the background reclaimer.
    pub async_scan: Option<u64>,
    /// Pages looked at by those who wanted memory.
    pub direct_scan: Option<u64>,
    /// Pages won by the background reclaimer.
    pub async_reclaim: Option<u64>,
    /// Pages won by those who wanted memory.
    pub direct_reclaim: Option<u64>,
}

impl Statistics {
    /// Reads entries; unknown tags and what is cut off are skipped. `None` if nothing is left.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Statistics> {
        let mut statistics = Statistics::default();
        let (entries, _) = bytes.as_chunks::<ENTRY>();
        for &[tag_low, tag_high, ref value @ ..] in entries {
            if let Some(place) = statistics.place(u16::from_le_bytes([tag_low, tag_high])) {
                *place = Some(u64::from_le_bytes(*value));
            }
        }
        (statistics != Statistics::default()).then_some(statistics)
    }

    fn place(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_memory,
            5 => &mut self.total_memory,
            6 => &mut self.available_memory,
            7 => &mut self.disk_caches,
            8 => &mut self.hugetlb_allocations,
            9 => &mut self.hugetlb_failures,
            10 => &mut self.oom_kill,
            11 => &mut self.alloc_stall,
            12 => &mut self.async_scan,
            13 => &mut self.direct_scan,
            14 => &mut self.async_reclaim,
            15 => &mut self.direct_reclaim,
            _ => return None,
        })
    }
}

/// Statistics, and how long ago the guest sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatisticsReport {
    /// The numbers.
    pub statistics: Statistics,
    /// Time since they arrived.
    pub age: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, value: u64) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
    }

    #[test]
    fn every_tag_has_its_place() {
        let bytes = (0..16).flat_map(|tag| entry(tag, 100 + u64::from(tag))).collect::<Vec<_>>();
        let s = Statistics::parse(&bytes).unwrap();
        let swap_and_faults = [s.swap_in, s.swap_out, s.major_faults, s.minor_faults];
        let memory = [s.free_memory, s.total_memory, s.available_memory, s.disk_caches];
        let huge = [s.hugetlb_allocations, s.hugetlb_failures, s.oom_kill, s.alloc_stall];
        let reclaim = [s.async_scan, s.direct_scan, s.async_reclaim, s.direct_reclaim];
        let all = [swap_and_faults, memory, huge, reclaim].concat();
        assert_eq!(all, (100..116).map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn unknown_tags_and_cut_entries_are_skipped_and_the_last_of_a_tag_counts() {
        let bytes = [entry(16, 1), entry(0xffff, 2), entry(4, 3), entry(4, u64::MAX), vec![5, 0, 9, 9]].concat();
        let only_free = Statistics { free_memory: Some(u64::MAX), ..Statistics::default() };
        assert_eq!(Statistics::parse(&bytes), Some(only_free));
        assert_eq!(Statistics::parse(&bytes[..20]), None);
        assert_eq!(Statistics::parse(&[]), None);
    }
}
