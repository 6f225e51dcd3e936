//! ELF64 vmlinux: the kernel unpacked, with program headers that say where each part goes.
//!
//! ```text
//!   ELF header | program headers --+--> PT_LOAD: file bytes to p_paddr, zeroes up to p_memsz
//!                                  +--> PT_NOTE: "Xen" type 18: 32-bit physical entry point (PVH)
//! ```
//!
//! Spec: System V ABI, "Object Files" (ELF-64), chapters 4 and 5; Xen "x86/HVM direct boot ABI".
//! Left out: 32-bit kernels, relocation (KASLR needs the decompressor of a bzImage).

use axvm_arch::Gpa;

use super::{KernelError, u16_at, u32_at, u64_at};

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_RELOCATABLE: u16 = 1;
const TYPE_CORE: u16 = 4;
const MACHINE_X86_64: u16 = 62;
const HEADER_LEN: u64 = 64;
const PROGRAM_HEADER_LEN: u64 = 56;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// A checked vmlinux. Holds offsets, not the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vmlinux {
    /// The parts to load: at least one, none empty.
    pub segments: Vec<ElfSegment>,
    /// Entry point of the ELF header: a physical address, 64-bit code.
    pub entry: Gpa,
    /// PVH entry point: 32-bit code, if the kernel has one.
    pub pvh_entry: Option<Gpa>,
}

/// One PT_LOAD: `file_len` bytes from the file, then zeroes up to `memory_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElfSegment {
    /// Physical address.
    pub gpa: Gpa,
    /// Offset in the file.
    pub offset: usize,
    /// Bytes in the file.
    pub file_len: usize,
    /// Bytes in memory, at least `file_len`.
    pub memory_len: u64,
}

impl Vmlinux {
    /// Checks an image that starts with the ELF magic.
    pub(super) fn parse(image: &[u8]) -> Result<Vmlinux, KernelError> {
        check_target(image)?;
        let mut vmlinux = Vmlinux { segments: Vec::new(), entry: Gpa(at64(image, 24)?), pvh_entry: None };
        for program_header in program_headers(image)? {
            let kind = u32_at(program_header, 0).unwrap_or(0);
            match kind {
                PT_LOAD => vmlinux.segments.extend(segment(image, program_header)?),
                PT_NOTE => vmlinux.pvh_entry = vmlinux.pvh_entry.or(pvh_entry(file_part(image, program_header)?)),
                PT_INTERP => return Err(KernelError::foreign("a program for Linux, not Linux itself")),
                _ => {}
            }
        }
        if vmlinux.segments.is_empty() {
            return Err(KernelError::Elf("it has nothing to load (no PT_LOAD program header)"));
        }
        Ok(vmlinux)
    }

    /// First address of the lowest part and first address behind the highest.
    pub fn extent(&self) -> (Gpa, Gpa) {
        let start = self.segments.iter().map(|segment| segment.gpa).min().unwrap_or_default();
        let end = self.segments.iter().map(|segment| segment.gpa.0 + segment.memory_len).max().unwrap_or_default();
        (start, Gpa(end))
    }

    /// Whether some part covers `gpa`.
    pub fn covers(&self, gpa: Gpa) -> bool {
        self.segments.iter().any(|segment| gpa >= segment.gpa && gpa.0 - segment.gpa.0 < segment.memory_len)
    }
}

/// Refuses what is not a 64-bit x86 executable, by name.
fn check_target(image: &[u8]) -> Result<(), KernelError> {
    let [class, data] = *image.get(4..6).and_then(|ident| ident.first_chunk()).ok_or(truncated(image, HEADER_LEN))?;
    let half = |offset| {
        let value = u16_at(image, offset).ok_or(truncated(image, HEADER_LEN))?;
        Ok(if data == LITTLE_ENDIAN { value } else { value.swap_bytes() })
    };
    let machine: u16 = half(18)?;
    if machine != MACHINE_X86_64 {
        return Err(KernelError::OtherMachine(machine_name(machine)));
    }
    if class != CLASS_64 || data != LITTLE_ENDIAN {
        return Err(KernelError::OtherMachine("32-bit x86 (x32)".into()));
    }
    match half(16)? {
        TYPE_RELOCATABLE => Err(KernelError::foreign("an object file or kernel module (ELF relocatable)")),
        TYPE_CORE => Err(KernelError::foreign("a core dump")),
        _ => Ok(()),
    }
}

