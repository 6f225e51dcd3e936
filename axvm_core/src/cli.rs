//! The command line: what the user typed, as clap understands it. No decisions here.
//!
//! Two stages: [`RunArgs`] is what was said; [`crate::config::Config`] is what will be done.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A hypervisor you can read like a book and run like a product.
#[derive(Debug, Parser)]
#[command(name = "axvm", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
#[command(after_help = "\
Without a subcommand, axvm means `axvm run`: it takes ./bzImage, ./initrd.img and ./disk.img (or the same in ..)
and boots them. The guest's serial console is this terminal; Ctrl-A x ends the machine, Ctrl-A h tells the other keys.

Exit codes: 0 the guest powered off, 1 host or set-up error, 2 wrong usage, 3 the guest rebooted (with --on-reboot
exit), 4 the guest's kernel panicked, 5 the guest crashed, 128+N ended by signal N.

A first SIGTERM, SIGINT or SIGHUP presses the guest's power button; a second one, or --grace seconds, ends the machine.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a Linux kernel in a new machine
    #[command(after_help = "\
Examples:
  axvm run --kernel bzImage --initrd initrd.img --disk disk.img
  axvm run --kernel bzImage --disk disk.img --cpus 20 --memory 4G --append 'quiet'
  axvm run --kernel bzImage --disk path=root.img,ro --disk path=data.img,serial=DATA1
  axvm run --kernel vmlinux --entry pvh --cpus 4,sockets=2,cores=2 --pin 0-3")]
    Run(RunArgs),
}

/// Where the CPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EntryArg {
    /// 32-bit protected mode, paging off: the guest switches to long mode itself
    #[value(name = "32")]
    Bits32,
    /// 64-bit long mode, page tables built by AxVM
    #[value(name = "64")]
    Bits64,
    /// PVH: 32-bit entry of an ELF vmlinux
    Pvh,
}

/// Which CPU the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CpuArg {
    /// Everything KVM supports on this host
    Host,
    /// What a Xeon E5 v2 has: no AVX2, BMI, FMA, MOVBE, RDSEED ...
    Ivybridge,
}

/// What backs guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HugePages {
    /// Transparent huge pages, as the host finds them
    Thp,
    /// 2 MiB pages of the host's pool
    #[value(name = "2M")]
    Huge2M,
    /// 1 GiB pages of the host's pool
    #[value(name = "1G")]
    Huge1G,
    /// Small pages only
    Off,
}

/// What a reset by the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnReboot {
    /// Start the machine again, in place
    Restart,
    /// End AxVM with exit code 3
    Exit,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Linux kernel: a bzImage, or an ELF vmlinux (with --entry pvh or 64) [default: bzImage, here or in ..]
    #[arg(short, long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk, a cpio archive that the kernel unpacks [default: initrd.img, if kernel is by default]
    #[arg(short, long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Disk image, raw: FILE or path=FILE, then ,ro ,serial=TEXT ,cache=writeback|writethrough.
    /// The first becomes /dev/vda, the next /dev/vdb ... [default: disk.img, if kernel is by default]
    #[arg(short, long = "disk", value_name = "FILE[,ro][,serial=TEXT]", verbatim_doc_comment)]
    pub disks: Vec<String>,

    /// Number of vCPUs, and how they are grouped: 20 or 20,sockets=2,cores=5,threads=2 [default: the host's]
    #[arg(short, long, value_name = "N[,sockets=S][,cores=C][,threads=T]")]
    pub cpus: Option<String>,

    /// Guest RAM: a number with K, M or G (without: MiB); ,shared makes it a memory file that other processes can map
    #[arg(short, long, value_name = "SIZE[,shared]", default_value = "512M")]
    pub memory: String,

    /// Pages behind guest RAM
    #[arg(long, value_enum, default_value = "thp")]
    pub hugepages: HugePages,

    /// Take all guest RAM from the host before the guest starts
    #[arg(long)]
    pub prealloc: bool,

    /// Lock guest RAM: the host never swaps it
    #[arg(long)]
    pub lock: bool,

    /// Added to the kernel command line, after the defaults; a key given here replaces its default
    #[arg(
        short = 'p',
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub append: String,

    /// CPU mode at the kernel's first instruction [default: 32 for a bzImage, pvh for a vmlinux]
    #[arg(long, value_enum)]
    pub entry: Option<EntryArg>,

    /// CPU model shown to the guest
    #[arg(long, value_enum, default_value = "host")]
    pub cpu: CpuArg,

    /// Host CPUs for the vCPUs, one each, in order: 0-9,20-29
    #[arg(long, value_name = "LIST")]
    pub pin: Option<String>,

    /// Build no ACPI tables; announce devices on the kernel command line instead (then one vCPU is used)
    #[arg(long)]
    pub no_acpi: bool,

    /// What a reset by the guest does
    #[arg(long, value_enum, default_value = "restart")]
    pub on_reboot: OnReboot,

    /// Seconds that a guest has to power off after a first signal
    #[arg(long, value_name = "SECONDS", default_value = "10")]
    pub grace: u32,

    /// Tell each step of building the machine, and unusual events, on stderr
    #[arg(short, long)]
    pub verbose: bool,
}
