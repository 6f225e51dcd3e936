//! The processor: virtualization, KVM's modules and their switches, time, leaks between threads, speed, NUMA.
//!
//! ```text
//!   model, vmx or svm, TSC   /proc/cpuinfo
//!   modules and switches     /sys/module/kvm, kvm_intel, kvm_amd ..: parameters
//!   leaks, threads, speed    /sys/devices/system/cpu: vulnerabilities, smt, cpufreq
//!   clock, nodes             /sys/devices/system/clocksource, /sys/devices/system/node
//! ```
//!
//! Source: Linux Documentation/admin-guide/hw-vuln, admin-guide/pm/cpufreq, admin-guide/kernel-parameters (kvm-intel.*, kvm-amd.*).

use axvm_arch::cpuinfo;

use super::{Host, Root, Row};

const PART: &str = "Processor";

pub(super) fn rows(host: &Host) -> Vec<Row> {
    let root = &host.root;
    let cpuinfo = root.cpuinfo();
    let name = cpuinfo::processor_name(&cpuinfo).unwrap_or("not told");
    let mut rows = vec![Row::ok(PART, "model", name), flag_row(root)];
    rows.push(modules(root));
    rows.extend(parameters(root));
    rows.extend([clock(root), mitigations(root), threads(root), governor(root), nodes(root)]);
    rows
}

/// Which virtualization the processor offers to this machine: `vmx` or `svm`.
pub(super) fn virtualization(root: &Root) -> Option<&'static str> {
    cpuinfo::virtualization(&root.cpuinfo())
}

fn flag_row(root: &Root) -> Row {
    let inside = root.cpu_has("hypervisor");
    let place = if inside { "; this host is itself a virtual machine" } else { "" };
    if let Some(flag) = virtualization(root) {
        return Row::ok(PART, "vmx or svm", format!("{flag}{place}")).required();
    }
    let row = Row::ok(PART, "vmx or svm", format!("neither in /proc/cpuinfo{place}")).required();
    let cost =
        "without it guest code cannot run on the processor itself; Linux is too slow to use, if KVM works at all";
    let module = vendor_module(root);
    match inside {
        true => row.problem(
            cost,
            format!(
                "let the outer host pass it on (nested virtualization). If that is Linux, there:\n\
                 echo options {module} nested=1 | sudo tee /etc/modprobe.d/nested.conf\n\
                 and give this machine the host's CPU model (QEMU: -cpu host)\n\
                 in a cloud: choose a metal instance, or one with nested virtualization"
            ),
        ),
        false => row.problem(
            cost,
            "turn on VT-x, AMD-V or SVM in the firmware set-up:\nsudo systemctl reboot --firmware-setup",
        ),
    }
}

/// The vendor's half of KVM for this processor.
pub(super) fn vendor_module(root: &Root) -> &'static str {
    match root.value("/proc/cpuinfo", "vendor_id").as_deref() {
        Some("AuthenticAMD" | "HygonGenuine") => "kvm_amd",
        _ => "kvm_intel",
    }
}

/// The modules that make KVM: the common one and a vendor's.
fn modules(root: &Root) -> Row {
    let mut names = root.names("/sys/module");
    names.retain(|name| name == "kvm" || name.starts_with("kvm_"));
    let row = Row::ok(PART, "KVM modules", if names.is_empty() { "none".into() } else { names.join(", ") });
    let load = format!("sudo modprobe {}", vendor_module(root));
    if names.iter().any(|name| name == "kvm_intel" || name == "kvm_amd") {
        row
    } else if names.iter().any(|name| name != "kvm") {
        row.note(
            "neither kvm_intel nor kvm_amd: a KVM that does without vmx or svm has to interpret much of a guest's code",
            "use a host with vmx or svm (see above)",
        )
    } else {
        row.note("the half of KVM that knows this processor is missing", load)
    }
}

/// A switch of a module: how it is called, what it is, what its being off costs.
struct Switch {
    module: &'static str,
    name: &'static str,
    what: &'static str,
    cost: &'static str,
    matters: bool,
}

const SWITCHES: [Switch; 6] = [
    Switch {
        module: "kvm_intel",
        name: "ept",
        what: "page tables of the guest walked by the processor",
        cost: "KVM shadows the guest's page tables instead: each change of one is an exit",
        matters: true,
    },
    Switch {
        module: "kvm_amd",
        name: "npt",
        what: "page tables of the guest walked by the processor",
        cost: "KVM shadows the guest's page tables instead: each change of one is an exit",
        matters: true,
    },
    Switch {
        module: "kvm_intel",
        name: "enable_apicv",
        what: "interrupts delivered without an exit, where the processor can",
        cost: "each interrupt of a running guest is an exit",
        matters: false,
    },
    Switch {
        module: "kvm_amd",
        name: "avic",
        what: "interrupts delivered without an exit, where the processor can",
        cost: "each interrupt of a running guest is an exit",
        matters: false,
    },
    Switch {
        module: "kvm_intel",
        name: "nested",
        what: "with --cpu host,nested=on guests may use KVM themselves",
        cost: "guests cannot be hosts; other machines lose nothing",
        matters: false,
    },
    Switch {
        module: "kvm_amd",
        name: "nested",
        what: "with --cpu host,nested=on guests may use KVM themselves",
        cost: "guests cannot be hosts; other machines lose nothing",
        matters: false,
    },
];

