//! Who is measured: AxVM, the floor, and its peers; each with the command that gives the same machine.
//!
//! | | runs |
//! |---|---|
//! | AxVM | `cargo xtask build`'s program, sandbox on, as a user types it |
//! | AxVM PCI | the same with `--bus pci`, where the bus matters |
//! | floor | `axvm_kvm/examples/floor.rs`: only the calls that the guest needs; no disk, no sandbox |
//! | Firecracker | no API server, its seccomp filters on, disk by its synchronous engine |
//! | Cloud Hypervisor | its seccomp filters on, disk on PCI by io_uring |
//! | QEMU | microvm with what it can leave out left out; disk by io_uring |
//!
//! In tables they stand in this order. Left out: kvmtool, which enters no ELF kernel by PVH.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use super::net::{MAC, TAP};
use crate::tool::{find, output, tool};

/// A program that runs machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Ours.
    Axvm,
    /// Ours, its devices on PCI.
    AxvmPci,
    /// The least that a VMM can do.
    Floor,
    /// AWS's.
    Firecracker,
    /// Of the Linux Foundation; 51 or newer, for a raw disk has to be called that.
    CloudHypervisor,
    /// Its microvm.
    Qemu,
}

/// A peer as the command line names it: `qemu`, `firecracker=PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Which.
    pub kind: Kind,
    /// Where it is; without, in the PATH.
    pub path: Option<PathBuf>,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Peer, String> {
        let (name, path) = match text.split_once('=') {
            Some((name, path)) if !path.is_empty() => (name, Some(PathBuf::from(path))),
            Some((name, _)) => return Err(format!("{name}= has no path behind it")),
            None => (text, None),
        };
        let kind = match name {
            "firecracker" => Kind::Firecracker,
            "qemu" => Kind::Qemu,
            "kvmtool" => return Err("kvmtool enters no ELF kernel by PVH, as the bench guest is".to_owned()),
            "cloud-hypervisor" => Kind::CloudHypervisor,
            _ => return Err(format!("there is no peer {name}. There are: firecracker, cloud-hypervisor, qemu")),
        };
        Ok(Peer { kind, path })
    }
}

/// A machine, the same for each subject.
#[derive(Debug, Clone)]
pub struct Machine {
    /// ELF with PVH entry, or a bzImage.
    pub kernel: PathBuf,
    /// Size of RAM.
    pub memory_mib: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Its disk.
    pub disk: Disk,
    /// Whether it has a network card, on the tap of [`super::net`].
    pub net: bool,
    /// Where it is recorded, if it is AxVM and recorded at all.
    pub trace: Option<PathBuf>,
}

/// The disk of a machine.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Raw.
    pub path: PathBuf,
    /// Number of queues.
    pub queues: u32,
    /// Past the host's page cache, by io_uring, if the VMM can.
    pub direct: bool,
}

/// A program that is there.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Which.
    pub kind: Kind,
    /// The program.
    pub path: PathBuf,
    /// As it calls itself.
    pub version: String,
}

impl Subject {
    /// A peer, if it is there and starts. One that was named must be.
    pub fn find(peer: &Peer) -> Result<Subject> {
        let program = match peer.kind {
            Kind::Qemu => "qemu-system-x86_64",
            Kind::CloudHypervisor => "cloud-hypervisor",
            _ => "firecracker",
        };
        let path = peer.path.clone().or_else(|| find(program));
        let path = path.with_context(|| format!("Cannot find {program}. Say where it is: --vs NAME=PATH"))?;
        ensure!(path.is_file(), "Cannot measure {}: it is no file", path.display());
        Subject::of(peer.kind, fs::canonicalize(&path).unwrap_or(path))
    }

    /// A program, asked for its version.
    pub fn of(kind: Kind, path: PathBuf) -> Result<Subject> {
        let version = match kind {
            Kind::Floor => String::new(),
            // With its commit.
            Kind::Axvm | Kind::AxvmPci => {
                output(tool(&path.to_string_lossy()).arg("--version"))?.trim().replacen("axvm ", "", 1)
            }
            _ => version(&output(tool(&path.to_string_lossy()).arg("--version"))?),
        };
        Ok(Subject { kind, path, version })
    }

