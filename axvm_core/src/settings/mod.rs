//! Settings: everything that can be said about a machine, by options or by a file. What was not given is absent.
//!
//! ```text
//!   axvm run ARGS  --clap--+                    +-- over: the command line goes first
//!                          +--> Settings  <-----+
//!   vm.toml        --read--+      |      |
//!                                 |      +--> write: TOML that means the same
//!                                 +---------> Config
//! ```
//!
//! One declaration is all of an option: its doc comment is the help and the text of the schema, its name that of the
//! option and of the file's key, and with a default it has a method that gives its value. Options with parts are tables: `--cpus 4,sockets=2` is `[cpus]`, each `--disk` a
//! `[[disk]]`, and what concerns guest RAM is in `[memory]`. Relative paths in a file start at its directory, so that
//! file and images can move together.
//!
//! Format: TOML 1.1. Schema: JSON Schema 2020-12.

mod file;
mod gdb;
mod net;
mod parts;
mod peers;
mod policy;
mod schema;
mod setting;
mod text;
mod trace;
mod value;
mod vsock;
mod words;

use std::path::PathBuf;

use axvm_boot::acpi::Acpi;
use axvm_boot::bus::Bus;
use axvm_boot::cpu::CpuModel;
use axvm_boot::linux::Entry;
use axvm_console::BackEnd;
use axvm_virtio::block::DiskConfig;
use axvm_virtio::limiter::RateLimit;
use clap::ValueHint;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::error::ConfigError;
use setting::settings;
use words::{Switch, on_off, words, words_and_parts};

pub use file::{SettingsFault, parse, read};
pub use gdb::GdbAt;
pub use net::{Datagrams, Forward, Mac, NetEnd, NetSetting, Transport, check_tap_name};
pub use parts::{Amount, Cpus, Memory};
pub use policy::{Lint, OnCrash, OnHalt, OnPanic, OnReboot, VirtioCheck};
pub use schema::schema;
pub use setting::Setting;
pub use trace::TraceTo;
pub use value::{IoPort, Name, Pins, Size, Time, len, mebibytes, number};
pub use vsock::{PATH_LIMIT as VSOCK_PATH_LIMIT, Vsock};

/// A settings file with every key, explained.
pub const EXAMPLE: &str = include_str!("example.toml");

/// Where help shows what is around the machine.
const CONTROL: &str = "Console and control";
/// Where help shows what the machine is made of.
const HARDWARE: &str = "Hardware and host";

