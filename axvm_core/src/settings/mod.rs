//! Settings: everything that can be said about a machine, by options or by a file. What nobody said is not there.
//!
//! ```text
//!   RunArgs   --from_args--+                    +-- over: the command line goes first
//!                          +--> Settings  <-----+
//!   vm.toml   --read-------+      |      |
//!                                 |      +--> write: TOML that means the same
//!                                 +---------> Config
//! ```
//!
//! Names in the file are those of the options. Options with parts are tables: `--cpus 4,sockets=2` is `[cpus]`,
//! each `--disk` a `[[disk]]`, and what concerns guest RAM is in `[memory]`. Relative paths in a file start at its
//! directory, so that file and images can move together.
//!
//! Format: TOML 1.1. Schema: JSON Schema 2020-12, made from the types here.

mod args;
mod file;
mod parts;
mod schema;
mod text;
mod value;

use std::path::{Path, PathBuf};

use axvm_console::BackEnd;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cli::{CpuArg, EntryArg, OnReboot};
use crate::error::ConfigError;

pub use file::{Fault, parse, read};
pub use parts::{Cpus, Disk, Memory};
pub use schema::schema;
pub use value::{End, Name, Pins, Serial, Size};

/// A settings file with every key, explained.
pub const EXAMPLE: &str = include_str!("example.toml");

/// A machine to run: axvm --config FILE.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(title = "Settings of an AxVM machine")]
pub struct Settings {
    /// Name of the machine, for axvm ps and axvm ctl: up to 64 of A-Z a-z 0-9 _ . - and first a letter.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub name: Option<Name>,
    /// Linux kernel: a bzImage, or an ELF vmlinux.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk: a cpio archive that the kernel unpacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Added to the kernel command line after the defaults; a key given here replaces its default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// Where the serial console (ttyS0) goes: stdio, file=PATH, pty, unix=PATH or none.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub console: Option<End>,
    /// Where the virtio console (hvc0) goes: the same forms. Without it there is no such device.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub virtio_console: Option<End>,
    /// Path of the control socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_sock: Option<PathBuf>,
    /// What a reset by the guest does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_reboot: Option<OnReboot>,
    /// Seconds that a guest has to power off after a first signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<u32>,
    /// Tell each step of building the machine, and unusual events, on stderr.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verbose: Option<bool>,
    /// CPU mode at the kernel's first instruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<EntryArg>,
    /// CPU model shown to the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuArg>,
    /// Host CPUs for the vCPUs, one each, in order: 0-9,20-29.
    #[serde(with = "text", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub pin: Option<Pins>,
    /// Build no ACPI tables; announce devices on the kernel command line instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_acpi: Option<bool>,
    /// Confine AxVM to the files and system calls it needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<bool>,
    /// vCPUs and how they are grouped.
    #[serde(deserialize_with = "parts::possible_cpus", skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Guest RAM.
    #[serde(skip_serializing_if = "Memory::is_empty")]
    pub memory: Memory,
    /// Disks: the first becomes /dev/vda, the next /dev/vdb ...
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disk: Vec<Disk>,
}

impl Settings {
    /// These settings where they say something, `below` where they do not. Lists and tables of one option (`cpus`,
    /// `disk`) are replaced as a whole.
    pub fn over(self, below: Settings) -> Settings {
        Settings {
            name: self.name.or(below.name),
            kernel: self.kernel.or(below.kernel),
            initrd: self.initrd.or(below.initrd),
            append: self.append.or(below.append),
            console: self.console.or(below.console),
            virtio_console: self.virtio_console.or(below.virtio_console),
            api_sock: self.api_sock.or(below.api_sock),
            on_reboot: self.on_reboot.or(below.on_reboot),
            grace: self.grace.or(below.grace),
            verbose: self.verbose.or(below.verbose),
            entry: self.entry.or(below.entry),
            cpu: self.cpu.or(below.cpu),
            pin: self.pin.or(below.pin),
            no_acpi: self.no_acpi.or(below.no_acpi),
            sandbox: self.sandbox.or(below.sandbox),
            cpus: self.cpus.or(below.cpus),
            memory: self.memory.over(below.memory),
            disk: if self.disk.is_empty() { below.disk } else { self.disk },
        }
    }

    /// Lets every relative path start at `directory`.
    pub fn from_directory(mut self, directory: &Path) -> Settings {
        let console = |end: &mut End| match &mut end.0 {
            BackEnd::File(path) | BackEnd::Unix(path) => *path = directory.join(&*path),
            BackEnd::Stdio | BackEnd::Pty | BackEnd::None => {}
        };
        [&mut self.console, &mut self.virtio_console].into_iter().flatten().for_each(console);
        let files = [&mut self.kernel, &mut self.initrd, &mut self.api_sock].into_iter().flatten();
        files.chain(self.disk.iter_mut().map(|disk| &mut disk.path)).for_each(|path| *path = directory.join(&*path));
        self
    }

    /// The settings file that says this.
    pub fn write(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|error| ConfigError::Unwritable(error.to_string().trim().to_owned()))
    }
}
