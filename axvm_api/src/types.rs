//! Bodies on the control socket: what goes over it as JSON.
//!
//! The first part has the names and values of Firecracker's API, so that its clients understand; the second is ours.
//! Bodies that come in refuse keys they do not know: a misspelt key is an error, not a surprise.
//!
//! Spec: Firecracker API 1.17, "definitions".

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

pub use crate::examined::{
    DumpState, DumpStatus, Explanation, GuestSymbols, Inspection, LikelyCause, MemoryContents, TraceAction,
    TraceRequest, TraceState, TraceStatus, VcpuRegisters,
};

/// The level of Firecracker's API that these types follow; what its clients read as the version.
pub const FIRECRACKER_API: &str = "1.17.0";

/// The body of every refusal.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultMessage {
    /// What was wrong and what to do.
    pub fault_message: String,
}

/// `GET /`: who answers here.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct InstanceInfo {
    /// Always `AxVM`.
    pub app_name: String,
    /// Name of the machine.
    pub id: String,
    /// What it does now.
    pub state: MachineState,
    /// Version of AxVM.
    pub vmm_version: String,
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MachineState {
    /// Between two starts of the guest: no vCPU exists.
    #[serde(rename = "Not started")]
    NotStarted,
    /// The vCPUs run.
    Running,
    /// Every vCPU and worker stands still.
    Paused,
}

/// `GET /version`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    /// The level of Firecracker's API that is spoken here.
    pub firecracker_version: String,
    /// Version of AxVM.
    pub axvm_version: String,
}

/// `GET /vm/config`: what the machine was built from.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct VmConfig {
    /// The kernel and what it is told.
    pub boot_source: BootSource,
    /// The disks, in the order of their names.
    pub drives: Vec<Drive>,
    /// CPUs and memory.
    pub machine_config: MachineConfig,
    /// The network cards, in the order of their names.
    #[serde(default)]
    pub network_interfaces: Vec<NetworkInterface>,
    /// The balloon, if there is one.
    pub balloon: Option<Balloon>,
    /// The entropy device, if there is one.
    pub entropy: Option<Entropy>,
    /// The socket device, if there is one.
    pub vsock: Option<Vsock>,
}

/// The kernel and what it is told.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// File of the kernel.
    #[serde(serialize_with = "readable")]
    pub kernel_image_path: PathBuf,
    /// File of the initial RAM disk.
    #[serde(serialize_with = "readable_if_any")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line.
    pub boot_args: Option<String>,
}

/// A disk.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Its name in the guest, such as `vda`.
    pub drive_id: String,
    /// The image.
    #[serde(serialize_with = "readable")]
    pub path_on_host: PathBuf,
    /// Whether the guest boots from it.
    pub is_root_device: bool,
    /// Whether writes are refused.
    pub is_read_only: bool,
    /// When a completed write is on the host's disk.
    pub cache_type: CacheType,
}

/// What may pass in a time; nothing is limited without a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Operations: requests of a disk, frames of a network card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// A bucket of a [`RateLimiter`]. Without a size or a refill time it limits nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Most tokens that it holds; and so many come in each refill time.
    pub size: u64,
    /// More tokens, once, which are used first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which it fills.
    pub refill_time: u64,
}

/// `PATCH /drives/{drive_id}`: other rates; or, without them, the disk's image is measured again.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveUpdate {
    /// Its name in the guest, such as `vda`.
    pub drive_id: String,
    /// The image; it must be the one that the disk has, and is measured again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// The buckets that change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// `PUT /drives/{drive_id}`: a disk that is added. Its image comes as a descriptor (SCM_RIGHTS) with the request.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDrive {
    /// The name that it gets: the lowest that is free.
    pub drive_id: String,
    /// The image, as people are told of it.
    #[serde(serialize_with = "readable")]
    pub path_on_host: PathBuf,
    /// Always false: the machine has been booted.
    #[serde(default)]
    pub is_root_device: bool,
    /// Whether writes are refused.
    #[serde(default)]
    pub is_read_only: bool,
    /// When a completed write is on the host's disk.
    #[serde(default)]
    pub cache_type: Option<CacheType>,
    /// What it may do in a time.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiter>,
    /// What the guest writes goes to a temporary file, the second descriptor (AxVM's own, as all that follows).
    #[serde(default)]
    pub is_ephemeral: bool,
    /// Past the host's page cache: the second descriptor is the image, opened with O_DIRECT.
    #[serde(default)]
    pub is_direct: bool,
    /// Serial number that the guest reads.
    #[serde(default)]
    pub serial: Option<String>,
    /// Logical block size in bytes: 512 if nothing is said.
    #[serde(default)]
    pub block_size: Option<u32>,
    /// The guest gets an I/O error when the host has no room; else the machine pauses.
    #[serde(default)]
    pub reports_full: bool,
    /// Queues.
    #[serde(default)]
    pub queues: Option<u16>,
}

