//! The rules: what this machine needs and this guest lacks, how that will look, and what to do.
//!
//! ```text
//!   KernelFacts, InitrdFacts, Needs --every rule--> findings     what is unknown breaks no rule
//!
//!   a driver:        built in        module                       absent
//!     needed early   in time         in time if in the initrd     never      (consoles, the root's disk and file system)
//!     needed late    in time         on the root's disk, perhaps  never      (network, sockets)
//! ```
//!
//! Source: Linux Documentation/admin-guide/kernel-parameters.rst, `init/do_mounts.c`, `Kconfig` files.
//! Left out: what a guest can do without (entropy, balloon, panic notifier); what AxVM refuses itself (a kernel that needs
//! more RAM than there is, `init_size`; a place where no RAM is; an entry that it does not have).

use std::fmt;

use axvm_boot::acpi::Acpi;
use axvm_boot::linux::Entry;
use axvm_boot::plan::VirtioKind;
use serde::Serialize;

use super::facts::{KernelFacts, Presence};
use super::feature::{self, Feature};
use super::initrd::InitrdFacts;
use super::needs::{FileSystem, Needs};
use super::unpack::Format;

/// Without x2APIC 255 is the broadcast, so this is the last id.
const LAST_XAPIC_ID: u32 = 254;

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name here.
    pub rule: &'static str,
    /// What will happen, why, and what to do.
    pub message: String,
    /// What shows that the kernel is like this.
    pub evidence: String,
}

impl fmt::Display for Finding {
    /// One line: `root=/dev/vda will wait for ever: ...; add it, or use a kernel with CONFIG_VIRTIO_BLK=y (from ...)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (from {})", self.message, self.evidence)
    }
}

/// Everything that this machine needs and this guest lacks; none if all is there, or nothing is known.
pub fn lint(kernel: &KernelFacts, initrd: Option<&InitrdFacts>, machine: &Needs) -> Vec<Finding> {
    if !kernel.is_known() {
        return Vec::new();
    }
    let case = Case { kernel, initrd, machine };
    let finding =
        |&(rule, look): &Rule| Some(Finding { rule, message: look(&case)?, evidence: kernel.evidence().to_string() });
    RULES.iter().filter_map(finding).collect()
}

/// A name, and what says how it is broken, if it is.
type Rule = (&'static str, fn(&Case<'_>) -> Option<String>);

/// In the order in which a guest meets them.
const RULES: &[Rule] = &[
    ("command-line", command_line),
    ("pvh", pvh),
    ("serial-console", serial_console),
    ("virtio-console", virtio_console),
    ("acpi", acpi),
    ("smp", smp),
    ("cpu-count", cpu_count),
    ("mp-table", mp_table),
    ("x2apic", x2apic),
    ("kvm-clock", kvm_clock),
    ("initrd", initrd),
    ("initrd-format", initrd_format),
    ("virtio-bus", virtio_bus),
    ("virtio-words", virtio_words),
    ("messages", messages),
    ("virtio-blk", virtio_blk),
    ("root-file-system", root_file_system),
    ("root-by-uuid", root_by_uuid),
    ("devtmpfs", devtmpfs),
    ("devtmpfs-mount", devtmpfs_mount),
    ("virtio-net", virtio_net),
    ("vsock", vsock),
    ("agent-port", agent_port),
];

/// What is looked at.
struct Case<'a> {
    kernel: &'a KernelFacts,
    initrd: Option<&'a InitrdFacts>,
    machine: &'a Needs,
}

/// Why a driver is not there in time, and what to do.
struct Lack {
    why: String,
    remedy: String,
}

