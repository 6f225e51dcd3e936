//! A slow model of the page walk, for comparison: tables of rules in the manuals' terms, bit by bit, nothing shared with
//! the walk but its types.
//!
//! ```text
//!   entry of 64 bits --> for bit in 63 .. 0: what is it here?  address | ignored | must be zero | flag
//! ```

use std::collections::HashMap;

use super::{Fault, Level, Page, Paging, Rights, Scheme};
use crate::Gpa;

/// What a bit of an entry is.
#[derive(PartialEq)]
enum Meaning {
    Address(u32),
    Zero,
    Other,
}

/// RAM as the model knows it: entries by address; all else is no RAM.
pub struct Memory(pub HashMap<u64, u64>);

/// The walk of `address`, as long division would do it.
pub fn translate(paging: &Paging, memory: &Memory, address: u64) -> Result<Page, Fault> {
    let bit = |n: u32| address >> n & 1;
    let (names, split): (&[Level], &[u32]) = match paging.scheme {
        Scheme::Off => (&[], &[]),
        Scheme::Bits32 => (&[Level::Directory, Level::Table], &[32, 22, 12]),
        Scheme::Pae => (&[Level::Pdpt, Level::Directory, Level::Table], &[32, 30, 21, 12]),
        Scheme::FourLevel => (&[Level::Pml4, Level::Pdpt, Level::Directory, Level::Table], &[48, 39, 30, 21, 12]),
        Scheme::FiveLevel => {
            (&[Level::Pml5, Level::Pml4, Level::Pdpt, Level::Directory, Level::Table], &[57, 48, 39, 30, 21, 12])
        }
    };
    let width = split.first().copied().unwrap_or(32);
    if width > 32 && (width..64).any(|n| bit(n) != bit(width - 1)) {
        return Err(Fault::NotCanonical);
    }
    let field = |from: u32, to: u32| (to..from).map(|n| bit(n) << (n - to)).sum::<u64>();
    let mut rights = Rights { write: true, user: true, execute: true };
    let lowest = if paging.scheme == Scheme::Pae { 5 } else { 12 };
    let mut table = if width == 32 { paging.cr3 as u32 as u64 } else { paging.cr3 << 12 >> 12 };
    table = table / (1 << lowest) * (1 << lowest);
    for (n, &level) in names.iter().enumerate() {
        let (from, to) = (split[n], split[n + 1]);
        let size = if paging.scheme == Scheme::Bits32 { 4 } else { 8 };
        let at = table + field(from, to) * size;
        let Some(&raw) = memory.0.get(&at) else { return Err(Fault::Outside { level, table: Gpa(table) }) };
        let raw = if size == 4 { raw as u32 as u64 } else { raw };
        if raw % 2 == 0 {
            return Err(Fault::NotPresent { level });
        }
        let ps = raw >> 7 & 1 == 1;
        let last = match (level, paging.scheme) {
            (Level::Table, _) => true,
            (Level::Directory, Scheme::Bits32) => ps && paging.large_pages,
            (Level::Directory, _) => ps,
            (Level::Pdpt, Scheme::FourLevel | Scheme::FiveLevel) => ps && paging.gib_pages,
            _ => false,
        };
        let all: Vec<Meaning> = (0..8 * size as u32).map(|n| meaning(paging, level, last, n)).collect();
        let broken: u64 = (0..).zip(&all).filter(|(_, is)| **is == Meaning::Zero).map(|(n, _)| raw & 1 << n).sum();
        if broken != 0 {
            return Err(Fault::Reserved { level, bits: broken });
        }
        if !(level == Level::Pdpt && paging.scheme == Scheme::Pae) {
            rights.write &= raw >> 1 & 1 == 1;
            rights.user &= raw >> 2 & 1 == 1;
            rights.execute &= raw >> 63 & 1 == 0;
        }
        let target: u64 = (0..)
            .zip(&all)
            .map(|(n, is): (u32, _)| if let Meaning::Address(to) = is { (raw >> n & 1) << to } else { 0 })
            .sum();
        if last {
            let gpa = Gpa(target + field(to, 0));
            return Ok(Page { gpa, len: 1 << to, rights, global: raw >> 8 & 1 == 1 });
        }
        table = target;
    }
    Ok(Page { gpa: Gpa(address as u32 as u64), len: 1 << 32, rights, global: false })
}

/// The manuals' figures, read from right to left.
fn meaning(paging: &Paging, level: Level, last: bool, bit: u32) -> Meaning {
    let physical = u32::from(paging.physical_bits);
    let zero_if = |is: bool| if is { Meaning::Zero } else { Meaning::Other };
    let address_or_zero = || if bit < physical { Meaning::Address(bit) } else { Meaning::Zero };
    match (paging.scheme, level, bit) {
        (Scheme::Bits32, Level::Directory, 12) if last => Meaning::Other,
        (Scheme::Bits32, Level::Directory, 13..=20) if last => {
            if bit + 19 < physical {
                Meaning::Address(bit + 19)
            } else {
                Meaning::Zero
            }
        }
        (Scheme::Bits32, Level::Directory, 21) if last => Meaning::Zero,
        (Scheme::Bits32, _, 12..=31) => Meaning::Address(bit),
        (Scheme::Pae, Level::Pdpt, 1 | 2 | 5..=8 | 63) => Meaning::Zero,
        (_, Level::Pml4 | Level::Pml5, 7) => Meaning::Zero,
        (Scheme::FourLevel | Scheme::FiveLevel, Level::Pdpt, 7) => zero_if(!paging.gib_pages),
        (_, Level::Directory, 12) if last => Meaning::Other,
        (_, Level::Pdpt, 12) if last => Meaning::Other,
        (_, Level::Directory, 13..=20) if last => Meaning::Zero,
        (_, Level::Pdpt, 13..=29) if last => Meaning::Zero,
        (_, _, 63) => zero_if(!paging.execute_disable),
        (Scheme::Pae, _, 52..=62) => Meaning::Zero,
        (_, _, 12..=51) => address_or_zero(),
        _ => Meaning::Other,
    }
}