    /// For tables.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Axvm => "AxVM",
            Kind::AxvmPci => "AxVM PCI",
            Kind::Floor => "floor",
            Kind::Firecracker => "Firecracker",
            Kind::CloudHypervisor => "Cloud Hypervisor",
            Kind::Qemu => "QEMU microvm",
        }
    }

    /// What was chosen for it, to be fair.
    pub fn configuration(&self) -> &'static str {
        match self.kind {
            Kind::AxvmPci => "the same with --bus pci",
            Kind::Axvm => {
                "static release build; sandbox on; full machine (serial, ACPI, RTC, entropy, balloon, disk; cold: direct, io_uring)"
            }
            Kind::Floor => "static release build; RAM, irqchip, vCPUs; no disk, no PIT, no sandbox",
            Kind::Firecracker => {
                "no API server, seccomp filters on, no jailer; serial, i8042, disk (Sync engine; cold: Async)"
            }
            Kind::CloudHypervisor => "seccomp filters on, no Landlock; serial, PCI, disk (io_uring; cold: direct=on)",
            Kind::Qemu => {
                "microvm, pit=off, pic=off, rtc=off, acpi=off, no option ROMs; serial, disk (virtio 1, io_uring; cold: cache=none), no sandbox"
            }
        }
    }

    /// The floor has none.
    pub fn has_disk(&self) -> bool {
        self.kind != Kind::Floor
    }

    /// Whether it is measured with `--trace`, too.
    pub fn is_recorded(&self) -> bool {
        self.kind == Kind::Axvm
    }

    /// Whether it boots bzImages here.
    pub fn takes_bzimage(&self) -> bool {
        self.kind == Kind::Axvm
    }

    /// Whether it gives a disk more than one queue.
    pub fn has_queues(&self) -> bool {
        !matches!(self.kind, Kind::Floor | Kind::Firecracker)
    }

    /// Whether it stands for itself: where the bus does not matter, AxVM on PCI is AxVM.
    pub fn is_itself(&self) -> bool {
        self.kind != Kind::AxvmPci
    }

    /// The command for this machine; files that it needs go to `scratch`.
    pub fn command(&self, machine: &Machine, scratch: &Path) -> Result<Command> {
        let mut command = Command::new(&self.path);
        let Machine { kernel, memory_mib, vcpus, disk, net, trace } = machine;
        let path = disk.path.display();
        match self.kind {
            Kind::Axvm | Kind::AxvmPci => {
                command
                    .args(["run", "--on-reboot", "end", "--on-halt", "wait", "--silence", "0", "--kernel"])
                    .arg(kernel);
                let options = if disk.direct { ",direct,engine=io_uring" } else { "" };
                let disk = format!("{path},queues={}{options}", disk.queues);
                command.args(["--cpus", &vcpus.to_string(), "--memory", &format!("{memory_mib}M"), "--disk", &disk]);
                if *net {
                    command.args(["--net", &format!("tap={TAP},mac={MAC}")]);
                }
                if let Some(file) = trace {
                    command.arg("--trace").arg(file);
                }
                if self.kind == Kind::AxvmPci {
                    command.args(["--bus", "pci"]);
                }
            }
            Kind::Floor => {
                command.arg(kernel).args([memory_mib.to_string(), vcpus.to_string()]);
            }
            Kind::Firecracker => {
                let file = scratch.join("firecracker.json");
                let text = firecracker(machine).to_string();
                fs::write(&file, text).with_context(|| format!("Cannot write {}", file.display()))?;
                command.args(["--no-api", "--level", "Error", "--config-file"]).arg(file);
            }
            Kind::CloudHypervisor => {
                command.arg("--kernel").arg(kernel).args(["--cmdline", "bench", "--serial", "tty", "--console", "off"]);
                command.args(["--cpus", &format!("boot={vcpus}"), "--memory", &format!("size={memory_mib}M")]);
                let direct = if disk.direct { ",direct=on" } else { "" };
                let disk = format!("path={path},image_type=raw,num_queues={},queue_size=256{direct}", disk.queues);
                command.args(["--disk", &disk]);
                if *net {
                    command.args(["--net", &format!("tap={TAP},mac={MAC}")]);
                }
            }
            Kind::Qemu => {
                command.args([
                    "-M",
                    "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=off,acpi=off",
                    "-cpu",
                    "host",
                ]);
                command.args(["-m", &memory_mib.to_string(), "-smp", &vcpus.to_string(), "-kernel"]).arg(kernel);
                command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
                // So that the command line names the disk's window, and vCPU threads have names.
                command.args(["-append", "bench", "-name", "bench,debug-threads=on"]);
                let device = format!("virtio-blk-device,drive=d,num-queues={}", disk.queues);
                command.args(["-global", "virtio-mmio.force-legacy=false", "-device", &device]);
                let cache = if disk.direct { "none" } else { "writeback" };
                let drive = format!("id=d,format=raw,if=none,cache={cache},aio=io_uring,file={path}");
                command.args(["-drive", &drive]);
                if *net {
                    let cable = format!("tap,id=n,ifname={TAP},script=no,downscript=no,vhost=off");
                    let card = format!("virtio-net-device,netdev=n,mac={MAC}");
                    command.args(["-netdev", &cable, "-device", &card]);
                }
            }
        }
        Ok(command)
    }
}

