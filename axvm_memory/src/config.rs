//! What guest RAM is asked for, and what can go wrong with it.
//!
//! ```text
//!   pages    Thp       small pages that the kernel joins to 2 MiB pages where it can; the default
//!            Small     4 KiB pages only
//!            Huge2M    2 MiB pages from the host's pool, all of them or an error
//!            Huge1G    1 GiB pages from the host's pool, all of them or an error
//! ```
//!
//! Transparent huge pages of shared RAM are a choice of their own on the host
//! (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`: advise).
//!
//! Spec: Linux Documentation/admin-guide/mm/transhuge.rst and hugetlbpage.rst. Left out: NUMA policies.

use std::str::FromStr;
use std::{fmt, io};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Pages that back guest RAM on the host. Its text is what command line, settings file and schema say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PageSize {
    /// Transparent huge pages, as the host finds them
    // For shared RAM the host has to allow them apart (/sys/kernel/mm/transparent_hugepage/shmem_enabled: advise).
    #[default]
    #[serde(rename = "thp")]
    Thp,
    /// 2 MiB pages of the host's pool
    #[serde(rename = "2M")]
    Huge2M,
    /// 1 GiB pages of the host's pool
    #[serde(rename = "1G")]
    Huge1G,
    /// Small pages only
    #[serde(rename = "off")]
    Small,
}

impl fmt::Display for PageSize {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            PageSize::Thp => "thp",
            PageSize::Huge2M => "2M",
            PageSize::Huge1G => "1G",
            PageSize::Small => "off",
        })
    }
}

/// Pages that no guest RAM is made of.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("Unknown pages {0:?}: say thp, 2M, 1G or off")]
pub struct UnknownPageSize(String);

impl FromStr for PageSize {
    type Err = UnknownPageSize;

    fn from_str(text: &str) -> Result<PageSize, UnknownPageSize> {
        let known = PageSize::ALL.into_iter().find(|pages| pages.to_string() == text);
        known.ok_or_else(|| UnknownPageSize(text.to_owned()))
    }
}

impl PageSize {
    /// Every kind of pages.
    pub const ALL: [PageSize; 4] = [PageSize::Thp, PageSize::Huge2M, PageSize::Huge1G, PageSize::Small];

    /// The pool that the pages come from, if it is one.
    pub fn pool(self) -> Option<HugePage> {
        match self {
            PageSize::Thp | PageSize::Small => None,
            PageSize::Huge2M => Some(HugePage::TwoMib),
            PageSize::Huge1G => Some(HugePage::OneGib),
        }
    }
}

/// A page of a hugetlb pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePage {
    /// 2 MiB, one entry of a page directory.
    TwoMib,
    /// 1 GiB, one entry of a page-directory-pointer table.
    OneGib,
}

impl HugePage {
    /// Length in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            HugePage::TwoMib => 2 << 20,
            HugePage::OneGib => 1 << 30,
        }
    }

    /// Its name on the kernel's command line.
    fn parameter(self) -> &'static str {
        match self {
            HugePage::TwoMib => "2M",
            HugePage::OneGib => "1G",
        }
    }
}

impl fmt::Display for HugePage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HugePage::TwoMib => "2 MiB",
            HugePage::OneGib => "1 GiB",
        })
    }
}

/// What RAM to allocate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamConfig {
    /// Size in bytes: a multiple of 1 MiB, at least 2 MiB; with pages from a pool, a multiple of them.
    pub size: u64,
    /// Pages of the host behind it.
    pub pages: PageSize,
    /// Back it with a memfd that another process can map too (vhost-user).
    pub shared: bool,
    /// Back all of it now, rather than when the guest first touches it.
    pub prealloc: bool,
    /// Keep it out of swap. This backs all of it now too. Pages from a pool are never swapped.
    pub lock: bool,
}

impl RamConfig {
    /// Private RAM of `size` bytes, backed when touched, by transparent huge pages where possible.
    pub fn new(size: u64) -> RamConfig {
        RamConfig { size, pages: PageSize::Thp, shared: false, prealloc: false, lock: false }
    }

    /// Whether every byte is backed before the guest starts.
    pub(crate) fn populates(&self) -> bool {
        self.prealloc || self.lock
    }
}

