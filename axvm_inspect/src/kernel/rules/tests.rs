//! Each rule is broken once, and a complete guest breaks none.

use std::collections::BTreeSet;

use axvm_boot::plan::Plan;

use super::super::config::BuildConfig;
use super::super::facts::Evidence;
use super::super::feature::ALL;
use super::*;

const DEVICES: [VirtioKind; 6] = [
    VirtioKind::Block(0),
    VirtioKind::Entropy,
    VirtioKind::Console,
    VirtioKind::Net(0),
    VirtioKind::Vsock,
    VirtioKind::AgentPort,
];
const LINE: &str = "console=ttyS0 root=/dev/vda rw";

/// A guest, and a machine for it; each test takes something away.
#[derive(Clone)]
struct Guest {
    /// Options that are not as in the complete kernel.
    options: Vec<(&'static str, &'static str)>,
    initrd: Option<InitrdFacts>,
    machine: Needs,
}

fn machine(on_pci: bool, acpi: Acpi, line: &str) -> Needs {
    let plan = if on_pci { Plan::on_pci(&DEVICES, acpi, 1 << 30) } else { Plan::new(&DEVICES, acpi) };
    Needs::of(&plan.unwrap(), &[0, 1, 2, 3], line)
}

impl Guest {
    /// Nothing is missing, and all is asked for.
    fn complete(on_pci: bool, acpi: Acpi, line: &str) -> Guest {
        Guest { options: Vec::new(), initrd: None, machine: machine(on_pci, acpi, line) }
    }

    fn usual() -> Guest {
        Guest::complete(false, Acpi::Full, LINE)
    }

    fn pci() -> Guest {
        Guest::complete(true, Acpi::Full, LINE)
    }

    /// An option is set to something else; `n`: not set.
    fn with(mut self, option: &'static str, value: &'static str) -> Guest {
        self.options.push((option, value));
        self
    }

    fn initrd(mut self, modules: &[&str]) -> Guest {
        let modules = modules.iter().map(|&module| module.to_owned()).collect();
        self.initrd = Some(InitrdFacts { modules, packed: BTreeSet::from([Format::Zstd]), ..InitrdFacts::default() });
        self.machine.has_initrd = true;
        self
    }

    fn machine(mut self, change: impl FnOnce(&mut Needs)) -> Guest {
        change(&mut self.machine);
        self
    }

    fn kernel(&self) -> KernelFacts {
        let set = |option: &str| match self.options.iter().find(|(name, _)| *name == option) {
            Some((_, value)) => *value,
            None if option == "CMDLINE_OVERRIDE" => "n",
            None => "y",
        };
        let options = ALL.iter().map(|feature| (feature.option, set(feature.option)));
        let count = self.options.iter().find(|(name, _)| *name == "NR_CPUS").map_or("64", |(_, value)| value);
        let all = options.chain([("X86_64", "y"), ("NR_CPUS", count)]).filter(|(_, value)| *value != "n");
        let text: String = all.map(|(option, value)| format!("CONFIG_{option}={value}\n")).collect();
        KernelFacts::of_config(BuildConfig::parse(&text).unwrap(), Evidence::Config("config-9.9.9".into()))
    }

    fn findings(&self) -> Vec<Finding> {
        lint(&self.kernel(), self.initrd.as_ref(), &self.machine)
    }

    /// The names of the broken rules, and the first finding.
    fn broken(&self) -> (Vec<&'static str>, String) {
        let findings = self.findings();
        let first = findings.first().map(Finding::to_string).unwrap_or_default();
        (findings.iter().map(|finding| finding.rule).collect(), first)
    }
}

