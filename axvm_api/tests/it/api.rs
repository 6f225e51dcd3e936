//! Every resource over a real socket, as clients use it.

use crate::common;

use std::io::{Read, Write};
use std::process::Command;

use axvm_api::types::{Action, ActionRequest, BalloonUpdate, MachineState, Status};
use axvm_api::{ApiServer, Client, ClientError, EventFeed, Registry};
use axvm_events::Event;
use common::{Machine, answers, status_of};
use serde_json::{Value, json};

#[test]
fn firecrackers_clients_find_what_they_know() {
    let machine = Machine::start();
    let mut client = machine.client();
    let root: Value = client.get("/").unwrap();
    assert_eq!(root, json!({"app_name": "AxVM", "id": "fake", "state": "Running", "vmm_version": "0.0.0"}));
    let version: Value = client.get("/version").unwrap();
    assert!(version["firecracker_version"].is_string());
    let config: Value = client.get("/machine-config").unwrap();
    let expected = json!({"vcpu_count": 2, "mem_size_mib": 128, "smt": false, "cpu_template": null,
        "track_dirty_pages": false, "huge_pages": "2M"});
    assert_eq!(config, expected);
    let all: Value = client.get("/vm/config").unwrap();
    assert_eq!(all["machine-config"], expected);
    assert_eq!(all["boot-source"]["kernel_image_path"], "/bzImage");
    assert_eq!(all["drives"][0]["drive_id"], "vda");
    let card = json!({"iface_id": "net0", "host_dev_name": "tap0", "guest_mac": "02:00:00:00:00:01"});
    assert_eq!(all["network-interfaces"], json!([card]));
    let cards: Value = client.get("/network-interfaces").unwrap();
    assert_eq!((&cards[0]["iface_id"], &cards[0]["link"]), (&"net0".into(), &"up".into()));
    assert_eq!(client.get::<Value>("/balloon").unwrap()["amount_mib"], 16);
    assert_eq!(client.get::<Value>("/balloon/statistics").unwrap()["free_memory"], 4096);
    for (request, asked) in [
        ("PATCH /vm {\"state\": \"Paused\"}", "pause"),
        ("PATCH /vm {\"state\": \"Resumed\"}", "resume"),
        ("PATCH /balloon {\"amount_mib\": 64}", "balloon 64"),
        ("PATCH /drives/vda {\"drive_id\": \"vda\"}", "drive vda"),
        (
            "PATCH /drives/vda {\"drive_id\": \"vda\", \"rate_limiter\": {\"ops\": {\"size\": 5, \"refill_time\": 100}}}",
            "rate Some(5)",
        ),
        ("PATCH /network-interfaces/net0 {\"iface_id\": \"net0\"}", "network net0 None"),
        (
            "PATCH /network-interfaces/net0 {\"iface_id\": \"net0\", \"tx_rate_limiter\": {\"bandwidth\": \
             {\"size\": 9, \"one_time_burst\": 1, \"refill_time\": 5}}}",
            "rates (None, Some(9))",
        ),
        ("PATCH /network-interfaces/net0 {\"iface_id\": \"net0\", \"link\": \"down\"}", "network net0 Some(Down)"),
        ("PATCH /balloon/statistics {\"stats_polling_interval_s\": 2}", "statistics every 2"),
        ("PUT /actions {\"action_type\": \"SendCtrlAltDel\"}", "power button"),
    ] {
        assert_eq!(status_of(&machine.ask(request)), 204, "{request}");
        assert_eq!(machine.fake.asked(), [asked], "{request}");
    }
    assert_eq!(status_of(&machine.ask("PUT /actions {\"action_type\": \"FlushMetrics\"}")), 204);
    assert!(machine.fake.asked().is_empty());
}

