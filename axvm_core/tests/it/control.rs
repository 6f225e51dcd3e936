//! Control from outside: `axvm ps`, `axvm ctl`, and HTTP as any client speaks it.
//!
//! Needs /dev/kvm; without it each test says that it was skipped. The sandbox is on, as for users.

use crate::common;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::talk::{flood, pattern};
use common::{PATIENCE, Place, Talk, exists, has_kvm, skip, until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// One request by hand: the status, and the body as JSON (null without one).
fn http(socket: &Path, method: &str, resource: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let head = "Host: axvm\r\nAccept: */*\r\nConnection: close";
    write!(stream, "{method} {resource} HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    parse(&answer)
}

/// The same by curl, with its head in the output.
fn curl(socket: &Path, method: &str, resource: &str, body: &str) -> (u16, Value) {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--include", "--max-time", "60", "--request", method, "--unix-socket"]);
    curl.arg(socket).arg(format!("http://axvm{resource}"));
    if !body.is_empty() {
        curl.args(["--header", "Content-Type: application/json", "--data", body]);
    }
    let output = curl.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    parse(&String::from_utf8(output.stdout).unwrap())
}

fn parse(answer: &str) -> (u16, Value) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() })
}

#[test]
fn machines_are_listed_and_named_by_name_process_and_path() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (code, output, errors) = place.run("ps");
    assert!(code == 0 && output.is_empty() && errors.contains("No machine of yours runs"), "{errors}");
    assert_eq!(place.run("ps --json").1.trim(), "[]");
    assert_eq!(place.run("ps -q"), (0, String::new(), String::new()));

    let (web, talk) = place.shell("--name web --disk disk.img,ro");
    let other = place.axvm("run --kernel guest.elf --memory 32M --cpus 2 --append shell --name db --console none");
    let db = place.start(other, Stdio::null(), Stdio::null());
    until("both are listed", || place.run("ps --json").1.matches("\"pid\"").count() == 2);

    let (code, table, _) = place.run("ps");
    assert!(code == 0 && table.starts_with("PID"), "{table}");
    let line = table.lines().find(|line| line.contains(" web ")).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(cells[..5], [&web.pid().to_string(), "web", "running", "1", "32M"], "{table}");
    assert!(line.ends_with("vda=disk.img (ro)"), "{table}");
    let listed: Value = serde_json::from_str(&place.run("ps --json").1).unwrap();
    let names: Vec<&str> = listed.as_array().unwrap().iter().filter_map(|machine| machine["name"].as_str()).collect();
    assert!(names.contains(&"web") && names.contains(&"db"), "{names:?}");

    for name in ["web", "./api", &web.pid().to_string(), &format!("./axvm/{}.sock", web.pid())] {
        let (code, status, errors) = place.run(&format!("ctl {name} status"));
        assert!(code == 0 && status.starts_with(&format!("web (process {}): running", web.pid())), "{status}{errors}");
    }
    for (name, told) in [
        ("none", "No machine 'none': there is"),
        ("1", "No machine '1'"),
        ("./no-such-socket", "there is no such socket"),
        ("./disk.img", "./disk.img"),
    ] {
        let (code, output, errors) = place.run(&format!("ctl {name} status"));
        assert!(code == 1 && output.is_empty() && errors.contains(told), "{name}: {errors}");
    }
    assert_eq!(place.run("ctl web no-such-action").0, 2);
    let mut listed: Vec<u32> = place.run("ps -q").1.lines().map(|pid| pid.parse().unwrap()).collect();
    let mut pids = [web.pid(), db.pid()];
    listed.sort();
    pids.sort();
    assert_eq!(listed, pids);

    let third = place.axvm("run --kernel guest.elf --memory 32M --append shell --name web --console none");
    let third = place.start(third, Stdio::null(), Stdio::null());
    until("the third is listed", || place.run("ps --json").1.matches("\"pid\"").count() == 3);
    let (code, _, errors) = place.run("ctl web status");
    assert!(code == 1 && errors.contains("2 machines are called 'web'"), "{errors}");
    for pid in [third.pid(), db.pid()] {
        assert_eq!(place.run(&format!("ctl {pid} stop")).0, 0);
    }
    third.ends_with(0);
    db.ends_with(0);
    talk.say("off\n");
    web.ends_with(0);
    assert_eq!(place.run("ps --json").1.trim(), "[]");
}

