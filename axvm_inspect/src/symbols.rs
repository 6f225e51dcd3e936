//! Names of a kernel's addresses: from its image, its `vmlinux` or its `System.map`.
//!
//! ```text
//!   bzImage: kallsyms        \                         MSR LSTAR - entry_SYSCALL_64 = where KASLR has moved it
//!   vmlinux: ELF, .symtab     > functions by address --+
//!   System.map: text         /                         '--> 0xffffffff9a5f0eb2 is default_idle+0x12
//! ```
//!
//! Linux may move itself at its start (KASLR), by a multiple of 2 MiB. It tells where to: the processor has the address of
//! the entry for system calls in an MSR, once the kernel has set it.
//!
//! Spec: System V ABI, "Symbol Table"; nm(1) for the letters of a System.map; Linux `arch/x86/kernel/cpu/common.c`,
//! `syscall_init`. Left out: modules, whose addresses only the guest's memory tells.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;

use axvm_arch::msr;
use axvm_boot::kernel::KernelImage;
use axvm_boot::read_at::ReadAt;
use object::{Object, ObjectSymbol, ReadCache, SymbolKind};
use thiserror::Error;

use crate::kernel::unpack::LIMIT;
use crate::kernel::{kallsyms, payload};
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

/// Linux's entry for system calls, whose address is in the MSR LSTAR.
const ENTRY: &str = "entry_SYSCALL_64";

/// A function may be as long as this, at most.
const LONGEST: u64 = 1 << 20;

/// KASLR moves a kernel by a multiple of this.
const ALIGNMENT: u64 = 2 << 20;

impl Symbols {
    /// Reads them, whichever file it is.
    pub fn read(file: &dyn ReadAt) -> Result<Symbols, SymbolsError> {
        match KernelImage::parse(file) {
            Ok(image @ KernelImage::BzImage(_)) => Symbols::sorted(of_image(file, &image)),
            _ if starts_as_elf(file)? => Symbols::of_elf(file),
            _ => Symbols::sorted(of_map(&String::from_utf8_lossy(&whole(file)?))),
        }
    }

    fn of_elf(file: &dyn ReadAt) -> Result<Symbols, SymbolsError> {
        let cache = ReadCache::new(Cursor { file, at: 0 });
        let elf = object::File::parse(&cache).map_err(SymbolsError::Elf)?;
        let functions = elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.address() != 0);
        let named: Vec<_> =
            functions.filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?.into()))).collect();
        if named.is_empty() { Symbols::sorted(functions_of(&whole(file)?)) } else { Symbols::sorted(named) }
    }

    fn sorted(mut all: Vec<(u64, Box<str>)>) -> Result<Symbols, SymbolsError> {
        if all.is_empty() {
            return Err(SymbolsError::Empty);
        }
        all.sort();
        Ok(Symbols(all))
    }

    /// All of them in the order of their addresses.
    pub fn functions(&self) -> impl Iterator<Item = (u64, &str)> {
        self.0.iter().map(|(address, name)| (*address, &**name))
    }

    /// Address of a function.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.0.iter().find(|(_, known)| **known == *name).map(|(address, _)| *address)
    }

    /// Whether these are a Linux kernel's.
    pub fn is_linux(&self) -> bool {
        self.address(ENTRY).is_some()
    }

    /// The function at an address of the kernel as it was linked, and how far behind its start.
    fn at(&self, address: u64) -> Option<(&str, u64)> {
        let behind = self.0.partition_point(|(start, _)| *start <= address);
        let (start, name) = self.0.get(behind.checked_sub(1)?)?;
        Some((&**name, address - start)).filter(|(_, offset)| *offset < LONGEST)
    }

    /// These names for a guest whose vCPU has these registers. None if they are another kernel's.
    pub fn located(&self, snapshot: &Snapshot) -> Option<Located<'_>> {
        self.moved(snapshot.msr(msr::LSTAR).filter(|&entry| entry != 0))
    }

    /// The same, for a guest with this entry for system calls; none if it has set none.
    pub fn moved(&self, entry: Option<u64>) -> Option<Located<'_>> {
        let up = entry.zip(self.address(ENTRY));
        // It has not come so far, or is not Linux.
        let slide = up.map_or(0, |(now, linked)| now.wrapping_sub(linked));
        slide.is_multiple_of(ALIGNMENT).then_some(Located { symbols: self, slide, is_up: up.is_some() })
    }
}

/// A file as a stream, for those who read one.
struct Cursor<'a> {
    file: &'a dyn ReadAt,
    at: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let len = self.file.len().saturating_sub(self.at).min(to.len() as u64);
        self.file.read_at(self.at, &mut to[..len as usize])?;
        self.at += len;
        Ok(len as usize)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.file.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

fn starts_as_elf(file: &dyn ReadAt) -> io::Result<bool> {
    let mut magic = [0; 4];
    let len = file.len().min(4);
    file.read_at(0, &mut magic[..len as usize])?;
    Ok(magic == object::elf::ELFMAG)
}

/// All of a file that is not larger than a kernel may be.
fn whole(file: &dyn ReadAt) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.len().min(LIMIT) as usize];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// What the kernel in a bzImage calls its functions.
fn of_image(file: &dyn ReadAt, image: &KernelImage) -> Vec<(u64, Box<str>)> {
    let mut unpacked = Vec::new();
    let sink = &mut |piece: &[u8]| {
        unpacked.extend_from_slice(piece);
        ControlFlow::Continue(())
    };
    // What came before an error has names, or not.
    let _ = payload::pieces(file, image, sink);
    functions_of(&unpacked)
}

/// What an unpacked kernel calls its functions.
fn functions_of(image: &[u8]) -> Vec<(u64, Box<str>)> {
    let names = kallsyms::names(image).unwrap_or_default().into_iter();
    let is_function = |kind: u8| FUNCTIONS.iter().any(|letter| letter.as_bytes() == [kind]);
    names.filter(|name| is_function(name.kind)).map(|name| (name.address, name.name)).collect()
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
    /// Whether that is known: the kernel has come so far as to set its entry for system calls.
    pub is_up: bool,
}

impl Located<'_> {
    /// Where the function of this name is.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.symbols.address(name).map(|linked| linked.wrapping_add(self.slide))
    }

    /// All functions where they are, in the form of a System.map.
    pub fn map(&self) -> String {
        let moved = self.symbols.functions().map(|(linked, name)| (linked.wrapping_add(self.slide), clean(name)));
        moved.map(|(address, name)| format!("{address:016x} T {name}\n")).collect()
    }

    /// The function at an address, and how far behind its start; none if there is no function.
    pub fn function(&self, address: u64) -> Option<(String, u64)> {
        let (name, offset) = self.symbols.at(address.wrapping_sub(self.slide))?;
        Some((clean(name).to_string(), offset))
    }

    /// `default_idle+0x12`.
    pub fn name(&self, address: u64) -> Option<String> {
        self.function(address).map(|(name, offset)| format!("{name}+{offset:#x}"))
    }
}

#[cfg(test)]
mod tests {
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
        Symbols::read(&bytes)
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
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let symbols = Symbols::read(&&own[..]).unwrap();
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
