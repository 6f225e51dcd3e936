//! The socket device around the real program: its socket, the process that connects for it, and what is told of both.
//!
//! Needs /dev/kvm; without it each test says that it was skipped. What the device does for a driver is tried in
//! `axvm_virtio`, without a machine.

use crate::common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use axvm_api::Client;
use axvm_api::types::{VmUpdate, VsockStatus, WantedState};
use common::*;
use rustix::process::{Pid, Signal, kill_process};

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
    let (axvm, talk) = place.shell("--vsock -v");
    let path = place.path(&format!("axvm/{}.vsock", axvm.pid()));
    let told: VsockStatus = axvm.control().get("/vsock").unwrap();
    assert_eq!(told, VsockStatus { guest_cid: 3, uds_path: path.clone(), connections: 0 });
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(axvm.status().parts.iter().any(|part| part.name == "vsock" && part.kind == "virtio-vsock"));
    let (code, said, _) = place.run(&format!("ctl {} status", axvm.pid()));
    let row = format!("  vsock    {}; CID 3, 0 connections\n", path.display());
    assert!(code == 0 && said.contains(&row), "{said}");
    talk.say("off\n");
    let errors = axvm.ends_with(0).errors;
    assert!(errors.contains(&format!("CID 3, listens at {}", path.display())), "{errors}");
    assert!(!exists(&path));
}

#[test]
fn an_agents_port_alone_is_where_commands_find_it() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = place.shell("--agent-port a -v --name web");
    let path = place.path("a");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(axvm.status().agent_port.as_deref(), Some(&*path));
    assert!(axvm.status().parts.iter().any(|part| part.name == "agent-port" && part.kind == "virtio-serial"));
    let (code, said, _) = place.run("ctl web status");
    assert!(code == 0 && said.contains(&format!("  agent    {}\n", path.display())), "{said}");
    // Our interpreter has no driver for it.
    let (code, _, errors) = place.run("exec --wait 1 web -- true");
    assert_eq!(code, 125, "{errors}");
    assert!(errors.contains("No agent answers in the guest after 1 s"), "{errors}");
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
fn what_a_killed_machine_left_goes_when_machines_are_listed() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, _talk) = place.shell("--vsock");
    let path = place.path(&format!("axvm/{}.vsock", axvm.pid()));
    axvm.signal(Signal::KILL);
    axvm.ends_with(137);
    assert!(exists(&path));
    let (code, _, errors) = place.run("ps");
    assert!(code == 0 && !exists(&path), "{errors}");
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

/// Checksum of the guest's server.
fn sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |sum: u32, byte| sum.rotate_left(5) ^ u32::from(*byte))
}

/// A client that the guest has taken. On a crowded host the guest may need longer than the device waits: then once more.
fn taken(path: &Path, port: usize) -> UnixStream {
    for _ in 0..20 {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        let mut answer = [0; 14];
        if stream.read_exact(&mut answer).is_ok() {
            assert!(answer.starts_with(b"OK 10737") && answer.ends_with(b"\n"), "{answer:?}");
            return stream;
        }
    }
    panic!("the guest takes no connection");
}

/// A client that sends `len` bytes; its answer must count them. One that `leaves` goes before it has one.
fn client(path: &Path, len: usize, leaves: bool) {
    let mut stream = taken(path, 1 + len % 1000);
    let bytes: Vec<u8> = (0..len).map(|at| (at.wrapping_mul(2_654_435_761) >> 7) as u8).collect();
    stream.write_all(&bytes).unwrap();
    if leaves {
        return;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut counted = String::new();
    stream.read_to_string(&mut counted).unwrap();
    assert_eq!(counted, format!("{len} {}\n", sum(&bytes)));
}

/// All of it with the sandbox closed: accept, half-close, credit, and connections that end in the middle.
#[test]
fn two_hundred_clients_of_a_guest_are_served_to_the_last_byte() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("--vsock socket=v");
    talk.say("vsock 200\n");
    talk.hear("serving\n");
    thread::scope(|scope| {
        for number in 0..10 {
            let path = place.path("v");
            scope.spawn(move || {
                for round in 0..20 {
                    let len = (number * 7919 + round * 104_729) % [10, 300, 5000, 70_000][round % 4];
                    client(&path, len, round % 5 == 4);
                }
            });
        }
    });
    // Those that left may have been answered before.
    talk.hear(" of 200 vsock done");
    until("no connection is left", || axvm.status().vsock.is_some_and(|vsock| vsock.connections == 0));
    talk.say("off\n");
    axvm.ends_with(0);
}

