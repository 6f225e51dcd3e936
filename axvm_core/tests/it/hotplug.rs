//! Disks and network cards that come and go while the guest runs, with the sandbox on, as users have it.
//!
//! Needs /dev/kvm; without it each test says that it was skipped.

use std::fs::{DirEntry, File};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};

use axvm_api::Client;
use axvm_api::types::{Added, Removal, Status};
use serde_json::json;

use crate::common::{AXVM, Axvm, Place, has_kvm, until};
use crate::network::{exchange, read_frame, write_frame};

fn disk(place: &Place, name: &str, len: u64) {
    File::create(place.path(name)).unwrap().set_len(len).unwrap();
}

fn is_there(status: &Status, name: &str) -> bool {
    status.parts.iter().any(|part| part.name == name)
}

/// What the process has: the targets of its descriptors but for sockets, which clients have, and the names of its threads
/// but for those of the disk that stays, which come when the guest first uses it.
#[derive(Debug, PartialEq)]
struct Holdings(Vec<String>, Vec<String>);

impl Holdings {
    fn of(axvm: &Axvm) -> Holdings {
        let all = |directory: &str| std::fs::read_dir(format!("/proc/{}/{directory}", axvm.pid())).unwrap().flatten();
        let target = |entry: DirEntry| Some(std::fs::read_link(entry.path()).ok()?.display().to_string());
        let kind = |target: String| target.split(':').next().unwrap_or_default().to_owned();
        let name = |entry: DirEntry| std::fs::read_to_string(entry.path().join("comm")).ok();
        let targets = all("fd").filter_map(target).map(kind).filter(|target| target != "socket");
        let names = all("task").filter_map(name).filter(|name| !name.starts_with("vda-"));
        let mut holdings = Holdings(targets.collect(), names.collect());
        holdings.0.sort();
        holdings.1.sort();
        holdings
    }

    /// The same, once there was a client: the first one makes a thread.
    fn of_served(place: &Place, axvm: &Axvm) -> Holdings {
        assert_eq!(place.run("ctl api status").0, 0);
        Holdings::of(axvm)
    }

