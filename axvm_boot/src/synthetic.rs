//! Synthetic kernel images for tests: the smallest files that the parsers accept, and knobs to break them.

use axvm_arch::Gpa;
use axvm_memory::GuestRam;

use crate::kernel::field::{self, Field};
use crate::linux::{BootError, LinuxConfig, LinuxStart, prepare};

/// Byte of which every initrd here is made.
pub(crate) const INITRD: u8 = 0xab;

/// All that an owner of the files does: has a start prepared, and loads what it asks for.
pub(crate) fn start(
    ram: &GuestRam,
    kernel: &[u8],
    config: &LinuxConfig,
    rsdp: Option<Gpa>,
) -> Result<LinuxStart, BootError> {
    let start = prepare(ram, &kernel, config, rsdp)?;
    for piece in &start.pieces {
        let bytes = &kernel[piece.offset as usize..][..piece.to.len as usize];
        ram.write(piece.to.gpa, bytes).expect("a piece in RAM");
    }
    if let Some(at) = start.initrd_at {
        ram.write(at.gpa, &vec![INITRD; at.len as usize]).expect("an initrd in RAM");
    }
    Ok(start)
}

/// Length of a synthetic bzImage's protected-mode code.
pub(crate) const CODE_LEN: usize = 0x800;
/// Where its code starts in the file: two setup sectors and the boot sector.
pub(crate) const CODE_OFFSET: usize = 3 * 512;

/// A bzImage of protocol 2.15 that asks for 16 MiB at 16 MiB; `changes` are written over its header.
pub(crate) fn bzimage(changes: &[(Field, u64)]) -> Vec<u8> {
    let mut image = vec![0; CODE_OFFSET];
    image.extend((0..CODE_LEN).map(|n| n as u8));
    image[CODE_OFFSET + 0x400..][..16].copy_from_slice(b"LToP\x10\0\0\0\x18\0\0\0\x09\0\0\0");
    image[CODE_OFFSET + 0x500..][..4].copy_from_slice(b"\x28\xb5\x2f\xfd");
    image[0x300..][..12].copy_from_slice(b"9.9.9 (test)");
    let header = [
        (field::SETUP_SECTS, 2),
        (field::SYSSIZE, CODE_LEN as u64 / 16),
        (field::BOOT_FLAG, 0xaa55),
        (field::JUMP, 0x6aeb),
        (field::HEADER, 0x5372_6448),
        (field::VERSION, 0x20f),
        (field::KERNEL_VERSION, 0x100),
        (field::LOADFLAGS, 1),
        (field::CODE32_START, 0x10_0000),
        (field::INITRD_ADDR_MAX, 0x7fff_ffff),
        (field::KERNEL_ALIGNMENT, 0x20_0000),
        (field::RELOCATABLE_KERNEL, 1),
        (field::XLOADFLAGS, 1),
        (field::CMDLINE_SIZE, 2047),
        (field::PAYLOAD_OFFSET, 0x500),
        (field::PAYLOAD_LENGTH, 0x100),
        (field::PREF_ADDRESS, 16 << 20),
        (field::INIT_SIZE, 16 << 20),
        (field::KERNEL_INFO_OFFSET, 0x400),
    ];
    for (field, value) in header.iter().chain(changes) {
        field.write(&mut image, 0, *value);
    }
    image
}

/// A program header and what it loads: `(p_type, bytes, p_vaddr, p_paddr, p_memsz, p_align)`.
pub(crate) type ElfPart<'a> = (u32, &'a [u8], u64, u64, u64, u64);

