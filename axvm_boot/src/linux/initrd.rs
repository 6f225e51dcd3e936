//! Whether Linux will find anything in an initrd: told by its first bytes, before Linux is silent about it.
//!
//! ```text
//!   zeroes, any number | cpio, newc ("070701", "070702")    unpacked into the first file system
//!                      | compressed: eight formats           unpacked, then as above
//!                      | an image of a file system           the old way: a RAM disk
//! ```
//!
//! Spec: Linux Documentation/driver-api/early-userspace/buffer-format.rst. A guess about what others will do with these
//! bytes, so it is a warning: with another kernel, an initrd is whatever that kernel wants.

use crate::kernel::{KernelError, compression, explain};

/// How much of an initrd [`doubt`] wants to see, in bytes.
pub const HEAD_LEN: u64 = 0x9000;

const MAKE_ONE: &str = "make one: find . | cpio -o -H newc > initrd.img";
/// Frames of lz4 as its program writes them by default; Linux reads the older format only.
const LZ4_FRAME: &[u8] = b"\x04\x22\x4d\x18";
/// ext2 to ext4, squashfs, romfs, cramfs: `(offset, magic)`.
const FILE_SYSTEMS: [(usize, &[u8]); 4] =
    [(0x438, b"\x53\xef"), (0, b"hsqs"), (0, b"-rom1fs-"), (0, b"\x45\x3d\xcd\x28")];

/// Why Linux will not unpack an initrd that begins with `head`, and what to do; `None` if it will.
pub fn doubt(head: &[u8]) -> Option<String> {
    let start = head.iter().position(|&byte| byte != 0).unwrap_or(head.len());
    let begins = |magic: &[u8]| head[start..].starts_with(magic);
    if begins(LZ4_FRAME) {
        return Some("it is packed by lz4 in a format that Linux does not unpack: pack it with lz4 -l".into());
    }
    if begins(b"070707") || begins(b"\xc7\x71") || begins(b"\x71\xc7") {
        return Some(format!("it is a cpio archive in an old format that Linux does not unpack; {MAKE_ONE}"));
    }
    let is_file_system = FILE_SYSTEMS.iter().any(|&(at, magic)| head.get(at..).is_some_and(|at| at.starts_with(magic)));
    if begins(b"070701") || begins(b"070702") || compression(&head[start..]).is_some() || is_file_system {
        return None;
    }
    let found = match explain(head) {
        KernelError::Foreign { found, .. } => found,
        _ => "no archive".into(),
    };
    Some(format!("it is {found}, neither a cpio archive nor packed as Linux unpacks it; {MAKE_ONE}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{bzimage, vmlinux};

    #[test]
    fn what_linux_unpacks_is_not_doubted() {
        let heads: [&[u8]; 10] = [
            b"070701",
            b"070702",
            b"\0\0\0\x00070701",
            b"\x1f\x8b\x08",
            b"BZh91AY",
            b"\xfd7zXZ\0\0",
            b"\x5d\0\0\x80",
            b"\x89LZO\0",
            b"\x02\x21\x4c\x18",
            b"\x28\xb5\x2f\xfd",
        ];
        for head in heads {
            assert_eq!(doubt(head), None, "{head:?}");
        }
        let mut ext4 = vec![0; 0x1000];
        ext4[0x438..][..2].copy_from_slice(b"\x53\xef");
        assert_eq!(doubt(&ext4), None);
    }

    #[test]
    fn what_linux_does_not_unpack_is_named_with_a_remedy() {
        let zeroes = [0; 4096];
        for (head, name, remedy) in [
            (&b"int main(void) { return 0; }\n"[..], "a text file", "cpio -o -H newc"),
            (b"#!/bin/sh\nexec sh\n", "a script", "cpio -o -H newc"),
            (b"070707", "an old format", "-H newc"),
            (b"\xc7\x71\0", "an old format", "-H newc"),
            (b"\x04\x22\x4d\x18", "packed by lz4", "lz4 -l"),
            (b"PK\x03\x04", "a zip archive", "cpio"),
            (b"\xde\xad\xbe\xef", "of no format we know", "cpio"),
            (&zeroes, "only zeroes", "cpio"),
            (&bzimage(&[]), "a Linux kernel (bzImage)", "cpio"),
            (&vmlinux(), "an ELF file", "cpio"),
            (b"", "only zeroes", "cpio"),
        ] {
            let text = doubt(head).unwrap_or_default();
            assert!(text.contains(name) && text.contains(remedy), "{head:?}: {text}");
        }
    }
}
