//! Our own guests on the real KVM: the self-test, and drivers that lie.
//!
//! Needs /dev/kvm; without it each test says that it was skipped.

use crate::images;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

/// Runs the guest; `None`, said aloud, where there is no KVM.
pub fn run(disk_options: &str, arguments: &[&str]) -> Option<Output> {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        println!("skipped: /dev/kvm cannot be opened");
        return None;
    }
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    fs::write(at("guest.elf"), axvm_guest::selftest()).unwrap();
    fs::File::create(at("disk.img")).unwrap().set_len(1 << 20).unwrap();
    let disk = format!("path={}{disk_options}", at("disk.img"));
    let mut axvm = Command::new("timeout");
    // Only a hang takes so long: at a load of 13 on two processors, a hostile guest takes more than 40 s, alone 3 s.
    axvm.args(["--preserve-status", "300", env!("CARGO_BIN_EXE_axvm"), "run"]);
    axvm.args(["--kernel", &at("guest.elf"), "--memory", "64M"]);
    axvm.args(["--vsock", &format!("socket={}", at("v"))]);
    axvm.args(["--disk", &disk]).args(arguments).stdin(fs::File::open(Path::new("/dev/null")).unwrap());
    Some(axvm.output().unwrap())
}

/// Asserts that the guest ended well and gives what it said.
fn good(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    assert!(said.lines().any(|line| line.trim_end() == "AXVM end ok"), "{said}\n{errors}");
    said
}

fn proved(said: &str, name: &str) -> bool {
    said.lines().any(|line| line.starts_with(&format!("AXVM {name} ok ")))
}

/// Kernel and initrd go from their files into guest RAM: twice this initrd is more than the process may have.
#[test]
fn an_initrd_is_in_memory_once() {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return println!("skipped: /dev/kvm cannot be opened");
    }
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("guest.elf"), axvm_guest::selftest()).unwrap();
    let initrd = fs::File::create(scratch.path().join("initrd")).unwrap();
    initrd.set_len(320 << 20).unwrap();
    (&initrd).write_all(b"070701").unwrap();
    let script = r#"ulimit -v 650000 && exec timeout 300 "$1" run -k guest.elf -i initrd -m 384M"#;
    let mut axvm = Command::new("sh");
    let axvm = axvm.args(["-c", script, "sh", env!("CARGO_BIN_EXE_axvm")]).current_dir(scratch.path());
    let output = axvm.stdin(std::process::Stdio::null()).output().unwrap();
    good(&output);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("--initrd"), "{output:?}");
}

#[test]
fn an_initrd_that_linux_would_not_unpack_is_doubted_and_given_all_the_same() {
    let scratch = tempfile::NamedTempFile::new().unwrap();
    let name = scratch.path().to_str().unwrap();
    for (content, words) in [
        (&b"#include <stdio.h>\nint main(void) { return 0; }\n"[..], "it is a text file, neither a cpio archive nor"),
        (b"\x04\x22\x4d\x18", "pack it with lz4 -l"),
    ] {
        fs::write(name, content).unwrap();
        let Some(output) = run("", &["--cpus", "1", "--initrd", name]) else { return };
        good(&output);
        let errors = String::from_utf8_lossy(&output.stderr);
        let warning = format!("axvm: --initrd: Linux will find nothing in {name}: ");
        assert!(errors.lines().any(|line| line.starts_with(&warning) && line.contains(words)), "{errors}");
    }
}

#[test]
fn kernels_of_32_bits_and_for_the_upper_half_start() {
    let scratch = tempfile::tempdir().unwrap();
    for (class, entry) in [(1, "pvh"), (2, "pvh"), (2, "64")] {
        if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return println!("skipped: /dev/kvm cannot be opened");
        }
        fs::write(scratch.path().join("kernel"), images::upper(class)).unwrap();
        let mut axvm = Command::new("timeout");
        axvm.args(["60", env!("CARGO_BIN_EXE_axvm"), "run", "-k", "kernel", "-m", "32M", "--cpus", "1"]);
        axvm.args(["--on-reboot", "exit", "--entry", entry]).current_dir(scratch.path());
        let output = axvm.stdin(std::process::Stdio::null()).output().unwrap();
        let code = output.status.code();
        assert_eq!((code, &output.stdout[..]), (Some(3), &b"K"[..]), "class {class}, --entry {entry}: {output:?}");
    }
}