    /// Waits until the process has this, and no more.
    fn are_back(&self, axvm: &Axvm) {
        let since = Instant::now();
        while Holdings::of(axvm) != *self {
            assert!(since.elapsed() < Duration::from_secs(20), "before: {self:?}\nnow: {:?}", Holdings::of(axvm));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn kib(axvm: &Axvm, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", axvm.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_disk_comes_works_and_goes_and_its_image_is_free_again() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for name in ["a.img", "b.img"] {
        disk(&place, name, 1 << 20);
    }
    let (axvm, mut talk) = place.shell("--disk disk.img --bus pci");
    let before = Holdings::of_served(&place, &axvm);
    for (image, more, id) in [
        ("a.img", ",serial=FIRST", "FIRST"),
        ("b.img", ",ro", ""),
        ("a.img", ",ephemeral", ""),
        ("a.img", ",direct", ""),
    ] {
        talk.say("came\r");
        let (code, said, errors) = place.run(&format!("ctl api disk add {image}{more}"));
        assert_eq!((code, &*said), (0, "vdb at 00:04.0\n"), "{errors}");
        let answer = talk.answer();
        assert!(answer.contains(&format!("verified, id {id}")) || more == ",ro", "{answer}");
        assert!(answer.contains("slots 0x10") && answer.contains("proved"), "{answer}");
        let status = place.run("ctl api status").1;
        assert!(status.contains("00:04.0 vdb") && status.contains("slots    27 of 28 free"), "{status}");
        let taken = place.run(&format!("ctl api disk add {image}"));
        assert!(more == ",ro" || more == ",ephemeral" || taken.2.contains("is in use by"), "{}", taken.2);

        talk.say("went\r");
        if taken.0 == 0 {
            assert_eq!(place.run("ctl api disk remove vdc --force").0, 0);
        }
        assert_eq!(place.run("ctl api disk remove vdb"), (0, String::new(), String::new()));
        assert!(talk.answer().contains("slots 0x"));
        before.are_back(&axvm);
        assert!(!is_there(&axvm.status(), "vdb"));
    }
    talk.say("off\r");
    axvm.ends_with(0);
}

#[test]
fn cards_come_carry_frames_and_go() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let _first = UnixListener::bind(place.path("first")).unwrap();
    let (axvm, mut talk) = place.shell("--net stream=first --bus pci");
    drop(talk.ask("net 0"));
    let before = Holdings::of_served(&place, &axvm);
    let listener = UnixListener::bind(place.path("cable")).unwrap();
    let datagrams = UnixDatagram::bind(place.path("theirs")).unwrap();
    for (cable, how) in [("stream=cable", ",mac=02:00:00:00:00:07,mtu=1400"), ("dgram=ours:theirs", ",tx=1M/s")] {
        talk.say("came\r");
        let (code, said, errors) = place.run(&format!("ctl api net add {cable}{how}"));
        assert_eq!((code, &*said), (0, "net1 at 00:04.0\n"), "{errors}");
        assert!(talk.answer().contains("slots 0x10 proved"));
        let told = place.run("ctl api net").1;
        assert!(told.contains("net1") && told.contains(cable), "{told}");
        let said = talk.ask("net 1");
        match cable.starts_with("stream") {
            true => {
                assert_eq!(said, "mac 020000000007 link 1 mtu 1400 net");
                let (peer, _) = listener.accept().unwrap();
                exchange(&mut talk, 1, |frame| write_frame(&peer, frame), || read_frame(&peer));
                assert_eq!(place.run("ctl api net net1 down").0, 0);
                assert!(talk.ask("net 1").contains("link 0"));
            }
            false => {
                datagrams.connect(place.path("ours")).unwrap();
                let receive = || {
                    let mut bytes = vec![0; 2000];
                    let len = datagrams.recv(&mut bytes).unwrap();
                    bytes[..len].to_vec()
                };
                exchange(&mut talk, 2, |frame| assert_eq!(datagrams.send(frame).unwrap(), frame.len()), receive);
                assert!(told.contains("1.0M/s") || told.contains("1M/s"), "{told}");
            }
        }
        talk.say("went\r");
        assert_eq!(place.run("ctl api net remove net1"), (0, String::new(), String::new()));
        assert!(talk.answer().contains("slots 0x10"));
        before.are_back(&axvm);
        assert!(!place.run("ctl api net").1.contains("net1"));
    }
    // What is handed over is looked at.
    let file = File::open(place.path("disk.img")).unwrap();
    let (blocking, _other) = UnixStream::pair().unwrap();
    for (cable, end) in [("stream", file.as_fd()), ("tap", file.as_fd()), ("stream", blocking.as_fd())] {
        let put = json!({"iface_id": "net1", "host_dev_name": "x", "guest_mac": "02:00:00:00:00:01", "cable": cable});
        let wrong = axvm.control().add::<Added>("/network-interfaces/net1", &put, &[end]).unwrap_err().to_string();
        assert!(wrong.contains("What was handed over is no open cable of this kind"), "{wrong}");
    }
    talk.say("off\r");
    axvm.ends_with(0);
}

#[test]
fn what_cannot_come_or_go_is_told_with_what_to_do() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    disk(&place, "a.img", 1 << 20);
    let fails = |words: &str, why: &str| {
        let (code, _, errors) = place.run(words);
        assert!(code == 1 && errors.contains(why), "{words}: {errors}");
    };
    let (axvm, talk) = place.shell("--disk disk.img --bus pci --name plugs");
    fails("ctl api disk add none.img", "Cannot open disk image none.img");
    fails("ctl api disk add a.img,engine=io_uring", "the sandbox of a machine that runs lets no io_uring be made");
    fails("ctl api disk add disk.img", "is in use by process");
    fails("ctl api disk remove vda", "vda cannot be removed: what was there at the start stays, and nothing was added");
    fails("ctl api net remove net0", "net0 cannot be removed");
    assert_eq!(place.run("ctl api disk add a.img").0, 0);
    fails("ctl api disk remove vda", "what was there at the start stays; added were vdb");
    assert_eq!(place.run("ctl api pause").0, 0);
    fails("ctl api disk remove vdb", "The machine is paused and cannot react; resume it first");
    assert_eq!(place.run("ctl api resume").0, 0);
    // This guest looks at no slot: only force helps.
    assert_eq!(place.run("ctl api disk remove vdb --force"), (0, String::new(), String::new()));
    let put = json!({"drive_id": "vdb", "path_on_host": "a.img", "block_size": 512});
    let refusal = axvm.control().put("/drives/vdb", &put).unwrap_err().to_string();
    assert!(refusal.contains("must come with the request (SCM_RIGHTS)"), "{refusal}");
    let file = File::open(place.path("a.img")).unwrap();
    let wrong = axvm.control().add::<Added>("/drives/vdb", &put, &[file.as_fd()]).unwrap_err().to_string();
    assert!(wrong.contains("are not the open files of such a disk"), "{wrong}");
    let put = json!({"drive_id": "vdc", "path_on_host": "a.img", "block_size": 512, "is_read_only": true});
    let wrong = axvm.control().add::<Added>("/drives/vdc", &put, &[file.as_fd()]).unwrap_err().to_string();
    assert!(wrong.contains("The next device of this kind is vdb, not vdc; name that one"), "{wrong}");
    talk.say("off\r");
    axvm.ends_with(0);
    for (words, why) in [("", "start it with --bus pci"), ("--bus pci --acpi off", "they need --acpi full")] {
        let (axvm, _talk) = place.shell(words);
        fails("ctl api disk add a.img", why);
        assert_eq!(place.run("ctl api stop").0, 0);
        axvm.ends_with(0);
    }
}

