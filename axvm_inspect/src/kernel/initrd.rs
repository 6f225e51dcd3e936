//! What is in an initrd: which archives, packed how, and which modules.
//!
//! ```text
//!   file:  cpio (microcode) | zeroes | packed: cpio | cpio | zeroes | packed ...      one after the other
//!   cpio:  "070701" + 13 numbers of 8 hex digits | name NUL, padded to 4 | data, padded to 4 | ... | "TRAILER!!!"
//! ```
//!
//! Names are looked at, data is passed over.
//!
//! Spec: Linux Documentation/driver-api/early-userspace/buffer-format.rst; `init/initramfs.c` for what the kernel takes.
//! Left out: images of file systems (the old way), links, owners, checksums.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::ops::ControlFlow::{Break, Continue};

use axvm_boot::read_at::ReadAt;

use super::facts::module_name;
use super::input::Input;
use super::unpack::{Format, unpack};

/// Bytes of an entry's header.
const HEADER: usize = 110;
/// The longest name, as in the kernel (PATH_MAX).
const NAME: u64 = 4096;
/// More modules than any kernel has; then no more is remembered.
const MODULES: usize = 1 << 16;
const MAGICS: [&[u8]; 2] = [b"070701", b"070702"];
const TRAILER: &[u8] = b"TRAILER!!!";

/// Everything that is known about an initrd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitrdFacts {
    /// Modules, by the names that the kernel uses.
    pub modules: BTreeSet<String>,
    /// What its archives are packed by.
    pub packed: BTreeSet<Format>,
    /// Entries of all archives.
    pub entries: u64,
    /// Why not all of it could be read. What is not in it is then not known.
    pub unread: Option<String>,
}

impl InitrdFacts {
    /// Whether this module is in it; none if that is not known.
    pub fn has(&self, module: &str) -> Option<bool> {
        match self.modules.contains(module) {
            true => Some(true),
            false if self.unread.is_some() => None,
            false => Some(false),
        }
    }
}

/// Opens an initrd and finds out what it has.
pub fn examine(file: &dyn ReadAt) -> InitrdFacts {
    let mut facts = InitrdFacts::default();
    let mut offset = 0;
    facts.unread = loop {
        match archive(file, offset, &mut facts) {
            Ok(Some(next)) if next > offset => offset = next,
            Ok(_) => break None,
            Err(why) => break Some(format!("the initrd, from byte {offset} on: {why}")),
        }
    };
    facts
}

/// One archive, at `offset` or behind zeroes there: where the next one may be, none at the end of the file.
fn archive(file: &dyn ReadAt, offset: u64, facts: &mut InitrdFacts) -> Result<Option<u64>, String> {
    let mut input = Input::new(file, offset, u64::MAX);
    let error = |error: std::io::Error| error.to_string();
    loop {
        let bytes = input.fill_buf().map_err(error)?;
        match bytes.iter().position(|&byte| byte != 0) {
            _ if bytes.is_empty() => return Ok(None),
            Some(zeroes) => {
                input.consume(zeroes);
                break;
            }
            None => {
                let zeroes = bytes.len();
                input.consume(zeroes);
            }
        }
    }
    let mut head = [0; 8];
    let start = input.position();
    let head_len = file.len().saturating_sub(start).min(8) as usize;
    file.read_at(start, &mut head[..head_len]).map_err(error)?;
    let mut cpio = Cpio::default();
    if let Some(format) = Format::of(&head[..head_len]) {
        facts.packed.insert(format);
        let mut trouble = None;
        let done = unpack(format, &mut input, &mut |piece| match cpio.all(piece, facts) {
            Ok(()) => Continue(()),
            Err(why) => {
                trouble = Some(why);
                Break(())
            }
        });
        done.map_err(|error| error.to_string())?;
        trouble.map_or(Ok(()), Err)?;
    } else {
        while !cpio.has_ended() {
            input.skip(cpio.skip());
            let bytes = input.fill_buf().map_err(error)?;
            if bytes.is_empty() {
                break;
            }
            let taken = cpio.some(bytes, facts)?;
            input.consume(taken);
        }
    }
    if cpio.is_within() { Err("it ends in the middle of a file".into()) } else { Ok(Some(input.position())) }
}

/// A reader of archives that gets their bytes piece by piece.
#[derive(Default)]
struct Cpio {
    at: Place,
    /// Header or name, as far as it is there.
    bytes: Vec<u8>,
}