#[test]
fn what_cannot_be_done_is_a_400_with_a_fault_message() {
    let machine = Machine::start();
    for (request, words) in [
        ("GET /nothing", "no such resource"),
        ("DELETE /vm", "no such resource"),
        ("GET /vm/", "no such resource"),
        ("PUT /boot-source {}", "before the machine is started"),
        ("PUT /drives/vda {}", "missing field `drive_id`"),
        ("PUT /actions {\"action_type\": \"InstanceStart\"}", "started already"),
        ("PUT /actions {\"action_type\": \"Dance\"}", "unknown variant `Dance`"),
        ("PUT /actions", "EOF"),
        ("PATCH /vm {\"state\": \"Paused\", \"sate\": 1}", "unknown field `sate`"),
        ("PATCH /vm {\"state\": 1}", "not understood"),
        ("PATCH /vm \u{0}\u{1}\u{2}", "not understood"),
        ("PATCH /balloon {\"amount_mib\": -1}", "not understood"),
        ("PATCH /balloon {\"amount_mib\": 1e99}", "not understood"),
        ("PATCH /balloon {\"amount_mib\": 4096}", "ask for less"),
        ("PATCH /drives/vda {\"drive_id\": \"vdb\"}", "name one disk"),
        ("PATCH /network-interfaces/net0 {\"iface_id\": \"net1\"}", "name one card"),
        ("PATCH /network-interfaces/net0 {\"iface_id\": \"net0\", \"link\": \"off\"}", "unknown variant `off`"),
        ("PUT /network-interfaces/net0 {\"iface_id\": \"net1\", \"host_dev_name\": \"t\"}", "name one device"),
        ("DELETE /drives/vda {\"id\": \"vdb\"}", "name one device"),
        ("DELETE /drives/vda {\"forse\": true}", "unknown field `forse`"),
        ("PATCH /drives/vda {}", "missing field `drive_id`"),
        ("PATCH /drives/vda {\"drive_id\": \"vda\", \"rate_limiter\": {\"iops\": 5}}", "unknown field `iops`"),
        ("GET /console", "Upgrade: axvm-console"),
    ] {
        let answer = machine.ask(request);
        assert_eq!(status_of(&answer), 400, "{request}: {answer}");
        let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        let message = body["fault_message"].as_str().unwrap();
        assert!(message.contains(words), "{request}: {message}");
    }
    assert!(machine.fake.asked().is_empty());
}

#[test]
fn the_client_tells_status_acts_and_passes_on_refusals() {
    let machine = Machine::start();
    let mut client = machine.client();
    let status: Status = client.get("/status").unwrap();
    assert_eq!(
        (status.state, status.cpus, status.memory.resident.total()),
        (MachineState::Running, 2, 4096 + (2 << 20))
    );
    for (action_type, asked) in [
        (Action::PowerButton, "power button"),
        (Action::Nmi, "NMI"),
        (Action::Break, "BREAK"),
        (Action::Reset, "reset"),
        (Action::Stop, "stop"),
    ] {
        client.put("/actions", &ActionRequest { action_type }).unwrap();
        assert_eq!(machine.fake.asked(), [asked]);
    }
    let error = client.patch("/balloon", &BalloonUpdate { amount_mib: 999 }).unwrap_err();
    assert!(error.to_string().contains("ask for less"), "{error}");
    let error = Client::connect(machine.path.with_extension("none")).unwrap_err();
    assert!(matches!(error, ClientError::NoSocket(_)), "{error}");
    client.get::<Status>("/status").unwrap();
}

#[test]
fn events_come_as_lines_and_end_with_the_machine() {
    let machine = Machine::start();
    let events = machine.feed.events();
    assert!(!events.is_on());
    let mut lines =
        machine.client().events().unwrap().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    assert_eq!(lines.next().unwrap()["event"], "hello");
    assert!(events.is_on());
    for to in 0..3_000_u32 {
        events.emit(|| Event::VirtioStatus { device: "vda".into(), from: 0, to });
        if to % 100 == 0 {
            assert_eq!(lines.by_ref().find(|line| line["to"] == to).unwrap()["device"], "vda");
        }
    }
    events.warn(|| Event::Power { reason: "off".into() });
    drop(machine.server);
    assert_eq!(lines.last().unwrap()["text"], "power: off");
    assert!(!events.is_on());
}

#[test]
fn the_console_takes_the_connection_with_what_was_typed() {
    let machine = Machine::start();
    let mut stream = machine.client().console().unwrap();
    let mut heard = [0; 8];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"typed: \n");
    let mut raw = machine.connect();
    raw.write_all(b"GET /console HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: axvm-console\r\n\r\nroot\n").unwrap();
    let mut heard = String::new();
    while !heard.ends_with("typed: root\n\n") {
        let mut byte = [0];
        raw.read_exact(&mut byte).unwrap();
        heard.push(byte[0].into());
    }
    assert!(heard.starts_with("HTTP/1.1 101 "), "{heard}");
    raw.write_all(b"echo").unwrap();
    let mut heard = [0; 4];
    raw.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"echo");
}