#[test]
fn every_device_of_a_machine_with_four_vcpus_proves_itself() {
    let Some(output) = run(",serial=S1", &["--cpus", "4", "--net", "dgram=127.0.0.1:9:127.0.0.1:9"]) else { return };
    let said = good(&output);
    for name in [
        "modes",
        "ram",
        "acpi",
        "uart",
        "pit",
        "smp",
        "virtio-block",
        "virtio-rng",
        "virtio-balloon",
        "virtio-net",
        "virtio-vsock",
    ] {
        assert!(proved(&said, name), "{name} in\n{said}");
    }
    assert!(said.contains("verified, id S1"), "{said}");
}

#[test]
fn the_last_vcpu_gets_an_init_that_is_addressed_to_it() {
    for count in ["2", "3"] {
        let Some(output) = run("", &["--cpus", count]) else { return };
        let said = good(&output);
        assert!(proved(&said, "smp"), "{said}");
    }
}

#[test]
fn twenty_vcpus_start_and_answer() {
    let Some(output) = run("", &["--cpus", "20"]) else { return };
    let said = good(&output);
    assert!(said.contains("19 of 19 others up, IPIs answered 19"), "{said}");
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let Some(output) = run(",ro", &["--cpus", "1"]) else { return };
    let said = good(&output);
    assert!(proved(&said, "virtio-block") && said.contains(" read-only"), "{said}");
}

/// One seed for each count of vCPUs, and a first one for the easiest case.
const SEEDS: [(u32, &str); 5] = [(1, "1"), (2, "2"), (3, "3"), (4, "4"), (5, "2")];

#[test]
fn hostile_drivers_hurt_only_themselves() {
    for (seed, cpus) in SEEDS {
        let scratch = tempfile::tempdir().unwrap();
        let precious = scratch.path().join("precious.img");
        let content: Vec<u8> = (0..1 << 18).map(|at: u32| (at.wrapping_mul(at) >> 7) as u8).collect();
        fs::write(&precious, &content).unwrap();
        let disk = format!("path={},ro", precious.display());
        let append = format!("hostile={seed}");
        let arguments = ["--cpus", cpus, "--append", &append, "--virtio-console", "none", "--disk", &disk];
        let Some(output) = run("", &arguments) else { return };
        let said = good(&output);
        for storm in ["crowd", "indirect", "queue-reset", "string-io", "power-noise", "uart-flood"] {
            assert!(proved(&said, storm), "{storm} in\n{said}");
        }
        assert_eq!(proved(&said, "smp"), cpus != "1", "{said}");
        assert!(fs::read(&precious).unwrap() == content, "a read-only disk has changed");
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(warnings.lines().count() < 40, "the guest floods the log:\n{warnings}");
    }
}

#[test]
fn a_hostile_guest_can_be_paused_at_any_time() {
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("socket").display().to_string();
    let control = |what: &str| {
        let axvm = Command::new("timeout").args(["300", env!("CARGO_BIN_EXE_axvm"), "ctl", &socket, what]).output();
        axvm.unwrap().status.success()
    };
    let (pauses, ended) = (AtomicU32::new(0), AtomicBool::new(false));
    let output = thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                if control("pause") && control("resume") {
                    pauses.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let append = "hostile=6";
        let arguments = ["--cpus", "3", "--append", append, "--virtio-console", "none", "--api-sock", &socket];
        let output = run("", &arguments);
        ended.store(true, Ordering::Relaxed);
        output
    });
    let Some(output) = output else { return };
    good(&output);
    assert!(pauses.load(Ordering::Relaxed) > 5, "paused {} times", pauses.load(Ordering::Relaxed));
}

#[test]
fn a_guest_that_destroys_itself_ends_alone() {
    for _ in 0..3 {
        let arguments = ["--append", "hostile suicide", "--on-reboot", "exit", "--grace", "0"];
        let Some(output) = run("", &arguments) else { return };
        let errors = String::from_utf8_lossy(&output.stderr);
        // It crashes, or panics, or halts for good, or hangs until it is told to end.
        assert!(matches!(output.status.code(), Some(4 | 5 | 6 | 143)), "{}\n{errors}", output.status);
        assert!(!errors.contains("panicked at"), "{errors}");
    }
}
