//! A kernel or an initrd: opened once, read at every start of the guest.
//!
//! Opening early finds mistakes early; and a file that is open stays readable when the process is restricted.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::{KernelSource, MachineError};

/// Where the bytes come from.
pub enum Image {
    /// A file that an option named.
    File(File, PathBuf, &'static str),
    /// Part of this program.
    Embedded(&'static [u8]),
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

    /// All of it, as it is now.
    pub fn read(&self) -> Result<Cow<'static, [u8]>, MachineError> {
        let (mut file, path, option) = match self {
            Image::File(file, path, option) => (file, path, option),
            Image::Embedded(bytes) => return Ok(Cow::Borrowed(bytes)),
        };
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(|error| unreadable(path, option, &error))?;
        Ok(Cow::Owned(bytes))
    }

    /// For people.
    pub fn name(&self) -> String {
        match self {
            Image::File(_, path, _) => path.display().to_string(),
            Image::Embedded(_) => "the embedded guest".into(),
        }
    }
}

fn unreadable(path: &Path, option: &'static str, cause: &io::Error) -> MachineError {
    let remedy = match cause.kind() {
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
    use super::*;

    #[test]
    fn a_file_is_read_anew_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "one").unwrap();
        let image = Image::open(file.path(), "--kernel").unwrap();
        assert_eq!(*image.read().unwrap(), *b"one");
        std::fs::write(&file, "other").unwrap();
        assert_eq!(*image.read().unwrap(), *b"other");
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