/// Where in an archive the next byte is.
#[derive(Default)]
enum Place {
    /// Before a header, or before zeroes in front of it.
    #[default]
    Between,
    Header,
    /// In a name of so many bytes with its padding, before data of so many with theirs.
    Name {
        len: u64,
        padded: u64,
        data: u64,
    },
    /// So many bytes before the next header.
    Data(u64),
    /// Behind the last entry.
    End,
}

impl Cpio {
    fn has_ended(&self) -> bool {
        matches!(self.at, Place::End)
    }

    /// Whether an entry has begun and not ended.
    fn is_within(&self) -> bool {
        matches!(self.at, Place::Header | Place::Name { .. } | Place::Data(1..))
    }

    /// Takes the bytes of data that need not be looked at: so many.
    fn skip(&mut self) -> u64 {
        match self.at {
            // The last one is not skipped: whether it is there tells whether the data was.
            Place::Data(left @ 2..) => {
                self.at = Place::Data(1);
                left - 1
            }
            _ => 0,
        }
    }

    /// Looks at a whole piece of archives that follow each other.
    fn all(&mut self, mut piece: &[u8], facts: &mut InitrdFacts) -> Result<(), String> {
        while !piece.is_empty() {
            if self.has_ended() {
                self.at = Place::Between;
            }
            let taken = self.some(piece, facts)?;
            piece = &piece[taken..];
        }
        Ok(())
    }

    /// Looks at the start of a piece, at least at one byte of it; how many.
    fn some(&mut self, piece: &[u8], facts: &mut InitrdFacts) -> Result<usize, String> {
        match self.at {
            Place::Between => match piece.iter().position(|&byte| byte != 0) {
                None => Ok(piece.len()),
                Some(zeroes) => {
                    self.at = Place::Header;
                    self.bytes.clear();
                    // If it is the first byte, some of the header is taken.
                    if zeroes > 0 { Ok(zeroes) } else { self.some(piece, facts) }
                }
            },
            Place::Header => {
                let taken = self.fill(piece, HEADER as u64);
                if self.bytes.len() >= 6 && !MAGICS.iter().any(|magic| self.bytes.starts_with(magic)) {
                    return Err("what is there is no cpio archive (newc), nor packed as Linux unpacks it".into());
                }
                if self.bytes.len() == HEADER {
                    self.at = header(&self.bytes)?;
                    self.bytes.clear();
                }
                Ok(taken)
            }
            Place::Name { len, padded, data } => {
                let taken = self.fill(piece, padded);
                if self.bytes.len() as u64 == padded {
                    self.bytes.truncate(len.saturating_sub(1) as usize);
                    self.at = self.entry(data, facts);
                    self.bytes.clear();
                }
                Ok(taken)
            }
            Place::Data(left) => {
                let taken = (piece.len() as u64).min(left);
                self.at = if taken == left { Place::Between } else { Place::Data(left - taken) };
                Ok(taken as usize)
            }
            Place::End => Ok(piece.len()),
        }
    }

    /// Takes what is missing to `len` bytes; how many.
    fn fill(&mut self, piece: &[u8], len: u64) -> usize {
        let taken = piece.len().min((len as usize).saturating_sub(self.bytes.len()));
        self.bytes.extend_from_slice(&piece[..taken]);
        taken
    }

    /// An entry by its name; what follows it.
    fn entry(&self, data: u64, facts: &mut InitrdFacts) -> Place {
        if self.bytes == TRAILER {
            return Place::End;
        }
        facts.entries += 1;
        if facts.modules.len() < MODULES {
            let name = std::str::from_utf8(&self.bytes).ok().and_then(module_name);
            facts.modules.extend(name.iter().filter_map(|name| without_number(name)));
            facts.modules.extend(name);
        }
        if data == 0 { Place::Between } else { Place::Data(data) }
    }
}

/// What is left of a name without the number in front by which some initrds order their modules: `00-virtio_blk.ko`.
fn without_number(name: &str) -> Option<String> {
    let (number, rest) = name.split_once('_')?;
    number.bytes().all(|digit| digit.is_ascii_digit()).then(|| rest.to_owned())
}

