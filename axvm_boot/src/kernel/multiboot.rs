//! Multiboot headers: how a kernel that is not Linux says how it wants to be loaded.
//!
//! ```text
//!   Multiboot 1, in the first 8 KiB          Multiboot 2, in the first 32 KiB
//!   0  magic 0x1badb002                      0  magic 0xe85250d6
//!   4  flags: demands, 16: addresses follow  4  architecture   8  length   12  checksum
//!   8  checksum: all three add up to 0       16 tags: type, flags, size, content, padded to 8 ... type 0 ends
//!   12 header, load, load end, bss end, entry         2 addresses: the same four   3 entry address
//! ```
//!
//! The header stands in an ELF file, whose program headers say the rest, or in a file of any kind that gives its addresses
//! there (the "a.out kludge").
//!
//! Spec: GNU Multiboot Specification 0.6.96, 3.1 "OS image format"; Multiboot2 Specification 2.0, 3.1 "OS image format".
//! Left out: relocation (a kernel is loaded where it was linked), EFI entries, symbols, video modes: there is no display.

use axvm_arch::{Gpa, layout};

use super::{ElfSegment, u16_at, u32_at};

/// Which of the two specifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultibootVersion {
    /// Multiboot Specification 0.6.96.
    One,
    /// Multiboot2 Specification 2.0.
    Two,
}

impl MultibootVersion {
    /// 1 or 2.
    pub fn number(self) -> u8 {
        match self {
            MultibootVersion::One => 1,
            MultibootVersion::Two => 2,
        }
    }

    /// What the loader puts into EAX.
    pub fn loader_magic(self) -> u32 {
        match self {
            MultibootVersion::One => 0x2bad_b002,
            MultibootVersion::Two => 0x36d7_6289,
        }
    }
}

/// A header that was found, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultibootHeader {
    /// Which kind it is.
    pub version: MultibootVersion,
    /// What to load where, if it gives addresses: then they count, and not those of an ELF file around it.
    pub load: Option<ElfSegment>,
    /// The first instruction, if it gives one.
    pub entry: Option<Gpa>,
    /// Why it cannot be obeyed, and what to do; for people.
    pub fault: Option<String>,
}

const MAGIC_1: u32 = 0x1bad_b002;
const MAGIC_2: u32 = 0xe852_50d6;
/// Where a header may end, in bytes.
const SEARCH_1: usize = 8 << 10;
const SEARCH_2: usize = 32 << 10;

/// Multiboot 1: page-aligned modules and a memory map are always given.
const VIDEO_MODE: u32 = 1 << 2;
/// Multiboot 1: of all flags, those that a loader must know.
const DEMANDS: u32 = 0xffff;
const KNOWN_DEMANDS: u32 = 0b111;
/// Multiboot 1: address fields are there.
const ADDRESSES: u32 = 1 << 16;

/// Multiboot 2: tags of a header.
mod tag {
    pub const END: u16 = 0;
    pub const INFORMATION: u16 = 1;
    pub const ADDRESS: u16 = 2;
    pub const ENTRY: u16 = 3;
    pub const CONSOLE: u16 = 4;
    /// Framebuffer, module alignment, EFI, relocation: wishes that a loader may leave.
    pub const WISHES: std::ops::RangeInclusive<u16> = 5..=10;
    pub const OPTIONAL: u16 = 1 << 0;
}
/// Multiboot 2: the last information that the specification knows.
const LAST_INFORMATION: u32 = 21;
/// Multiboot 2: a load address that means "the file from its start".
const FROM_START: u32 = u32::MAX;