#[test]
fn ps_does_not_wait_long_for_a_machine_that_does_not_answer() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = place.shell("--name web");
    axvm.signal(Signal::STOP);
    let since = Instant::now();
    let (code, table, errors) = place.run("ps");
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    assert!(
        code == 0
            && table.contains(&axvm.pid().to_string())
            && table.contains("no answer")
            && errors.contains("kill -CONT"),
        "{table}{errors}"
    );
    axvm.signal(Signal::CONT);
    talk.say("off\n");
    axvm.ends_with(0);
}

#[test]
fn every_action_of_ctl_does_what_it_says() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("");
    let ctl = |action: &str| place.run(&format!("ctl ./api {action}"));
    let done = |action: &str| assert_eq!(ctl(action).0, 0, "{action}");
    let status = || ctl("status").1;
    done("pause");
    done("pause");
    assert!(status().contains("): paused for 0s, up "), "{}", status());
    done("resume");
    done("resume");
    assert!(status().contains("): running for"), "{}", status());
    done("balloon 16");
    assert!(status().contains("balloon  16M wanted"), "{}", status());
    done("balloon 8M");
    assert!(status().contains("balloon  8M wanted"), "{}", status());
    done("balloon 0");
    let (code, _, errors) = ctl("balloon 1K");
    assert!(code == 2 && errors.contains("multiple of 1 MiB"), "{errors}");
    let (code, _, errors) = ctl("balloon 1G");
    assert!(code == 1 && errors.contains("32"), "{errors}");
    let (code, _, errors) = ctl("balloon 4096");
    assert!(code == 1 && errors.contains("32"), "{errors}");

    let (screen, output) = std::io::pipe().unwrap();
    let listener = place.start(place.axvm("ctl ./api events"), Stdio::null(), output);
    let mut events = Talk::new(None, screen);
    until("events come", || {
        done("reset");
        talk.hear("ready\n> ");
        events.has_output()
    });
    events.hear("\n");

    talk.say("button\n");
    talk.hear("waiting\n");
    done("shutdown");
    talk.hear("pressed\n");
    axvm.ends_with(0);
    let lines = String::from_utf8(events.rest()).unwrap();
    for line in lines.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok_and(|event| event.is_object()), "{line}");
    }
    listener.ends_with(0);
    let (code, _, errors) = ctl("status");
    assert!(code == 1 && errors.contains("No machine listens at ./api"), "{errors}");
}

#[test]
fn ctl_presses_the_nmi_button_and_breaks_the_serial_line() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let ctl = |action: &str| place.run(&format!("ctl ./api {action}"));
    // An idle guest, one that has halted for good, and one whose processor runs.
    for (typed, words) in [("", ""), ("hang\n", "--on-halt wait"), ("flood 100000\n", "")] {
        let (axvm, mut talk) = place.shell(words);
        talk.say(typed);
        if words == "--on-halt wait" {
            until("it has halted", || axvm.errors().contains("halted for good"));
        }
        thread::scope(|scope| {
            let said = scope.spawn(|| talk.hear("AXVM panic exception 2"));
            assert_eq!(ctl("nmi").0, 0, "{typed}");
            said.join().unwrap();
        });
        // A console that is not read to its end would be waited for.
        drop(talk);
        axvm.ends_with(4);
    }
    let (axvm, mut talk) = place.shell("");
    assert_eq!(ctl("break").0, 0);
    talk.hear("<0>");
    assert_eq!(ctl("pause").0, 0);
    for action in ["nmi", "break"] {
        let (code, _, errors) = ctl(action);
        assert!(code == 1 && errors.contains("resume it first"), "{errors}");
    }
    assert_eq!(ctl("stop").0, 0);
    axvm.ends_with(0);
}