/// `PUT /network-interfaces/{iface_id}`: a card that is added. Its cable comes as descriptors (SCM_RIGHTS) with the
/// request, one for each queue pair.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewNetwork {
    /// The name that it gets: the lowest that is free.
    pub iface_id: String,
    /// What its cable is plugged into, as people are told of it.
    pub host_dev_name: String,
    /// Its address; if nothing is said, the one that such a card always has in this machine.
    #[serde(default)]
    pub guest_mac: Option<String>,
    /// Largest packet, as the guest is told.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// How frames lie in the bytes of the descriptors: as in those of a tap if nothing is said (AxVM's own, as all that
    /// follows).
    #[serde(default)]
    pub cable: CableKind,
    /// What may come to the guest in a time.
    #[serde(default)]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// What the guest may send in a time.
    #[serde(default)]
    pub tx_rate_limiter: Option<RateLimiter>,
    /// What the cable offers beyond whole frames: `checksum`, `tso4`, `tso6`, `ecn`, `uso`.
    #[serde(default)]
    pub offloads: Vec<String>,
    /// Ports of the host that lead to the guest, as people are told of them.
    #[serde(default)]
    pub forwards: Vec<String>,
}

/// How frames lie in the bytes of a cable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CableKind {
    /// Each read is a frame behind a virtio header of 12 bytes: a tap.
    #[default]
    Tap,
    /// A length of four bytes, big-endian, before each frame.
    Stream,
    /// Each datagram is a frame.
    Datagram,
}

/// What became of a device that was added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Added {
    /// Its name, such as `vdb`.
    pub name: String,
    /// Where it is on the bus, such as `00:05.0`.
    pub place: String,
}

/// `DELETE /drives/{drive_id}`, `DELETE /network-interfaces/{iface_id}`: the guest is asked to let go; `GET /status` shows
/// when it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Removal {
    /// The name; that in the path, if it is missing.
    #[serde(default)]
    pub id: String,
    /// Take it away, whatever the guest says.
    #[serde(default)]
    pub force: bool,
}

/// When a completed write is on the host's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CacheType {
    /// Some time; the guest cannot flush.
    Unsafe,
    /// When the guest flushes.
    Writeback,
    /// At once (AxVM's own).
    Writethrough,
}

/// `GET /machine-config`: CPUs and memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// vCPUs.
    pub vcpu_count: u32,
    /// Guest RAM in MiB.
    pub mem_size_mib: u64,
    /// Whether vCPUs are told to be threads of a core.
    pub smt: bool,
    /// Always null: vCPUs are described otherwise here.
    pub cpu_template: Option<String>,
    /// Whether writes to RAM are recorded.
    pub track_dirty_pages: bool,
    /// Pages behind guest RAM.
    pub huge_pages: HugePages,
}

/// Pages behind guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HugePages {
    /// 4 KiB pages.
    #[default]
    None,
    /// Transparent huge pages.
    Transparent,
    /// hugetlbfs pages of 2 MiB.
    #[serde(rename = "2M")]
    Huge2M,
    /// hugetlbfs pages of 1 GiB (AxVM's own).
    #[serde(rename = "1G")]
    Huge1G,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkInterface {
    /// Its name, such as `net0`.
    pub iface_id: String,
    /// The tap; or in the words of `--net` what else its cable is plugged into, such as `user`.
    pub host_dev_name: String,
    /// Its address.
    pub guest_mac: Option<String>,
    /// Largest packet, as the guest is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

/// `PATCH /network-interfaces/{iface_id}`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkUpdate {
    /// Its name, such as `net0`.
    pub iface_id: String,
    /// Whether its cable is plugged in (AxVM's own).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<WantedLink>,
    /// The buckets that change, of frames for the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// The buckets that change, of frames of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// What a cable shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WantedLink {
    /// Plugged in.
    Up,
    /// Pulled.
    Down,
}

/// The socket device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's address.
    pub guest_cid: u32,
    /// The socket by which programs of the host connect to the guest; those that the guest connects to listen at the same
    /// path with `_PORT` after it.
    #[serde(serialize_with = "readable")]
    pub uds_path: PathBuf,
}

/// The entropy device has nothing to say.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Entropy {}

