//! Kernel images, good and bad.

use super::*;
use crate::synthetic::{CODE_LEN, CODE_OFFSET, ELF_GPA, bzimage, elf, pvh_note, vmlinux};
use axvm_arch::Gpa;

fn error(image: &[u8]) -> KernelError {
    KernelImage::parse(&image).unwrap_err()
}

fn bz(image: &[u8]) -> BzImage {
    match KernelImage::parse(&image) {
        Ok(KernelImage::BzImage(image)) => image,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bzimage_says_what_it_wants() {
    let image = bz(&bzimage(&[]));
    assert_eq!((image.code_offset, image.code_len), (CODE_OFFSET as u64, CODE_LEN as u64));
    assert_eq!(image.header.pref_address(), Some(16 << 20));
    assert_eq!(image.header.init_size(), 16 << 20);
    assert_eq!(image.header.initrd_addr_max(), 0x7fff_ffff);
    assert_eq!(image.release.as_deref(), Some("9.9.9 (test)"));
    assert_eq!(image.payload, Some(Payload { offset: 0x500, len: 0x100, compression: Some("zstd") }));
    assert_eq!(image.kernel_info, Some(KernelInfo { size: 16, size_total: 24, setup_type_max: 9 }));
    assert_eq!(KernelImage::BzImage(image).to_string(), "bzImage, boot protocol 2.15, zstd, Linux 9.9.9 (test)");
}

#[test]
fn fields_of_later_protocols_are_absent_in_earlier_ones() {
    let header = bz(&bzimage(&[(field::VERSION, 0x209)])).header;
    assert_eq!((header.pref_address(), header.init_size()), (None, 0));
    assert_eq!(header.cmdline_size(), 2047);
    assert!(!header.has_xloadflag(xloadflags::KERNEL_64));
    assert_eq!(bz(&bzimage(&[(field::VERSION, 0x20e)])).kernel_info, None);
}

#[test]
fn four_setup_sectors_hide_behind_zero() {
    let mut image = bzimage(&[(field::SETUP_SECTS, 0)]);
    image.resize(5 * 512 + CODE_LEN, 0);
    assert_eq!(bz(&image).code_offset, 5 * 512);
}

#[test]
fn bytes_behind_the_code_are_not_loaded() {
    let mut image = bzimage(&[]);
    image.extend(b"a signature");
    assert_eq!(bz(&image).code_len, CODE_LEN as u64);
}

#[test]
fn what_needs_a_bios_is_told_apart() {
    assert_eq!(error(&bzimage(&[(field::CODE32_START, 0)])), KernelError::NeedsBios);
    let mut rom = vec![0; 128 << 10];
    assert!(error(&rom).to_string().contains("only zeroes"));
    for jump in [&b"\xea\x5b\xe0\0\xf0"[..], b"\xfa\xfc\xe9\x0b\xf8", b"\x90\x90\xe9"] {
        rom[(128 << 10) - 16..][..jump.len()].copy_from_slice(jump);
        assert!(error(&rom).to_string().contains("a firmware image"), "{jump:x?}");
        assert!(!error(&rom[1..]).to_string().contains("a firmware image"));
    }
}

#[test]
fn damaged_bzimages_are_refused_with_the_reason() {
    assert_eq!(error(&bzimage(&[(field::BOOT_FLAG, 0x1234)])), KernelError::BootFlag(0x1234));
    assert_eq!(error(&bzimage(&[(field::VERSION, 0x205)])), KernelError::OldProtocol { version: 0x205 });
    assert_eq!(error(&bzimage(&[(field::LOADFLAGS, 0)])), KernelError::LoadedLow);
    assert!(matches!(error(&bzimage(&[(field::JUMP, 0x10eb)])), KernelError::ShortHeader { version: 0x20f, .. }));
    let need = (CODE_OFFSET + CODE_LEN) as u64;
    assert_eq!(error(&bzimage(&[])[..0x700]), KernelError::Truncated { need, have: 0x700 });
    assert!(matches!(error(&bzimage(&[])[..0x210]), KernelError::Truncated { have: 0x210, .. }));
    assert!(matches!(error(&bzimage(&[(field::SYSSIZE, 0)])), KernelError::Truncated { .. }));
    assert_eq!(
        error(&bzimage(&[(field::VERSION, 0x204)])).to_string(),
        "The kernel speaks boot protocol 2.04, at least 2.06 (Linux 2.6.22) is needed; use a newer kernel"
    );
}

#[test]
fn a_vmlinux_says_where_its_parts_go() {
    let Ok(KernelImage::Vmlinux(image)) = KernelImage::parse(&&vmlinux()[..]) else { panic!() };
    let address = 0xffff_ffff_8000_0000 + ELF_GPA;
    let segment = ElfSegment { number: 0, gpa: Gpa(ELF_GPA), address, offset: 0xd0, file_len: 64, memory_len: 0x2000 };
    assert_eq!(image.segments, [segment]);
    assert_eq!((image.entry, image.pvh_entry), (Gpa(ELF_GPA + 0x10), Some(Gpa(ELF_GPA + 0x20))));
    assert_eq!(image.extent(), (Gpa(ELF_GPA), Gpa(ELF_GPA + 0x2000)));
    assert!(image.covers(Gpa(ELF_GPA + 0x1fff)) && !image.covers(Gpa(ELF_GPA + 0x2000)));
}

#[test]
fn elf_files_for_others_are_named() {
    let change = |offset: usize, value: u8| {
        let mut image = vmlinux();
        image[offset] = value;
        error(&image).to_string()
    };
    assert!(change(18, 183).contains("64-bit ARM (AArch64)"));
    assert!(change(18, 3).contains("32-bit x86 (i386)"));
    assert!(error(&elf(32, 0, &[])).to_string().contains("32-bit x86 (i386) without a PVH entry point"));
    assert!(change(18, 99).contains("ELF machine 99"));
    assert!(change(4, 1).contains("32-bit x86"));
    assert!(change(16, 1).contains("kernel module"));
    assert!(change(16, 4).contains("core dump"));
    assert!(change(120, 3).contains("a program for Linux"));
    assert!(change(64, 0).contains("nothing to load"));
    let mut big_endian = vmlinux();
    (big_endian[5], big_endian[18], big_endian[19]) = (2, 0, 22);
    assert!(error(&big_endian).to_string().contains("s390"));
}

#[test]
fn damaged_elf_files_are_refused() {
    let full = vmlinux();
    for len in 4..full.len() {
        assert!(matches!(error(&full[..len]), KernelError::Truncated { .. }), "{len}");
    }
    let set = |offset: usize, value: u64| {
        let mut image = vmlinux();
        image[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        error(&image)
    };
    assert!(matches!(set(64 + 40, 63), KernelError::Segment { number: 0, .. }), "p_memsz below p_filesz");
    assert!(matches!(set(64 + 24, u64::MAX), KernelError::Segment { number: 0, .. }), "p_paddr wraps");
    assert!(matches!(set(64 + 8, u64::MAX), KernelError::Truncated { .. }), "p_offset wraps");
    assert!(matches!(set(32, u64::MAX - 1), KernelError::Truncated { .. }), "e_phoff wraps");
}

#[test]
fn notes_are_aligned_to_4_or_to_8() {
    for (bits, padded, align) in [(64, 4, 4), (64, 8, 8), (64, 4, 8), (64, 4, 0), (32, 4, 4), (32, 8, 8)] {
        let (note, at) = (pvh_note(0x10_0020, padded), 0x10_0000);
        let image = elf(bits, at, &[(4, &note, 0, 0, 0, align), (1, &[0x90; 64], at, at, 64, 4)]);
        let Ok(KernelImage::Vmlinux(image)) = KernelImage::parse(&&image[..]) else { panic!() };
        assert_eq!(image.pvh_entry, Some(Gpa(0x10_0020)), "{bits} bits, padded to {padded}, p_align {align}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    struct Bad(io::ErrorKind);
    impl ReadAt for Bad {
        fn len(&self) -> u64 {
            4096
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(self.0.into())
        }
    }
    let error = |kind| KernelImage::parse(&Bad(kind)).unwrap_err();
    assert_eq!(error(io::ErrorKind::UnexpectedEof), KernelError::Truncated { need: 4096, have: 4096 });
    assert!(matches!(error(io::ErrorKind::Other), KernelError::Unreadable { offset: 0, .. }));
}

#[test]
fn other_files_are_named_and_the_error_says_what_to_do() {
    let disk = |offset: usize, magic: &[u8]| {
        let mut image = vec![1; 0x9000];
        image[offset..offset + magic.len()].copy_from_slice(magic);
        error(&image).to_string()
    };
    for (text, name, remedy) in [
        (disk(0, b"\x1f\x8b"), "gzip", "unpack it"),
        (disk(0, b"\xfd7zXZ\0"), "xz", "unpack it"),
        (disk(0, b"\x28\xb5\x2f\xfd"), "zstd", "unpack it"),
        (disk(0, b"\x02\x21\x4c\x18"), "lz4", "unpack it"),
        (disk(0, b"MZ"), "a PE executable", "vmlinuz"),
        (disk(0x38, b"ARM\x64"), "64-bit ARM", "x86-64 is needed"),
        (disk(0, b"070701"), "cpio", "--initrd"),
        (disk(0x438, b"\x53\xef"), "ext2/3/4", "--disk"),
        (disk(0x1fe, b"\x55\xaa"), "boot sector", "--disk"),
        (disk(0, b"#!/bin/sh"), "a script", "bzImage"),
        (error(b"hello\n").to_string(), "a text file", "bzImage"),
        (error(&[0; 4096]).to_string(), "only zeroes", "bzImage"),
        (error(&[0xde, 0xad, 0xbe, 0xef]).to_string(), "no format we know", "bzImage"),
        (error(&[]).to_string(), "empty", "give a bzImage"),
    ] {
        assert!(text.contains(name) && text.contains(remedy), "{text}");
    }
}