fn firecracker(machine: &Machine) -> serde_json::Value {
    let (engine, net) = (if machine.disk.direct { "Async" } else { "Sync" }, machine.net);
    let mut machine = serde_json::json!({
        "boot-source": { "kernel_image_path": machine.kernel, "boot_args": "bench" },
        "machine-config": { "vcpu_count": machine.vcpus, "mem_size_mib": machine.memory_mib },
        "drives": [{
            "drive_id": "d", "path_on_host": machine.disk.path, "io_engine": engine,
            "is_root_device": false, "is_read_only": false,
        }],
    });
    if net {
        machine["network-interfaces"] =
            serde_json::json!([{ "iface_id": "n", "host_dev_name": TAP, "guest_mac": MAC }]);
    }
    machine
}

/// The first word of the first line that has a digit and a dot in it, with what else is said of it in brackets left out.
fn version(said: &str) -> String {
    let word = said.lines().next().unwrap_or_default().split_whitespace().find(|word| {
        word.contains('.') && word.trim_start_matches('v').starts_with(|first: char| first.is_ascii_digit())
    });
    word.unwrap_or("?").trim_start_matches('v').trim_end_matches(',').to_owned()
}

/// Peers that are named, or those that this machine has.
pub fn peers(named: Option<&[Peer]>) -> Result<Vec<Subject>> {
    if let Some(named) = named {
        for (at, peer) in named.iter().enumerate() {
            if named[..at].iter().any(|other| other.kind == peer.kind) {
                bail!("--vs names one peer twice: {peer:?}");
            }
        }
        let mut named = named.to_vec();
        named.sort_by_key(|peer| peer.kind);
        return named.iter().map(Subject::find).collect();
    }
    let all = [Kind::Firecracker, Kind::CloudHypervisor, Kind::Qemu].map(|kind| Peer { kind, path: None });
    Ok(all.iter().filter_map(|peer| Subject::find(peer).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_named_with_or_without_a_path() {
        assert_eq!("qemu".parse(), Ok(Peer { kind: Kind::Qemu, path: None }));
        let path = Some(PathBuf::from("/opt/fc=1"));
        assert_eq!("firecracker=/opt/fc=1".parse(), Ok(Peer { kind: Kind::Firecracker, path }));
        for (text, why) in [("qemu=", "no path"), ("kvmtool=x", "PVH"), ("xen", "There are")] {
            let error = text.parse::<Peer>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn versions_are_found_in_what_programs_say() {
        assert_eq!(version("Firecracker v1.12.1\n\n2026 exiting"), "1.12.1");
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)\nCopyright"), "7.2.22");
        assert_eq!(version("no idea"), "?");
    }

    #[test]
    fn a_peer_that_is_named_must_be_there() {
        let peer = Peer { kind: Kind::Qemu, path: Some("/no/such".into()) };
        assert!(peers(Some(&[peer])).unwrap_err().to_string().contains("/no/such"));
    }

    #[test]
    fn every_subject_gets_the_same_machine() {
        let disk = Disk { path: "/d.img".into(), queues: 7, direct: false };
        let machine = Machine { kernel: "/k.elf".into(), memory_mib: 192, vcpus: 3, disk, net: false, trace: None };
        let scratch = std::env::temp_dir();
        for kind in [Kind::Axvm, Kind::AxvmPci, Kind::Floor, Kind::CloudHypervisor, Kind::Qemu] {
            let subject = Subject { kind, path: "/bin/x".into(), version: String::new() };
            let typed = crate::tool::show(&subject.command(&machine, &scratch).unwrap());
            assert!(typed.contains("/k.elf") && typed.contains("192") && typed.contains('3'), "{typed}");
            assert_eq!(typed.contains("/d.img"), subject.has_disk(), "{typed}");
            assert_eq!(typed.contains("queues=7"), subject.has_queues(), "{typed}");
        }
        let json = firecracker(&machine);
        assert_eq!(
            (&json["machine-config"]["vcpu_count"], &json["drives"][0]["path_on_host"]),
            (&3.into(), &"/d.img".into())
        );
    }
}
