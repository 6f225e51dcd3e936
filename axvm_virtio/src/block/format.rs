//! What the bytes of an image say that it is: AxVM takes raw images, and asks before it takes another for one.
//!
//! ```text
//!   three sectors --> a magic number of MAGICS? --> refused, with the command that converts
//!                     none of them              --> raw: byte n is byte n of the disk
//! ```
//!
//! A guess only ever refuses, and `format=raw` ends the guessing: a guest writes what it likes to its disk, so these
//! bytes may be a lie that is meant for the host's tools. Nothing else of the image is ever interpreted.
//!
//! Source: the formats' published headers (QEMU `docs/interop/qcow2.txt`; VMDK, VHD and VHDX specifications; ECMA-119;
//! RFC 1952, RFC 8878, the .xz file format).
//! Left out: archives (tar), encrypted volumes (LUKS is a raw disk to AxVM).

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::path::Path;

use rustix::io::preadv;

/// How to make a raw image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conversion {
    /// `qemu-img convert -f FORMAT`.
    Qemu(&'static str),
    /// A program that unpacks to its standard output.
    Unpack(&'static str),
    /// None: only writing to it is wrong.
    ReadOnly,
}
use Conversion::{Qemu, ReadOnly, Unpack};

/// A format that is not raw.
#[derive(Debug, PartialEq, Eq)]
struct Magic {
    /// Offset in the image; negative ones count from its end.
    at: i64,
    bytes: &'static [u8],
    /// With its article.
    name: &'static str,
    conversion: Conversion,
}

const fn magic(at: i64, bytes: &'static [u8], name: &'static str, conversion: Conversion) -> Magic {
    Magic { at, bytes, name, conversion }
}

const MAGICS: &[Magic] = &[
    magic(0, b"QFI\xfb", "a qcow2 image", Qemu("qcow2")),
    magic(0, b"QED\0", "a QED image", Qemu("qed")),
    magic(0, b"KDMV", "a VMDK image", Qemu("vmdk")),
    magic(0, b"COWD", "a VMDK image", Qemu("vmdk")),
    magic(0, b"# Disk DescriptorFile", "the description of a VMDK image", Qemu("vmdk")),
    magic(64, b"\x7f\x10\xda\xbe", "a VDI image", Qemu("vdi")),
    magic(0, b"vhdxfile", "a VHDX image", Qemu("vhdx")),
    magic(0, b"conectix", "a VHD image", Qemu("vpc")),
    // One of fixed size is raw but for its footer; old programs wrote a byte less.
    magic(-512, b"conectix", "a VHD image", Qemu("vpc")),
    magic(-511, b"conectix", "a VHD image", Qemu("vpc")),
    magic(0, b"WithoutFreeSpace", "a Parallels image", Qemu("parallels")),
    magic(0, b"WithouFreSpacExt", "a Parallels image", Qemu("parallels")),
    magic(0, b"\x1f\x8b\x08", "packed with gzip", Unpack("zcat")),
    magic(0, b"\xfd7zXZ\0", "packed with xz", Unpack("xzcat")),
    magic(0, b"\x28\xb5\x2f\xfd", "packed with zstd", Unpack("zstdcat")),
    magic(0, b"\x04\x22\x4d\x18", "packed with lz4", Unpack("lz4cat")),
    magic(4, b"1AY&SY", "packed with bzip2", Unpack("bzcat")),
    magic(0, b"PK\x03\x04", "a zip archive", Unpack("unzip -p")),
    magic(32769, b"CD001", "an ISO 9660 image", ReadOnly),
];
/// Length of a sector, in bytes.
const SECTOR: u64 = 512;
/// Sectors with all magic numbers, but for the last one of the image.
const SECTORS: [u64; 2] = [0, 32 << 10];

/// What an image of `size` bytes at `path` looks like, and what to do about it; `None` if it looks raw, or may be used
/// as it is. What cannot be read looks like nothing: that is for the guest to find, and perhaps to mend.
pub(super) fn looks_like(file: &File, path: &Path, size: u64, read_only: bool) -> Option<(&'static str, String)> {
    let [first, second] = SECTORS;
    let sectors = [first, second, size.saturating_sub(SECTOR)].map(|at| (at, sector(file, at).unwrap_or_default()));
    let magic = MAGICS.iter().find(|magic| magic.is_in(&sectors, size))?;
    let fits = read_only && magic.conversion == ReadOnly;
    (!fits).then(|| (magic.name, magic.remedy(path)))
}

impl Magic {
    fn is_in(&self, sectors: &[(u64, Vec<u8>)], size: u64) -> bool {
        let place = u64::try_from(self.at).ok().or_else(|| size.checked_add_signed(self.at));
        sectors.iter().any(|(start, bytes)| {
            let skip = place.and_then(|place| usize::try_from(place.checked_sub(*start)?).ok());
            skip.and_then(|skip| bytes.get(skip..)).is_some_and(|rest| rest.starts_with(self.bytes))
        })
    }

    fn remedy(&self, path: &Path) -> String {
        let (from, mut to) = (path.display(), path.with_extension("raw"));
        if to == path {
            to.as_mut_os_string().push(".img");
        }
        match self.conversion {
            Qemu(format) => format!("Convert it: qemu-img convert -f {format} -O raw {from} {}", to.display()),
            Unpack(program) => format!("Unpack it: {program} {from} > {}", to.display()),
            ReadOnly => "Attach it read-only (ro)".to_owned(),
        }
    }
}

/// A sector from `at`, or as much of it as there is.
fn sector(file: &File, at: u64) -> io::Result<Vec<u8>> {
    let (mut bytes, mut len) = (vec![0; SECTOR as usize], 0);
    while len < bytes.len() {
        match preadv(file, &mut [IoSliceMut::new(&mut bytes[len..])], at + len as u64)? {
            0 => break,
            count => len += count,
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn seen(bytes: &[u8], read_only: bool) -> Option<(&'static str, String)> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        looks_like(&file, Path::new("disk.img"), bytes.len() as u64, read_only)
    }

    #[test]
    fn each_magic_number_is_found_at_its_place_only() {
        const LEN: usize = 64 << 10;
        for magic in MAGICS {
            let at = if magic.at < 0 { LEN - magic.at.unsigned_abs() as usize } else { magic.at as usize };
            let mut image = vec![0x5a; LEN];
            image[at..at + magic.bytes.len()].copy_from_slice(magic.bytes);
            let (name, remedy) = seen(&image, false).unwrap_or_else(|| panic!("{magic:?}"));
            assert_eq!(name, magic.name);
            assert!(remedy.contains("disk.img") || magic.conversion == ReadOnly, "{remedy}");
            assert_eq!(seen(&image, true).is_some(), magic.conversion != ReadOnly, "{magic:?} read-only");
            image.rotate_right(1024);
            assert_eq!(seen(&image, false), None, "{magic:?}");
        }
    }

    #[test]
    fn images_of_any_length_are_looked_at() {
        for len in [0, 1, 3, 100, 511, 512, 513, 34 << 10] {
            assert_eq!(seen(&vec![0; len], false), None, "{len}");
        }
        assert_eq!(seen(b"QFI\xfb", false).unwrap().0, "a qcow2 image");
    }

    #[test]
    fn a_conversion_never_writes_to_what_it_reads() {
        let remedy = |path: &str| MAGICS[0].remedy(Path::new(path));
        assert_eq!(remedy("a/q.qcow2"), "Convert it: qemu-img convert -f qcow2 -O raw a/q.qcow2 a/q.raw");
        assert_eq!(remedy("disk.raw"), "Convert it: qemu-img convert -f qcow2 -O raw disk.raw disk.raw.img");
    }
}