settings! {
    /// A machine to run: axvm --config FILE.
    #[schemars(title = "Settings of an AxVM machine")]
    pub struct Settings {
        /// Name of the machine, for `axvm ps` and `axvm ctl`: a letter, then up to 63 of A-Z a-z 0-9 _ . -
        /// [default: from the kernel's file name]
        #[arg(long, value_name = "NAME")]
        pub name: Option<Name>,

        /// Kernel: a Linux bzImage or vmlinux, any with a PVH note or a Multiboot header [default: bzImage, here or in ..]
        #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        pub kernel: Option<PathBuf>,

        /// Initial RAM disk, a cpio archive that the kernel unpacks [default: initrd.img, if kernel is by default]
        #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        pub initrd: Option<PathBuf>,

        /// Added to the kernel command line, after the defaults; a key given here replaces its default
        #[arg(short = 'p', long, value_name = "TEXT", allow_hyphen_values = true)]
        pub append: Option<String> = String::new(),

        /// Where the serial console (ttyS0) goes: stdio, file=PATH[,limit=SIZE], pty, unix=PATH or none [default: stdio]
        #[arg(long, value_name = "WHERE", help_heading = CONTROL)]
        pub console: Option<BackEnd>,

        /// A virtio console (hvc0) as well, for kernels without 8250: stdio, file=PATH, pty, unix=PATH or none.
        /// With stdio, ttyS0 goes nowhere and hvc0 is the kernel's console [default: no such device]
        #[arg(long, value_name = "WHERE", help_heading = CONTROL, verbatim_doc_comment)]
        pub virtio_console: Option<BackEnd>,

        /// A debug console at port 0xe9, which takes letters without a driver: stdio, file=PATH, pty, unix=PATH or none.
        /// With stdio, ttyS0 goes nowhere [default: no such port]
        #[arg(long, value_name = "WHERE", help_heading = CONTROL, verbatim_doc_comment)]
        pub debugcon: Option<BackEnd>,

        /// A port, such as 0xf4, by which the guest ends the machine: AxVM's exit code is (value << 1) | 1
        /// [default: no such port]
        #[arg(long, value_name = "PORT", help_heading = CONTROL, allow_hyphen_values = true)]
        pub debug_exit: Option<IoPort>,

        /// Control socket, HTTP: for `axvm ctl`, curl and others [default: none]
        #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, help_heading = CONTROL)]
        pub api_sock: Option<PathBuf>,

        /// What a reset by the guest does [default: restart]
        #[arg(long, value_parser = words::<OnReboot>(), help_heading = CONTROL)]
        pub on_reboot: Option<OnReboot> = OnReboot::Restart,

        /// What a crash of the guest does: a triple fault, or what KVM cannot run [default: end]
        #[arg(long, value_parser = words::<OnCrash>(), help_heading = CONTROL)]
        pub on_crash: Option<OnCrash> = OnCrash::End,

        /// What a panic of the guest's kernel does, as it tells pvpanic [default: end]
        #[arg(long, value_parser = words::<OnPanic>(), help_heading = CONTROL)]
        pub on_panic: Option<OnPanic> = OnPanic::End,

        /// What a guest does whose vCPUs are all halted with interrupts off [default: end]
        #[arg(long, value_parser = words::<OnHalt>(), help_heading = CONTROL)]
        pub on_halt: Option<OnHalt> = OnHalt::End,

        /// Starts by the guest within one second that are a loop and end AxVM; 0: no limit [default: 5]
        #[arg(long, value_name = "N", help_heading = CONTROL, allow_hyphen_values = true)]
        pub restart_limit: Option<u32> = 5,

        /// Say once that a guest has shown nothing and touched no device for so long; 0: never [default: 10]
        #[arg(long, value_name = "SECONDS", help_heading = CONTROL, allow_hyphen_values = true)]
        pub silence: Option<u32> = 10,

        /// Tell what a guest does that has not moved for so long, and what that means; 0: never [default: 10, if given]
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "10", help_heading = CONTROL)]
        #[arg(allow_hyphen_values = true)]
        pub explain: Option<u32> = 0,

        /// Let gdb in: unix=PATH, tcp=PORT or tcp=ADDRESS:PORT [default: none; tcp=127.0.0.1:1234, if given]
        #[arg(short = 's', long, value_name = "WHERE", num_args = 0..=1, default_missing_value = "tcp=1234")]
        #[arg(help_heading = CONTROL)]
        pub gdb: Option<GdbAt>,

        /// Wait before the guest's first instruction until gdb says continue, or `axvm ctl NAME resume`
        #[arg(short = 'S', long, switch(), help_heading = CONTROL)]
        pub gdb_wait: Option<bool> = false,

        /// A file with the names of the kernel's functions, where it carries none itself: vmlinux with symbols, System.map
        #[arg(long, value_name = "FILE", help_heading = CONTROL, value_hint = ValueHint::FilePath)]
        pub symbols: Option<PathBuf>,
        /// Warn, while the guest starts, of what the machine needs and its kernel and initrd lack [default: auto]
        #[arg(long, value_parser = words::<Lint>(), help_heading = CONTROL)]
        pub lint: Option<Lint> = Lint::Auto,

        /// Hold the guest's virtio drivers to the standard: tell the rules they break, or end AxVM at the first [default: off]
        #[arg(long, value_parser = words::<VirtioCheck>(), help_heading = CONTROL)]
        pub virtio_check: Option<VirtioCheck> = VirtioCheck::Off,

        /// Seconds that a guest has to power off after a first signal [default: 10]
        #[arg(long, value_name = "SECONDS", help_heading = CONTROL, allow_hyphen_values = true)]
        pub grace: Option<u32> = 10,

        /// End the machine after this time, with exit code 124: 90 (seconds), 90s, 5m or 2h [default: no limit]
        #[arg(long, value_name = "TIME", help_heading = CONTROL, allow_hyphen_values = true)]
        pub timeout: Option<Time>,

        /// Tell each step of building the machine, and unusual events, on stderr
        #[arg(short, long, switch(), help_heading = CONTROL)]
        pub verbose: Option<bool> = false,

        /// Write a timeline to this file, for `axvm report` and Perfetto: each exit, what the guest accessed, how long that
        /// took; FILE[,limit=SIZE] [default: none; limit=256M]
        #[arg(long, value_name = "FILE", help_heading = CONTROL, value_hint = ValueHint::FilePath, verbatim_doc_comment)]
        pub trace: Option<TraceTo>,

        /// Keep each thread's last exits and requests, for `axvm ctl NAME trace dump FILE` and for reports [default: off]
        #[arg(long, switch(), help_heading = CONTROL)]
        pub flight_recorder: Option<bool> = false,

        /// Have each kick of a driver be an exit, so that a timeline shows it: kicks then cost the vCPU some microseconds
        /// more [default: off]
        #[arg(long, switch(), help_heading = CONTROL)]
        pub trace_kicks: Option<bool> = false,

        /// How the kernel is entered [default: 32 for a bzImage, pvh for an ELF file, multiboot if that is the only way]
        #[arg(long, value_parser = words::<Entry>(), help_heading = HARDWARE)]
        pub entry: Option<Entry>,

        /// CPU model shown to the guest; nested=on: guests of the guest, pmu=on: performance counters [default: host]
        #[arg(long, value_name = "MODEL[,nested=on|off][,pmu=on|off]", help_heading = HARDWARE)]
        #[arg(value_parser = words_and_parts::<CpuModel>())]
        pub cpu: Option<CpuModel> = CpuModel::default(),

        /// Host CPUs for the vCPUs, one each, in order: 0-9,20-29
        #[arg(long, value_name = "LIST", help_heading = HARDWARE)]
        pub pin: Option<Pins>,

        /// What ACPI tables tell the guest [default: full]
        #[arg(long, value_parser = words::<Acpi>(), help_heading = HARDWARE)]
        pub acpi: Option<Acpi> = Acpi::Full,

        /// The bus of the virtio devices; auto: mmio, or pci if that cannot be [default: auto]
        #[arg(long, value_parser = words::<Bus>(), help_heading = HARDWARE)]
        pub bus: Option<Bus> = Bus::Auto,

        /// What the entropy device gives in a time: bytes (1K/s), requests (10ops/s), or both [default: all that is asked for]
        #[arg(long, value_name = "RATE", help_heading = HARDWARE)]
        pub entropy_rate: Option<RateLimit>,

        /// The same as --acpi off
        #[arg(long, switch(), help_heading = HARDWARE)]
        pub no_acpi: Option<bool> = false,

        /// Confine AxVM to the files and system calls it needs [default: on]
        #[arg(long, value_parser = on_off(), value_name = "on|off", hide_possible_values = true)]
        #[arg(help_heading = HARDWARE)]
        pub sandbox: Option<bool> = true,

        /// Number of vCPUs, and how they are grouped: 20 or 20,sockets=2,cores=5,threads=2 [default: the host's]
        #[arg(short, long, value_name = "N[,sockets=S][,cores=C][,threads=T]", allow_hyphen_values = true)]
        #[serde(deserialize_with = "parts::possible_cpus")]
        #[schemars(description = "vCPUs, and how they are grouped [default: as many as the host has]")]
        pub cpus: Option<Cpus>,

        /// Guest RAM
        #[command(flatten)]
        pub memory: Memory,

        /// A socket device (virtio-vsock): programs of host and guest connect without a network. cid: the guest's address
        /// [default: 3]; socket: its end on the host [default: beside the control socket] [default: no such device]
        #[arg(long, value_name = "cid=N[,socket=PATH]", num_args = 0..=1, default_missing_value = "")]
        #[arg(help_heading = HARDWARE, value_hint = ValueHint::FilePath)]
        #[schemars(description = "A socket device (virtio-vsock) [default: none]")]
        pub vsock: Option<Vsock>,

        /// A port by which commands reach the guest's agent where its kernel has no vsock (virtio-serial), and its socket
        /// on the host [default: no such device]
        #[arg(long, value_name = "PATH", help_heading = HARDWARE, value_hint = ValueHint::FilePath)]
        pub agent_port: Option<PathBuf>,

        /// Disk image, raw: FILE or path=FILE, then ,ro ,ephemeral ,direct ,serial=TEXT ,format=raw
        /// ,cache=writeback|writethrough ,block=512|4096
        /// ,on-full=pause|report ,rate=10M/s:1000ops/s ,engine=auto|sync|io_uring ,queues=N.
        /// The first becomes /dev/vda, the next /dev/vdb ... [default: disk.img, if kernel is by default]
        #[arg(short, long, value_name = "FILE[,ro][,serial=TEXT]", verbatim_doc_comment)]
        #[arg(value_hint = ValueHint::FilePath, value_parser = disks())]
        #[schemars(description = "Disks: the first becomes /dev/vda, the next /dev/vdb ...")]
        pub disk: Vec<DiskConfig>,

        /// Network card: user (the host's network by passt), tap=NAME, fd=N, stream=PATH or dgram=LOCAL:REMOTE, then
        /// ,mac=ADDRESS ,mtu=N; with user ,forward=HOST:GUEST (again for more) ,host=on|off; with tap ,queues=N
        /// ,offload=on|off ,rx=10M/s ,tx=10M/s.
        /// The first is net0, the next net1 ... [default: no such device]
        #[arg(long, value_name = "user|tap=NAME|...[,mac=ADDRESS]", verbatim_doc_comment)]
        #[serde(deserialize_with = "net::possible_nets")]
        #[schemars(description = "Network cards: the first is net0, the next net1 ... [default: none]")]
        pub net: Vec<NetSetting>,
    }
}

/// Takes a disk: the name of its image may be any bytes.
fn disks() -> impl TypedValueParser<Value = DiskConfig> {
    OsStringValueParser::new().try_map(|words| DiskConfig::try_from(&*words))
}

impl Settings {
    /// The settings file that says this.
    pub fn write(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|error| ConfigError::Unwritable(error.to_string().trim().to_owned()))
    }
}
