//! The page walk: from a linear address to a physical one, level by level, as the processor goes, and told in full.
//!
//! ```text
//!                     5-level  4-level      PAE       32 bits     an entry is
//!   Pml5   index        56:48                                     8 bytes (32 bits: 4)
//!   Pml4                47:39    47:39
//!   Pdpt                38:30    38:30     31:30                  a page of 1 GiB, or
//!   Directory           29:21    29:21     29:21     31:22        a page of 2 MiB (32 bits: 4 MiB), or
//!   Table               20:12    20:12     20:12     21:12        a page of 4 KiB
//! ```
//!
//! A [`Walk`] is a value: each entry that was read, and the page, or where and why it ended. Memory is what its caller
//! says it is, so any entry may be anything; a walk reads five entries at most.
//!
//! Spec: Intel SDM volume 3, chapter 4 "Paging"; AMD APM volume 2, chapter 5 "Page Translation and Protection".
//! Left out: the TLB, nested paging (a guest's walk ends in guest-physical memory), setting of A and D. PAE's four
//! entries of the first level are registers, loaded with CR3; they are read from memory here.

use std::fmt;

use serde::Serialize;

use crate::Gpa;
use crate::bits::Bits;
use crate::registers::{SystemRegisters, cr0, cr4, efer};

pub use self::mappings::Mapping;

pub mod entry;
mod mappings;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

/// Reads guest-physical memory: fills all of the slice, or says that not all of it is RAM.
pub type ReadPhysical<'a> = &'a dyn Fn(Gpa, &mut [u8]) -> bool;

/// Bits of an entry of 64 bits that can be part of an address.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Which page tables translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// None: a linear address is a physical one.
    Off,
    /// Two levels with entries of 32 bits.
    Bits32,
    /// Three levels with entries of 64 bits.
    Pae,
    /// Long mode, linear addresses of 48 bits.
    FourLevel,
    /// Long mode, linear addresses of 57 bits.
    FiveLevel,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheme::Off => "paging off",
            Scheme::Bits32 => "32-bit paging",
            Scheme::Pae => "PAE paging",
            Scheme::FourLevel => "4-level paging",
            Scheme::FiveLevel => "5-level paging",
        })
    }
}

impl Scheme {
    /// The one that these registers choose (SDM 3, 4.1.1).
    pub const fn of(system: &SystemRegisters) -> Scheme {
        let SystemRegisters { cr0, cr4, efer, .. } = *system;
        if cr0 & cr0::PG == 0 {
            Scheme::Off
        } else if cr4 & cr4::PAE == 0 {
            Scheme::Bits32
        } else if efer & efer::LMA == 0 {
            Scheme::Pae
        } else if cr4 & cr4::LA57 == 0 {
            Scheme::FourLevel
        } else {
            Scheme::FiveLevel
        }
    }

    /// The levels, with the lowest bit of each one's index and its number of bits.
    const fn levels(self) -> &'static [(Level, u8, u8)] {
        use Level::{Directory, Pdpt, Pml4, Pml5, Table};
        const LONG: [(Level, u8, u8); 5] =
            [(Pml5, 48, 9), (Pml4, 39, 9), (Pdpt, 30, 9), (Directory, 21, 9), (Table, 12, 9)];
        match self {
            Scheme::Off => &[],
            Scheme::Bits32 => &[(Directory, 22, 10), (Table, 12, 10)],
            Scheme::Pae => &[(Pdpt, 30, 2), (Directory, 21, 9), (Table, 12, 9)],
            Scheme::FourLevel => LONG.split_at(1).1,
            Scheme::FiveLevel => &LONG,
        }
    }

    /// How many bits a linear address has.
    pub const fn linear_bits(self) -> u8 {
        match self {
            Scheme::Off | Scheme::Bits32 | Scheme::Pae => 32,
            Scheme::FourLevel => 48,
            Scheme::FiveLevel => 57,
        }
    }

    const fn entry_len(self) -> u64 {
        if matches!(self, Scheme::Bits32) { 4 } else { 8 }
    }
}

/// Whether the bits from `bits` - 1 up are all alike (SDM 1, 3.3.7.1): else an access is #GP.
pub const fn is_canonical(address: u64, bits: u8) -> bool {
    let above = 64 - bits as u32;
    ((address << above) as i64 >> above) as u64 == address
}

