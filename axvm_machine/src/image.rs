//! A kernel or an initrd: opened once, loaded at every start of the guest.
//!
//! ```text
//!   file --read_at--> headers, for the loader        (a few KiB)
//!        --load-----> guest RAM, at their places     (no copy of it is in AxVM)
//! ```
//!
//! Opening early finds mistakes early; and a file that is open stays readable when the process is restricted. What it
//! holds may change at any time: sizes are asked for at each start, and a file that shrinks meanwhile is an error.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axvm_arch::Gpa;
use axvm_boot::linux::Span;
use axvm_boot::read_at::ReadAt;
use axvm_cpio::ALIGNMENT;
use axvm_memory::{GuestRam, GuestRange};
use rustix::fs::OFlags;
use rustix::io::{preadv, retry_on_intr};

use crate::{KernelSource, MachineError};

/// Whether set-up is to end before it is complete.
pub(crate) type Asked<'a> = &'a dyn Fn() -> bool;

/// Loaded in one call, in bytes: some milliseconds on a usual disk.
const CHUNK: usize = 16 << 20;

/// Where the bytes come from.
pub enum Image {
    /// A file that an option named.
    File(File, PathBuf, &'static str),
    /// Part of this program.
    Embedded(&'static [u8]),
    /// An initrd with an archive after it, which Linux unpacks over it; or that archive alone.
    Followed(Option<Box<Image>>, Arc<[u8]>),
}

impl Image {
    /// Opens the kernel.
    pub fn kernel(source: &KernelSource) -> Result<Image, MachineError> {
        match source {
            KernelSource::File(path) => Image::open(path, "--kernel"),
            KernelSource::Embedded(bytes) => Ok(Image::Embedded(bytes)),
        }
    }

    /// Opens a file that `option` named. What is no regular file may have no end, or never begin.
    pub fn open(path: &Path, option: &'static str) -> Result<Image, MachineError> {
        // A FIFO without a writer must not hold us up.
        let mut options = File::options();
        let opened = options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path);
        let file = opened.map_err(|error| unreadable(path, option, &error))?;
        let kind = file.metadata().map_err(|error| unreadable(path, option, &error))?.file_type();
        if !kind.is_file() {
            let found = if kind.is_dir() { "a directory" } else { "no regular file" };
            return Err(error(path, option, format!("it is {found}; give {option} the file itself")));
        }
        Ok(Image::File(file, path.into(), option))
    }

    /// The initrd of a machine, if it has one: a file, an archive to unpack after it, or both.
    pub fn initrd(file: Option<&Path>, after: Option<&Arc<[u8]>>) -> Result<Option<Image>, MachineError> {
        let file = file.map(|path| Image::open(path, "--initrd")).transpose()?;
        Ok(match after {
            Some(after) => Some(Image::Followed(file.map(Box::new), Arc::clone(after))),
            None => file,
        })
    }

    /// Fills `to` in guest RAM with what is at `offset`, unless `asked` to end meanwhile: a slow disk may take its time.
    pub fn load(&self, ram: &GuestRam, offset: u64, to: Span, asked: Asked) -> Result<(), MachineError> {
        if let Image::Followed(first, after) = self {
            return self.load_both(first.as_deref(), after, ram, to, asked);
        }
        for start in (0..to.len).step_by(CHUNK) {
            if asked() {
                return Err(MachineError::Interrupted);
            }
            let range = ram.range(Gpa(to.gpa.0 + start), (to.len - start).min(CHUNK as u64));
            let range = range.map_err(|bad| self.unreadable(&io::Error::other(bad)))?;
            self.load_chunk(ram, offset + start, range).map_err(|error| self.unreadable(&shrunk(error)))?;
        }
        Ok(())
    }

    /// The first and, right below the end of `to`, the archive after it. Between them is RAM at power-on: zeroes.
    fn load_both(
        &self,
        first: Option<&Image>,
        after: &[u8],
        ram: &GuestRam,
        to: Span,
        asked: Asked,
    ) -> Result<(), MachineError> {
        let room = to.len.saturating_sub(after.len() as u64);
        let len = first.map_or(0, ReadAt::len);
        if len.next_multiple_of(ALIGNMENT) != room {
            return Err(self.unreadable(&io::Error::new(EARLY_END, "it changed while it was read")));
        }
        if let Some(first) = first {
            first.load(ram, 0, Span { len, ..to }, asked)?;
        }
        let range = ram.range(Gpa(to.gpa.0 + room), after.len() as u64);
        ram.copy_to(&range.map_err(|bad| self.unreadable(&io::Error::other(bad)))?, after);
        Ok(())
    }

    /// Its first bytes, at most `max`.
    pub fn head(&self, max: u64) -> Result<Vec<u8>, MachineError> {
        if let Image::Followed(Some(first), _) = self {
            return first.head(max);
        }
        let mut bytes = vec![0; self.len().min(max) as usize];
        self.read_at(0, &mut bytes).map_err(|error| self.unreadable(&shrunk(error)))?;
        Ok(bytes)
    }

    fn load_chunk(&self, ram: &GuestRam, offset: u64, range: GuestRange) -> io::Result<()> {
        match self {
            Image::File(file, ..) => ram.read_exact_at(file, &[range], offset),
            Image::Embedded(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
                ram.copy_to(&range, rest.get(..range.len()).ok_or(EARLY_END)?);
                Ok(())
            }
            // Loaded as its parts.
            Image::Followed(..) => Err(EARLY_END.into()),
        }
    }

    fn unreadable(&self, cause: &io::Error) -> MachineError {
        match self {
            Image::File(_, path, option) => unreadable(path, option, cause),
            Image::Embedded(_) => error(Path::new("the embedded guest"), "--kernel", cause.to_string()),
            Image::Followed(Some(first), _) => first.unreadable(cause),
            Image::Followed(None, _) => error(Path::new("the embedded archive"), "--initrd", cause.to_string()),
        }
    }

    /// For people.
    pub fn name(&self) -> String {
        match self {
            Image::File(_, path, _) => path.display().to_string(),
            Image::Embedded(_) => "the embedded guest".into(),
            Image::Followed(Some(first), _) => first.name(),
            Image::Followed(None, _) => "the embedded archive".into(),
        }
    }
}

impl ReadAt for Image {
    fn len(&self) -> u64 {
        match self {
            // What has no length is empty, and an empty kernel or initrd is refused.
            Image::File(file, ..) => file.metadata().map_or(0, |metadata| metadata.len()),
            Image::Embedded(bytes) => ReadAt::len(bytes),
            Image::Followed(first, after) => {
                first.as_ref().map_or(0, |first| first.len().next_multiple_of(ALIGNMENT)) + after.len() as u64
            }
        }
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Image::File(file, ..) => read_exact_at(file, offset, bytes),
            Image::Embedded(embedded) => embedded.read_at(offset, bytes),
            Image::Followed(first, after) => read_both(first.as_deref(), after, offset, bytes),
        }
    }
}