/// A reset is a new machine, with what was added in its slots.
#[test]
fn what_was_added_stays_over_a_reset_and_a_pause() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    disk(&place, "a.img", 1 << 20);
    let (axvm, mut talk) = place.shell("--disk disk.img --bus pci");
    assert_eq!(place.run("ctl api disk add a.img").1, "vdb at 00:04.0\n");
    for step in ["pause", "status", "resume"] {
        assert_eq!(place.run(&format!("ctl api {step}")).0, 0);
    }
    talk.say("reset\r");
    talk.hear("ready\n> ");
    assert!(is_there(&axvm.status(), "vdb"));
    talk.say("work 1\r");
    assert!(talk.answer().contains("1 of 1"), "both disks are proved");
    talk.say("went\r");
    assert_eq!(place.run("ctl api disk remove vdb").0, 0);
    assert!(talk.answer().contains("slots 0x10"));
    talk.say("reset\r");
    talk.hear("ready\n> ");
    assert!(!is_there(&axvm.status(), "vdb"));
    talk.say("off\r");
    axvm.ends_with(0);
}

/// Adds the file as a disk that is only read, as often as it takes.
fn add(client: &mut Client, file: &File) {
    let put = json!({"drive_id": "vdb", "path_on_host": "a.img", "block_size": 512, "is_read_only": true});
    let added: Added = client.add("/drives/vdb", &put, &[file.as_fd()]).unwrap();
    assert_eq!(added.name, "vdb");
}

fn remove(client: &mut Client, force: bool) {
    client.delete("/drives/vdb", &Removal { id: "vdb".into(), force }).unwrap();
    let since = Instant::now();
    while is_there(&client.get("/status").unwrap(), "vdb") {
        assert!(since.elapsed() < Duration::from_secs(60), "vdb does not go");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn hundreds_of_disks_that_came_and_went_leave_nothing_behind() {
    if !has_kvm() {
        return;
    }
    const ROUNDS: usize = 200;
    let place = Place::new();
    disk(&place, "a.img", 1 << 20);
    let file = File::open(place.path("a.img")).unwrap();
    let (axvm, mut talk) = place.shell("--disk disk.img --bus pci");
    let mut client = axvm.control();
    let (start, mut before) = (Holdings::of_served(&place, &axvm), None);
    // The first rounds make what stays: heaps, stacks.
    for rounds in [20, ROUNDS] {
        talk.say(format!("slots {rounds}\r"));
        for _ in 0..rounds {
            add(&mut client, &file);
            remove(&mut client, false);
        }
        talk.answer();
        for _ in 0..rounds {
            add(&mut client, &file);
            remove(&mut client, true);
        }
        start.are_back(&axvm);
        let now = kib(&axvm, "VmData:");
        let data = *before.get_or_insert(now);
        assert!(now < data + 2048, "{data} KiB before, {now} after");
    }
    talk.say("off\r");
    axvm.ends_with(0);
}

#[test]
fn a_guest_that_ejects_with_requests_on_their_way_loses_its_disk_and_nothing_else() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    disk(&place, "a.img", 1 << 20);
    let file = File::open(place.path("a.img")).unwrap();
    let (axvm, mut talk) = place.shell("--disk disk.img --bus pci");
    let mut client = axvm.control();
    let before = Holdings::of_served(&place, &axvm);
    for _ in 0..50 {
        add(&mut client, &file);
        talk.say("yank\r");
        assert!(talk.answer().contains("yank"));
        until("it has gone", || !is_there(&axvm.status(), "vdb"));
    }
    before.are_back(&axvm);
    talk.say("work 1\r");
    talk.answer();
    talk.say("off\r");
    axvm.ends_with(0);
}

#[test]
fn a_machine_that_may_open_no_more_files_refuses_a_disk_and_goes_on() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let machine = place.machine_as_started("shell", "--disk disk.img --bus pci");
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 160; exec \"$0\" \"$@\"", AXVM]).args(machine.get_args());
    limited.current_dir(machine.get_current_dir().unwrap());
    limited.envs(machine.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let (axvm, mut talk) = place.talking(limited);
    let name = |number: usize| format!("{number}.img");
    let mut came = 0;
    let why = loop {
        disk(&place, &name(came), 1 << 20);
        let (code, _, errors) = place.run(&format!("ctl api disk add {}", name(came)));
        if code != 0 {
            break errors;
        }
        came += 1;
    };
    assert!(came > 2, "{came}: {why}");
    assert!(why.contains("os error 24") || why.contains("`ulimit -n` says more"), "{why}");
    let last = axvm_boot::plan::disk_name(came);
    assert!(place.run(&format!("ctl api disk remove {last} --force")).0 == 0);
    assert!(talk.ask("work 5").ends_with("of 5 work"));
    talk.say("off\r");
    axvm.ends_with(0);
}
