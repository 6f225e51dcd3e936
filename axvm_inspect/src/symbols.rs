//! Names of a kernel's addresses, from its `vmlinux` or its `System.map`.
//!
//! ```text
//!   vmlinux: ELF, .symtab   \                         MSR LSTAR - entry_SYSCALL_64 = where KASLR has moved it
//!                            > functions by address --+
//!   System.map: text        /                         '--> 0xffffffff9a5f0eb2 is default_idle+0x12
//! ```
//!
//! Linux may move itself at its start (KASLR), by a multiple of 2 MiB. It tells where to: the processor has the address of
//! the entry for system calls in an MSR, once the kernel has set it.
//!
//! Spec: System V ABI, "Symbol Table"; nm(1) for the letters of a System.map; Linux `arch/x86/kernel/cpu/common.c`,
//! `syscall_init`. Left out: modules, whose addresses only the guest's memory tells.

use std::fs::File;
use std::io::{self, Read, Seek};

use axvm_arch::msr;
use object::{Object, ObjectSymbol, ReadCache, SymbolKind};
use thiserror::Error;

use crate::snapshot::Snapshot;
use crate::text::clean;

/// The file has no names.
#[derive(Debug, Error)]
pub enum SymbolsError {
    /// The host does not give it.
    #[error("Cannot read the file of symbols")]
    Read(#[from] io::Error),
    /// It begins like an ELF file, and is none.
    #[error(
        "The file of symbols is a damaged ELF file: {0}; take the vmlinux of the kernel's debug package, or its System.map"
    )]
    Elf(object::Error),
    /// No function has a name in it.
    #[error("The file of symbols names no function; take the vmlinux of the kernel's debug package, or its System.map")]
    Empty,
}

/// Functions of a kernel by address, as it was linked.
#[derive(Clone, Debug)]
pub struct Symbols(Vec<(u64, Box<str>)>);

/// What a System.map calls functions: global and local text, weak symbols.
const FUNCTIONS: [&str; 4] = ["T", "t", "W", "w"];

/// A function may be as long as this, at most.
const LONGEST: u64 = 1 << 20;

/// KASLR moves a kernel by a multiple of this.
const ALIGNMENT: u64 = 2 << 20;

impl Symbols {
    /// Reads them, whichever of the two files it is.
    pub fn read(file: &mut File) -> Result<Symbols, SymbolsError> {
        let mut magic = Vec::new();
        file.rewind()?;
        file.by_ref().take(4).read_to_end(&mut magic)?;
        file.rewind()?;
        if magic == object::elf::ELFMAG {
            return Symbols::of_elf(file);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Symbols::sorted(of_map(&String::from_utf8_lossy(&bytes)))
    }

    fn of_elf(file: &mut File) -> Result<Symbols, SymbolsError> {
        let cache = ReadCache::new(file);
        let elf = object::File::parse(&cache).map_err(SymbolsError::Elf)?;
        let functions = elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.address() != 0);
        Symbols::sorted(functions.filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?.into()))).collect())
    }

    fn sorted(mut all: Vec<(u64, Box<str>)>) -> Result<Symbols, SymbolsError> {
        if all.is_empty() {
            return Err(SymbolsError::Empty);
        }
        all.sort();
        Ok(Symbols(all))
    }

    /// Address of a function.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.0.iter().find(|(_, known)| **known == *name).map(|(address, _)| *address)
    }

    /// The function at an address of the kernel as it was linked, and how far behind its start.
    fn at(&self, address: u64) -> Option<(&str, u64)> {
        let behind = self.0.partition_point(|(start, _)| *start <= address);
        let (start, name) = self.0.get(behind.checked_sub(1)?)?;
        Some((&**name, address - start)).filter(|(_, offset)| *offset < LONGEST)
    }

    /// These names for a guest whose vCPU has these registers. None if they are another kernel's.
    pub fn located(&self, snapshot: &Snapshot) -> Option<Located<'_>> {
        let entry = snapshot.msr(msr::LSTAR).filter(|&entry| entry != 0);
        let slide = match entry.zip(self.address("entry_SYSCALL_64")) {
            // It has not come so far, or is not Linux.
            None => 0,
            Some((now, linked)) => now.wrapping_sub(linked),
        };
        slide.is_multiple_of(ALIGNMENT).then_some(Located { symbols: self, slide })
    }
}

fn of_map(text: &str) -> Vec<(u64, Box<str>)> {
    let function = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let is_function = FUNCTIONS.contains(&words.next()?);
        let name = words.next()?;
        is_function.then(|| (address, name.into()))
    };
    text.lines().filter_map(function).collect()
}

/// The names of a kernel where it is now.
#[derive(Clone, Copy, Debug)]
pub struct Located<'a> {
    symbols: &'a Symbols,
    /// By how much it was moved.
    pub slide: u64,
}

impl Located<'_> {
    /// Where the function of this name is.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.symbols.address(name).map(|linked| linked.wrapping_add(self.slide))
    }

    /// `default_idle+0x12`; none if there is no function.
    pub fn name(&self, address: u64) -> Option<String> {
        let (name, offset) = self.symbols.at(address.wrapping_sub(self.slide))?;
        Some(format!("{}+{offset:#x}", clean(name)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use axvm_arch::msr::Msr;
    use axvm_arch::registers::CpuState;

    use super::*;

    const MAP: &str = "\
0000000000000000 A __per_cpu_start
ffffffff81000000 T _text
ffffffff81c00000 T entry_SYSCALL_64
ffffffff81e5f0e0 t default_idle
ffffffff81e5f100 T idle_cpu
ffffffff82000000 D not_code
no line
";

    fn read(bytes: &[u8]) -> Result<Symbols, SymbolsError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Symbols::read(&mut file)
    }

    fn snapshot(lstar: u64) -> Snapshot {
        Snapshot { msrs: vec![Msr { index: msr::LSTAR, value: lstar }], ..CpuState::default().into() }
    }

    #[test]
    fn a_system_map_names_functions_wherever_the_kernel_is() {
        let symbols = read(MAP.as_bytes()).unwrap();
        let linked = symbols.located(&snapshot(0)).unwrap();
        assert_eq!(linked.name(0xffff_ffff_81e5_f0eb).as_deref(), Some("default_idle+0xb"));
        assert_eq!([0x1000, 0xffff_ffff_80ff_ffff, u64::MAX].map(|at| linked.name(at)), [None, None, None]);
        let moved = symbols.located(&snapshot(0xffff_ffff_9ac0_0000)).unwrap();
        assert_eq!(moved.slide, 0x1900_0000);
        assert_eq!(moved.name(0xffff_ffff_9ae5_f100).as_deref(), Some("idle_cpu+0x0"));
        assert!(symbols.located(&snapshot(0xffff_ffff_81c0_0040)).is_none(), "another kernel's");
    }

    #[test]
    fn the_symbols_of_an_elf_file_are_read() {
        let mut own = File::open(std::env::current_exe().unwrap()).unwrap();
        let symbols = Symbols::read(&mut own).unwrap();
        let (address, name) = symbols.0.iter().find(|(_, name)| name.contains("the_symbols_of_an_elf_file")).unwrap();
        let found = symbols.located(&snapshot(0)).unwrap().name(address + 1).unwrap();
        assert!(found.ends_with("+0x1"), "{name}: {found}");
    }

    #[test]
    fn a_file_without_names_is_an_error() {
        for bytes in [&b""[..], b"some text\n", b"\x7fELF", b"\x7fELF\x02\x01\x01 and no more of it"] {
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.contains("System.map"), "{error}");
        }
    }
}
