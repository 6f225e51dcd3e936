//! How much of guest RAM is backed right now, and by which pages.
//!
//! ```text
//!   /proc/self/smaps:   7f00a0000000-7f00b0000000 rw-p ...   one mapping, if it lies in guest RAM:
//!                       KernelPageSize:     4 kB
//!                       Rss:           102400 kB  --+-- small pages are the rest
//!                       AnonHugePages:  98304 kB  --+
//!                       ShmemPmdMapped:     0 kB  --+
//!                       Private_Hugetlb:    0 kB        not part of Rss
//! ```
//!
//! Spec: proc_pid_smaps(5); Linux Documentation/filesystems/proc.rst, "/proc/PID/smaps".
//! Left out: pages that only another process has mapped, and pages in swap.

use std::ops::Range;
use std::{fs, io};

use crate::{GuestRam, HugePage};

/// Bytes of guest RAM that are backed by the host, by size of page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backing {
    /// In 4 KiB pages.
    pub small: u64,
    /// In transparent huge pages, mapped as 2 MiB.
    pub thp: u64,
    /// In 2 MiB pages from the pool.
    pub huge_2m: u64,
    /// In 1 GiB pages from the pool.
    pub huge_1g: u64,
}

impl Backing {
    /// In pages of any size.
    pub fn resident(&self) -> u64 {
        self.small + self.thp + self.huge_2m + self.huge_1g
    }
}

impl GuestRam {
    /// What backs this RAM now. The kernel walks all page tables of the process for it: a question
    /// for people, not for a hot path.
    pub fn backing(&self) -> io::Result<Backing> {
        let smaps = fs::read("/proc/self/smaps")?;
        let regions: Vec<_> = self.table().iter().map(|region| region.map.addresses()).collect();
        Ok(parse(&String::from_utf8_lossy(&smaps), &regions))
    }
}

/// Sums up the mappings in `smaps` that lie in `regions`.
fn parse(smaps: &str, regions: &[Range<u64>]) -> Backing {
    let mut total = Backing::default();
    let mut ours = false;
    let mut page = 0;
    for line in smaps.lines() {
        if let Some(range) = addresses(line) {
            ours = regions.iter().any(|region| region.start <= range.start && range.end <= region.end);
            continue;
        }
        let Some((name, bytes)) = field(line).filter(|_| ours) else { continue };
        match name {
            "KernelPageSize" => page = bytes,
            "Rss" => total.small += bytes,
            "AnonHugePages" | "ShmemPmdMapped" => total.thp += bytes,
            "Private_Hugetlb" | "Shared_Hugetlb" if page == HugePage::OneGib.bytes() => total.huge_1g += bytes,
            "Private_Hugetlb" | "Shared_Hugetlb" => total.huge_2m += bytes,
            _ => {}
        }
    }
    total.small = total.small.saturating_sub(total.thp);
    total
}

/// The addresses that a mapping's first line opens with.
fn addresses(line: &str) -> Option<Range<u64>> {
    let (first, end) = line.split_whitespace().next()?.split_once('-')?;
    Some(u64::from_str_radix(first, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

/// Name and bytes of a line such as `Rss:   4 kB`.
fn field(line: &str) -> Option<(&str, u64)> {
    let (name, value) = line.split_once(':')?;
    Some((name, value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
KernelPageSize:        4 kB
Rss:                 132 kB
AnonHugePages:         0 kB
7f0000000000-7f0000800000 rw-p 00000000 00:00 0
Size:               8192 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                6148 kB
Pss:                6148 kB
AnonHugePages:      4096 kB
ShmemPmdMapped:     2048 kB
FilePmdMapped:         0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:       0 kB
THPeligible:           1
VmFlags: rd wr mr mw me nr sd hg
7f4000000000-7f4000400000 rw-s 00000000 00:10 77    /memfd:guest-ram (deleted)
KernelPageSize:     2048 kB
Rss:                   0 kB
Shared_Hugetlb:     2048 kB
Private_Hugetlb:    2048 kB
7f8000000000-7f8080000000 rw-p 00000000 00:10 78    /memfd:guest-ram (deleted)
KernelPageSize:  1048576 kB
Rss:                   0 kB
Private_Hugetlb: 1048576 kB
";
    const THP: Range<u64> = 0x7f00_0000_0000..0x7f00_0080_0000;
    const HUGE_2M: Range<u64> = 0x7f40_0000_0000..0x7f40_0040_0000;
    const HUGE_1G: Range<u64> = 0x7f80_0000_0000..0x7f80_8000_0000;

    #[test]
    fn each_page_size_is_counted_apart() {
        let expected = Backing { small: 4096, thp: 6 << 20, huge_2m: 4 << 20, huge_1g: 1 << 30 };
        assert_eq!(parse(SMAPS, &[THP, HUGE_2M, HUGE_1G]), expected);
        assert_eq!(expected.resident(), 4096 + (10 << 20) + (1 << 30));
    }

    #[test]
    fn only_mappings_inside_the_regions_count() {
        assert_eq!(parse(SMAPS, &[]), Backing::default());
        assert_eq!(parse(SMAPS, &[THP]), Backing { small: 4096, thp: 6 << 20, ..Backing::default() });
        let (shorter, wider) = (THP.start..THP.end - 4096, THP.start - 4096..THP.end);
        assert_eq!(parse(SMAPS, &[shorter]), Backing::default());
        assert_eq!(parse(SMAPS, &[wider]), parse(SMAPS, &[THP]));
    }

    #[test]
    fn odd_lines_are_passed_over() {
        let text =
            "7f0000000000-7f0000800000 rw-p\nRss: x kB\nRss\nRss: 99999999999999999999 kB\nRss:  4\n-\nRss: 4 kB\n";
        assert_eq!(parse(text, &[THP]), Backing { small: 4096, ..Backing::default() });
    }
}
