//! A kernel's names as an ELF file: what gdb takes when there is no `vmlinux` with symbols.
//!
//! ```text
//!   | ELF header | section headers: null, .text, .symtab, .strtab | symbols, 24 bytes each | their names |
//! ```
//!
//! `.text` has an address and a length and no bytes: code is read from the machine. Nothing but functions is in it, so
//! `break`, `info symbol` and the first frames of a backtrace work; lines and variables need debug information.
//!
//! Spec: System V ABI, "Section Header", "Symbol Table".

use crate::symbols::Symbols;

const EHDR: u64 = 64;
const SHDR: u64 = 64;
const SYMBOL: u64 = 24;
const SECTIONS: u64 = 4;
/// Global, a function.
const FUNCTION: u8 = (1 << 4) | 2;
/// Numbers of the sections `.text` and `.strtab`.
const TEXT: u16 = 1;
const STRINGS: u32 = 3;

const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHT_NOBITS: u32 = 8;
/// Is in memory, and executed.
const ALLOCATED_CODE: u64 = 2 | 4;
/// Names of the sections; those of symbols follow.
const NAMES: &[u8] = b"\0.text\0.symtab\0.strtab\0";

/// The file, in bytes.
pub fn elf(symbols: &Symbols) -> Vec<u8> {
    let functions = || symbols.functions();
    let first = functions().next().map_or(0, |(address, _)| address);
    let end = functions().last().map_or(0, |(address, _)| address.saturating_add(1));
    let count = functions().count() as u64 + 1;
    let mut strings = NAMES.to_vec();
    let mut table = vec![0; SYMBOL as usize];
    for (address, name) in functions() {
        table.extend((strings.len() as u32).to_le_bytes());
        table.extend([FUNCTION, 0]);
        table.extend(TEXT.to_le_bytes());
        table.extend([address, 0].map(u64::to_le_bytes).concat());
        strings.extend(name.bytes().chain([0]));
    }
    let symbols_at = EHDR + SECTIONS * SHDR;
    let strings_at = symbols_at + count * SYMBOL;
    let name = |wanted: &[u8]| NAMES.windows(wanted.len()).position(|part| part == wanted).unwrap_or_default() as u32;
    let sections = [
        Section::default(),
        Section {
            name: name(b".text"),
            kind: SHT_NOBITS,
            flags: ALLOCATED_CODE,
            address: first,
            len: end - first,
            ..Section::default()
        },
        Section {
            name: name(b".symtab"),
            kind: SHT_SYMTAB,
            offset: symbols_at,
            len: count * SYMBOL,
            link: STRINGS,
            // The first that is not local.
            info: 1,
            entry: SYMBOL,
            ..Section::default()
        },
        Section {
            name: name(b".strtab"),
            kind: SHT_STRTAB,
            offset: strings_at,
            len: strings.len() as u64,
            ..Section::default()
        },
    ];
    [header(), sections.iter().flat_map(Section::bytes).collect(), table, strings].concat()
}

/// An executable of 64 bits, x86-64.
fn header() -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([2u16, 62].map(u16::to_le_bytes).concat());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend([0, 0, EHDR].map(u64::to_le_bytes).concat());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend([EHDR as u16, 0, 0, SHDR as u16, SECTIONS as u16, STRINGS as u16].map(u16::to_le_bytes).concat());
    bytes
}

#[derive(Default)]
struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    address: u64,
    offset: u64,
    len: u64,
    link: u32,
    info: u32,
    entry: u64,
}

impl Section {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.name, self.kind].map(u32::to_le_bytes).concat();
        bytes.extend([self.flags, self.address, self.offset, self.len].map(u64::to_le_bytes).concat());
        bytes.extend([self.link, self.info].map(u32::to_le_bytes).concat());
        bytes.extend([1, self.entry].map(u64::to_le_bytes).concat());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use object::{Object, ObjectSection, ObjectSymbol};

    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let map = b"ffffffff81000000 T _text\nffffffff81c00000 T entry_SYSCALL_64\nffffffff81e5f0e0 t default_idle\n";
        let symbols = Symbols::read(&&map[..]).unwrap();
        let file = elf(&symbols);
        let read = object::File::parse(&file[..]).unwrap();
        let text = read.section_by_name(".text").unwrap();
        assert_eq!((text.address(), text.size()), (0xffff_ffff_8100_0000, 0xe5_f0e1));
        let named: Vec<_> = read.symbols().map(|symbol| (symbol.address(), symbol.name().unwrap())).collect();
        assert_eq!(named, symbols.functions().collect::<Vec<_>>());
        assert_eq!(Symbols::read(&&file[..]).unwrap().functions().count(), 3);
    }
}
