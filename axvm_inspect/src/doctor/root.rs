//! Files of the host, read below a directory that stands for `/`.
//!
//! ```text
//!   Root("/")          text("/proc/meminfo")  -->  /proc/meminfo             this host
//!   Root("/tmp/fake")  text("/proc/meminfo")  -->  /tmp/fake/proc/meminfo    a host that a test made up
//! ```
//!
//! A file that is missing, unreadable or not as expected is `None`: a doctor never fails on its patient.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use axvm_arch::cpuinfo;

use super::User;

/// The directory that stands for `/`.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

/// Who may do what with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Owner's user id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl Access {
    /// Whether this lets a user read and write. An access list may allow more; opening tells.
    pub fn allows(self, user: &User) -> bool {
        let bits = if user.uid == self.uid {
            self.mode >> 6
        } else if user.groups.contains(&self.gid) {
            self.mode >> 3
        } else {
            self.mode
        };
        user.uid == 0 || bits & 0o6 == 0o6
    }
}

impl Root {
    /// `path` stands for `/`.
    pub fn new(path: impl Into<PathBuf>) -> Root {
        Root(path.into())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name.trim_start_matches('/'))
    }

    /// Whether there is such a file or directory.
    pub fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// The whole text of a file, without white space at its ends.
    pub fn text(&self, name: &str) -> Option<String> {
        let bytes = fs::read(self.path(name)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// A file that holds one number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// The choice in brackets of a file such as `always [madvise] never`.
    pub fn chosen(&self, name: &str) -> Option<String> {
        let text = self.text(name)?;
        let (_, rest) = text.split_once('[')?;
        Some(rest.split_once(']')?.0.to_owned())
    }

    /// The value of the first line `key : value` of a file.
    pub fn value(&self, name: &str, key: &str) -> Option<String> {
        cpuinfo::field(&self.text(name)?, key).map(str::to_owned)
    }

    /// /proc/cpuinfo, empty if there is none.
    pub fn cpuinfo(&self) -> String {
        self.text("/proc/cpuinfo").unwrap_or_default()
    }

    /// Names in a directory, sorted; none when it is missing.
    pub fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(directory)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Owner, group and mode of a file.
    pub fn access(&self, name: &str) -> Option<Access> {
        let data = fs::metadata(self.path(name)).ok()?;
        Some(Access { uid: data.uid(), gid: data.gid(), mode: data.mode() & 0o7777 })
    }

    /// Whether the processor has `flag` in /proc/cpuinfo.
    pub fn cpu_has(&self, flag: &str) -> bool {
        cpuinfo::has_flag(&self.cpuinfo(), flag)
    }

    /// The id of a group and the name of one, as /etc/group has them.
    pub fn group(&self, matches: impl Fn(&str, u32) -> bool) -> Option<(String, u32)> {
        let text = self.text("/etc/group")?;
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, gid) = (fields.next()?, fields.nth(1)?.parse().ok()?);
            matches(name, gid).then(|| (name.to_owned(), gid))
        })
    }

    /// The kernel's version as two numbers.
    pub fn kernel(&self) -> Option<(u32, u32)> {
        let release = self.text("/proc/sys/kernel/osrelease")?;
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    /// The directory itself.
    pub fn directory(&self) -> &Path {
        &self.0
    }
}
