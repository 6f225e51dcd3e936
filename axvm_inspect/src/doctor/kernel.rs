//! The rest of the kernel: its age, asynchronous files, vhost, fences around a process.
//!
//! ```text
//!   release        /proc/sys/kernel/osrelease              Landlock, core scheduling   what axvm_sandbox found
//!   io_uring       /proc/sys/kernel/io_uring_disabled      its remedy                  /sys/kernel/security/lsm
//!   seccomp        /proc/sys/kernel/seccomp/actions_avail  vhost                       /dev/vhost-*
//! ```
//!
//! Source: Linux Documentation/admin-guide/sysctl/kernel; landlock(7), seccomp(2).

use axvm_sandbox::Availability;

use super::{Host, Root, Row};

const PART: &str = "Kernel";

pub(super) fn rows(host: &Host) -> Vec<Row> {
    let root = &host.root;
    let kernel = [release(root), io_uring(root), vhost(root), seccomp(root)];
    kernel.into_iter().chain([landlock(host), core_scheduling(host)]).collect()
}

fn release(root: &Root) -> Row {
    let release = root.text("/proc/sys/kernel/osrelease").unwrap_or_else(|| "not told".into());
    let row = Row::ok(PART, "release", release);
    match root.kernel() {
        Some(version) if version < (5, 14) => row.note(
            "older than Landlock (5.13) and core scheduling (5.14): a guest that breaks out meets fewer fences",
            "install a newer kernel from your distribution, then reboot",
        ),
        _ => row,
    }
}

fn io_uring(root: &Root) -> Row {
    let name = "io_uring";
    match (root.number("/proc/sys/kernel/io_uring_disabled"), root.kernel()) {
        (Some(0), _) => Row::ok(PART, name, "allowed: a machine's end does not wait for KVM"),
        (Some(mode), _) => Row::ok(PART, name, if mode == 1 { "for one group only" } else { "switched off" }).note(
            "a machine's end waits for KVM, some 20 ms; direct disks move one request at a time",
            "sudo sysctl kernel.io_uring_disabled=0",
        ),
        (None, Some(version)) if version < (5, 1) => {
            Row::ok(PART, name, "this kernel is older: a machine's end waits for KVM, some 20 ms")
        }
        (None, _) => Row::ok(PART, name, "no switch in this kernel"),
    }
}

fn vhost(root: &Root) -> Row {
    let found: Vec<&str> =
        ["vhost-net", "vhost-vsock"].into_iter().filter(|name| root.has(&format!("/dev/{name}"))).collect();
    let found = if found.is_empty() { "none".into() } else { found.join(", ") };
    Row::ok(PART, "vhost devices", format!("{found}; AxVM does not use them yet"))
}

fn landlock(host: &Host) -> Row {
    let why = match protection(host, "files") {
        Availability::On(how) => return Row::ok(PART, "Landlock", format!("on: {how}")),
        Availability::Missing(why) => why,
    };
    let modules = host.root.text("/sys/kernel/security/lsm").unwrap_or_else(|| "those that are active".into());
    Row::ok(PART, "Landlock", format!("off: {why}")).note(
        "a guest that breaks out reads and removes every file of this user (it writes none)",
        format!(
            "put it on the kernel's command line (5.13 or later, CONFIG_SECURITY_LANDLOCK):\nlsm=landlock,{modules}"
        ),
    )
}

/// Without threads that share a core there is nothing to schedule: the processor's part speaks of those.
fn core_scheduling(host: &Host) -> Row {
    match protection(host, "cores") {
        Availability::On(how) => Row::ok(PART, "core scheduling", format!("on: {how}")),
        Availability::Missing(why) => Row::ok(PART, "core scheduling", format!("off: {why}")),
    }
}

/// What the sandbox found here.
fn protection(host: &Host, name: &str) -> Availability {
    let found = host.sandbox.0.iter().find(|protection| protection.name == name);
    found.map_or_else(|| Availability::Missing("not probed".into()), |protection| protection.state.clone())
}

fn seccomp(root: &Root) -> Row {
    let actions = root.text("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let has = |action| actions.split_whitespace().any(|found| found == action);
    if has("kill_process") && has("trap") {
        return Row::ok(PART, "seccomp", "system calls can be filtered");
    }
    Row::ok(PART, "seccomp", if actions.is_empty() { "not in this kernel" } else { "older than 4.14" }).note(
        "a guest that breaks out may make every system call",
        "use a kernel with CONFIG_SECCOMP_FILTER (4.14 or later)",
    )
}