/// All that a translation depends on, besides memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Paging {
    /// Which tables.
    pub scheme: Scheme,
    /// Where they begin.
    pub cr3: u64,
    /// MAXPHYADDR: bits of a physical address (CPUID 0x8000_0008, EAX 7:0).
    pub physical_bits: u8,
    /// CR4.PSE: 32-bit paging has pages of 4 MiB.
    pub large_pages: bool,
    /// The processor has pages of 1 GiB (CPUID 0x8000_0001, EDX bit 26).
    pub gib_pages: bool,
    /// EFER.NXE: entries can forbid execution.
    pub execute_disable: bool,
}

impl Paging {
    /// Tables of this scheme, on a processor with all that such tables can have.
    pub const fn new(scheme: Scheme, cr3: u64, physical_bits: u8) -> Paging {
        Paging { scheme, cr3, physical_bits, large_pages: true, gib_pages: true, execute_disable: true }
    }

    /// What these registers choose, on a processor with so many physical bits.
    pub const fn of(system: &SystemRegisters, physical_bits: u8) -> Paging {
        Paging {
            large_pages: system.cr4 & cr4::PSE != 0,
            execute_disable: system.efer & efer::NXE != 0,
            ..Paging::new(Scheme::of(system), system.cr3, physical_bits)
        }
    }

    /// Where the first table is.
    pub const fn root(&self) -> Gpa {
        Gpa(match self.scheme {
            Scheme::Off => 0,
            Scheme::Bits32 => self.cr3 & 0xffff_f000,
            Scheme::Pae => self.cr3 & 0xffff_ffe0,
            // What does not fit into the processor's physical bits is reserved in CR3, and no processor loads it.
            Scheme::FourLevel | Scheme::FiveLevel => self.cr3 & FRAME,
        })
    }

    /// Translates `address`. Without long mode a linear address has 32 bits, and what is above them is not looked at.
    pub fn walk(&self, address: u64, read: ReadPhysical<'_>) -> Walk {
        let mut walk = Walk { address, scheme: self.scheme, steps: Vec::new(), end: Err(Fault::NotCanonical) };
        walk.end = self.descend(&mut walk, read);
        walk
    }

    fn descend(&self, walk: &mut Walk, read: ReadPhysical<'_>) -> Result<Page, Fault> {
        let long = matches!(self.scheme, Scheme::FourLevel | Scheme::FiveLevel);
        if long && !is_canonical(walk.address, self.scheme.linear_bits()) {
            return Err(Fault::NotCanonical);
        }
        let linear = if long { walk.address } else { walk.address & 0xffff_ffff };
        let mut rights = Rights { write: true, user: true, execute: true };
        let mut table = self.root();
        for &(level, shift, width) in self.scheme.levels() {
            let index = (linear >> shift & ((1 << width) - 1)) as u16;
            let at = Gpa(table.0 + u64::from(index) * self.scheme.entry_len());
            let raw = self.entry(at, read);
            walk.steps.push(Step { level, index, at, raw });
            let raw = raw.ok_or(Fault::Outside { level, table })?;
            if raw & entry::P == 0 {
                return Err(Fault::NotPresent { level });
            }
            let bits = raw & self.reserved(level, raw);
            if bits != 0 {
                return Err(Fault::Reserved { level, bits });
            }
            if (level, self.scheme) != (Level::Pdpt, Scheme::Pae) {
                rights = rights.and(raw, self.execute_disable && self.scheme != Scheme::Bits32);
            }
            if self.is_leaf(level, raw) {
                let len = 1 << shift;
                let gpa = Gpa(self.target(raw, len) | linear & (len - 1));
                return Ok(Page { gpa, len, rights, global: raw & entry::G != 0 });
            }
            table = Gpa(self.target(raw, 0x1000));
        }
        // Only without paging is there no last level.
        Ok(Page { gpa: Gpa(linear), len: 1 << 32, rights, global: false })
    }

    fn entry(&self, at: Gpa, read: ReadPhysical<'_>) -> Option<u64> {
        let mut bytes = [0; 8];
        read(at, &mut bytes[..self.scheme.entry_len() as usize]).then(|| u64::from_le_bytes(bytes))
    }
}

/// A level of page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Of 4 KiB pages.
    Table,
    /// Of page tables, or pages of 2 or 4 MiB.
    Directory,
    /// Page-directory-pointer table: of directories, or pages of 1 GiB.
    Pdpt,
    /// Page map level 4.
    Pml4,
    /// Page map level 5.
    Pml5,
}

