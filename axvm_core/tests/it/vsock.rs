//! The socket device around the real program: its socket, the process that connects for it, and what is told of both.
//!
//! Needs /dev/kvm; without it each test says that it was skipped. What the device does for a driver is tried in
//! `axvm_virtio`, without a machine.

use crate::common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use axvm_api::types::VsockStatus;
use common::*;
use rustix::process::Signal;

/// The process that connects for this AxVM, as `/proc` has it.
fn connector(axvm: &Axvm) -> Option<u32> {
    let tasks = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_it = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        words.starts_with(b"axvm: vsock\0") && status.contains(&format!("\nPPid:\t{}\n", axvm.pid()))
    };
    tasks.into_iter().find(is_it)
}

fn is_gone(pid: u32) -> bool {
    !exists(format!("/proc/{pid}/exe")) || fs::read_link(format!("/proc/{pid}/exe")).is_err()
}

#[test]
fn a_socket_device_alone_is_where_programs_find_it() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = place.shell("--vsock");
    let path = place.path(&format!("axvm/{}.vsock", axvm.pid()));
    let told: VsockStatus = axvm.control().get("/vsock").unwrap();
    assert_eq!(told, VsockStatus { guest_cid: 3, uds_path: path.clone(), connections: 0 });
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(axvm.status().parts.iter().any(|part| part.name == "vsock" && part.kind == "virtio-vsock"));
    let (code, said, _) = place.run(&format!("ctl {} status", axvm.pid()));
    let row = format!("  vsock    {}; CID 3, 0 connections\n", path.display());
    assert!(code == 0 && said.contains(&row), "{said}");
    talk.say("off\n");
    axvm.ends_with(0);
    assert!(!exists(&path));
}

/// As Firecracker: clients connect, and get no answer before the guest's driver is there.
#[test]
fn clients_before_a_driver_get_no_answer_and_are_closed_at_the_end() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = place.shell("--vsock cid=42,socket=v");
    let mut client = UnixStream::connect(place.path("v")).unwrap();
    client.write_all(b"CONNECT 52\n").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(2500))).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    talk.say("off\n");
    axvm.ends_with(0);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
    assert!(!exists(place.path("v")));
}

#[test]
fn the_process_that_connects_is_fenced_in_and_ends_with_axvm() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for kill in [false, true] {
        let (axvm, talk) = place.shell("--vsock socket=v");
        let pid = connector(&axvm).expect("a process that connects");
        let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        until("it has closed its sandbox", || status().contains("Seccomp:\t2\n"));
        assert!(status().contains("NoNewPrivs:\t1\n") && status().contains("CapEff:\t0000000000000000\n"));
        // The pair's end, nothing, and the place for its last words.
        assert_eq!(fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), 3);
        if kill {
            axvm.signal(Signal::KILL);
            axvm.ends_with(137);
        } else {
            talk.say("off\n");
            axvm.ends_with(0);
        }
        until("it ends", || is_gone(pid));
    }
    // The file that the killed one left is replaced.
    assert!(exists(place.path("v")));
    let (axvm, talk) = place.shell("--vsock socket=v");
    let (code, _, errors) = place.run("run --kernel guest.elf --append off --memory 32M --vsock socket=v");
    assert!(code == 1 && errors.contains("a running process listens there already"), "{errors}");
    talk.say("off\n");
    axvm.ends_with(0);
    assert!(!exists(place.path("v")));
}

#[test]
fn a_path_with_no_room_for_ports_is_refused() {
    let place = Place::new();
    let path = "x".repeat(97);
    let (code, _, errors) = place.run(&format!("run --kernel guest.elf --vsock socket=/{path}"));
    assert!(code == 2 && errors.contains("98 bytes are too many for this path, 96 are the limit"), "{errors}");
}

#[test]
fn a_machine_without_a_socket_device_says_so() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = place.shell("");
    let error = axvm.control().get::<VsockStatus>("/vsock").unwrap_err().to_string();
    assert!(error.contains("has no socket device; start it with --vsock"), "{error}");
    assert!(connector(&axvm).is_none());
    talk.say("off\n");
    axvm.ends_with(0);
}
