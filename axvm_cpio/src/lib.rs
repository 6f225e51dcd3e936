//! A writer of initramfs archives.
//!
//! ```text
//!   "070701" + 13 numbers of 8 hex digits | name NUL, padded to 4 | data, padded to 4 | ... | "TRAILER!!!"
//! ```
//!
//! Spec: Linux Documentation/driver-api/early-userspace/buffer-format.rst, the "newc" format.
//! Several archives may follow each other, each on a boundary of four: what a later one names anew replaces the former.
//!
//! Left out: hard links, checksums, devices other than those the first process needs.
#![forbid(unsafe_code)]

/// What lies between two archives begins on a multiple of this.
pub const ALIGNMENT: u64 = 4;

/// An archive in the making.
#[derive(Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Cpio {
    /// A directory that all may enter.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// A file with its permission bits.
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entry(name, REGULAR | mode, (0, 0), data);
    }

    /// A symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) {
        self.entry(name, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// A character device of root's.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, CHARACTER_DEVICE | 0o600, (major, minor), &[]);
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), data: &[u8]) {
        let data_len = u32::try_from(data.len()).expect("an initramfs file is below 4 GiB");
        let name_len = u32::try_from(name.len() + 1).expect("a file name is short");
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, dev major/minor, rdev major/minor, name size, checksum
        let fields = [self.inode, mode, 0, 0, links, 0, data_len, 0, 0, major, minor, name_len, 0];
        self.inode += 1;
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_has_header_name_and_data_each_on_four_bytes() {
        let mut archive = Cpio::default();
        archive.file("init", 0o755, b"hello");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000081ed", "mode of a regular file, rwxr-xr-x");
        assert_eq!(&bytes[54..62], b"00000005", "data length");
        assert_eq!(&bytes[94..102], b"00000005", "name length with its NUL");
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..121], b"hello");
        assert_eq!(&bytes[124..130], b"070701", "the trailer begins on a boundary of four");
        assert_eq!(bytes.len() % 4, 0);
    }
}