/// The header in `head`, the first bytes of a file of `file_len`; of two, the one that can be obeyed, and the newer.
pub(super) fn find(head: &[u8], file_len: u64) -> Option<MultibootHeader> {
    let search = |len: usize, align| (0..head.len().min(len)).step_by(align);
    let two = search(SEARCH_2, 8).find_map(|at| version_2(&head[..head.len().min(SEARCH_2)], at, file_len));
    let one = search(SEARCH_1, 4).find_map(|at| version_1(&head[..head.len().min(SEARCH_1)], at, file_len));
    let is_good = |header: &MultibootHeader| header.fault.is_none();
    match (two, one) {
        (Some(two), Some(one)) => Some(if is_good(&two) || !is_good(&one) { two } else { one }),
        (two, one) => two.or(one),
    }
}

fn version_1(head: &[u8], at: usize, file_len: u64) -> Option<MultibootHeader> {
    let word = |number: usize| u32_at(head, at + 4 * number);
    let flags = word(1)?;
    if word(0)? != MAGIC_1 || MAGIC_1.wrapping_add(flags).wrapping_add(word(2)?) != 0 {
        return None;
    }
    let mut header = MultibootHeader { version: MultibootVersion::One, load: None, entry: None, fault: None };
    if flags & DEMANDS & !KNOWN_DEMANDS != 0 {
        header.fail(format!("it demands what Multiboot 0.6.96 does not have (flags {flags:#x}): build it without"));
    }
    if flags & VIDEO_MODE != 0 {
        header.fail(
            "it demands a video mode (bit 2 of its flags), and this machine has no display: build it without, and let \
             it print on COM1",
        );
    }
    if flags & ADDRESSES != 0 {
        match (word(3), word(4), word(5), word(6), word(7)) {
            (Some(header_at), Some(load), Some(load_end), Some(bss_end), Some(entry)) => {
                let offset = (at as u64).checked_sub(u64::from(header_at).wrapping_sub(load.into()));
                header.take_addresses(offset, load, load_end, bss_end, file_len);
                header.entry = Some(Gpa(entry.into()));
            }
            _ => header.fail(DAMAGED),
        }
    }
    Some(header)
}

const DAMAGED: &str = "it is damaged: fetch or build the kernel again";

fn version_2(head: &[u8], at: usize, file_len: u64) -> Option<MultibootHeader> {
    let words = [0, 4, 8, 12].map(|offset| u32_at(head, at + offset));
    let [Some(magic), Some(architecture), Some(len), Some(checksum)] = words else { return None };
    if magic != MAGIC_2 || magic.wrapping_add(architecture).wrapping_add(len).wrapping_add(checksum) != 0 {
        return None;
    }
    let mut header = MultibootHeader { version: MultibootVersion::Two, load: None, entry: None, fault: None };
    if architecture != 0 {
        header.fail(format!("it is for architecture {architecture}; a kernel for x86 (0) is needed"));
        return Some(header);
    }
    let tags = at.checked_add(len as usize).and_then(|end| head.get(at + 16..end));
    if tags.and_then(|tags| header.take_tags(tags, at, file_len)).is_none() {
        header.fail(DAMAGED);
    }
    if header.load.is_some() && header.entry.is_none() {
        header.fail("it has an address tag and no entry address tag: add one");
    }
    Some(header)
}

impl MultibootHeader {
    /// Only the first fault is told.
    fn fail(&mut self, why: impl Into<String>) {
        self.fault.get_or_insert_with(|| why.into());
    }

    /// Reads the tags of a header at `at`; `None` if they are damaged.
    fn take_tags(&mut self, mut tags: &[u8], at: usize, file_len: u64) -> Option<()> {
        loop {
            let (kind, flags, size) = (u16_at(tags, 0)?, u16_at(tags, 2)?, u32_at(tags, 4)? as usize);
            let content = tags.get(8..size)?;
            self.take_tag(kind, flags & tag::OPTIONAL != 0, content, (at, file_len))?;
            if kind == tag::END {
                return Some(());
            }
            tags = tags.get(size.checked_next_multiple_of(8)?..)?;
        }
    }