/// What follows a header, whose magic number is right.
fn header(bytes: &[u8]) -> Result<Place, String> {
    let field = |number: usize| {
        let digits = bytes.get(6 + 8 * number..)?.get(..8)?;
        u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let (Some(data), Some(len)) = (field(6), field(11)) else {
        return Err("an entry's header is damaged".into());
    };
    if len == 0 || len > NAME {
        return Err(format!("an entry's name has {len} bytes"));
    }
    let header = HEADER as u64;
    Ok(Place::Name { len, padded: (header + len).next_multiple_of(4) - header, data: data.next_multiple_of(4) })
}

#[cfg(test)]
mod tests {
    use axvm_cpio::Cpio as Writer;

    use super::super::packed::packed;
    use super::*;

    fn archive(files: &[&str]) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.directory("lib");
        files.iter().for_each(|file| writer.file(file, 0o644, file.as_bytes()));
        writer.finish()
    }

    fn facts(bytes: &[u8]) -> InitrdFacts {
        examine(&bytes)
    }

    fn modules(facts: &InitrdFacts) -> Vec<&str> {
        facts.modules.iter().map(String::as_str).collect()
    }

    #[test]
    fn modules_are_known_by_the_kernels_names_whatever_they_are_packed_by() {
        let bytes =
            archive(&["lib/virtio_blk.ko", "a/virtio-mmio.ko.xz", "b.ko.zst", "c.ko.gz", "init", "notko", "d.kox"]);
        let found = facts(&bytes);
        assert_eq!(modules(&found), ["b", "c", "virtio_blk", "virtio_mmio"]);
        assert_eq!((found.entries, found.unread.clone(), found.packed.len()), (8, None, 0));
        assert_eq!((found.has("virtio_blk"), found.has("virtio_net")), (Some(true), Some(false)));
    }

    #[test]
    fn a_number_in_front_of_a_module_is_no_part_of_its_name() {
        let found = facts(&archive(&["lib/modules/9.9.9/00-virtio_blk.ko", "8250_pci.ko"]));
        assert_eq!((found.has("virtio_blk"), found.has("8250_pci")), (Some(true), Some(true)));
    }

    #[test]
    fn archives_follow_each_other_packed_and_not() {
        let early = archive(&["kernel/x86/microcode/AuthenticAMD.bin", "early.ko"]);
        let padded = [&early[..], &[0; 512]].concat();
        for format in Format::ALL {
            let inner = [archive(&["one.ko"]), vec![0; 100], archive(&["two.ko"])].concat();
            let last = packed(format, &inner);
            let found = facts(&[&padded[..], &last].concat());
            assert_eq!((modules(&found), found.unread.clone()), (vec!["early", "one", "two"], None), "{format}");
            assert_eq!(found.packed, BTreeSet::from([format]));
        }
        let behind = [packed(Format::Gzip, &early), packed(Format::Zstd, &archive(&["z.ko"])), padded].concat();
        assert_eq!(modules(&facts(&behind)), ["early", "z"]);
    }

    #[test]
    fn what_cannot_be_read_leaves_the_rest_unknown() {
        let bytes = archive(&["lib/virtio_blk.ko", "lib/other.ko"]);
        for (bytes, why) in [
            (&bytes[..bytes.len() / 2], "ends in the middle"),
            (&[&bytes[..], b"no archive"].concat(), "no cpio archive"),
            (&[&bytes[..], b"short"].concat(), "ends in the middle"),
            (&[&bytes[..], &packed(Format::Gzip, &bytes)[..20]].concat(), "unpacked by gzip"),
            (&[&bytes[..], &packed(Format::Gzip, &bytes[..200])].concat(), "ends in the middle"),
        ] {
            let found = facts(bytes);
            assert_eq!(found.has("virtio_blk"), Some(true));
            assert_eq!(found.has("virtio_net"), None);
            assert!(found.unread.as_ref().unwrap().contains(why), "{:?}", found.unread);
        }
    }

    #[test]
    fn an_empty_one_has_nothing_and_a_hostile_one_is_no_panic() {
        for bytes in [&b""[..], &[0; 100_000]] {
            assert_eq!(facts(bytes), InitrdFacts::default());
        }
        let whole = archive(&["lib/virtio_blk.ko"]);
        for at in 0..whole.len() {
            for value in [0, b'f', 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = facts(&bytes);
                let _ = facts(&bytes[..at]);
            }
        }
    }
}
