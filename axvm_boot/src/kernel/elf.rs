//! ELF vmlinux: the kernel unpacked, with program headers that say where each part goes.
//!
//! ```text
//!   ELF header | program headers --+--> PT_LOAD: file bytes to p_paddr, zeroes up to p_memsz
//!                                  +--> PT_NOTE: "Xen" type 18: 32-bit physical entry point (PVH)
//! ```
//!
//! Spec: System V ABI, "Object Files" (ELF-32 and ELF-64), chapters 4 and 5; Xen "x86/HVM direct boot ABI".
//! Left out: relocation (KASLR needs the decompressor of a bzImage), more program headers than e_phnum can count.

use axvm_arch::Gpa;

use super::multiboot::{self, MultibootHeader};
use super::{KernelError, bytes_at, u16_at, u32_at, u64_at};
use crate::read_at::ReadAt;

const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_RELOCATABLE: u16 = 1;
const TYPE_CORE: u16 = 4;
const MACHINE_I386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Linux has five; what has more than this is no kernel, and would be slow to look through.
const MAX_PROGRAM_HEADERS: u64 = 128;
/// Bytes of a PT_NOTE that are looked at. Linux has half a KiB.
const MAX_NOTES: u64 = 64 << 10;

/// A checked vmlinux. Holds offsets, not the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vmlinux {
    /// 32 or 64.
    pub bits: u8,
    /// The parts to load: at least one, none empty, none over another.
    pub segments: Vec<ElfSegment>,
    /// Entry point of the ELF header, as a physical address.
    pub entry: Gpa,
    /// PVH entry point: 32-bit code, if the kernel has one.
    pub pvh_entry: Option<Gpa>,
    /// Its Multiboot header, if it has one. A kernel of 32 bits has this or a PVH entry point.
    pub multiboot: Option<MultibootHeader>,
}

/// One PT_LOAD: `file_len` bytes from the file, then zeroes up to `memory_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElfSegment {
    /// Which program header it is, from 0 on.
    pub number: u64,
    /// Physical address.
    pub gpa: Gpa,
    /// Virtual address.
    pub address: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_len: u64,
    /// Bytes in memory, at least `file_len`.
    pub memory_len: u64,
}

impl ElfSegment {
    /// First physical address behind it.
    pub fn end(&self) -> Gpa {
        Gpa(self.gpa.0 + self.memory_len)
    }

    /// The physical address of a virtual one in it.
    fn translate(&self, address: u64) -> Option<Gpa> {
        let offset = address.checked_sub(self.address).filter(|&offset| offset < self.memory_len)?;
        Some(Gpa(self.gpa.0 + offset))
    }

    fn error(&self, why: impl Into<String>) -> KernelError {
        KernelError::Segment { number: self.number, gpa: self.gpa, why: why.into() }
    }
}

impl Vmlinux {
    /// Checks an image that starts with the ELF magic.
    pub(super) fn parse(file: &dyn ReadAt, head: &[u8]) -> Result<Vmlinux, KernelError> {
        let class = target(file, head)?;
        let (mut segments, mut pvh_entry, mut loaded) = (Vec::new(), None, 0);
        for (number, header) in class.program_headers(file, head)? {
            match header.kind {
                PT_LOAD => {
                    let segment = segment(file, number, &header)?;
                    loaded = add_file_bytes(file, loaded, &segment)?;
                    segments.extend((segment.memory_len > 0).then_some(segment));
                }
                PT_NOTE => pvh_entry = pvh_entry.or(header.pvh_entry(file)?),
                PT_INTERP => return Err(KernelError::foreign("a program for Linux, not Linux itself")),
                _ => {}
            }
        }
        let multiboot = multiboot::find(head, file.len());
        if class.bits == 32 && pvh_entry.is_none() && multiboot.is_none() {
            return Err(KernelError::NoPvhNote);
        }
        if segments.is_empty() {
            return Err(KernelError::Elf("it has nothing to load (no PT_LOAD program header)"));
        }
        check_overlap(&segments)?;
        let entry = class.word(head, 24).ok_or(truncated(file, class.header_len))?;
        let mut vmlinux = Vmlinux { bits: class.bits, segments, entry: Gpa(entry), pvh_entry, multiboot };
        vmlinux.entry = vmlinux.physical(vmlinux.entry);
        vmlinux.pvh_entry = pvh_entry.map(|entry| vmlinux.physical(entry));
        Ok(vmlinux)
    }