#[test]
fn a_complete_guest_breaks_no_rule() {
    for (on_pci, acpi) in
        [(false, Acpi::Full), (false, Acpi::Cpus), (false, Acpi::Off), (true, Acpi::Full), (true, Acpi::Off)]
    {
        for line in [LINE, "console=hvc0 root=/dev/vda", "quiet", "root=PARTUUID=1-1 rootfstype=xfs"] {
            let guest = Guest::complete(on_pci, acpi, line).machine(|machine| {
                (machine.entry, machine.last_apic_id) = (Some(Entry::Pvh), 1000);
                machine.first_disk = FileSystem::named("ext4");
            });
            assert_eq!(guest.findings(), [], "{on_pci} {acpi} {line}");
            assert_eq!(guest.initrd(&[]).findings(), [], "{on_pci} {acpi} {line}, with an initrd");
        }
    }
}

/// For each rule: who breaks it, and words of what is said.
fn crippled() -> Vec<(&'static str, Guest, &'static str)> {
    let line = |line: &str| Guest::complete(false, Acpi::Full, line);
    vec![
        ("command-line", Guest::usual().with("CMDLINE_OVERRIDE", "y"), "will not read this machine's command line"),
        (
            "pvh",
            Guest::usual().with("PVH", "n").machine(|machine| machine.entry = Some(Entry::Pvh)),
            "--entry pvh will",
        ),
        ("serial-console", Guest::usual().with("SERIAL_8250_CONSOLE", "n"), "console=ttyS0 will show nothing"),
        (
            "serial-console",
            Guest::usual().with("SERIAL_8250", "m").initrd(&["8250"]),
            "console=ttyS0 will show nothing",
        ),
        (
            "virtio-console",
            line("console=hvc0").with("VIRTIO_CONSOLE", "m").initrd(&[]),
            "console=hvc0 will show nothing",
        ),
        ("acpi", Guest::usual().with("ACPI", "n"), "say --acpi off"),
        ("smp", Guest::usual().with("SMP", "n"), "1 of 4 vCPUs"),
        ("cpu-count", Guest::usual().with("NR_CPUS", "3"), "3 of 4 vCPUs"),
        ("mp-table", Guest::complete(false, Acpi::Off, LINE).with("X86_MPPARSE", "n"), "say --acpi cpus"),
        (
            "x2apic",
            Guest::usual().with("X86_X2APIC", "n").machine(|machine| machine.last_apic_id = 255),
            "above 254 will not run (the last has 255)",
        ),
        ("kvm-clock", Guest::usual().with("KVM_GUEST", "n"), "does not read KVM's clock"),
        ("initrd", Guest::usual().with("BLK_DEV_INITRD", "n").initrd(&[]), "the initrd will be ignored"),
        ("initrd-format", Guest::usual().with("RD_ZSTD", "n").initrd(&[]), "packed by zstd"),
        ("virtio-bus", Guest::usual().with("VIRTIO_MMIO", "m").initrd(&[]), "the initrd has no virtio_mmio.ko"),
        ("virtio-bus", Guest::usual().with("VIRTIO_MMIO", "n"), "built without virtio_mmio"),
        ("virtio-bus", Guest::pci().with("VIRTIO_PCI", "m"), "no initrd that loads it"),
        ("virtio-bus", Guest::pci().with("PCI", "n"), "built without PCI"),
        (
            "virtio-words",
            Guest::complete(false, Acpi::Cpus, LINE).with("VIRTIO_MMIO_CMDLINE_DEVICES", "n"),
            "virtio_mmio.device=",
        ),
        ("messages", Guest::pci().with("PCI_MSI", "n"), "say --bus mmio"),
        (
            "virtio-blk",
            Guest::usual().with("VIRTIO_BLK", "m").initrd(&["virtio_mmio"]),
            "root=/dev/vda will wait for ever: virtio_blk is a module in this kernel and the initrd has no virtio_blk.ko; \
             add it, or use a kernel with CONFIG_VIRTIO_BLK=y (from config-9.9.9)",
        ),
        ("virtio-blk", Guest::usual().with("VIRTIO_BLK", "m"), "root=/dev/vda will end in a panic"),
        ("virtio-blk", line("quiet").with("VIRTIO_BLK", "n"), "the disks will not appear"),
        (
            "root-file-system",
            Guest::usual()
                .with("XFS_FS", "m")
                .initrd(&[])
                .machine(|machine| machine.first_disk = FileSystem::named("xfs")),
            "it holds xfs, and xfs is a module in this kernel and the initrd has no xfs.ko",
        ),
        (
            "root-file-system",
            line("root=/dev/vdb1 rootfstype=btrfs").with("BTRFS_FS", "n"),
            "root=/dev/vdb1 will not be mounted",
        ),
        ("root-by-uuid", line("root=UUID=1-2"), "only an initrd finds it"),
        ("devtmpfs", Guest::usual().with("DEVTMPFS", "n"), "/dev will be empty"),
        ("devtmpfs-mount", Guest::usual().with("DEVTMPFS_MOUNT", "n"), "unable to open an initial console"),
        ("virtio-net", Guest::usual().with("VIRTIO_NET", "n"), "net0 will not appear"),
        ("vsock", Guest::usual().with("VIRTIO_VSOCKETS", "n"), "built without vmw_vsock_virtio_transport"),
        (
            "agent-port",
            Guest::usual()
                .with("VIRTIO_CONSOLE", "n")
                .machine(|machine| machine.devices.retain(|kind| *kind != VirtioKind::Console)),
            "agent will not find its port",
        ),
    ]
}