impl Case<'_> {
    fn is_absent(&self, feature: &Feature) -> bool {
        self.kernel.has(feature).presence == Presence::Absent
    }

    /// A sentence if this is not in the kernel at all.
    fn absent(&self, feature: &Feature, sentence: impl FnOnce() -> String) -> Option<String> {
        self.is_absent(feature).then(sentence)
    }

    /// Why a driver is not there before the root is mounted.
    fn lacks_early(&self, feature: &Feature) -> Option<Lack> {
        let option = feature.option;
        let module = feature.module?;
        let in_initrd = match (self.machine.has_initrd, self.initrd) {
            (false, _) => Some(false),
            (true, Some(initrd)) => initrd.has(module),
            (true, None) => None,
        };
        if in_initrd != Some(false) {
            return None;
        }
        let (why, remedy) = match (self.kernel.has(feature).presence, self.machine.has_initrd) {
            (Presence::BuiltIn | Presence::Unknown, _) => return None,
            (Presence::Absent, _) => {
                (format!("this kernel was built without {module}"), format!("use a kernel with CONFIG_{option}=y"))
            }
            (Presence::Module, true) => (
                format!("{module} is a module in this kernel and the initrd has no {module}.ko"),
                format!("add it, or use a kernel with CONFIG_{option}=y"),
            ),
            (Presence::NotBuiltIn, true) => (
                format!("{module} is not built into this kernel and the initrd has no {module}.ko"),
                format!("add it, or use a kernel with CONFIG_{option}=y"),
            ),
            (Presence::Module, false) => (
                format!("{module} is a module in this kernel and there is no initrd that loads it"),
                format!("give an initrd with {module}.ko, or use a kernel with CONFIG_{option}=y"),
            ),
            (Presence::NotBuiltIn, false) => (
                format!("{module} is not built into this kernel and there is no initrd that loads it"),
                format!("give an initrd with {module}.ko, or use a kernel with CONFIG_{option}=y"),
            ),
        };
        Some(Lack { why, remedy })
    }

    /// Why a driver is never there: a module may be on the root's disk, if there is a disk.
    fn lacks_late(&self, feature: &Feature) -> Option<Lack> {
        let may_be_on_disk = self.machine.disks() > 0 && !self.is_absent(feature);
        if may_be_on_disk { None } else { self.lacks_early(feature) }
    }

    /// Devices that a guest misses, by name; none if it has only those that it can do without.
    fn missed(&self) -> Option<String> {
        let is_missed = |kind: &&VirtioKind| !matches!(kind, VirtioKind::Entropy | VirtioKind::Balloon);
        let names: Vec<String> = self.machine.devices.iter().filter(is_missed).map(|kind| kind.name()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// The root on a virtio disk, if the command line names one.
    fn root_disk(&self) -> Option<&str> {
        self.machine.word("root").filter(|root| root.starts_with("/dev/vd"))
    }

    /// How it looks when the root does not appear.
    fn in_vain(&self) -> &'static str {
        let waits = self.machine.has_initrd || self.machine.command_line.contains("rootwait");
        if waits { "will wait for ever" } else { "will end in a panic (\"Unable to mount root fs\")" }
    }
}

fn command_line(case: &Case<'_>) -> Option<String> {
    (case.kernel.has(&feature::CMDLINE_OVERRIDE).presence == Presence::BuiltIn).then(|| {
        "the kernel will not read this machine's command line: it has one of its own instead (CONFIG_CMDLINE_OVERRIDE=y); \
         what it needs must be in that, or use a kernel without that option"
            .into()
    })
}

fn pvh(case: &Case<'_>) -> Option<String> {
    let asked = case.machine.entry == Some(Entry::Pvh);
    asked.then(|| case.absent(&feature::PVH, || {
        "--entry pvh will not work: this kernel has no such entry; leave --entry out, or use a kernel with CONFIG_PVH=y".into()
    }))?
}

fn serial_console(case: &Case<'_>) -> Option<String> {
    let mut consoles = case.machine.words("console");
    let serial = case.machine.words("console").find(|device| device.starts_with("ttyS"))?;
    if !case.machine.serial_is_shown || consoles.any(|device| !device.starts_with("ttyS")) {
        return None;
    }
    let presence = case.kernel.has(&feature::SERIAL).presence;
    let no_driver = matches!(presence, Presence::Absent | Presence::Module | Presence::NotBuiltIn);
    (no_driver || case.is_absent(&feature::SERIAL_CONSOLE)).then(|| {
        format!(
            "console={serial} will show nothing: this kernel has no console on the serial port; \
             say --virtio-console stdio if it has virtio_console, or use a kernel with CONFIG_SERIAL_8250_CONSOLE=y"
        )
    })
}

fn virtio_console(case: &Case<'_>) -> Option<String> {
    if !case.machine.has(VirtioKind::Console) {
        return None;
    }
    let is_kernels = case.machine.words("console").any(|device| device.starts_with("hvc"));
    let lack = if is_kernels { case.lacks_early(&feature::CONSOLE) } else { case.lacks_late(&feature::CONSOLE) };
    lack.map(|Lack { why, remedy }| match is_kernels {
        true => format!("console=hvc0 will show nothing: {why}; {remedy}"),
        false => format!("hvc0 will show nothing: {why}; {remedy}"),
    })
}

fn acpi(case: &Case<'_>) -> Option<String> {
    let missed = case.missed().filter(|_| case.machine.acpi.has_devices() && !case.machine.on_pci)?;
    case.absent(&feature::ACPI, || {
        format!(
            "{missed} will not be found: only the ACPI tables tell of them, and this kernel reads none; \
             say --acpi off, or use a kernel with CONFIG_ACPI=y"
        )
    })
}