#[test]
fn a_connection_serves_many_requests_also_of_http_1_0() {
    let machine = Machine::start();
    let mut stream = machine.connect();
    for version in ["1.0", "1.1", "1.0"] {
        write!(stream, "GET /version HTTP/{version}\r\n\r\n").unwrap();
        assert_eq!(answers(&mut stream, 1), [200]);
    }
    stream.write_all(&b"GET / HTTP/1.1\r\n\r\n".repeat(50)).unwrap();
    assert_eq!(answers(&mut stream, 50), [200; 50]);
    stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("Connection: close"));
}

#[test]
fn an_answer_to_stop_goes_out_before_the_machine_ends() {
    let machine = Machine::start();
    let mut stream = machine.connect();
    stream.write_all(b"PUT /actions HTTP/1.1\r\nContent-Length: 23\r\n\r\n{\"action_type\": \"Stop\"}").unwrap();
    while machine.fake.asked().is_empty() {
        std::thread::yield_now();
    }
    let path = machine.path.clone();
    machine.server.stop();
    assert_eq!(answers(&mut stream, 1), [204]);
    assert!(!path.exists());
}

#[test]
fn curl_is_a_client() {
    let machine = Machine::start();
    let run = |args: &[&str]| {
        let base = ["-sS", "--max-time", "5", "-w", "%{http_code}", "--unix-socket"];
        Command::new("curl").args(base).arg(&machine.path).args(args).output()
    };
    let Ok(output) = run(&["http://localhost/version"]) else { return eprintln!("skipped: no curl here") };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("firecracker_version") && said.ends_with("200"), "{said}{output:?}");
    let body = r#"{"amount_mib": 32}"#;
    let args = ["-X", "PATCH", "-H", "Expect: 100-continue", "-d", body, "http://localhost/balloon"];
    assert_eq!(run(&args).unwrap().stdout, b"204");
    assert_eq!(machine.fake.asked(), ["balloon 32"]);
    let args = ["--http1.0", "-X", "PUT", "-d", r#"{"action_type": "Reset"}"#, "http://localhost/actions"];
    assert_eq!(run(&args).unwrap().stdout, b"204");
    let long = "x".repeat(70_000);
    let said = run(&["-X", "PATCH", "-d", &long, "http://localhost/vm"]).unwrap().stdout;
    assert!(String::from_utf8_lossy(&said).ends_with("413"));
}

#[test]
fn machines_of_the_user_are_found_and_dead_sockets_removed() {
    let machine = Machine::start();
    let dir = machine.dir.path().join("axvm");
    let registry = Registry::at(&dir);
    assert!(registry.machines().unwrap().is_empty());
    let path = registry.default_socket(4711).unwrap();
    let bound = ApiServer::bind(&[&path]).unwrap();
    let server = bound.serve(machine.fake.clone(), EventFeed::new().unwrap()).unwrap();
    server.start().unwrap();
    let dead = registry.default_socket(42).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let found = registry.machines().unwrap();
    assert_eq!(found.iter().map(|found| found.pid).collect::<Vec<_>>(), [4711]);
    assert_eq!(found[0].status.as_ref().unwrap().name, "fake");
    assert!(!dead.exists());
    drop(server);
    assert!(registry.machines().unwrap().is_empty());
}

#[test]
fn a_directory_that_others_can_use_is_no_registry() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = tempfile::tempdir().unwrap();
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (target, link) = (dir.path().join("target"), dir.path().join("link"));
    Registry::at(&target).default_socket(1).unwrap();
    symlink(&target, &link).unwrap();
    for bad in [open, link] {
        let error = Registry::at(&bad).default_socket(1).unwrap_err();
        assert!(error.to_string().contains("only you can use"), "{error}");
        assert!(Registry::at(&bad).machines().is_err());
    }
}

#[test]
fn two_paths_lead_to_one_machine() {
    let machine = Machine::start();
    let paths = ["a", "b"].map(|name| machine.dir.path().join(name));
    let bound = ApiServer::bind(&paths).unwrap();
    let server = bound.serve(machine.fake.clone(), EventFeed::new().unwrap()).unwrap();
    server.start().unwrap();
    for path in &paths {
        Client::connect(path).unwrap().get::<Status>("/status").unwrap();
    }
    drop(server);
    assert!(paths.iter().all(|path| !path.exists()));
}

#[test]
fn another_user_is_turned_away_even_if_the_file_lets_him_in() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can become another user");
    }
    let machine = Machine::start();
    for path in [machine.dir.path(), &machine.path] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "5", "-i", "http://localhost/status", "--unix-socket"]).arg(&machine.path);
    let Ok(output) = curl.uid(65534).gid(65534).output() else { return eprintln!("skipped: no curl here") };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("HTTP/1.1 403 ") && said.contains("another user"), "{said}{output:?}");
}