    /// The physical address of an entry point, which may be virtual: the kernel is linked for the upper half.
    fn physical(&self, entry: Gpa) -> Gpa {
        if self.covers(entry) {
            return entry;
        }
        self.segments.iter().find_map(|segment| segment.translate(entry.0)).unwrap_or(entry)
    }

    /// First address of the lowest part and first address behind the highest.
    pub fn extent(&self) -> (Gpa, Gpa) {
        let start = self.segments.iter().map(|segment| segment.gpa).min().unwrap_or_default();
        let end = self.segments.iter().map(ElfSegment::end).max().unwrap_or_default();
        (start, end)
    }

    /// Whether some part covers `gpa`.
    pub fn covers(&self, gpa: Gpa) -> bool {
        self.segments.iter().any(|segment| gpa >= segment.gpa && gpa < segment.end())
    }
}

/// Where the two classes of ELF keep their numbers.
#[derive(Clone, Copy)]
struct Class {
    bits: u8,
    header_len: u64,
    /// e_phoff, then e_phentsize; e_phnum follows the latter.
    table_at: usize,
    sizes_at: usize,
    program_header_len: u64,
    /// p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align.
    fields: [usize; 6],
}

const ELF_32: Class = Class {
    bits: 32,
    header_len: 52,
    table_at: 28,
    sizes_at: 42,
    program_header_len: 32,
    fields: [4, 8, 12, 16, 20, 28],
};
const ELF_64: Class = Class {
    bits: 64,
    header_len: 64,
    table_at: 32,
    sizes_at: 54,
    program_header_len: 56,
    fields: [8, 16, 24, 32, 40, 48],
};

impl Class {
    /// An address, offset or length.
    fn word(&self, bytes: &[u8], offset: usize) -> Option<u64> {
        if self.bits == 64 { u64_at(bytes, offset) } else { u32_at(bytes, offset).map(u64::from) }
    }

    /// The program headers, each with its number.
    fn program_headers(
        &self,
        file: &dyn ReadAt,
        head: &[u8],
    ) -> Result<impl Iterator<Item = (u64, ProgramHeader)>, KernelError> {
        let half = |at| u16_at(head, at).map(u64::from).ok_or(truncated(file, self.header_len));
        let (size, count) = (half(self.sizes_at)?, half(self.sizes_at + 2)?);
        let offset = self.word(head, self.table_at).ok_or(truncated(file, self.header_len))?;
        if count > MAX_PROGRAM_HEADERS {
            return Err(KernelError::Elf("it has more than 128 program headers"));
        }
        if self.bits == 32 && count == 0 {
            return Err(KernelError::NoPvhNote);
        }
        if size < self.program_header_len {
            return Err(KernelError::Elf("its program headers are missing or too small"));
        }
        let end = offset.checked_add(size * count).filter(|&end| end <= file.len());
        end.ok_or(truncated(file, offset.saturating_add(size * count)))?;
        let header = |number| {
            let bytes = bytes_at(file, offset + number * size, self.program_header_len)?;
            let word = |at| self.word(&bytes, at).unwrap_or(0);
            let [offset, address, gpa, file_len, memory_len, align] = self.fields.map(word);
            let kind = u32_at(&bytes, 0).unwrap_or(0);
            Ok((number, ProgramHeader { kind, offset, address, gpa, file_len, memory_len, align }))
        };
        let headers: Result<Vec<_>, KernelError> = (0..count).map(header).collect();
        Ok(headers?.into_iter())
    }
}

/// A program header of either class.
struct ProgramHeader {
    kind: u32,
    offset: u64,
    address: u64,
    gpa: u64,
    file_len: u64,
    memory_len: u64,
    align: u64,
}

impl ProgramHeader {
    /// Refuses one whose bytes are not all in the file.
    fn check_file_part(&self, file: &dyn ReadAt) -> Result<(), KernelError> {
        let end = self.offset.saturating_add(self.file_len);
        if end > file.len() { Err(truncated(file, end)) } else { Ok(()) }
    }

    /// The PVH entry point among the notes, if it is there.
    fn pvh_entry(&self, file: &dyn ReadAt) -> Result<Option<Gpa>, KernelError> {
        self.check_file_part(file)?;
        let notes = bytes_at(file, self.offset, self.file_len.min(MAX_NOTES))?;
        // Some linkers say 8 and mean 4.
        let by_eight = if self.align == 8 { pvh_entry(&notes, 8) } else { None };
        Ok(by_eight.or_else(|| pvh_entry(&notes, 4)))
    }
}