#[test]
fn ctl_asks_one_machine_or_all() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (code, _, errors) = place.run("ctl --all pause");
    assert!(code == 0 && errors.contains("No machine of yours runs"), "{errors}");
    let start = |name: &str| {
        let words = format!("run --kernel guest.elf --memory 32M --cpus 1 --append shell --console none --name {name}");
        place.start(place.axvm(&words), Stdio::null(), Stdio::null())
    };
    let machines = ["one", "two", "pause"].map(start);
    until("all are listed", || place.run("ps -q").1.lines().count() == 3);
    let states = || {
        let (code, told, errors) = place.run("ctl --all status");
        assert_eq!((code, errors.as_str()), (0, ""));
        [": paused for", ": running for"].map(|state| told.matches(state).count())
    };
    assert_eq!(place.run("ctl --all pause").0, 0);
    assert_eq!(states(), [3, 0]);
    // One that refuses does not keep the others from it.
    assert_eq!(place.run("ctl one resume").0, 0);
    let (code, _, errors) = place.run("ctl --all power-button");
    assert!(code == 1 && errors.matches("resume it first").count() == 2, "{errors}");
    assert_eq!(place.run("ctl --all resume").0, 0);
    assert_eq!(states(), [0, 3]);
    for (words, told) in [
        ("ctl --all console", "--all console: a terminal takes one machine at a time"),
        ("ctl --all events", "--all events: "),
        ("ctl --all one status", "--all: does not go together with MACHINE"),
        ("ctl status", "MACHINE"),
        ("ctl one", "axvm ctl"),
    ] {
        let (code, _, errors) = place.run(words);
        assert!(code == 2 && errors.contains(told), "{words}: {errors}");
    }
    // One that is called like a command is found by its process.
    assert_eq!(place.run(&format!("ctl {} status", machines[2].pid())).0, 0);
    assert_eq!(place.run("ctl --all stop").0, 0);
    machines.into_iter().for_each(|machine| drop(machine.ends_with(0)));
}

type Http = fn(&Path, &str, &str, &str) -> (u16, Value);

#[test]
fn every_resource_answers_over_http() {
    if !has_kvm() {
        return;
    }
    let has_curl = Command::new("curl").arg("--version").output().is_ok();
    if !has_curl {
        skip("curl is not there; the same requests are sent by hand only");
    }
    let clients: [(&str, Http, bool); 2] = [("by hand", http, true), ("curl", curl, has_curl)];
    for (name, request, _) in clients.into_iter().filter(|(_, _, is_there)| *is_there) {
        println!("{name}");
        ask_everything(request);
    }
}