impl fmt::Display for Level {
    /// The manual's name of an entry at this level.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Table => "PTE",
            Level::Directory => "PDE",
            Level::Pdpt => "PDPTE",
            Level::Pml4 => "PML4E",
            Level::Pml5 => "PML5E",
        })
    }
}

/// What a page may be used for, after all levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rights {
    /// Writes; without CR0.WP the kernel may write all the same.
    pub write: bool,
    /// CPL 3.
    pub user: bool,
    /// Instruction fetches.
    pub execute: bool,
}

impl Rights {
    fn and(self, raw: u64, execute_disable: bool) -> Rights {
        Rights {
            write: self.write && raw & entry::W != 0,
            user: self.user && raw & entry::U != 0,
            execute: self.execute && !(execute_disable && raw & entry::XD != 0),
        }
    }
}

impl fmt::Display for Rights {
    /// `writable, kernel only, no execution`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let write = if self.write { "writable" } else { "read-only" };
        let user = if self.user { "user" } else { "kernel only" };
        let execute = if self.execute { "executable" } else { "no execution" };
        write!(f, "{write}, {user}, {execute}")
    }
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Page {
    /// The address in guest-physical memory, which need not be RAM.
    pub gpa: Gpa,
    /// Length of the page around it, in bytes.
    pub len: u64,
    /// What may be done with it.
    pub rights: Rights,
    /// It stays in the TLB when CR3 changes.
    pub global: bool,
}

/// One entry that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// In which kind of table.
    pub level: Level,
    /// Which of its entries.
    pub index: u16,
    /// Where that is.
    pub at: Gpa,
    /// What is there; `None` where no RAM is.
    pub raw: Option<u64>,
}

impl Step {
    /// Its bits by name, without the address in it.
    pub fn bits(&self) -> Bits {
        entry::bits(self.raw.unwrap_or(0) & entry::BITS.iter().fold(0, |all, bit| all | bit.mask))
    }
}

/// Why there is no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The upper bits of the address are not all alike.
    NotCanonical,
    /// An entry's P is clear.
    NotPresent {
        /// Of this level.
        level: Level,
    },
    /// An entry has bits set that must be zero.
    Reserved {
        /// Of this level.
        level: Level,
        /// These bits.
        bits: u64,
    },
    /// A table is where no RAM is.
    Outside {
        /// Of this level.
        level: Level,
        /// There.
        table: Gpa,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NotCanonical => f.write_str("the address is not canonical"),
            Fault::NotPresent { level } => write!(f, "the {level} is not present"),
            Fault::Reserved { level, bits } => write!(f, "the {level} has reserved bits set: {bits:#x}"),
            Fault::Outside { level, table } => write!(f, "the table of the {level}, at {table}, is not in RAM"),
        }
    }
}

/// How an address was translated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Walk {
    /// The linear address.
    pub address: u64,
    /// By which tables.
    pub scheme: Scheme,
    /// Every entry that was looked at, from the first level down.
    pub steps: Vec<Step>,
    /// The page, or why there is none.
    pub end: Result<Page, Fault>,
}

impl fmt::Display for Walk {
    /// A line for each entry, and one for the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let Step { level, index, at, raw } = step;
            write!(f, "{:<5} [{index:>3}] at {:<12} ", level.to_string(), at.to_string())?;
            match raw {
                Some(raw) => writeln!(f, "{raw:#018x}  {}", step.bits().names())?,
                None => writeln!(f, "not in RAM")?,
            }
        }
        match &self.end {
            Ok(Page { gpa, .. }) if self.scheme == Scheme::Off => write!(f, "paging is off: physical {gpa}"),
            Ok(Page { gpa, len, rights, .. }) => write!(f, "physical {gpa}, page of {}, {rights}", PageLen(*len)),
            Err(fault) => write!(f, "no page: {fault}"),
        }
    }
}

/// `4 KiB`, `2 MiB`, `1 GiB`.
struct PageLen(u64);

impl fmt::Display for PageLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            len if len >= 1 << 30 => write!(f, "{} GiB", len >> 30),
            len if len >= 1 << 20 => write!(f, "{} MiB", len >> 20),
            len => write!(f, "{} KiB", len >> 10),
        }
    }
}
