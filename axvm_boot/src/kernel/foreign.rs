//! Naming what was given instead of a kernel, so that the error can say what to do.
//!
//! Source: the magic numbers each format documents for itself (file(1) knows the same).
//! Left out: unpacking. A kernel is built as a bzImage or a vmlinux; anything else is a mix-up.

use super::KernelError;

/// `(offset, magic, what it is, what to do)`.
type Magic = (usize, &'static [u8], &'static str, &'static str);

const UNPACK: &str = "unpack it first";
const X86_NEEDED: &str = "a kernel for x86-64 is needed";
const IS_DISK: &str = "a disk image goes to --disk";
const IS_INITRD: &str = "an initrd goes to --initrd";

/// Compressed formats: `(magic, name)`.
const COMPRESSED: &[(&[u8], &str)] = &[
    (b"\x1f\x8b", "gzip"),
    (b"\x1f\x9e", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x5d\0\0", "lzma"),
    (b"\x89LZO\0", "lzo"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
];

const MAGICS: &[Magic] = &[
    // Only what is given as an initrd.
    (0, b"\x7fELF", "an ELF file", "the kernel is usually called bzImage or vmlinux"),
    (0x202, b"HdrS", "a Linux kernel (bzImage)", "a kernel goes to --kernel"),
    (0x38, b"ARM\x64", "a kernel for 64-bit ARM (Image)", X86_NEEDED),
    (0x38, b"RSC\x05", "a kernel for RISC-V (Image)", X86_NEEDED),
    (0x24, b"\x18\x28\x6f\x01", "a kernel for 32-bit ARM (zImage)", X86_NEEDED),
    (0, b"\x27\x05\x19\x56", "a U-Boot image", "unpack it with dumpimage"),
    (0, b"MZ", "a PE executable without a Linux setup header", "the kernel is usually called bzImage or vmlinuz"),
    (0, b"070701", "a cpio archive", IS_INITRD),
    (0, b"070702", "a cpio archive", IS_INITRD),
    (0, b"QFI\xfb", "a qcow2 disk image", IS_DISK),
    (0, b"hsqs", "a squashfs image", IS_DISK),
    (0x438, b"\x53\xef", "an ext2/3/4 file system", IS_DISK),
    (0x8001, b"CD001", "an ISO 9660 image", "take the kernel out of it (often casper/vmlinuz or isolinux/vmlinuz)"),
    (0, b"!<arch>\n", "a Debian package or other ar archive", "dpkg-deb -x FILE DIR, then DIR/boot/vmlinuz-*"),
    (0, b"\xed\xab\xee\xdb", "an RPM package", "unpack it with rpm2cpio; the kernel is lib/modules/*/vmlinuz"),
    (0x101, b"ustar", "a tar archive", "unpack it; source code must also be built (make bzImage)"),
    (0, b"PK\x03\x04", "a zip archive", UNPACK),
    (0, b"#!", "a script", "the kernel is usually called bzImage or vmlinuz"),
    (0x1fe, b"\x55\xaa", "a boot sector or disk image", IS_DISK),
];

/// The compression of `bytes`, by its magic number.
pub(crate) fn compression(bytes: &[u8]) -> Option<&'static str> {
    COMPRESSED.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|&(_, name)| name)
}

/// What an image is that is no kernel of ours, nor an initrd.
pub(crate) fn explain(image: &[u8]) -> KernelError {
    if let Some(name) = compression(image) {
        let remedy = "unpack it first; a bzImage unpacks itself and must not be packed again".into();
        return KernelError::Foreign { found: format!("a file compressed by {name}"), remedy };
    }
    let is_at = |&&(offset, magic, ..): &&Magic| image.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if let Some(&(_, _, found, remedy)) = MAGICS.iter().find(is_at) {
        return KernelError::Foreign { found: found.into(), remedy: remedy.into() };
    }
    let head = &image[..image.len().min(512)];
    if head.iter().all(|&byte| byte == 0) {
        return KernelError::foreign("empty space (only zeroes)");
    }
    if head.iter().all(|&byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~')) {
        return KernelError::foreign("a text file");
    }
    KernelError::foreign("of no format we know")
}