fn parameters(root: &Root) -> Vec<Row> {
    let read = |module: &str, name: &str| root.text(&format!("/sys/module/{module}/parameters/{name}"));
    let mut rows: Vec<Row> = SWITCHES
        .iter()
        .filter_map(|switch| {
            let Switch { module, name, what, cost, matters } = *switch;
            let value = read(module, name)?;
            let row = Row::ok(PART, format!("{module}.{name}"), format!("{value}: {what}"));
            let change = format!("end all machines, then:\nsudo modprobe -r {module}; sudo modprobe {module} {name}=1");
            Some(match (value.as_str(), matters) {
                ("N" | "0", true) => row.problem(cost, change),
                ("N" | "0", false) => row.note(cost, change),
                _ => row,
            })
        })
        .collect();
    if let Some(ns) = root.number("/sys/module/kvm/parameters/halt_poll_ns") {
        let row = Row::ok(PART, "kvm.halt_poll_ns", format!("{ns}: how long a halted vCPU waits awake for work"));
        let change = "echo 200000 | sudo tee /sys/module/kvm/parameters/halt_poll_ns";
        rows.push(if ns > 0 { row } else { row.note("each wake-up of a guest pays for the scheduler", change) });
    }
    rows
}

fn clock(root: &Root) -> Row {
    let has = |flag: &str, word| if root.cpu_has(flag) { word } else { "" };
    let source = root.text("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let source = source.unwrap_or_else(|| "not told".into());
    let traits: Vec<&str> = [
        has("constant_tsc", "constant"),
        has("nonstop_tsc", "never stops"),
        has("tsc_deadline_timer", "deadline timer"),
    ]
    .into_iter()
    .filter(|word| !word.is_empty())
    .collect();
    let traits = if traits.is_empty() { "no known trait".into() } else { traits.join(", ") };
    let row = Row::ok(PART, "TSC", format!("{traits}; clock source {source}"));
    if !root.cpu_has("constant_tsc") {
        return row.note("the TSC changes speed with the processor: guests keep worse time", "use a newer processor");
    }
    match source.as_str() {
        "tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page" | "not told" => row,
        _ => row.note(
            "Linux did not trust the TSC: reading time is slow, for guests too",
            "sudo dmesg | grep -i tsc   (tells why)",
        ),
    }
}

fn mitigations(root: &Root) -> Row {
    const DIRECTORY: &str = "/sys/devices/system/cpu/vulnerabilities";
    let names = root.names(DIRECTORY);
    let state = |name: &String| root.text(&format!("{DIRECTORY}/{name}")).unwrap_or_default();
    let open: Vec<&str> =
        names.iter().filter(|name| state(name).starts_with("Vulnerable")).map(String::as_str).collect();
    if names.is_empty() {
        return Row::ok(PART, "mitigations", "the kernel does not tell")
            .note("whether guests can read this host's secrets is unknown", "use Linux 4.15 or later");
    }
    if open.is_empty() {
        return Row::ok(PART, "mitigations", format!("none of {} known leaks is open", names.len()));
    }
    let off = root.text("/proc/cmdline").is_some_and(|line| line.split(' ').any(|word| word == "mitigations=off"));
    let first = if off { "start this kernel without mitigations=off" } else { "update kernel and microcode" };
    Row::ok(PART, "mitigations", format!("open: {}", open.join(", "))).note(
        "a hostile guest may read memory of the host or of other guests",
        format!("{first}; to see why:\ngrep . {DIRECTORY}/*"),
    )
}

fn threads(root: &Root) -> Row {
    let text = root.text("/sys/devices/system/cpu/smt/active");
    if text.as_deref() != Some("1") {
        let sees = if root.cpu_has("hypervisor") { ", as far as a virtual machine can see" } else { "" };
        return Row::ok(PART, "SMT", format!("off: no two programs share a core{sees}"));
    }
    let row = Row::ok(PART, "SMT", "on: two threads share a core and its caches");
    match root.kernel() {
        Some(version) if version < (5, 14) => row.note(
            "a guest may spy on what runs on the other thread; core scheduling needs Linux 5.14",
            "for hostile guests: echo off | sudo tee /sys/devices/system/cpu/smt/control",
        ),
        _ => row,
    }
}

fn governor(root: &Root) -> Row {
    const DIRECTORY: &str = "/sys/devices/system/cpu/cpu0/cpufreq";
    let driver = root.text(&format!("{DIRECTORY}/scaling_driver")).unwrap_or_default();
    match root.text(&format!("{DIRECTORY}/scaling_governor")) {
        None => Row::ok(PART, "frequency", "not in this kernel's hands"),
        // These drivers choose the frequency themselves; their powersave is not slow.
        Some(governor) if governor != "powersave" || ["intel_pstate", "amd-pstate-epp"].contains(&driver.as_str()) => {
            Row::ok(PART, "frequency", format!("governor {governor} ({driver})"))
        }
        Some(governor) => Row::ok(PART, "frequency", format!("governor {governor} ({driver})"))
            .note("the processor stays at its lowest frequency", "sudo cpupower frequency-set -g schedutil"),
    }
}

fn nodes(root: &Root) -> Row {
    let nodes = root.text("/sys/devices/system/node/online").unwrap_or_else(|| "0".into());
    let row = Row::ok(PART, "NUMA nodes", nodes.clone());
    match nodes.contains(['-', ',']) {
        false => row,
        true => row.note(
            "a vCPU on one node that uses memory of another waits longer for it",
            "numactl --cpunodebind=0 --membind=0 axvm ...",
        ),
    }
}