/// An ELF file: `bits` 32 or 64, its entry point, and its parts.
pub(crate) fn elf(bits: u8, entry: u64, parts: &[ElfPart]) -> Vec<u8> {
    let wide = bits == 64;
    let (header_len, part_len, machine) = if wide { (64, 56, 62u16) } else { (52, 32, 3) };
    let mut image = vec![0x7f, b'E', b'L', b'F', if wide { 2 } else { 1 }, 1, 1];
    image.resize(16, 0);
    let mut bytes = Vec::new();
    let word = |image: &mut Vec<u8>, value: u64| match wide {
        true => image.extend(value.to_le_bytes()),
        false => image.extend((value as u32).to_le_bytes()),
    };
    [2u16, machine, 1, 0].iter().for_each(|half| image.extend(half.to_le_bytes()));
    [entry, header_len, 0].iter().for_each(|&value| word(&mut image, value));
    image.extend([0; 4]);
    let halves = [header_len as u16, part_len, parts.len() as u16, 0, 0, 0];
    halves.iter().for_each(|half| image.extend(half.to_le_bytes()));
    let mut offset = header_len + u64::from(part_len) * parts.len() as u64;
    for &(kind, content, address, gpa, memory_len, align) in parts {
        image.extend(kind.to_le_bytes());
        if wide {
            image.extend([0; 4]);
        }
        [offset, address, gpa, content.len() as u64, memory_len].iter().for_each(|&value| word(&mut image, value));
        if !wide {
            image.extend([0; 4]);
        }
        word(&mut image, align);
        offset += content.len() as u64;
        bytes.extend(content);
    }
    [image, bytes].concat()
}

/// A note, its parts padded to `align`, behind another that is of another owner.
pub(crate) fn pvh_note(entry: u32, align: usize) -> Vec<u8> {
    let mut notes = Vec::new();
    for (name, kind, value) in [(&b"GNU\0"[..], 5u32, &[7; 5][..]), (b"Xen\0", 18, &entry.to_le_bytes())] {
        let (name_len, value_len) = (name.len() as u32, value.len() as u32);
        [name_len, value_len, kind].iter().for_each(|word| notes.extend(word.to_le_bytes()));
        notes.extend(name);
        notes.resize(notes.len().next_multiple_of(align), 0);
        notes.extend(value);
        notes.resize(notes.len().next_multiple_of(align), 0);
    }
    notes
}

/// A Multiboot 1 header: its flags, and the words behind the checksum.
pub(crate) fn multiboot_1(flags: u32, words: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002_u32;
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    [magic, flags, checksum].iter().chain(words).flat_map(|word| word.to_le_bytes()).collect()
}

/// A Multiboot 2 header: its tags `(type, flags, content)`, and the one that ends them.
pub(crate) fn multiboot_2(tags: &[(u16, u16, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, flags, content) in tags.iter().copied().chain([(0, 0, &[][..])]) {
        body.resize(body.len().next_multiple_of(8), 0);
        [kind, flags].iter().for_each(|half| body.extend(half.to_le_bytes()));
        body.extend((content.len() as u32 + 8).to_le_bytes());
        body.extend(content);
    }
    let (magic, len) = (0xe852_50d6_u32, body.len() as u32 + 16);
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(len);
    [magic, 0, len, checksum].iter().flat_map(|word| word.to_le_bytes()).chain(body).collect()
}

/// A flat file that Multiboot 1 loads from its start at 16 MiB, with 64 bytes of code and 4 KiB of bss.
pub(crate) fn flat() -> Vec<u8> {
    let at = ELF_GPA as u32;
    [multiboot_1(1 << 16, &[at, at, at + 0x60, at + 0x1060, at + 0x20]), vec![0x90; 0x40]].concat()
}

/// Physical address of a synthetic vmlinux.
pub(crate) const ELF_GPA: u64 = 16 << 20;

/// An ELF64 vmlinux: one PT_LOAD of 64 bytes (8 KiB in memory) at 16 MiB, and the PVH note.
pub(crate) fn vmlinux() -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    for half in [2u16, 62] {
        image.extend(half.to_le_bytes());
    }
    image.extend(1u32.to_le_bytes());
    for value in [ELF_GPA + 0x10, 64, 0] {
        image.extend(value.to_le_bytes());
    }
    image.extend([0; 4]);
    for half in [64u16, 56, 2, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    let mut program_header = |kind: u32, offset: u64, gpa: u64, file_len: u64, memory_len: u64| {
        image.extend(kind.to_le_bytes());
        image.extend(0u32.to_le_bytes());
        for value in [offset, 0xffff_ffff_8000_0000 + gpa, gpa, file_len, memory_len, 4] {
            image.extend(value.to_le_bytes());
        }
    };
    program_header(1, 0xd0, ELF_GPA, 64, 0x2000);
    program_header(4, 0xb0, 0, 24, 24);
    for word in [4, 8, 18, u32::from_le_bytes(*b"Xen\0"), ELF_GPA as u32 + 0x20, 0, 0, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0x40u8..0x80);
    image
}