fn smp(case: &Case<'_>) -> Option<String> {
    let count = Some(case.machine.vcpus).filter(|&count| count > 1)?;
    case.absent(&feature::SMP, || {
        format!(
            "1 of {count} vCPUs will run: this kernel is made for one processor; \
             say --cpus 1, or use a kernel with CONFIG_SMP=y"
        )
    })
}

fn cpu_count(case: &Case<'_>) -> Option<String> {
    let count = case.machine.vcpus;
    let most =
        case.kernel.number("NR_CPUS").filter(|&most| (1..count).contains(&most) && !case.is_absent(&feature::SMP))?;
    Some(format!(
        "{most} of {count} vCPUs will run: this kernel has no room for more; \
         say --cpus {most}, or use a kernel with CONFIG_NR_CPUS={count} or more"
    ))
}

fn mp_table(case: &Case<'_>) -> Option<String> {
    let count = Some(case.machine.vcpus).filter(|&count| count > 1 && !case.machine.acpi.has_tables())?;
    case.absent(&feature::MPPARSE, || {
        format!(
            "1 of {count} vCPUs will run: without ACPI they are in the MP table, which this kernel does not read; \
             say --acpi cpus, or use a kernel with CONFIG_X86_MPPARSE=y"
        )
    })
}

fn x2apic(case: &Case<'_>) -> Option<String> {
    let last = Some(case.machine.last_apic_id).filter(|&last| last > LAST_XAPIC_ID)?;
    case.absent(&feature::X2APIC, || {
        format!(
            "vCPUs with APIC ids above {LAST_XAPIC_ID} will not run (the last has {last}): this kernel has no x2APIC; \
             say fewer --cpus, or use a kernel with CONFIG_X86_X2APIC=y"
        )
    })
}

fn kvm_clock(case: &Case<'_>) -> Option<String> {
    case.absent(&feature::KVM_GUEST, || {
        "the guest's time will be less exact, and its start slower: this kernel does not read KVM's clock and measures \
         the processor's instead; use a kernel with CONFIG_KVM_GUEST=y"
            .into()
    })
}

fn initrd(case: &Case<'_>) -> Option<String> {
    case.machine.has_initrd.then(|| {
        case.absent(&feature::INITRD, || {
            "the initrd will be ignored: this kernel takes none; use a kernel with CONFIG_BLK_DEV_INITRD=y".into()
        })
    })?
}

/// The option that unpacks an initrd of a format.
fn unpacks(format: Format) -> &'static Feature {
    match format {
        Format::Gzip => &feature::RD_GZIP,
        Format::Bzip2 => &feature::RD_BZIP2,
        Format::Lzma => &feature::RD_LZMA,
        Format::Xz => &feature::RD_XZ,
        Format::Lzo => &feature::RD_LZO,
        Format::Lz4 => &feature::RD_LZ4,
        Format::Zstd => &feature::RD_ZSTD,
    }
}

fn initrd_format(case: &Case<'_>) -> Option<String> {
    let is_wrong = |format: &&Format| case.is_absent(unpacks(**format)) && !case.is_absent(&feature::INITRD);
    let format = case.initrd?.packed.iter().find(is_wrong)?;
    let others = Format::ALL.into_iter().filter(|&other| case.kernel.has(unpacks(other)).presence == Presence::BuiltIn);
    let others: Vec<String> = others.map(|format| format.to_string()).collect();
    let others = if others.is_empty() { String::new() } else { format!(", or pack it by {}", others.join(" or ")) };
    Some(format!(
        "the initrd will not be unpacked (\"Initramfs unpacking failed\"): it is packed by {format}, which this kernel \
         does not know; do not pack it{others}, or use a kernel with CONFIG_{}=y",
        unpacks(*format).option
    ))
}

fn virtio_bus(case: &Case<'_>) -> Option<String> {
    let missed = case.missed()?;
    let (bus, other, word) = match case.machine.on_pci {
        true => (&feature::VIRTIO_PCI, &feature::MMIO, "mmio"),
        false => (&feature::MMIO, &feature::VIRTIO_PCI, "pci"),
    };
    let is_early = case.machine.disks() > 0 || case.machine.has(VirtioKind::Console);
    let lack = if is_early { case.lacks_early(bus) } else { case.lacks_late(bus) };
    let built_without = || case.machine.on_pci && case.is_absent(&feature::PCI);
    let lack = lack.or_else(|| {
        built_without().then(|| Lack {
            why: "this kernel was built without PCI".into(),
            remedy: "use a kernel with CONFIG_PCI=y".into(),
        })
    });
    let Lack { why, remedy } = lack?;
    let has_other = case.kernel.has(other).presence == Presence::BuiltIn;
    let other = if has_other { format!(", or say --bus {word}") } else { String::new() };
    Some(format!("{missed} will not be found: {why}; {remedy}{other}"))
}

