//! The command line of what is not a machine itself: control of one that runs, the list of them, and checks of the host.
//!
//! ```text
//!   axvm ctl MACHINE VERB, axvm ps     a machine is a path of a control socket, a process id, or a name
//!   axvm exec MACHINE -- COMMAND       a command in its guest
//!   axvm selftest, axvm doctor         this host
//!   axvm inspect ARGS                  a machine that is not started
//! ```

use std::ffi::OsString;
use std::path::PathBuf;

use axvm_inspect::xray::SECTIONS;
use axvm_virtio::block::DiskConfig;
use axvm_virtio::limiter::RateLimit;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::RunArgs;
use crate::settings::{NetSetting, TraceTo, len, mebibytes};

/// `axvm ctl`.
#[derive(Debug, Args)]
// So that `axvm ctl --all pause` has one meaning. A machine that is called `pause` has a process id, too.
#[command(subcommand_precedence_over_arg = true)]
#[command(after_help = "\
Examples:
  axvm ctl web status               by name (--name, or the kernel's file name)
  axvm ctl 4711 shutdown            by process id
  axvm ctl ./web.api balloon 1G     by control socket (--api-sock)
  axvm ctl web disk vda resize      its image is longer now
  axvm ctl web disk vda rate 10M/s  at most so many bytes in a time
  axvm ctl web disk add data.img    a new disk, on PCI (disk remove vdb)
  axvm ctl web net net0 down        pulls its cable
  axvm ctl web net add tap=tap1     a new network card, on PCI
  axvm ctl web console              Ctrl-A x leaves the machine running
  axvm ctl --all shutdown           each machine that runs

`axvm ps` lists machines. The same over HTTP: curl --unix-socket web.api http://axvm/status")]
pub struct CtlArgs {
    /// The machine: path of its control socket, process id, or name
    #[arg(required_unless_present = "all")]
    pub machine: Option<OsString>,
    /// All machines of yours that run, one after the other
    #[arg(long, conflicts_with = "machine")]
    pub all: bool,
    /// What to do.
    #[command(subcommand)]
    pub action: CtlAction,
}

/// `axvm report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  axvm run -k bzImage --trace boot.json
  axvm report boot.json                    what took how long
  axvm report boot.json -o boot.html       as a page: every exit and request

https://ui.perfetto.dev and chrome://tracing open the file, too.")]
pub struct ReportArgs {
    /// What `axvm run --trace FILE` wrote
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Print the summary as text, which is what is done without -o
    #[arg(long)]
    pub text: bool,
    /// The kernel that the guest ran, or its vmlinux or System.map: names of the functions that exit
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub symbols: Option<PathBuf>,
    /// Write a page for a browser, which needs nothing else
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
}

/// What can be done with a running machine.
#[derive(Debug, Subcommand)]
pub enum CtlAction {
    /// Tell state, vCPUs, memory, disks and uptime
    Status,
    /// Tell what the guest does: vCPUs, interrupts, queues, and why that may be no progress
    Explain {
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Show the whole machine at one moment: memory, vCPUs, clocks, interrupt lines, queues
    Inspect {
        /// And how the first vCPU translates this address: a number, a register such as rsp, or a function of the kernel
        #[arg(long, value_name = "ADDRESS")]
        walk: Option<String>,
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Tell the registers of its vCPUs
    Registers {
        /// Of this vCPU only
        #[arg(value_name = "VCPU")]
        vcpu: Option<u32>,
        /// And what each bit of the control registers means
        #[arg(long)]
        bits: bool,
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Show some of the guest's memory
    Memory(MemoryArgs),
    /// Print what the guest's kernel calls its functions, and where they are, as a System.map
    Symbols,
    /// Be gdb's way to the machine, on standard input and output: gdb -ex "target remote | axvm ctl NAME gdb"
    Gdb,
    /// Write memory and registers into a file that gdb and crash open, an ELF core
    Dump {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Stop every vCPU and device where all state can be read
    Pause,
    /// Go on after a pause
    Resume,
    /// Press the power button: the guest shuts itself down
    #[command(visible_alias = "power-button")]
    Shutdown,
    /// Press the NMI button: a kernel that hangs may say where
    Nmi,
    /// Send a BREAK on the serial port: Linux takes the next key as a SysRq
    Break,
    /// Press the reset button: a new start, without asking the guest
    Reset,
    /// End the machine now, without asking the guest
    Stop,
    /// Ask the guest to give memory back
    Balloon {
        /// How much the guest is to give back, all in all: a number with K, M, G or T (without: MiB); 0 lets it have
        /// everything again
        #[arg(value_name = "SIZE", value_parser = mebibytes)]
        mib: u32,
    },
    /// Add or remove a disk, look at one again that has changed on the host, or limit its rate
    #[command(subcommand_precedence_over_arg = true)]
    Disk {
        /// Its name in the guest, such as vda
        #[arg(value_name = "DISK")]
        name: Option<String>,
        /// What to do.
        #[command(subcommand)]
        action: DiskAction,
    },
    /// Tell of the network cards; plug the cable of one in, or pull it; add or remove one
    #[command(subcommand_precedence_over_arg = true, args_conflicts_with_subcommands = true)]
    Net {
        /// One of them, such as net0
        #[arg(value_name = "CARD")]
        name: Option<String>,
        /// What its cable shall be
        #[arg(value_enum, requires = "name")]
        link: Option<LinkWord>,
        /// What may come to the guest in a time, from now on: such as 10M/s, 1000ops/s (frames), or none
        #[arg(long, value_name = "RATE", requires = "name")]
        rx: Option<RateLimit>,
        /// What the guest may send in a time, from now on
        #[arg(long, value_name = "RATE", requires = "name")]
        tx: Option<RateLimit>,
        /// What to do.
        #[command(subcommand)]
        action: Option<CardAction>,
    },
    /// Write what the machine does to a file for `axvm report`, from now on or of its last moments
    Trace {
        /// What to do.
        #[command(subcommand)]
        action: TraceWord,
    },
    /// Attach this terminal to the guest's console
    Console,
    /// Print events as they happen, one JSON object a line
    Events,
}

/// Which of the guest's memory to show, and how.
#[derive(Debug, Args)]
pub struct MemoryArgs {
    /// Where it begins: a number, a register such as rsp or cr3, or a function of the kernel
    #[arg(value_name = "ADDRESS")]
    pub address: String,
    /// Bytes, such as 64 or 4K
    #[arg(value_name = "LENGTH", default_value = "128", value_parser = len)]
    pub len: u64,
    /// A guest-physical address, not one that page tables translate
    #[arg(long, conflicts_with_all = ["vcpu", "walk"])]
    pub physical: bool,
    /// With the registers and page tables of this vCPU
    #[arg(long, value_name = "VCPU", default_value = "0")]
    pub vcpu: u32,
    /// As instructions
    #[arg(long, conflicts_with = "output")]
    pub instructions: bool,
    /// The page table entries that translate the address, too
    #[arg(long)]
    pub walk: bool,
    /// Into a file, as it is
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// What can be done with a timeline.
#[derive(Debug, Subcommand)]
pub enum TraceWord {
    /// Write each exit and request from now on
    Start {
        /// The file, and how long it may become [default: limit=256M]
        #[arg(value_name = "FILE[,limit=SIZE]", value_hint = ValueHint::FilePath)]
        to: TraceTo,
    },
    /// End that, and wait until the file is complete
    Stop,
    /// Write the last moments of a machine that keeps them (--flight-recorder of axvm run)
    Dump {
        /// The file, and how long it may become [default: limit=256M]
        #[arg(value_name = "FILE[,limit=SIZE]", value_hint = ValueHint::FilePath)]
        to: TraceTo,
    },
    /// Tell what is recorded, and to which file it is written
    Status,
}

/// What can become of a cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LinkWord {
    /// Plugged in
    Up,
    /// Pulled
    Down,
}

/// What comes and goes with the network cards of a running machine.
#[derive(Debug, Subcommand)]
pub enum CardAction {
    /// Add a card, on PCI, and tell its name and place
    Add {
        /// Its cable, in the words of --net of axvm run: user, tap=NAME, fd=N, stream=PATH, dgram=LOCAL:REMOTE
        #[arg(value_name = "CABLE", value_parser = |words: &str| words.parse::<NetSetting>().map(Box::new))]
        card: Box<NetSetting>,
    },
    /// Remove a card that was added: waits until the guest has let go of it
    Remove(Removed),
}

/// What is removed.
#[derive(Debug, Args)]
pub struct Removed {
    /// Its name, such as vdb or net1
    pub name: String,
    /// Take it away at once, whatever the guest does with it
    #[arg(long)]
    pub force: bool,
}

/// What can be done with a disk of a running machine.
#[derive(Debug, Subcommand)]
pub enum DiskAction {
    /// Add a disk, on PCI, and tell its name and place
    Add {
        /// Its image, in the words of --disk of axvm run: FILE, FILE,ro, path=FILE,serial=DATA ...
        #[arg(value_name = "FILE[,OPTION...]", value_hint = ValueHint::FilePath)]
        disk: DiskConfig,
    },
    /// Remove a disk that was added: waits until the guest has let go of it
    Remove(Removed),
    /// Tell the guest of an image that grew
    Resize,
    /// Limit what it does in a time, from now on
    Rate {
        /// Bytes and operations, such as 10M/s, 1000ops/s, 10M/s:1000ops/s, or none
        rate: RateLimit,
    },
}

/// `axvm exec`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  axvm exec web -- uname -r
  axvm exec web -- sh                           with a terminal, as there is one
  tar c src | axvm exec web -w /tmp -- tar x    streams flow both ways
  axvm exec web -- make test; echo $?           the command's exit code

Exit codes: the command's own; 128+N if signal N ended it; 127 there is no such program in the guest, 126 \
it cannot be run; 125 AxVM's own failure, which a message tells.

The guest needs the agent (axvm agent), and vsock or a port to reach it by (--vsock, --agent-port of axvm run). \
With a terminal, Ctrl-C and the like go to the command; Ctrl-] three times within a second leaves it. Without one, SIGINT, SIGTERM and others are \
passed on; the third one ends this program.")]
pub struct ExecArgs {
    /// The machine: path of its control socket, process id, or name
    #[arg(required_unless_present = "socket")]
    pub machine: Option<OsString>,
    /// Socket of a vsock or an agent's port instead of a machine; that of another monitor will do
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, conflicts_with = "machine")]
    pub socket: Option<PathBuf>,
    /// Environment of the command: NAME=VALUE, or NAME with the value it has here; may be given several times
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub environment: Vec<OsString>,
    /// Directory of the guest in which the command runs [default: that of the agent]
    #[arg(short = 'w', long, value_name = "DIR")]
    pub directory: Option<OsString>,
    /// Pipes, even where there is a terminal
    #[arg(short = 'T', long)]
    pub no_terminal: bool,
    /// Seconds that the machine has until it is there and its agent answers [default: it is there; 10]
    #[arg(long, value_name = "SECONDS")]
    pub wait: Option<u32>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `axvm ps`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  axvm ps
  axvm ps --json | jq '.[].name'
  axvm ps -q | wc -l             how many")]
pub struct PsArgs {
    /// Print process ids only, one a line
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `axvm gdb`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  axvm gdb web
  axvm gdb web -- -ex 'break do_sys_openat2' -ex continue
  axvm gdb web -- vmlinux             with lines and variables (monitor kaslr)
  axvm gdb web -- -batch -ex 'info registers'")]
pub struct GdbArgs {
    /// The machine: path of its control socket, process id, or name
    pub machine: OsString,
    /// Words for gdb
    #[arg(last = true, value_name = "ARGS")]
    pub gdb: Vec<OsString>,
}

/// `axvm selftest`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  axvm selftest                 can this host run AxVM? device by device
  axvm selftest --cpus 20       with as many vCPUs
  axvm selftest --json")]
pub struct SelftestArgs {
    /// vCPUs of the test machine
    #[arg(short, long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub cpus: u32,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `axvm doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  axvm doctor                   what this host has and lacks, what to change
  axvm doctor --json")]
pub struct DoctorArgs {
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// `axvm inspect`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  axvm inspect bzImage -m 2G -c 4       what axvm run would start
  axvm inspect bzImage --only memory    one part of it
  axvm inspect bzImage --entry 64 --walk 0x100000
  axvm inspect --config vm.toml --format json | jq '.sections[].id'
  axvm inspect --config vm.toml --format html > vm.html
  axvm inspect --diff a.toml b.toml     what differs between two machines

It needs no /dev/kvm and no root: nothing is started, and of the disks not one is opened.")]
pub struct InspectArgs {
    /// What to print
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: InspectFormat,

    /// Follow this linear address through the page tables; may be given again
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub walk: Vec<u64>,

    /// Show only these sections, with commas between them
    #[arg(long, value_name = "SECTION", value_delimiter = ',', value_parser = PossibleValuesParser::new(SECTIONS))]
    pub only: Vec<String>,

    /// Show what differs between the machines of two settings files; other arguments hold for both
    #[arg(long, num_args = 2, value_names = ["A", "B"], value_hint = ValueHint::FilePath, conflicts_with = "config")]
    pub diff: Vec<PathBuf>,

    /// The arguments of run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// How `axvm inspect` answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum InspectFormat {
    /// For a terminal
    #[default]
    Text,
    /// For programs
    Json,
    /// A page for a browser, in one file
    Html,
}

/// An address: hexadecimal after 0x, else decimal.
fn address(text: &str) -> Result<u64, &'static str> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(&digits.replace('_', ""), 16),
        None => text.parse(),
    };
    number.map_err(|_| "not an address; say 0x100000, or 1048576")
}