const EARLY_END: io::ErrorKind = io::ErrorKind::UnexpectedEof;

/// The bytes of the first, zeroes up to the boundary, and the archive after it.
fn read_both(first: Option<&Image>, after: &[u8], offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    let len = first.map_or(0, ReadAt::len);
    let in_first = len.saturating_sub(offset).min(bytes.len() as u64) as usize;
    let (of_first, rest) = bytes.split_at_mut(in_first);
    if let (Some(first), false) = (first, of_first.is_empty()) {
        first.read_at(offset, of_first)?;
    }
    let begins = len.next_multiple_of(ALIGNMENT);
    let offset = offset.max(len);
    let gap = begins.saturating_sub(offset).min(rest.len() as u64) as usize;
    let (gap, rest) = rest.split_at_mut(gap);
    gap.fill(0);
    if rest.is_empty() { Ok(()) } else { after.read_at(offset.max(begins) - begins, rest) }
}

/// As the standard library's, by the system call that the sandbox allows.
fn read_exact_at(file: &File, mut offset: u64, mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = retry_on_intr(|| preadv(file, &mut [IoSliceMut::new(bytes)], offset))?;
        if count == 0 {
            return Err(EARLY_END.into());
        }
        (offset, bytes) = (offset + count as u64, &mut bytes[count..]);
    }
    Ok(())
}

/// Says what an early end means here.
fn shrunk(error: io::Error) -> io::Error {
    match error.kind() {
        EARLY_END => io::Error::new(EARLY_END, "it became shorter while it was read"),
        _ => error,
    }
}

fn unreadable(path: &Path, option: &'static str, cause: &io::Error) -> MachineError {
    let remedy = match cause.kind() {
        EARLY_END => "start again when it is complete".to_owned(),
        io::ErrorKind::PermissionDenied => "make it readable for this user (chmod, or run as its owner)".to_owned(),
        _ => format!("check the path given to {option}"),
    };
    error(path, option, format!("{cause}; {remedy}"))
}

fn error(path: &Path, option: &'static str, why: String) -> MachineError {
    MachineError::Image { what: option.trim_start_matches('-'), path: path.display().to_string(), why }
}

#[cfg(test)]
mod tests {
    use axvm_memory::RamConfig;

    use super::*;

    fn ram() -> Arc<GuestRam> {
        GuestRam::allocate(&RamConfig::new(2 << 20)).unwrap()
    }