/// Refuses what is not an x86 executable, by name.
fn target(file: &dyn ReadAt, head: &[u8]) -> Result<Class, KernelError> {
    let header_len = ELF_64.header_len;
    let [class, data] = *head.get(4..6).and_then(|ident| ident.first_chunk()).ok_or(truncated(file, header_len))?;
    let half = |offset| {
        let value = u16_at(head, offset).ok_or(truncated(file, header_len))?;
        Ok(if data == LITTLE_ENDIAN { value } else { value.swap_bytes() })
    };
    let machine: u16 = half(18)?;
    let layout = match (machine, class, data) {
        (MACHINE_X86_64, CLASS_64, LITTLE_ENDIAN) => ELF_64,
        (MACHINE_I386, CLASS_32, LITTLE_ENDIAN) => ELF_32,
        (MACHINE_X86_64, ..) => return Err(KernelError::OtherMachine("32-bit x86 (x32)".into())),
        _ => return Err(KernelError::OtherMachine(machine_name(machine))),
    };
    match half(16)? {
        TYPE_RELOCATABLE => Err(KernelError::foreign("an object file or kernel module (ELF relocatable)")),
        TYPE_CORE => Err(KernelError::foreign("a core dump")),
        _ => Ok(layout),
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

fn truncated(file: &dyn ReadAt, need: u64) -> KernelError {
    KernelError::Truncated { need, have: file.len() }
}

/// What a PT_LOAD says.
fn segment(file: &dyn ReadAt, number: u64, header: &ProgramHeader) -> Result<ElfSegment, KernelError> {
    header.check_file_part(file)?;
    let &ProgramHeader { offset, address, gpa, file_len, memory_len, .. } = header;
    let segment = ElfSegment { number, gpa: Gpa(gpa), address, offset, file_len, memory_len };
    if memory_len < file_len {
        return Err(segment.error("is larger in the file than in memory (p_filesz > p_memsz)"));
    }
    if segment.gpa.checked_add(memory_len).is_none() {
        return Err(segment.error("wraps around the end of the address space"));
    }
    Ok(segment)
}

/// Bytes to load up to `segment`: segments that share bytes could make much of a small file.
fn add_file_bytes(file: &dyn ReadAt, loaded: u64, segment: &ElfSegment) -> Result<u64, KernelError> {
    let sum = loaded.saturating_add(segment.file_len);
    if sum > file.len() {
        return Err(
            segment.error(format!("loads bytes of the file again: {sum} so far, and the file has {}", file.len()))
        );
    }
    Ok(sum)
}

/// Refuses parts that lie over each other: what is in memory then would depend on their order.
fn check_overlap(segments: &[ElfSegment]) -> Result<(), KernelError> {
    let mut sorted: Vec<_> = segments.iter().collect();
    sorted.sort_by_key(|segment| segment.gpa);
    let is_clear = |pair: &&[&ElfSegment]| pair[0].end() <= pair[1].gpa;
    match sorted.windows(2).find(|pair| !is_clear(pair)) {
        Some(pair) => Err(pair[1].error(format!("lies over program header {} in memory", pair[0].number))),
        None => Ok(()),
    }
}

/// The PVH entry point among `notes`, whose parts are padded to `align`, if it is there.
fn pvh_entry(notes: &[u8], align: usize) -> Option<Gpa> {
    let mut at = 0_usize;
    loop {
        let (name_len, value_len) = (u32_at(notes, at)? as usize, u32_at(notes, at + 4)? as usize);
        let kind = u32_at(notes, at + 8)?;
        let name = at + 12;
        let value = name.checked_add(name_len)?.checked_next_multiple_of(align)?;
        let end = value.checked_add(value_len)?;
        let bytes = notes.get(value..end)?;
        if notes[name..].starts_with(b"Xen\0") && kind == XEN_ELFNOTE_PHYS32_ENTRY {
            // 8 bytes in a 64-bit kernel; more than 32 bits only where it is a virtual address.
            return u64_at(bytes, 0).or(u32_at(bytes, 0).map(u64::from)).map(Gpa);
        }
        at = end.checked_next_multiple_of(align)?;
    }
}