#[test]
fn each_rule_is_broken_by_what_it_is_about_and_by_nothing_else() {
    let cases = crippled();
    for (rule, guest, words) in &cases {
        let (broken, first) = guest.broken();
        // One driver serves the console and the agent's port.
        let others = broken.iter().filter(|broken| *broken != rule && **broken != "agent-port").count();
        assert!(broken.contains(rule) && others == 0 && first.contains(words), "{rule}: {broken:?}: {first}");
    }
    for (rule, _) in RULES {
        assert!(cases.iter().any(|(name, ..)| name == rule), "{rule} has no case");
    }
}

#[test]
fn a_module_is_in_time_in_the_initrd_and_late_ones_may_be_on_the_disk() {
    let early = Guest::usual().with("VIRTIO_BLK", "m").with("VIRTIO_MMIO", "m").initrd(&["virtio_blk", "virtio_mmio"]);
    assert_eq!(early.findings(), []);
    let late = Guest::usual().with("VIRTIO_NET", "m").with("VIRTIO_VSOCKETS", "m").with("VIRTIO_CONSOLE", "m");
    assert_eq!(late.findings(), []);
    let no_disk = late.machine(|machine| machine.devices.retain(|kind| *kind != VirtioKind::Block(0)));
    assert_eq!(no_disk.broken().0, ["virtio-console", "virtio-net", "vsock", "agent-port"]);
    // A module from elsewhere may be in an initrd.
    assert_eq!(Guest::usual().with("VIRTIO_BLK", "n").initrd(&["virtio_blk"]).findings(), []);
}

#[test]
fn what_is_unknown_breaks_no_rule() {
    let mut guest = Guest::usual().with("VIRTIO_BLK", "m").initrd(&[]);
    guest.initrd.as_mut().unwrap().unread = Some("it is damaged".into());
    assert_eq!(guest.findings(), []);
    guest.initrd = None;
    assert_eq!(guest.findings(), [], "there is one, and it was not opened");
    assert_eq!(lint(&KernelFacts::unknown("no kernel"), None, &Guest::usual().machine), []);
}

#[test]
fn a_console_that_goes_nowhere_or_has_another_beside_it_is_not_missed() {
    let guest = |line: &str| Guest::complete(false, Acpi::Full, line).with("SERIAL_8250", "n");
    assert_eq!(guest("console=ttyS0 console=hvc0 root=/dev/vda").findings(), []);
    assert_eq!(guest(LINE).machine(|machine| machine.serial_is_shown = false).findings(), []);
    assert_eq!(guest(LINE).broken().0, ["serial-console"]);
}