    fn take_tag(&mut self, kind: u16, optional: bool, content: &[u8], (at, file_len): (usize, u64)) -> Option<()> {
        match kind {
            tag::END => {}
            tag::INFORMATION => {
                let wanted = content.chunks_exact(4).filter_map(|word| u32_at(word, 0));
                if let Some(unknown) = wanted.into_iter().find(|&number| number > LAST_INFORMATION && !optional) {
                    self.fail(format!("it demands information {unknown}, which Multiboot2 2.0 does not have"));
                }
            }
            tag::ADDRESS => {
                let word = |number: usize| u32_at(content, 4 * number);
                let (header_at, load, load_end, bss_end) = (word(0)?, word(1)?, word(2)?, word(3)?);
                let at = at as u64;
                let (offset, load) = match load {
                    FROM_START => (Some(0), header_at.wrapping_sub(at as u32)),
                    load => (at.checked_sub(u64::from(header_at).wrapping_sub(load.into())), load),
                };
                self.take_addresses(offset, load, load_end, bss_end, file_len);
            }
            tag::ENTRY => self.entry = Some(Gpa(u32_at(content, 0)?.into())),
            tag::CONSOLE => {
                if u32_at(content, 0)? & 1 != 0 && !optional {
                    self.fail(
                        "it demands a display (console flags tag), and this machine has none: build it without, and let \
                         it print on COM1",
                    );
                }
            }
            kind if tag::WISHES.contains(&kind) || optional => {}
            unknown => self.fail(format!("it demands what Multiboot2 2.0 does not have (tag {unknown})")),
        }
        Some(())
    }

