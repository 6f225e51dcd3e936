//! The sandbox around the real program: what the kernel says of each thread, and that a machine lives in it.
//!
//! Needs /dev/kvm; without it each test says that it was skipped. What is stopped is tried in `axvm_sandbox`, from
//! inside; that every other test of this directory passes with the sandbox on is the proof of the rest.

use crate::common;

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use axvm_sandbox::{Availability, probe};
use common::{Axvm, Place, Talk, has_kvm};

/// Name and status file of each thread.
fn threads(axvm: &Axvm) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", axvm.pid())).unwrap();
    let read = |path: std::path::PathBuf| {
        let name = fs::read_to_string(path.join("comm")).unwrap().trim().to_owned();
        (name, fs::read_to_string(path.join("status")).unwrap())
    };
    tasks.map(|task| read(task.unwrap().path())).collect()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("missing").trim()
}

#[test]
fn every_thread_is_filtered_and_has_no_rights_left() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = place.shell_on_hvc0("--prealloc");
    axvm.status();
    let threads = threads(&axvm);
    for kind in ["axvm", "vcpu0", "hvc0", "console", "api"] {
        assert!(threads.iter().any(|(name, _)| name == kind), "no {kind} in {threads:?}");
    }
    let root = rustix::process::geteuid().is_root();
    // Only root may empty the bounding set; without new privileges nothing comes out of it.
    let sets = ["CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd"];
    for (name, status) in &threads {
        assert_eq!(field(status, "Seccomp"), "2", "{name}");
        assert_eq!(field(status, "NoNewPrivs"), "1", "{name}");
        for set in &sets[..if root { 5 } else { 4 }] {
            assert_eq!(field(status, set), "0000000000000000", "{set} of {name}");
        }
    }
    talk.say("off\n");
    axvm.ends_with(0);
}

#[test]
fn a_thread_has_the_filter_of_its_role_on_top_of_its_makers() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = place.shell_on_hvc0("");
    for (name, status) in threads(&axvm) {
        let expected = match name.as_str() {
            "axvm" => "1",
            "hvc0" => "3",
            _ => "2",
        };
        // Linux 5.9 and newer count the filters.
        assert!([expected, "missing"].contains(&field(&status, "Seccomp_filters")), "{name}: {status}");
    }
    talk.say("off\n");
    axvm.ends_with(0);
}

#[test]
fn sandbox_off_leaves_everything_open() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = place.shell("--sandbox off");
    for (name, status) in threads(&axvm) {
        assert_eq!(field(&status, "Seccomp"), field(&fs::read_to_string("/proc/self/status").unwrap(), "Seccomp"));
        assert_eq!(field(&status, "NoNewPrivs"), "0", "{name}");
    }
    talk.say("off\n");
    axvm.ends_with(0);
}

#[test]
fn verbose_tells_what_is_on_and_what_the_host_lacks() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = place.shell("-v");
    let errors = axvm.errors();
    let line = errors.lines().find(|line| line.contains("] sandbox: ")).unwrap_or_else(|| panic!("{errors}"));
    for protection in &probe().0 {
        let verdict = if matches!(protection.state, Availability::On(_)) { "on (" } else { "not available (" };
        assert!(line.contains(&format!("{}: {verdict}", protection.name)), "{protection} in {line}");
    }
    assert!(line.contains("capabilities: on (none left"), "{line}");
    talk.say("off\n");
    axvm.ends_with(0);
}

#[test]
fn a_reset_needs_no_file_by_name() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("");
    fs::write(place.path("other"), "no kernel").unwrap();
    fs::rename(place.path("other"), place.path("guest.elf")).unwrap();
    fs::remove_file(place.path("disk.img")).unwrap();
    for _ in 0..3 {
        talk.say("reset\n");
        talk.hear("ready\n> ");
    }
    talk.say("off\n");
    axvm.ends_with(0);
}

/// To wait for a slow reader, AxVM opens the reader's side: a file of the host.
#[test]
fn last_words_wait_for_the_reader_of_a_pseudo_terminal() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let axvm = place.start(place.machine("shell", "--console pty"), Stdio::null(), Stdio::null());
    let path = axvm.status().console.trim_start_matches("pty ").to_owned();
    let mut terminal = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut talk = Talk::on(OwnedFd::from(terminal.try_clone().unwrap()));
    talk.hear("> ");
    talk.say("flood 2\n");
    talk.hear("> ");
    talk.say("off\n");
    std::thread::sleep(Duration::from_millis(300));
    let mut last = [0; 4096];
    let len = terminal.read(&mut last).unwrap();
    assert!(String::from_utf8_lossy(&last[..len]).contains("off"), "{:?}", &last[..len]);
    drop((talk, terminal));
    axvm.ends_with(0);
}

/// A shell that has `exec 9</etc/passwd` behind it gives descriptor 9 to all that it starts.
#[test]
fn descriptors_of_the_starter_are_closed_and_all_others_are_axvms_own() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let machine = place.machine("shell", "-v");
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 9</etc/passwd; exec \"$@\"", "sh"]).arg(machine.get_program()).args(machine.get_args());
    shell.current_dir(place.path("."));
    shell.envs(machine.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let (axvm, talk) = place.talking(shell);
    assert!(axvm.errors().contains("descriptors: on (closed those that AxVM was started with: 9"), "{}", axvm.errors());
    for fd in fs::read_dir(format!("/proc/{}/fd", axvm.pid())).unwrap() {
        let fd = fd.unwrap();
        let number: u32 = fd.file_name().to_str().unwrap().parse().unwrap();
        let name = fs::read_link(fd.path()).unwrap();
        assert_ne!(name, std::path::Path::new("/etc/passwd"), "{number}");
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", axvm.pid())).unwrap();
        let flags = u32::from_str_radix(info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim(), 8);
        assert!(number <= 2 || flags.unwrap() & 0o2_000_000 != 0, "{name:?} has no close-on-exec flag");
    }
    talk.say("off\n");
    axvm.ends_with(0);
}