fn virtio_words(case: &Case<'_>) -> Option<String> {
    let missed = case.missed().filter(|_| !case.machine.acpi.has_devices() && !case.machine.on_pci)?;
    // As a module it has the name for the words in it, and not in the image.
    let in_module = case.kernel.has(&feature::MMIO).presence == Presence::NotBuiltIn;
    let full = if case.machine.acpi == Acpi::Cpus { "--acpi full" } else { "--acpi full or --bus pci" };
    (!in_module).then(|| {
        case.absent(&feature::MMIO_WORDS, || {
            format!(
                "{missed} will not be found: without ACPI the command line tells of them (virtio_mmio.device=), and this \
                 kernel does not read such words; say {full}, or use a kernel with CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y"
            )
        })
    })?
}

fn messages(case: &Case<'_>) -> Option<String> {
    let missed = case.missed().filter(|_| case.machine.on_pci && !case.is_absent(&feature::PCI))?;
    case.absent(&feature::PCI_MSI, || {
        format!(
            "{missed} will not work: on PCI they have interrupts as messages only, which this kernel does not take; \
             say --bus mmio, or use a kernel with CONFIG_PCI_MSI=y"
        )
    })
}

fn virtio_blk(case: &Case<'_>) -> Option<String> {
    if case.machine.disks() == 0 {
        return None;
    }
    match case.root_disk() {
        Some(root) => {
            let Lack { why, remedy } = case.lacks_early(&feature::BLOCK)?;
            Some(format!("root={root} {}: {why}; {remedy}", case.in_vain()))
        }
        None => {
            let Lack { why, remedy } = case.lacks_late(&feature::BLOCK)?;
            Some(format!("the disks will not appear: {why}; {remedy}"))
        }
    }
}

fn root_file_system(case: &Case<'_>) -> Option<String> {
    let root = case.root_disk()?;
    let found = || case.machine.first_disk.filter(|_| root == "/dev/vda");
    let said = case.machine.word("rootfstype").map(|names| names.split(',').find_map(FileSystem::named));
    let FileSystem { name, driver } = said.unwrap_or_else(found)?;
    let Lack { why, remedy } = case.lacks_early(driver)?;
    Some(format!("root={root} will not be mounted: it holds {name}, and {why}; {remedy}"))
}

fn root_by_uuid(case: &Case<'_>) -> Option<String> {
    let root = case.machine.word("root").filter(|_| !case.machine.has_initrd)?;
    (root.starts_with("UUID=") || root.starts_with("LABEL=")).then(|| {
        format!(
            "root={root} {}: only an initrd finds it, the kernel itself knows PARTUUID= and PARTLABEL=; \
             give the initrd, or say root=/dev/vda",
            case.in_vain()
        )
    })
}

fn devtmpfs(case: &Case<'_>) -> Option<String> {
    case.absent(&feature::DEVTMPFS, || {
        "/dev will be empty, and most inits stop for want of /dev/console: this kernel makes no device files; \
         use a kernel with CONFIG_DEVTMPFS=y"
            .into()
    })
}

fn devtmpfs_mount(case: &Case<'_>) -> Option<String> {
    let alone = !case.machine.has_initrd && !case.is_absent(&feature::DEVTMPFS);
    alone.then(|| {
        case.absent(&feature::DEVTMPFS_MOUNT, || {
            "init will start with the /dev that is on the disk, which often is empty (\"unable to open an initial \
             console\"): this kernel does not mount devtmpfs itself; use an initrd, or a kernel with \
             CONFIG_DEVTMPFS_MOUNT=y"
                .into()
        })
    })?
}

fn virtio_net(case: &Case<'_>) -> Option<String> {
    let names: Vec<String> = (0..case.machine.nets()).map(|number| format!("net{number}")).collect();
    if names.is_empty() {
        return None;
    }
    let Lack { why, remedy } = case.lacks_late(&feature::NET)?;
    Some(format!("{} will not appear in the guest: {why}; {remedy}", names.join(", ")))
}

fn vsock(case: &Case<'_>) -> Option<String> {
    let lack = case.machine.has(VirtioKind::Vsock).then(|| case.lacks_late(&feature::VSOCK))?;
    lack.map(|Lack { why, remedy }| format!("no program of the guest will have a vsock: {why}; {remedy}"))
}

fn agent_port(case: &Case<'_>) -> Option<String> {
    let lack = case.machine.has(VirtioKind::AgentPort).then(|| case.lacks_late(&feature::CONSOLE))?;
    lack.map(|Lack { why, remedy }| format!("the guest's agent will not find its port: {why}; {remedy}"))
}

#[cfg(test)]
mod tests;