fn machine_name(machine: u16) -> String {
    let name = match machine {
        2 | 18 | 43 => "SPARC",
        3 => "32-bit x86 (i386)",
        8 => "MIPS",
        20 => "PowerPC",
        21 => "64-bit PowerPC",
        22 => "s390",
        40 => "32-bit ARM",
        50 => "Itanium",
        183 => "64-bit ARM (AArch64)",
        243 => "RISC-V",
        258 => "LoongArch",
        other => return format!("ELF machine {other}"),
    };
    name.into()
}

fn truncated(image: &[u8], need: u64) -> KernelError {
    KernelError::Truncated { need, have: image.len() as u64 }
}

fn at64(image: &[u8], offset: usize) -> Result<u64, KernelError> {
    u64_at(image, offset).ok_or(truncated(image, HEADER_LEN))
}

/// The program headers, each as its 56 (or more) bytes.
fn program_headers(image: &[u8]) -> Result<impl Iterator<Item = &[u8]>, KernelError> {
    let offset = at64(image, 32)?;
    let half = |at| u16_at(image, at).map(u64::from).ok_or(truncated(image, HEADER_LEN));
    let (size, count) = (half(54)?, half(56)?);
    if size < PROGRAM_HEADER_LEN {
        return Err(KernelError::Elf("its program headers are missing or too small"));
    }
    let end = offset.saturating_add(size * count);
    let table = usize::try_from(offset).ok().and_then(|start| image.get(start..)).unwrap_or_default();
    let table = table.get(..(size * count) as usize).ok_or(truncated(image, end))?;
    Ok(table.chunks_exact(size as usize))
}

/// The bytes of the file that a program header names.
fn file_part<'a>(image: &'a [u8], program_header: &[u8]) -> Result<&'a [u8], KernelError> {
    let (offset, len) = (at64(program_header, 8)?, at64(program_header, 32)?);
    let end = offset.saturating_add(len);
    if end > image.len() as u64 {
        return Err(truncated(image, end));
    }
    Ok(&image[offset as usize..end as usize])
}

/// What a PT_LOAD says; `None` if it takes no memory.
fn segment(image: &[u8], program_header: &[u8]) -> Result<Option<ElfSegment>, KernelError> {
    let file_len = file_part(image, program_header)?.len();
    let offset = at64(program_header, 8)? as usize;
    let (gpa, memory_len) = (Gpa(at64(program_header, 24)?), at64(program_header, 40)?);
    if memory_len < file_len as u64 {
        return Err(KernelError::Elf("a part is larger in the file than in memory (p_filesz > p_memsz)"));
    }
    if gpa.checked_add(memory_len).is_none() {
        return Err(KernelError::Elf("a part wraps around the end of the address space"));
    }
    Ok((memory_len > 0).then_some(ElfSegment { gpa, offset, file_len, memory_len }))
}

/// The PVH entry point among the notes, if it is there.
fn pvh_entry(mut notes: &[u8]) -> Option<Gpa> {
    loop {
        let (name_len, value_len) = (u32_at(notes, 0)? as usize, u32_at(notes, 4)? as usize);
        let kind = u32_at(notes, 8)?;
        let (name, rest) = notes[12..].split_at_checked(name_len.checked_next_multiple_of(4)?)?;
        let value = rest.get(..value_len)?;
        if name.starts_with(b"Xen\0") && kind == XEN_ELFNOTE_PHYS32_ENTRY {
            // 8 bytes in a 64-bit kernel, but the address has 32 bits either way.
            return u32_at(value, 0).map(|entry| Gpa(entry.into()));
        }
        notes = rest.get(value_len.checked_next_multiple_of(4)?..)?;
    }
}
