//! `axvm run`: every option of a machine.
//!
//! All are optional here, also those with a default: only so can it be told what was said and may override a file.

use std::path::PathBuf;

use axvm_memory::PageSize;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum, ValueHint};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the CPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EntryArg {
    /// 32-bit protected mode, paging off: the guest switches to long mode itself
    #[value(name = "32")]
    #[serde(rename = "32")]
    Bits32,
    /// 64-bit long mode, page tables built by AxVM
    #[value(name = "64")]
    #[serde(rename = "64")]
    Bits64,
    /// PVH: 32-bit entry of an ELF vmlinux
    Pvh,
}

/// Which CPU the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CpuArg {
    /// Everything KVM supports on this host
    Host,
    /// What a Xeon E5 v2 has: no AVX2, BMI, FMA, MOVBE, RDSEED ...
    Ivybridge,
}

/// What a reset by the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnReboot {
    /// Start the machine again, in place
    Restart,
    /// End AxVM with exit code 3
    Exit,
}

/// When the guest is told that a disk has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CacheArg {
    /// When the host's kernel has it; on the medium after the guest's flush
    Writeback,
    /// When it is on the medium
    Writethrough,
}

/// Yes or no, so that a command line can also take back what a file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes
    On,
    /// No
    Off,
}

impl From<Switch> for bool {
    fn from(switch: Switch) -> bool {
        switch == Switch::On
    }
}

/// A machine, as it was said.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// Settings file, TOML; what the command line says goes before it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    /// Name of the machine, for `axvm ps` and `axvm ctl` [default: from the kernel's file name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Linux kernel: a bzImage, or an ELF vmlinux (with --entry pvh or 64) [default: bzImage, here or in ..]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk, a cpio archive that the kernel unpacks [default: initrd.img, if kernel is by default]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub initrd: Option<PathBuf>,

    /// Disk image, raw: FILE or path=FILE, then ,ro ,serial=TEXT ,cache=writeback|writethrough.
    /// The first becomes /dev/vda, the next /dev/vdb ... [default: disk.img, if kernel is by default]
    #[arg(short, long = "disk", value_name = "FILE[,ro][,serial=TEXT]", verbatim_doc_comment)]
    #[arg(value_hint = ValueHint::FilePath)]
    pub disks: Vec<String>,

    /// Number of vCPUs, and how they are grouped: 20 or 20,sockets=2,cores=5,threads=2 [default: the host's]
    #[arg(short, long, value_name = "N[,sockets=S][,cores=C][,threads=T]", allow_hyphen_values = true)]
    pub cpus: Option<String>,

    /// Guest RAM: a number with K, M or G (without: MiB); ,shared makes it a memory file that other processes can map
    /// [default: 512M]
    #[arg(short, long, value_name = "SIZE[,shared]", verbatim_doc_comment, allow_hyphen_values = true)]
    pub memory: Option<String>,

    /// Added to the kernel command line, after the defaults; a key given here replaces its default
    #[arg(short = 'p', long, value_name = "TEXT", allow_hyphen_values = true)]
    pub append: Option<String>,

    /// Where the serial console (ttyS0) goes: stdio, file=PATH, pty, unix=PATH or none [default: stdio]
    #[arg(long, value_name = "WHERE", help_heading = "Console and control")]
    pub console: Option<String>,

    /// A virtio console (hvc0) as well, for kernels without 8250: stdio, file=PATH, pty, unix=PATH or none.
    /// With stdio, ttyS0 goes nowhere and hvc0 is the kernel's console [default: no such device]
    #[arg(long, value_name = "WHERE", help_heading = "Console and control", verbatim_doc_comment)]
    pub virtio_console: Option<String>,

    /// Control socket, HTTP: for `axvm ctl`, curl and others [default: none]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, help_heading = "Console and control")]
    pub api_sock: Option<PathBuf>,

    /// What a reset by the guest does [default: restart]
    #[arg(long, value_enum, help_heading = "Console and control")]
    pub on_reboot: Option<OnReboot>,

    /// Seconds that a guest has to power off after a first signal [default: 10]
    #[arg(long, value_name = "SECONDS", help_heading = "Console and control", allow_hyphen_values = true)]
    pub grace: Option<u32>,

    /// Tell each step of building the machine, and unusual events, on stderr
    #[arg(short, long, value_enum, value_name = "on|off", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "on", hide_possible_values = true, help_heading = "Console and control")]
    pub verbose: Option<Switch>,

    /// CPU mode at the kernel's first instruction [default: 32 for a bzImage, pvh for a vmlinux]
    #[arg(long, value_enum, help_heading = "Hardware and host")]
    pub entry: Option<EntryArg>,

    /// CPU model shown to the guest [default: host]
    #[arg(long, value_enum, help_heading = "Hardware and host")]
    pub cpu: Option<CpuArg>,

    /// Host CPUs for the vCPUs, one each, in order: 0-9,20-29
    #[arg(long, value_name = "LIST", help_heading = "Hardware and host")]
    pub pin: Option<String>,

    /// Pages behind guest RAM [default: thp]
    #[arg(long, value_parser = page_size(), help_heading = "Hardware and host")]
    pub hugepages: Option<PageSize>,

    /// Take all guest RAM from the host before the guest starts
    #[arg(long, value_enum, value_name = "on|off", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "on", hide_possible_values = true, help_heading = "Hardware and host")]
    pub prealloc: Option<Switch>,

    /// Lock guest RAM: the host never swaps it
    #[arg(long, value_enum, value_name = "on|off", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "on", hide_possible_values = true, help_heading = "Hardware and host")]
    pub lock: Option<Switch>,

    /// Build no ACPI tables; announce devices on the kernel command line instead (then one vCPU is used)
    #[arg(long, value_enum, value_name = "on|off", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "on", hide_possible_values = true, help_heading = "Hardware and host")]
    pub no_acpi: Option<Switch>,

    /// Confine AxVM to the files and system calls it needs [default: on]
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true, help_heading = "Hardware and host")]
    pub sandbox: Option<Switch>,
}

/// Reads the name of a kind of pages, and shows all of them as help.
fn page_size() -> impl TypedValueParser<Value = PageSize> {
    let value = |pages: PageSize| PossibleValue::new(pages.name()).help(pages.about());
    PossibleValuesParser::new(PageSize::ALL.map(value)).try_map(|name| name.parse::<PageSize>())
}
