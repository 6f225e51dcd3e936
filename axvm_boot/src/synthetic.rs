//! Synthetic kernel images for tests: the smallest files that the parsers accept, and knobs to break them.

use crate::kernel::field::{self, Field};

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