/// Guest RAM could not be had.
#[derive(Debug, Error)]
pub enum RamError {
    /// The size is none that a guest can have.
    #[error(
        "Guest RAM of {0} bytes is not possible: --memory takes a multiple of 1 MiB, from 2 MiB to 64 TiB (for example 512M or 4G)"
    )]
    Size(u64),
    /// The size does not consist of whole huge pages.
    #[error(
        "Guest RAM of {size_mib} MiB is not made of {page} pages: give a multiple of {page}, or take smaller pages"
    )]
    Unaligned {
        /// Size asked for, in MiB.
        size_mib: u64,
        /// The page it has to be a multiple of.
        page: HugePage,
    },
    /// The host refused the mapping.
    #[error(
        "Cannot map {size_mib} MiB for guest RAM; ask for less, or lift a limit of the host \
         (ulimit -v, sysctl vm.overcommit_memory)"
    )]
    Map {
        /// Size of the region, in MiB.
        size_mib: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel or the processor has no pages of this size.
    #[error("Cannot back guest RAM with {page} pages: this host has none of that size; take other pages")]
    NoHugePages {
        /// The page asked for.
        page: HugePage,
        /// What memfd_create said.
        source: io::Error,
    },
    /// The pool of huge pages is too small.
    #[error(
        "Guest RAM of {size_mib} MiB needs {needed} pages of {page}, and {free} of the host's {total} are free. \
         As root: echo {enough} > {path}, and read it back. If that gives fewer, memory is in pieces: \
         boot the host with hugepagesz={} hugepages={enough}",
        .page.parameter(), enough = .total + .needed.saturating_sub(*.free)
    )]
    Pool {
        /// Size asked for, in MiB.
        size_mib: u64,
        /// The page asked for.
        page: HugePage,
        /// Pages it takes.
        needed: u64,
        /// Pages that no program uses or has reserved.
        free: u64,
        /// Pages in the pool.
        total: u64,
        /// The file that sets the size of the pool.
        path: String,
    },
    /// More than the host has.
    #[error(
        "Guest RAM of {size_mib} MiB can never be backed: the host has {host_mib} MiB of memory and swap in all. \
         Ask for less, or add swap"
    )]
    MoreThanHost {
        /// Size asked for, in MiB.
        size_mib: u64,
        /// Memory and swap of the host, in MiB.
        host_mib: u64,
    },
    /// Memory that has to be backed now is not there.
    #[error(
        "Guest RAM of {size_mib} MiB cannot be backed now: the host has {available_mib} MiB available. \
         Ask for less, free memory, or neither preallocate nor lock it"
    )]
    NotEnough {
        /// Size asked for, in MiB.
        size_mib: u64,
        /// What the host can give without swapping, in MiB.
        available_mib: u64,
    },
    /// The host ran out of memory while it backed guest RAM.
    #[error("Cannot back {size_mib} MiB of guest RAM; ask for less, free memory, or do not preallocate it")]
    Populate {
        /// Size asked for, in MiB.
        size_mib: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host refused to keep guest RAM out of swap.
    #[error(
        "Cannot lock {size_mib} MiB of guest RAM: this process may lock {limit}. \
         Raise it (ulimit -l unlimited, or LimitMEMLOCK=infinity in a systemd unit), or do not lock guest RAM"
    )]
    Lock {
        /// Size of the region, in MiB.
        size_mib: u64,
        /// The limit of locked memory, in words.
        limit: String,
        /// What mlock said.
        source: io::Error,
    },
    /// Memory could not be given back.
    #[error("Cannot clear guest RAM for the next start")]
    Clear(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_the_same_word_everywhere() {
        for pages in PageSize::ALL {
            let word = pages.to_string();
            assert_eq!(word.parse(), Ok(pages));
            assert_eq!(serde_json::to_value(pages).unwrap(), word);
            assert!(schemars::schema_for!(PageSize).as_value().to_string().contains(&format!("\"const\":\"{word}\"")));
        }
        assert!("4K".parse::<PageSize>().unwrap_err().to_string().contains("\"4K\""));
    }
}