/// `GET /balloon`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// MiB that the guest is asked to give up.
    pub amount_mib: u32,
    /// Whether the guest takes pages back when it runs out of memory.
    pub deflate_on_oom: bool,
    /// Seconds between two reports about the guest's memory; 0: none.
    pub stats_polling_interval_s: u32,
    /// Whether the guest tells which pages it does not use.
    pub free_page_reporting: bool,
}

/// `PATCH /balloon`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// MiB that the guest is asked to give up.
    pub amount_mib: u32,
}

/// `GET /balloon/statistics`: the balloon, and what the guest last said about its memory (bytes, or counts of events).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BalloonStatistics {
    /// 4 KiB pages that the balloon should hold.
    pub target_pages: u64,
    /// 4 KiB pages that it holds.
    pub actual_pages: u64,
    /// The first in MiB.
    pub target_mib: u64,
    /// The second in MiB.
    pub actual_mib: u64,
    /// Bytes swapped in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    /// Page faults that needed the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Bytes used for nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    /// Bytes the guest knows of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// Bytes new programs could have without swapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    /// Bytes of file cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    /// Huge pages given out in the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages refused in the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
}

/// `PATCH /balloon/statistics`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StatisticsUpdate {
    /// Seconds between two reports about the guest's memory.
    pub stats_polling_interval_s: u32,
}

/// `PATCH /vm`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// What the machine shall do.
    pub state: WantedState,
}

/// What a machine shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WantedState {
    /// Stand still.
    Paused,
    /// Run on.
    Resumed,
}

/// `PUT /actions`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ActionRequest {
    /// What to do, once.
    pub action_type: Action,
}

/// Things to do once. The first three are Firecracker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// Asks the guest to power off; the same as `PowerButton`.
    SendCtrlAltDel,
    /// Nothing is held back here, so there is nothing to flush.
    FlushMetrics,
    /// Refused: a machine that answers is started.
    InstanceStart,
    /// Presses the power button.
    PowerButton,
    /// Gives the first vCPU a non-maskable interrupt, as the NMI button of a PC does.
    Nmi,
    /// Sends a BREAK on the serial port: Linux takes the next key as a SysRq.
    Break,
    /// Resets the machine.
    Reset,
    /// Ends the machine without asking the guest.
    Stop,
}

/// A rule of the virtio standard that a driver of the guest broke.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BrokenRule {
    /// Its name; it never changes.
    pub rule: String,
    /// `MUST`, or `text` where the standard only describes it.
    pub level: String,
    /// Name and version of the specification.
    pub specification: String,
    /// Number of the section there.
    pub section: String,
    /// Title of that section.
    pub title: String,
    /// What it asks for.
    pub clause: String,
    /// The device whose driver broke it first.
    pub device: String,
    /// What was seen then.
    pub seen: String,
    /// How often it was broken.
    pub count: u64,
}

/// `GET /status`: the machine at a glance.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Name of the machine.
    pub name: String,
    /// Process of the machine.
    pub pid: u32,
    /// What it does now.
    pub state: MachineState,
    /// Seconds since AxVM started it; a reset does not begin anew.
    pub uptime_s: f64,
    /// Seconds since it was paused, if it is.
    pub paused_s: Option<f64>,
    /// vCPUs.
    pub cpus: u32,
    /// Guest RAM.
    pub memory: Memory,
    /// The disks, in the order of their names.
    pub disks: Vec<Disk>,
    /// The network cards, in the order of their names.
    #[serde(default)]
    pub networks: Vec<NetworkStatus>,
    /// Every part of the machine and its place, in the order of the plan; none between two starts.
    pub parts: Vec<MachinePart>,
    /// The socket device, if there is one.
    #[serde(default)]
    pub vsock: Option<VsockStatus>,
    /// The slots of PCI where devices come and go, if there are some.
    #[serde(default)]
    pub slots: Option<SlotCount>,
    /// The socket of the port of the guest's agent, if there is one: an absolute path.
    #[serde(default, serialize_with = "readable_if_any")]
    pub agent_port: Option<PathBuf>,
    /// The rules of virtio that drivers broke, by name, if they are checked (`--virtio-check`).
    #[serde(default)]
    pub virtio_check: Option<Vec<BrokenRule>>,
    /// Threads with a request in the host, longest first; those of a moment come and go.
    pub busy: Vec<BusyThread>,
    /// How often vCPUs came back to AxVM.
    pub exits: Exits,
    /// Where the console is, such as `stdio`, `pty /dev/pts/3` or `none (hvc0 stdio)`.
    pub console: String,
    /// Version of AxVM.
    pub version: String,
}

/// Slots for devices that come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SlotCount {
    /// All of them.
    pub count: usize,
    /// Those that nothing is in.
    pub free: usize,
}