    fn loaded(image: &Image, offset: u64, len: u64) -> Result<Vec<u8>, String> {
        let (ram, mut bytes) = (ram(), vec![0; len as usize]);
        image.load(&ram, offset, Span { gpa: Gpa(0x1234), len }, &|| false).map_err(|error| error.to_string())?;
        ram.read(Gpa(0x1234), &mut bytes).unwrap();
        Ok(bytes)
    }

    #[test]
    fn a_file_is_read_anew_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "one").unwrap();
        let image = Image::open(file.path(), "--kernel").unwrap();
        assert_eq!((image.len(), loaded(&image, 1, 2)), (3, Ok(b"ne".to_vec())));
        std::fs::write(&file, "other").unwrap();
        assert_eq!((image.len(), loaded(&image, 0, 5)), (5, Ok(b"other".to_vec())));
        let mut bytes = [0; 3];
        image.read_at(2, &mut bytes).unwrap();
        assert_eq!(&bytes, b"her");
        assert_eq!((image.head(3).unwrap(), image.head(9).unwrap()), (b"oth".to_vec(), b"other".to_vec()));
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "whole").unwrap();
        let image = Image::open(file.path(), "--initrd").unwrap();
        let len = image.len();
        std::fs::write(&file, "cut").unwrap();
        let text = loaded(&image, 0, len).unwrap_err();
        assert!(
            text.starts_with("Cannot read initrd /") && text.contains("became shorter while it was read"),
            "{text}"
        );
        assert_eq!(image.read_at(1, &mut [0; 3]).unwrap_err().kind(), EARLY_END);
    }

    #[test]
    fn a_long_load_ends_when_asked_to() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(3 * CHUNK as u64 - 1).unwrap();
        let ram = GuestRam::allocate(&RamConfig::new(4 * CHUNK as u64)).unwrap();
        let image = Image::open(file.path(), "--initrd").unwrap();
        let load = |limit: u32| {
            let times = std::cell::Cell::new(0);
            let asked = || times.replace(times.get() + 1) == limit;
            (image.load(&ram, 0, Span { gpa: Gpa(0), len: image.len() }, &asked), times.get())
        };
        assert!(matches!(load(2), (Err(MachineError::Interrupted), 3)));
        assert!(matches!(load(3), (Ok(()), 3)));
    }

    #[test]
    fn what_is_part_of_the_program_loads_alike() {
        let image = Image::Embedded(b"embedded");
        assert_eq!((image.len(), loaded(&image, 2, 3)), (8, Ok(b"bed".to_vec())));
        assert!(loaded(&image, 6, 3).is_err() && loaded(&image, 9, 1).is_err());
        assert!(image.load(&ram(), 0, Span { gpa: Gpa(2 << 20), len: 1 }, &|| false).is_err(), "outside of RAM");
    }

    #[test]
    fn an_archive_follows_an_initrd_on_its_boundary_or_stands_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "first").unwrap();
        let after: Arc<[u8]> = Arc::from(&b"070701"[..]);
        let image = Image::initrd(Some(file.path()), Some(&after)).unwrap().unwrap();
        assert_eq!((image.len(), loaded(&image, 0, 14)), (14, Ok(b"first\0\0\x00070701".to_vec())));
        assert_eq!(image.head(9).unwrap(), b"first");
        for (offset, expected) in
            [(0, &b"first\0\0\x00070701"[..]), (3, b"st\0\0"), (6, b"\0"), (7, b"\x0007"), (9, b"7070")]
        {
            let mut bytes = vec![0xff; expected.len()];
            image.read_at(offset, &mut bytes).unwrap();
            assert_eq!(bytes, expected, "at {offset}");
        }
        assert!(image.read_at(13, &mut [0; 2]).is_err() && image.read_at(99, &mut [0; 1]).is_err());
        std::fs::write(file.path(), "longer than it was").unwrap();
        let text = loaded(&image, 0, 14).unwrap_err();
        assert!(text.contains("changed while it was read") && text.contains(file.path().to_str().unwrap()), "{text}");
        let alone = Image::initrd(None, Some(&after)).unwrap().unwrap();
        assert_eq!(
            (alone.len(), loaded(&alone, 0, 6), alone.head(3).unwrap()),
            (6, Ok(after.to_vec()), b"070".to_vec())
        );
        assert!(Image::initrd(None, None).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_read_is_said_at_once() {
        let error = |path: &str| Image::open(Path::new(path), "--initrd").err().unwrap().to_string();
        assert!(error("/").starts_with("Cannot read initrd /: it is a directory; give --initrd the"), "{}", error("/"));
        assert!(error("/none").contains("No such file"), "{}", error("/none"));
        assert!(error("/dev/zero").contains("it is no regular file"), "{}", error("/dev/zero"));
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(error(fifo.to_str().unwrap()).contains("it is no regular file"));
    }
}