fn ask_everything(request: Http) {
    let place = Place::new();
    let (axvm, mut talk) = place.shell("--name web --disk disk.img");
    let socket = place.path("api");
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let get = |resource: &str| {
        let (status, body) = request(&socket, "GET", resource, "");
        assert_eq!(status, 200, "{resource}: {body}");
        body
    };
    let done = |method: &str, resource: &str, body: &str| {
        assert_eq!(request(&socket, method, resource, body), (204, Value::Null), "{method} {resource} {body}");
    };
    let info = get("/");
    assert_eq!((&info["app_name"], &info["id"], &info["state"]), (&json!("AxVM"), &json!("web"), &json!("Running")));
    assert!(get("/version")["firecracker_version"].is_string());
    let config = get("/vm/config");
    assert_eq!(config["boot-source"]["kernel_image_path"], "guest.elf");
    assert_eq!(config["drives"][0]["drive_id"], "vda");
    assert_eq!(get("/machine-config")["mem_size_mib"], 32);
    assert_eq!(get("/machine-config")["vcpu_count"], 1);
    assert_eq!(get("/status")["pid"], axvm.pid());
    assert!(get("/openapi.json")["paths"]["/vm"]["patch"].is_object());

    done("PATCH", "/balloon", r#"{"amount_mib": 8}"#);
    assert_eq!(get("/balloon")["amount_mib"], 8);
    let (status, body) = request(&socket, "GET", "/balloon/statistics", "");
    assert!(status == 400 && body["fault_message"].as_str().unwrap().contains("PATCH /balloon/statistics"), "{body}");
    done("PATCH", "/balloon/statistics", r#"{"stats_polling_interval_s": 1}"#);
    assert_eq!(get("/balloon/statistics")["target_mib"], 8);
    done("PATCH", "/vm", r#"{"state": "Paused"}"#);
    assert_eq!(get("/")["state"], "Paused");
    done("PATCH", "/vm", r#"{"state": "Resumed"}"#);
    assert_eq!(get("/")["state"], "Running");

    for (method, resource, body, told) in [
        ("GET", "/no/such", "", "no such resource"),
        ("DELETE", "/vm", "", "no such resource"),
        ("PATCH", "/vm", r#"{"state": "Gone"}"#, "Paused"),
        ("PATCH", "/vm", "{", "is not understood"),
        ("PATCH", "/balloon", r#"{"amount_mib": 4096}"#, "32"),
        ("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#, "started already"),
        ("PUT", "/boot-source", r#"{"kernel_image_path": "x"}"#, "--kernel, --initrd and --append"),
        ("PUT", "/drives/vdb", r#"{"drive_id": "vdb", "path_on_host": "x"}"#, "--disk of axvm run"),
        ("PUT", "/drives/vdb", r#"{"drive_id": "vdc", "path_on_host": "x"}"#, "the path about vdb; name one device"),
        ("PUT", "/network-interfaces/eth0", r#"{"iface_id": "eth0", "host_dev_name": "tap0"}"#, "--net of axvm run"),
        ("PUT", "/vsock", r#"{"guest_cid": 3}"#, "--vsock"),
        ("PUT", "/snapshot/create", "{}", "AxVM has no snapshots"),
    ] {
        let (status, answer) = request(&socket, method, resource, body);
        let message = answer["fault_message"].as_str().unwrap_or_default();
        assert!(status == 400 && message.contains(told), "{method} {resource} {body}: {status} {answer}");
    }
    done("PUT", "/actions", r#"{"action_type": "Reset"}"#);
    talk.hear("ready\n> ");
    talk.say("button\n");
    talk.hear("waiting\n");
    done("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#);
    talk.hear("pressed\n");
    axvm.ends_with(0);
    assert!(!exists(&socket));
}

#[test]
fn a_path_that_is_taken_is_told_and_kept() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = place.shell("");
    let (code, _, errors) = place.run("run --kernel guest.elf --memory 32M --api-sock api");
    assert!(code == 1 && errors.contains("Cannot listen at api: a running process listens there"), "{errors}");
    let (code, _, errors) = place.run("run --kernel guest.elf --memory 32M --api-sock disk.img");
    assert!(code == 1 && errors.contains("Cannot listen at disk.img: it exists and is no socket"), "{errors}");
    assert!(exists(place.path("disk.img")));
    assert_eq!(place.run("ctl ./api status").0, 0, "the first one still has its socket");
    talk.say("off\n");
    axvm.ends_with(0);
}

/// What a client should not send.
fn nuisance(socket: &Path, round: usize) {
    let Ok(mut stream) = UnixStream::connect(socket) else { return };
    stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let garbage = pattern(round * 97 % 9000);
    let words: &[u8] = match round % 6 {
        0 => &garbage,
        1 => b"GET / HT",
        2 => b"PATCH /vm HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n{",
        3 => &b"GET /openapi.json HTTP/1.1\r\n\r\n".repeat(200),
        4 => b"GET /console HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: axvm-console\r\n\r\n\0\0\0",
        _ => b"",
    };
    let _ = stream.write_all(words);
}

#[test]
fn garbage_on_the_socket_does_not_disturb_a_working_guest() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.talking(place.machine("shell", "--virtio-console none --disk disk.img"));
    let (descriptors, over) = (axvm.count("fd"), AtomicBool::new(false));
    let socket = place.path("api");
    let sent = thread::scope(|scope| {
        let floods: Vec<_> = (0..2)
            .map(|first| {
                let (socket, over) = (&socket, &over);
                scope.spawn(move || {
                    let rounds = (first..).step_by(2).take_while(|_| !over.load(Ordering::Relaxed));
                    rounds.inspect(|round| nuisance(socket, *round)).count()
                })
            })
            .collect();
        for _ in 0..3 {
            talk.say("work 8\n");
            let said = talk.hear(" done\n> ");
            assert!(said.ends_with("= 8 of 8 work done\n> "), "{said}");
            assert_eq!(said.matches(&flood(1)).count(), 8);
        }
        over.store(true, Ordering::Relaxed);
        floods.into_iter().map(|flood| flood.join().unwrap()).sum::<usize>()
    });
    assert!(sent > 100, "only {sent} connections");
    println!("{sent} connections");
    until("all of them are closed", || axvm.count("fd") <= descriptors + 2);
    assert_eq!(place.run("ctl ./api status").0, 0);
    talk.say("off\n");
    axvm.ends_with(0);
}