#[test]
fn a_guest_reaches_programs_that_listen_and_is_refused_by_others() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("--vsock socket=v");
    let listener = UnixListener::bind(place.path("v_5000")).unwrap();
    talk.say("dial 5001\n");
    talk.hear("= refused dial done");
    for _ in 0..3 {
        talk.say("dial 5000\n");
        let (stream, _) = listener.accept().unwrap();
        std::io::copy(&mut &stream, &mut &stream).unwrap();
        drop(stream);
        talk.hear("= echoed dial done");
    }
    // The last one's end is told, and the next start of the guest finds the device as new.
    talk.say("reset\n");
    talk.hear("ready\n> ");
    talk.say("dial 5000\n");
    let (stream, _) = listener.accept().unwrap();
    std::io::copy(&mut &stream, &mut &stream).unwrap();
    drop(stream);
    talk.hear("= echoed dial done");
    talk.say("off\n");
    let end = axvm.ends_with(0);
    assert!(!end.errors.contains("socket"), "{}", end.errors);
}

#[test]
fn a_guest_lives_on_without_the_process_that_connects_and_the_user_is_told_once() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("--vsock socket=v");
    let _listener = UnixListener::bind(place.path("v_5000")).unwrap();
    let pid = connector(&axvm).unwrap();
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    until("it is gone", || is_gone(pid));
    for _ in 0..3 {
        talk.say("dial 5000\n");
        talk.hear("= refused dial done");
    }
    talk.say("off\n");
    let errors = axvm.ends_with(0).errors;
    assert_eq!(
        errors.matches("the process that connects for it has ended; what the guest asks").count(),
        1,
        "{errors}"
    );
}

#[test]
fn a_reset_of_the_guest_ends_its_connections_and_leaves_the_socket() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("--vsock socket=v --on-reboot restart");
    talk.say("vsock 1000\n");
    talk.hear("serving\n");
    let mut open = UnixStream::connect(place.path("v")).unwrap();
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    open.write_all(b"CONNECT 52\n").unwrap();
    let mut answer = [0; 14];
    open.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK 1073741824\n");
    assert_eq!(axvm.status().vsock.unwrap().connections, 1);
    // In the middle of a pause, too.
    let (code, _, errors) = place.run("ctl api pause");
    assert_eq!(code, 0, "{errors}");
    open.write_all(b"kept").unwrap();
    let (code, _, errors) = place.run("ctl api resume");
    assert_eq!(code, 0, "{errors}");
    let (code, _, errors) = place.run("ctl api reset");
    assert_eq!(code, 0, "{errors}");
    assert!(matches!(open.read(&mut [0]), Ok(0) | Err(_)));
    talk.hear("ready\n> ");
    assert_eq!(axvm.status().vsock.unwrap().connections, 0);
    talk.say("vsock 1\n");
    talk.hear("serving\n");
    client(&place.path("v"), 5000, false);
    talk.hear("= 1 of 1 vsock done");
    talk.say("off\n");
    axvm.ends_with(0);
}

/// Connections go on where a pause held them.
#[test]
fn pauses_in_the_middle_lose_nothing() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("--vsock socket=v");
    talk.say("vsock 8\n");
    talk.hear("serving\n");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = (0..4).map(|number| {
            let path = place.path("v");
            scope.spawn(move || (0..2).for_each(|_| client(&path, 150_000 + number, false)))
        });
        let clients = clients.collect::<Vec<_>>();
        let (over, api) = (&over, place.path("api"));
        let pausing = scope.spawn(move || {
            let (mut client, mut pauses) = (Client::connect(&api).unwrap(), 0);
            while !over.load(Ordering::Relaxed) {
                client.patch("/vm", &VmUpdate { state: WantedState::Paused }).unwrap();
                client.patch("/vm", &VmUpdate { state: WantedState::Resumed }).unwrap();
                pauses += 1;
            }
            pauses
        });
        clients.into_iter().for_each(|client| client.join().unwrap());
        over.store(true, Ordering::Relaxed);
        assert!(pausing.join().unwrap() > 5);
    });
    talk.hear("= 8 of 8 vsock done");
    talk.say("off\n");
    axvm.ends_with(0);
}