/// Guest RAM in bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// What the guest was given.
    pub size: u64,
    /// What the host holds of it now.
    pub resident: Resident,
}

/// Guest RAM that the host holds, in bytes, by the size of the pages behind it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Resident {
    /// In pages of 4 KiB.
    #[serde(rename = "4K")]
    pub small: u64,
    /// In pages of 2 MiB.
    #[serde(rename = "2M")]
    pub huge_2m: u64,
    /// In pages of 1 GiB.
    #[serde(rename = "1G")]
    pub huge_1g: u64,
}

impl Resident {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.small + self.huge_2m + self.huge_1g
    }
}

/// A disk at a glance.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Disk {
    /// Its name in the guest, such as `vda`.
    pub name: String,
    /// The image.
    #[serde(serialize_with = "readable")]
    pub path: PathBuf,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether what the guest writes is gone when AxVM ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
    /// Its size in bytes, as the guest is told.
    pub size: u64,
    /// What limits its requests, such as `10M/s:1000ops/s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// What waits for room on the host, if something does: the machine is paused, and tries again when it is resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<FullStorage>,
}

/// A request that the host has no room for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FullStorage {
    /// What is to be done, such as `write`.
    pub action: String,
    /// The file whose file system is full.
    #[serde(serialize_with = "readable")]
    pub path: PathBuf,
    /// What the host said.
    pub error: String,
    /// Bytes that are free there now; none for a block device.
    pub free: Option<u64>,
}

/// `GET /network-interfaces`: a network card at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkStatus {
    /// What it is.
    #[serde(flatten)]
    pub interface: NetworkInterface,
    /// What the guest sees of its cable.
    pub link: LinkState,
    /// How many queue pairs it has.
    pub queue_pairs: u16,
    /// What limits frames for the guest, such as `10M/s:1000ops/s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate: Option<String>,
    /// What limits frames of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate: Option<String>,
    /// Ports of the host that lead to the guest, such as `tcp:2222:22`.
    pub forwards: Vec<String>,
    /// Frames for the guest.
    pub to_guest: NetworkCount,
    /// Frames of the guest.
    pub from_guest: NetworkCount,
}

/// What a cable is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// Plugged in.
    Up,
    /// Pulled by the user.
    Down,
    /// Of no use any more: its other end has closed it.
    Ended,
}

/// Frames of one direction, since AxVM started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkCount {
    /// Frames that arrived.
    pub frames: u64,
    /// Bytes in these.
    pub bytes: u64,
    /// Frames that did not.
    pub dropped: u64,
}

/// `GET /vsock`: the socket device at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VsockStatus {
    /// The guest's address.
    pub guest_cid: u32,
    /// The socket by which programs of the host connect to the guest: an absolute path.
    #[serde(serialize_with = "readable")]
    pub uds_path: PathBuf,
    /// Connections that there are, those that are being made included.
    pub connections: usize,
}

/// A part of the machine.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MachinePart {
    /// Its name, such as `vda` or `COM1`.
    pub name: String,
    /// What it is, such as `virtio-blk` or `16550`.
    pub kind: String,
    /// Where its registers are, such as `ports 0x3f8-0x3ff` or `0xd0000000-0xd00001ff`.
    pub places: Vec<String>,
    /// Its interrupt line (GSI), if it has one.
    pub line: Option<u32>,
}

/// A thread that waits for the host.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BusyThread {
    /// Its name, such as `vda-q0`.
    pub thread: String,
    /// Seconds since its request began.
    pub seconds: f64,
}

/// How often vCPUs came back to AxVM.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Exits {
    /// Since the guest's last start, by vCPU.
    pub per_vcpu: Vec<u64>,
    /// Since the guest's last start, all vCPUs.
    pub total: u64,
    /// All vCPUs, a second, since the last question.
    pub per_second: f64,
}

/// JSON has no bytes that are not UTF-8; the path of a file may. Those are replaced, so that the rest can be said.
fn readable<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

fn readable_if_any<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_deref().map(Path::to_string_lossy).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_path_that_is_no_text_is_told_as_well_as_it_can_be() {
        let path = PathBuf::from(OsStr::from_bytes(b"/a\xff.img"));
        let boot = BootSource { kernel_image_path: path.clone(), initrd_path: Some(path), boot_args: None };
        let json = serde_json::to_value(&boot).unwrap();
        assert_eq!(
            (&json["kernel_image_path"], &json["initrd_path"]),
            (&"/a\u{fffd}.img".into(), &"/a\u{fffd}.img".into())
        );
    }
}