    /// What the address fields say: zero means the file's end, and no more than the file has.
    fn take_addresses(&mut self, offset: Option<u64>, load: u32, load_end: u32, bss_end: u32, file_len: u64) {
        let load = u64::from(load);
        let in_file = |offset: u64| {
            let rest = file_len.checked_sub(offset)?;
            let file_len = match load_end {
                0 => rest,
                end => u64::from(end).checked_sub(load).filter(|&len| len <= rest)?,
            };
            let memory_len = match bss_end {
                0 => file_len,
                end => u64::from(end).checked_sub(load).filter(|&len| len >= file_len)?,
            };
            let fits = memory_len > 0 && load + memory_len <= layout::HOLE.0;
            fits.then_some(ElfSegment { number: 0, gpa: Gpa(load), address: load, offset, file_len, memory_len })
        };
        self.load = offset.and_then(in_file);
        if self.load.is_none() {
            self.fail("its addresses do not fit the file, or a kernel below 3 GiB: link it again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{multiboot_1, multiboot_2};

    const LEN: u64 = 0x9000;
    const AT: u32 = 0x10_0000;

    /// A file with `header` at `at`.
    fn find_in(at: usize, header: &[u8]) -> Option<MultibootHeader> {
        let mut file = vec![0; LEN as usize];
        file[at..][..header.len()].copy_from_slice(header);
        find(&file, LEN)
    }

    fn fault(header: &[u8]) -> String {
        find_in(0, header).unwrap().fault.unwrap_or_default()
    }

    #[test]
    fn headers_are_found_where_they_may_be() {
        let (one, two) = (multiboot_1(3, &[]), multiboot_2(&[]));
        for (at, header, is_there) in [
            (0, &one, true),
            (0x1ff4, &one, true),
            (0x1ff8, &one, false),
            (2, &one, false),
            (0, &two, true),
            (0x4008, &two, true),
            (0x4004, &two, false),
            (0x8000, &two, false),
        ] {
            assert_eq!(find_in(at, header).is_some(), is_there, "{at:#x}");
        }
        for header in [one, two] {
            for flip in 0..12 {
                let mut damaged = header.clone();
                damaged[flip] ^= 1;
                assert_eq!(find_in(0, &damaged), None, "byte {flip}");
            }
        }
        assert_eq!(find(&[], 0), None);
    }

    #[test]
    fn of_two_headers_the_newer_counts_unless_only_the_other_can_be_obeyed() {
        let both = |two: &[u8]| {
            let mut file = [two, &[0; 64][..two.len().next_multiple_of(8) - two.len()]].concat();
            file.extend(multiboot_1(0, &[]));
            find_in(0, &file).unwrap().version
        };
        assert_eq!(both(&multiboot_2(&[])), MultibootVersion::Two);
        assert_eq!(both(&multiboot_2(&[(99, 0, &[])])), MultibootVersion::One);
    }

    #[test]
    fn addresses_say_what_goes_where() {
        let segment = |offset, gpa: u32, file_len, memory_len| {
            let (gpa, address) = (Gpa(gpa.into()), gpa.into());
            Some(ElfSegment { number: 0, gpa, address, offset, file_len, memory_len })
        };
        let load = |header: &[u8]| find_in(0x100, header).unwrap().load;
        let one = |words: [u32; 5]| load(&multiboot_1(ADDRESSES, &words));
        assert_eq!(one([AT + 0x40, AT, 0, 0, AT]), segment(0xc0, AT, LEN - 0xc0, LEN - 0xc0));
        assert_eq!(one([AT, AT, AT + 0x80, AT + 0x1000, AT]), segment(0x100, AT, 0x80, 0x1000));
        let two = |words: [u32; 4]| {
            let address = words.map(u32::to_le_bytes).concat();
            load(&multiboot_2(&[(tag::ADDRESS, 0, &address), (tag::ENTRY, 0, &AT.to_le_bytes())]))
        };
        assert_eq!(two([AT + 0x40, AT, 0, 0]), segment(0xc0, AT, LEN - 0xc0, LEN - 0xc0));
        assert_eq!(two([AT + 0x100, FROM_START, 0, 0]), segment(0, AT, LEN, LEN));
    }

    #[test]
    fn addresses_that_cannot_be_are_a_fault() {
        for words in [
            [AT + 4, AT, 0, 0, AT],
            [AT, AT + 4, 0, 0, AT],
            [AT, AT, AT - 1, 0, AT],
            [AT, AT, AT + LEN as u32 + 1, 0, AT],
            [AT, AT, AT + 8, AT + 7, AT],
            [AT, AT, AT, AT, AT],
            [u32::MAX, u32::MAX, 0, 0, AT],
            [AT, AT, AT + 8, 0xc000_0001, AT],
        ] {
            assert!(fault(&multiboot_1(ADDRESSES, &words)).starts_with("its addresses do not fit"), "{words:x?}");
        }
    }

    #[test]
    fn a_demand_that_cannot_be_met_is_a_fault_and_a_wish_is_not() {
        assert!(fault(&multiboot_1(4, &[])).contains("no display"));
        assert!(fault(&multiboot_1(8, &[])).contains("flags 0x8"));
        assert_eq!(fault(&multiboot_1(0xfffe_0003, &[])), "");
        let two = |kind, flags, content: &[u8]| fault(&multiboot_2(&[(kind, flags, content)]));
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        for (kind, flags, content, word) in [
            (1, 0, words(&[6, 22]), "information 22"),
            (1, 1, words(&[22]), ""),
            (1, 0, words(&[1, 6, 8, 15, 21]), ""),
            (2, 0, words(&[AT, AT, 0, 0]), "no entry address tag"),
            (2, 0, words(&[AT, AT, 0]), "damaged"),
            (3, 0, words(&[]), "damaged"),
            (4, 0, words(&[3]), "demands a display"),
            (4, 0, words(&[2]), ""),
            (4, 1, words(&[1]), ""),
            (5, 0, words(&[1024, 768, 32]), ""),
            (6, 0, words(&[]), ""),
            (11, 0, words(&[]), "tag 11"),
            (11, 1, words(&[]), ""),
        ] {
            let text = two(kind, flags, &content);
            assert!(text.contains(word) && text.is_empty() == word.is_empty(), "tag {kind} {content:?}: {text}");
        }
        let mut mips = multiboot_2(&[]);
        (mips[4], mips[12]) = (4, mips[12].wrapping_sub(4));
        assert!(fault(&mips).contains("architecture 4"));
    }
}
