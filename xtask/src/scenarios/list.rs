//! The scenarios. Each line of `checks` names functions of `files/guest/check`.

use super::connected::{commands, network, pci, peer, sockets, ssh};
use super::debugged::gdb;
use super::plain::{PLAIN, TYPE, scenario};
use super::standard::{KEPT, drivers};
use super::timeline::timeline;
use super::{Boot, OtherKernel, Proof, Scenario};

/// All of them.
pub fn all() -> Vec<Scenario> {
    [
        processors(),
        entries(),
        disks(),
        resets(),
        sleeps(),
        hosts_view(),
        life(),
        memory(),
        control(),
        gdb(),
        sockets(),
        network(),
        peer(),
        ssh(),
        commands(),
        pci(),
        timeline(),
        drivers(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What the guest's kernel has no part in, or the same one whatever its version.
const OF_THE_HOST: [&str; 25] = [
    "control",
    "disk-ephemeral",
    "disk-grows",
    "disk-host-full",
    "disk-read-only",
    "disk-two",
    "exec",
    "exec-console",
    "explain",
    "halt",
    "host-view",
    "killed-in-mid-write",
    "lspci",
    "memory-comes-back",
    "memory-pool",
    "memory-shared",
    "panic",
    "pci-4g",
    "qemu-peer",
    "reset-ends",
    "run-command",
    "shell",
    "ssh",
    "virtio-console-typed",
    "vsock-python",
];

/// All of them for two kernels: what is of the kernel for both, what is of the host for one of them, in turns.
pub fn shared_out() -> [Vec<Scenario>; 2] {
    [0, 1].map(|own| {
        let mut turn = 0;
        let mut scenarios = all();
        scenarios.retain(|scenario| {
            let of_the_host = OF_THE_HOST.contains(&scenario.name);
            turn += usize::from(of_the_host);
            !of_the_host || turn % 2 == own
        });
        scenarios
    })
}

/// What shows that a kernel of another flavour feels at home.
pub fn few() -> Vec<Scenario> {
    let mut scenarios = all();
    scenarios.retain(|scenario| ["cpus-2", "power-button", "virtio-console", "network"].contains(&scenario.name));
    // These kernels read the MP table. No disk is found, so the initrd powers off, which is a halt without ACPI.
    let table = Boot {
        arguments: "--memory 512M --cpus 2 --acpi off",
        checks: "root",
        append: "loglevel=7",
        says: &["smp: Brought up 1 node, 2 CPUs", "System halted"],
        rounds: 0,
        exit: 6,
        limit: 150,
        ..PLAIN
    };
    let says = &["smp: Brought up 1 node, 2 CPUs", "reboot: Power down"];
    let cpus = Boot { arguments: "--memory 512M --cpus 2 --acpi cpus", says, exit: 0, ..table };
    scenarios.extend([scenario("mp-table", table), scenario("acpi-cpus", cpus)]);
    scenarios
}

/// A distribution as it is: it mounts its disk, no unit fails, and it powers off. And one command on it, by the modules of
/// its own initrd and disk.
pub fn distribution() -> Vec<Scenario> {
    let boot = Boot {
        arguments: "--disk DISK --memory 1G --cpus 2",
        checks: "systemd,root",
        append: "root=/dev/vda rw",
        limit: 300,
        ..PLAIN
    };
    let command = Boot {
        checks: "typed",
        rounds: 0,
        command: Some("sh -c 'cat /etc/os-release; grep \"^/dev/vda / \" /proc/mounts; exit 7'"),
        says: &["ID=debian", "/dev/vda / ext4 rw"],
        exit: 7,
        ..boot
    };
    vec![scenario("systemd", boot), scenario("systemd-command", command)]
}

/// A kernel that finds devices on either bus, and its own initrd, which is told the modules of the disk.
pub fn alpine() -> Vec<Scenario> {
    let boot = Boot {
        arguments: "--disk DISK --memory 512M --cpus 2 --bus pci --virtio-check stop",
        checks: "msix:3:2,disk,log:lab",
        append: "modules=virtio_blk,ext4 rootfstype=ext4 rootflags=rw root=/dev/vda",
        rounds: 0,
        says: &["CHECK msix: ok", "CHECK disk: ok", "CHECK log: ok", "CHECK end: ok"],
        limit: 300,
        ..PLAIN
    };
    vec![Scenario { proofs: vec![KEPT, Proof::CleanDisk], ..scenario("alpine-pci", boot) }]
}

/// 1 to 20 vCPUs, and memory on both sides of the hole below 4 GiB.
fn processors() -> Vec<Scenario> {
    let one = Boot {
        arguments: "--disk DISK --memory 128M --cpus 1",
        checks: "cpus:1,memory:128,irq:virtio0:5,flags:+bmi1:+movbe:+hypervisor,consistent,write:proof,disk,clock:NOW:30,log:lab",
        ..PLAIN
    };
    let two = Boot {
        arguments: "--disk DISK --memory 1G --cpus 2",
        checks: "cpus:2,memory:1024,disk,clock:NOW:30,log:lab",
        ..PLAIN
    };
    let four = Boot {
        arguments: "--disk DISK --memory 3G --cpus 4,sockets=1,cores=2,threads=2",
        checks: "cpus:4,topology:1:2:2,memory:3072,disk,clock:NOW:30,log:lab",
        ..PLAIN
    };
    let twenty = Boot {
        arguments: "--disk DISK --memory 6G --cpus 20,sockets=2,cores=5,threads=2",
        checks: "cpus:20,topology:2:5:2,memory:6144,disk,clock:NOW:60,log:lab",
        limit: 240,
        ..PLAIN
    };
    vec![
        Scenario { name: "cpus-1", boots: vec![one], proofs: vec![Proof::CleanDisk, Proof::Written("proof")] },
        scenario("cpus-2", two),
        scenario("cpus-4", four),
        scenario("cpus-20", twenty),
    ]
}

/// Every way into a kernel.
fn entries() -> Vec<Scenario> {
    vec![
        scenario("entry-64", Boot { arguments: "--disk DISK --memory 512M --entry 64", ..PLAIN }),
        scenario("entry-pvh", Boot { arguments: "--disk DISK --memory 512M --entry pvh", elf: true, ..PLAIN }),
        scenario("entry-elf-64", Boot { arguments: "--disk DISK --memory 512M --entry 64", elf: true, ..PLAIN }),
        scenario(
            "cpu-ivybridge",
            Boot {
                arguments: "--disk DISK --memory 512M --cpu ivybridge",
                checks: "flags:-avx2:-bmi1:-bmi2:-fma:-movbe:-rdseed:-adx:-smap:+sse4_2:+aes:+popcnt,disk,log:lab",
                ..PLAIN
            },
        ),
    ]
}

/// Kernels that are not Linux. They do not end by themselves: their time does.
pub fn others() -> Vec<Scenario> {
    let memtest = OtherKernel {
        name: "memtest86+",
        package: "memtest86+",
        path: "boot/memtest86+x64.bin",
        append: "console=ttyS0,115200",
    };
    let says = &["Memtest86+ v", "[Moving inversions"];
    let plain = Boot { other: Some(memtest), checks: "typed", exit: 124, limit: 120, says, ..PLAIN };
    let boot = |arguments| Boot { arguments, ..plain };
    vec![
        scenario("memtest86", boot("--memory 64M --cpus 1 --timeout 30s")),
        scenario("memtest86-entry-64", boot("--memory 64M --cpus 1 --timeout 30s --entry 64")),
    ]
}

fn disks() -> Vec<Scenario> {
    let read_only =
        Boot { arguments: "--disk path=DISK,ro --memory 512M", checks: "readonly,log:lab", append: "ro", ..PLAIN };
    let two = Boot {
        arguments: "--disk DISK --disk path=second.img,serial=SECOND --memory 512M",
        checks: "second:vdb:SECOND,irq:virtio0:5,disk,log:lab",
        ..PLAIN
    };
    let discard = Boot { checks: "discard:32,log:lab", on: Some(("MARK written", "du -k $disk")), ..PLAIN };
    let grows = Boot {
        arguments: "--disk DISK --disk grow.img --memory 512M",
        checks: "grow:vdb:4096,disk,log:lab",
        on: Some(("MARK grow", "truncate -s 2M grow.img; axvm ctl $pid disk vdb resize")),
        ..PLAIN
    };
    let room = "tries=0
        until axvm ctl $pid status | grep -w full || [ $tries -ge 60 ]; do tries=$((tries + 1)); sleep 1; done
        mount -o remount,size=64m tmpfs tight; axvm ctl $pid resume";
    let fills = Boot {
        arguments: "--disk DISK --disk tight/disk.img --memory 512M",
        checks: "fill:vdb:16,disk,log:lab",
        on: Some(("MARK fill", room)),
        ..PLAIN
    };
    let leaves = Boot { arguments: "--disk path=DISK,ephemeral --memory 512M", ..PLAIN };
    let killed = Boot { checks: "unfinished", exit: 137, on: Some(("MARK safe u5", "kill -9 $pid")), ..PLAIN };
    let revived = Boot { checks: "survived:6,disk", ..PLAIN };
    vec![
        Scenario { name: "disk-read-only", boots: vec![read_only], proofs: vec![Proof::SameDisk] },
        Scenario { name: "disk-two", boots: vec![two], proofs: vec![Proof::CleanDisk, Proof::SecondAnswered] },
        Scenario {
            name: "disk-grows",
            boots: vec![grows],
            proofs: vec![Proof::CleanDisk, Proof::Seen("the new size", |seen| seen.contains("2097152 bytes"))],
        },
        Scenario {
            name: "disk-host-full",
            boots: vec![fills],
            proofs: vec![Proof::CleanDisk, Proof::Seen("a full disk", |seen| seen.contains("full"))],
        },
        Scenario { name: "disk-ephemeral", boots: vec![leaves], proofs: vec![Proof::SameDisk] },
        Scenario {
            name: "disk-discard",
            boots: vec![discard],
            proofs: vec![Proof::CleanDisk, Proof::Shrunk(24 << 10)],
        },
        Scenario { name: "killed-in-mid-write", boots: vec![killed, revived], proofs: vec![Proof::CleanDisk] },
    ]
}

/// Every way to reset the machine, and what AxVM makes of it.
fn resets() -> Vec<Scenario> {
    let twice = |append| Boot { checks: "boots:2,log:lab", append, rounds: 2, ..PLAIN };
    let end = Boot { arguments: "--disk DISK --memory 512M --on-reboot end", checks: "boots:2", exit: 3, ..PLAIN };
    let crash = Boot { arguments: "--disk DISK --memory 512M --on-crash restart", ..twice("reboot=triple") };
    vec![
        scenario("reset-acpi", twice("reboot=acpi")),
        scenario("reset-i8042", twice("reboot=kbd")),
        scenario("reset-triple-fault", crash),
        scenario("reset-vector", twice("reboot=bios")),
        scenario("reset-ends", end),
    ]
}

/// Sleep and time: the clock's alarm wakes a guest that has suspended to idle, and there is a clock beside KVM's.
fn sleeps() -> Vec<Scenario> {
    let freeze = Boot { checks: "clocksource:acpi_pm,freeze:4,disk", ..PLAIN };
    let plain_clock = Boot { checks: "clocksource:acpi_pm,clock:NOW:30,disk", append: "no-kvmclock", ..PLAIN };
    vec![scenario("wakes-by-alarm", freeze), scenario("no-kvmclock", plain_clock)]
}

/// What the host sees of a running guest: huge pages behind its memory, threads with names; and what a person does.
fn hosts_view() -> Vec<Scenario> {
    let look = "awk '/^AnonHugePages/ { kib += $2 } END { print \"huge\", kib }' /proc/$pid/smaps
        cat /proc/$pid/task/*/comm; grep -h '^Seccomp:' /proc/$pid/task/*/status
        axvm selftest --cpus 4; axvm doctor >/dev/null; echo doctor $?";
    let boot = Boot {
        arguments: "--disk DISK --memory 512M --cpus 2 --pin 0,0",
        checks: "pause:15,log:lab",
        on: Some(("MARK pause", look)),
        ..PLAIN
    };
    let huge = |seen: &str| {
        let kib = seen.lines().find_map(|line| line.strip_prefix("huge ")?.trim().parse::<u64>().ok());
        kib.is_some_and(|kib| kib >= 64 << 10)
    };
    let named = |seen: &str| ["vcpu0", "vcpu1", "vda-q0"].iter().all(|name| seen.lines().any(|line| line == *name));
    let filtered = |seen: &str| !seen.contains("Seccomp:\t0") && seen.contains("Seccomp:\t2");
    let proofs = vec![
        Proof::CleanDisk,
        Proof::Seen("system call filters on all threads", filtered),
        Proof::Seen("a self-test without a failure", |seen| seen.contains(" proofs hold, 0 failed, with 4 vCPUs")),
        Proof::Seen("a doctor who finds no problem", |seen| seen.contains("doctor 0")),
        Proof::Seen("at least 64 MiB in huge pages", huge),
        Proof::Seen("threads vcpu0, vcpu1 and vda-q0", named),
    ];
    let shell = Boot { checks: "typed", on: Some(("Welcome to Linux on AxVM", TYPE)), ..PLAIN };
    vec![Scenario { name: "host-view", boots: vec![boot], proofs }, scenario("shell", shell)]
}

/// The end by a signal, the end by a panic, and memory that comes back.
fn life() -> Vec<Scenario> {
    let button = Boot { checks: "button,log:lab", on: Some(("MARK button", "kill -TERM $pid")), ..PLAIN };
    let panic = Boot { checks: "panic", append: "panic=-1", exit: 4, ..PLAIN };
    let look = "rss() { awk '/^VmRSS/ { print $2 }' /proc/$pid/status; }; rss; sleep 12; rss";
    let spare = Boot {
        arguments: "--disk DISK --memory 1G",
        checks: "spare:512,log:lab",
        on: Some(("MARK full", look)),
        ..PLAIN
    };
    let shrunk = |seen: &str| {
        let kib: Vec<u64> = seen.lines().filter_map(|line| line.trim().parse().ok()).collect();
        matches!(kib[..], [before, after] if before > 512 << 10 && after + (400 << 10) < before)
    };
    let proofs = vec![Proof::CleanDisk, Proof::Seen("AxVM 400 MiB smaller within 12 s", shrunk)];
    // Without the IOAPIC the SCI reaches the guest through the PIC; the log has warnings of its own then.
    let on_the_pic = |append| Boot { checks: "button", append, ..button };
    vec![
        scenario("power-button", button),
        scenario("halt", Boot { append: "axvm.end=halt", exit: 6, says: &["System halted"], ..PLAIN }),
        scenario("power-button-noapic", on_the_pic("noapic")),
        scenario("power-button-nosmp", on_the_pic("nosmp")),
        scenario("power-button-noirq", on_the_pic("acpi=noirq")),
        Scenario { name: "panic", boots: vec![panic], proofs: Vec::new() },
        Scenario { name: "memory-comes-back", boots: vec![spare], proofs },
    ]
}

/// Guest RAM of other kinds: from the host's pool of huge pages, taken at once; shared and locked.
fn memory() -> Vec<Scenario> {
    let looked = |arguments| Boot {
        arguments,
        checks: "pause:8,memory:512,disk,log:lab",
        on: Some(("MARK pause", "axvm ctl $pid status; grep VmLck /proc/$pid/status")),
        ..PLAIN
    };
    let pool = looked("--disk DISK --memory 512M --hugepages 2M --prealloc");
    let shared = looked("--disk DISK --memory 512M,shared --lock");
    let seen = |what, holds| vec![Proof::CleanDisk, Proof::Seen(what, holds)];
    vec![
        Scenario {
            name: "memory-pool",
            boots: vec![pool],
            proofs: seen("all of it in 2 MiB pages", |seen| seen.contains("holds 512M: 512M in 2M\n")),
        },
        Scenario {
            name: "memory-shared",
            boots: vec![shared],
            proofs: seen("all of it there and locked", |seen| {
                let kib = seen.lines().find_map(|line| line.strip_prefix("VmLck:")?.split_whitespace().next());
                kib.and_then(|kib| kib.parse::<u64>().ok()).is_some_and(|kib| kib >= 512 << 10)
            }),
        },
    ]
}

/// A machine in other hands: the control socket and its clients, consoles at other places.
fn control() -> Vec<Scenario> {
    let look = "cpu() { awk '{ print $14 + $15 }' /proc/$pid/stat; }
        axvm ctl web explain
        axvm ps | awk -v pid=$pid '$1 == pid { print \"ps\", $2, $3, $4, $5 }'
        sleep 4; before=$(cpu); sleep 5; echo idle $(($(cpu) - before))
        axvm ctl web pause; axvm ctl $pid status | head -n 1
        before=$(cpu); sleep 3; echo paused $(($(cpu) - before))
        axvm ctl web resume
        echo replay $(timeout 2 axvm ctl web console </dev/null | grep -c 'axvm: init after')
        axvm ctl web registers 0 | head -n 2
        axvm ctl web memory idtr 16 --walk | grep 'physical 0x'
        axvm ctl web inspect --walk idtr | grep -E '^  kvmclock|^  PIT|APIC timer|deadline |^  vda|^ +0x.* P[TDM]'
        axvm ctl web dump /tmp/core && head -c 65536 /tmp/core | strings | grep -m 1 ^OSRELEASE
        echo mappings $(od -An -tu2 -j56 -N2 /tmp/core); rm /tmp/core
        axvm ctl web balloon 200; sleep 6
        awk '/^VmRSS/ { print \"rss\", int($2 / 1024) }' /proc/$pid/status
        axvm ctl web balloon 0; axvm ctl web balloon 9999; axvm ctl web status; ls /tmp/*.api";
    let boot = Boot {
        arguments: "--disk DISK --memory 512M --cpus 2 --name web --api-sock /tmp/web.api",
        checks: "pause:40,disk,log:lab",
        on: Some(("MARK pause", look)),
        ..PLAIN
    };
    let hvc0 = "--disk DISK --memory 512M --virtio-console stdio";
    let typed = Boot { arguments: hvc0, checks: "typed", on: Some(("Welcome to Linux on AxVM", TYPE)), ..PLAIN };
    // The kernel itself warns that it has no console before its module is there: the log is not clean.
    let checked = Boot { arguments: hvc0, checks: "disk,clock:NOW:30", ..PLAIN };
    // Without its initrd's programs this kernel has no driver for a disk.
    let waits = Boot {
        checks: "typed",
        append: "loglevel=7 rdinit=/none rootwait root=/dev/vda",
        on: Some(("Waiting for root device", "axvm ctl $pid explain; axvm ctl $pid stop")),
        rounds: 0,
        ..PLAIN
    };
    let no_driver = |seen: &str| seen.contains("  1. The kernel has not found vda: it lacks virtio_mmio or virtio_blk");
    vec![
        Scenario {
            name: "explain",
            boots: vec![waits],
            proofs: vec![Proof::SameDisk, Proof::Seen("why there is no root device", no_driver)],
        },
        Scenario {
            name: "control",
            boots: vec![boot],
            proofs: vec![Proof::CleanDisk, Proof::Seen("a machine that obeys", obeyed)],
        },
        scenario("virtio-console", checked),
        scenario("virtio-console-typed", typed),
    ]
}

/// What the clients of the control socket were told.
fn obeyed(seen: &str) -> bool {
    let number = |name: &str| {
        let value = seen.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        value.unwrap_or(u64::MAX)
    };
    let said = |words: &str| seen.contains(words);
    said("  1. No sign of a fault: the vCPUs are idle")
        && said("vda: status 0xf ACKNOWLEDGE DRIVER FEATURES_OK DRIVER_OK")
        && said("ps web running 2 512M")
        && seen.lines().any(|line| line.starts_with("vCPU 0: ") && line.contains(", in ") && line.contains("+0x"))
        && said("  mode  long mode, 64 bits, 4-level paging, CPL ")
        && ["  kvmclock  ", "APIC timer  TSC deadline", "virtio_blk by virtio_mmio; status 0xf", "  PML4E  "].iter().all(|row| said(row))
        && said("/tmp/core: 512M of RAM, ")
        && said("\nOSRELEASE=6.")
        && (8..5000).contains(&number("mappings"))
        && said(": paused for")
        // In 3 s: a tick that falls into the answer to `pause` counts.
        && number("paused") < 5
        // Ticks of 10 ms in 5 s: 500 would be a thread that spins, 10 are usual. The emulation makes each wake-up some
        // thirty times as expensive, and other programs on the host count too.
        && number("idle") < 200
        && number("replay") == 1
        && number("rss") < 320
        && said("9999")
        && said("balloon  0M wanted")
        && said("/tmp/web.api")
}

/// What a real-time kernel does otherwise than a generic one: its locks.
pub fn fewest() -> Vec<Scenario> {
    all().into_iter().filter(|scenario| ["cpus-2", "network"].contains(&scenario.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_still_some() {
        assert_eq!((few().len(), fewest().len()), (6, 2));
    }

    #[test]
    fn each_scenario_runs_on_a_kernel_and_those_of_the_host_on_one() {
        let [first, second] = shared_out().map(|own| own.into_iter().map(|scenario| scenario.name).collect::<Vec<_>>());
        for name in all().iter().map(|scenario| scenario.name) {
            let times = [&first, &second].into_iter().filter(|own| own.contains(&name)).count();
            assert_eq!(times, if OF_THE_HOST.contains(&name) { 1 } else { 2 }, "{name}");
        }
        assert!(first.len().abs_diff(second.len()) <= 1);
        assert_eq!(first.len() + second.len() + OF_THE_HOST.len(), 2 * all().len(), "a name that is no scenario's");
    }

    #[test]
    fn names_are_unique_and_checks_exist_in_the_guest_script() {
        let script = include_str!("../../files/guest/check");
        let mut names = std::collections::BTreeSet::new();
        for scenario in all() {
            assert!(names.insert(scenario.name), "{} twice", scenario.name);
            for check in scenario.boots.iter().flat_map(|boot| boot.checks.split(',')) {
                let name = check.split(':').next().unwrap_or_default();
                if name == "typed" {
                    continue;
                }
                assert!(script.contains(&format!("\ncheck_{name}() {{")), "{}: {check}", scenario.name);
            }
        }
    }
}
