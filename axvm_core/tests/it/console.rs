//! Consoles as a person has them: typed keys, pipes that are slow or closed, files, sockets, pseudo-terminals.
//!
//! Needs /dev/kvm; without it each test says that it was skipped. The sandbox is on, as for users.

use crate::common;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::Duration;

use common::talk::{checksum, flood, pattern};
use common::terminal::open;
use common::{Axvm, Place, Talk, exists, has_kvm, until};
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::Signal;

/// What the replay of a console holds.
const REPLAY: usize = 64 << 10;

/// A machine whose output goes into a pipe of 4 KiB.
fn into_a_small_pipe(place: &Place, command: std::process::Command) -> (Axvm, Talk) {
    let (input, keys) = std::io::pipe().unwrap();
    let (screen, output) = std::io::pipe().unwrap();
    fcntl_setpipe_size(&output, 4096).unwrap();
    let axvm = place.start(command, input, output);
    let mut talk = Talk::new(Some(OwnedFd::from(keys)), screen);
    talk.hear("ready\n> ");
    (axvm, talk)
}

#[test]
fn a_reader_that_sleeps_holds_no_vcpu_and_then_gets_everything() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = into_a_small_pipe(&place, place.machine("shell", "--console stdio"));
    // More than pipe, console and port hold together: 4 + 64 + 64 KiB.
    const LINES: usize = 144;
    talk.say(format!("flood {LINES}\n"));
    // A byte is one exit, 16 bytes are one more. More exits than that and nothing read: the guest looks again and again.
    let enough = (LINES << 10) as u64 * 5 / 4;
    until("the vCPU went on without a reader", || axvm.status().exits.total > enough);
    let said = talk.answer_after_all(&flood(LINES));
    assert_eq!(said, format!("{LINES} flood"));
    talk.say("off\n");
    assert_eq!(talk.rest(), b"off\n");
    axvm.ends_with(0);
}

#[test]
fn a_slow_reader_gets_all_of_1_mib_of_hvc0() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = into_a_small_pipe(&place, place.machine("shell=hvc0", "--virtio-console stdio"));
    talk.say("flood 1024\n");
    until("the console is full", || axvm.status().exits.total > 0);
    assert_eq!(talk.answer_after_all(&flood(1024)), "1024 flood");
    talk.say("off\n");
    assert_eq!(talk.rest(), b"off\n");
    axvm.ends_with(0);
}

#[test]
fn what_a_guest_wrote_last_is_read_after_its_power_off() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = into_a_small_pipe(&place, place.machine("shell=hvc0", "--virtio-console stdio"));
    talk.say("flood 32\noff\n");
    until("the guest is off", || !exists(place.path("api")));
    let rest = String::from_utf8(talk.rest()).unwrap();
    assert!(rest.contains(&flood(32)) && rest.ends_with("> off\n"), "{:?}", rest.len());
    axvm.ends_with(0);
}

#[test]
fn a_reader_that_leaves_stops_nothing_else() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (input, keys) = std::io::pipe().unwrap();
    let (screen, output) = std::io::pipe().unwrap();
    let axvm = place.start(place.machine("shell", ""), input, output);
    let mut talk = Talk::new(Some(keys.into()), screen);
    talk.hear("ready\n> ");
    let keys = talk.stop_listening();
    keys.say("flood 8\noff\n");
    let end = axvm.ends_with(0);
    assert_eq!(end.errors.matches("Cannot write to the console's standard output").count(), 1, "{end:?}");
}

#[test]
fn a_signal_ends_ctl_console_though_it_has_no_reader() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let axvm = place.start(place.machine("shell=hvc0", "--virtio-console unix=con"), Stdio::null(), Stdio::null());
    let mut talk = place.attach("con");
    talk.hear("ready\n> ");
    let (control, unread) = into_a_small_pipe(&place, place.axvm("ctl ./api console"));
    // More than its pipe, its console and the socket hold.
    talk.say("flood 1024\n");
    talk.hear(" done\n> ");
    until("it can say no more", || control.state() == 'S' && unread.has_output());
    control.signal(Signal::TERM);
    control.ends_with(0);
    talk.say("off\n");
    axvm.ends_with(0);
}

#[test]
fn a_paste_of_64_kib_arrives_over_every_console() {
    if !has_kvm() {
        return;
    }
    let (place, typed) = (Place::new(), pattern(64 << 10));
    let paste = |talk: &mut Talk| {
        talk.say(format!("raw {}\n", typed.len()));
        talk.say(&typed);
        assert_eq!(talk.answer(), checksum(&typed));
    };
    let (axvm, mut talk) = place.shell("");
    paste(&mut talk);
    talk.say("off\n");
    axvm.ends_with(0);

    let axvm = place.start(
        place.machine("shell=hvc0", "--console none --virtio-console unix=con"),
        Stdio::null(),
        Stdio::null(),
    );
    let mut client = place.attach("con");
    client.hear("ready\n> ");
    paste(&mut client);

    let (input, keys) = std::io::pipe().unwrap();
    let (screen, output) = std::io::pipe().unwrap();
    let control = place.start(place.axvm("ctl ./api console"), input, output);
    let mut talk = Talk::new(Some(keys.into()), screen);
    talk.hear("\n> ");
    talk.answer();
    paste(&mut talk);
    talk.say("off\n");
    axvm.ends_with(0);
    control.ends_with(0);
}

/// Waits until the guest is ready and has nothing to do.
fn until_it_sleeps(axvm: &Axvm) {
    until("the guest is ready", || {
        let exits = axvm.status().exits.total;
        std::thread::sleep(Duration::from_millis(50));
        exits > 30 && axvm.status().exits.total == exits
    });
}

/// CPU time that AxVM uses in two seconds, without its vCPUs, and theirs.
fn two_idle_seconds(machines: &[(&str, Axvm)]) {
    let times = || machines.iter().map(|(_, axvm)| axvm.cpu_time()).collect::<Vec<_>>();
    let before = times();
    std::thread::sleep(Duration::from_secs(2));
    for (((name, _), before), after) in machines.iter().zip(before).zip(times()) {
        let sum = |times: &[(String, Duration)], vcpu: bool| {
            times.iter().filter(|(name, _)| name.starts_with("vcpu") == vcpu).map(|(_, time)| *time).sum::<Duration>()
        };
        let (own, guest) = (sum(&after, false) - sum(&before, false), sum(&after, true) - sum(&before, true));
        println!("{name}: {own:?} of AxVM, {guest:?} of the vCPU");
        assert!(own + guest < Duration::from_millis(20), "{name}: {own:?} of AxVM, {guest:?} of the vCPU\n{after:?}");
    }
}

#[test]
fn an_idle_machine_does_not_spin_whatever_its_standard_input_is() {
    if !has_kvm() {
        return;
    }
    let (place, mut machines) = (Place::new(), Vec::new());
    let mut idle = |name, words: &str, input: Stdio, output: Stdio| {
        let directory = Place::new();
        let axvm = directory.start(directory.machine("shell", words), input, output);
        until_it_sleeps(&axvm);
        machines.push((name, axvm));
        directory
    };
    let (silent, keys) = std::io::pipe().unwrap();
    let (closed, reader) = std::io::pipe().unwrap();
    drop(reader);
    // What is typed before the guest empties the FIFO is lost, as on a PC.
    fs::write(place.path("typed"), "\n".repeat(20) + "flood 1\n").unwrap();
    let regular = File::open(place.path("typed")).unwrap();
    let log = File::create(place.path("log")).unwrap();
    let directories = [
        idle("/dev/null", "", Stdio::null(), Stdio::null()),
        idle("a silent pipe", "", silent.into(), Stdio::null()),
        idle("a closed pipe", "", closed.into(), Stdio::null()),
        idle("a regular file", "", regular.into(), log.into()),
        idle("none", "--console none", Stdio::null(), Stdio::null()),
        idle("a pty without a program", "--console pty", Stdio::null(), Stdio::null()),
        idle("a socket", "--console unix=con --virtio-console pty", Stdio::null(), Stdio::null()),
    ];
    until("the file was typed", || fs::read_to_string(place.path("log")).unwrap().contains("= 1 flood done\n> "));
    two_idle_seconds(&machines);
    drop((keys, directories));
}

/// It is looked at after 2 s and 8 s of silence, whether it has halted; then no thread wakes, those of the vCPUs neither.
/// A busy host may move a thread about, so there are several tries: what wakes now and then spoils all of them.
///
/// Many devices are there, on either bus (the guest drives no socket device and no agent's port, whose threads so do not
/// start), and the disk has been used: its worker, which then looks at its ring for a while, must have come to rest.
#[test]
fn an_idle_machine_wakes_no_thread() {
    if !has_kvm() {
        return;
    }
    let begin = |bus: &str| {
        let place = Place::new();
        let cable = UnixListener::bind(place.path("cable")).unwrap();
        let more = format!(
            "--bus {bus} --disk disk.img --virtio-console pty --vsock socket=v --agent-port agent --net stream=cable"
        );
        let (axvm, mut talk) = place.shell(&more);
        assert_eq!(talk.ask("work 5").lines().last(), Some("5 of 5 work"), "{bus}");
        common::net::start(&mut talk, 0);
        (axvm, talk, (place, cable))
    };
    let machines = ["pci", "mmio"].map(begin);
    std::thread::sleep(Duration::from_secs(10));
    let sleeps = || machines.each_ref().map(|(axvm, ..)| axvm.sleeps());
    let try_once = |_| {
        let before = sleeps();
        std::thread::sleep(Duration::from_secs(3));
        (before, sleeps())
    };
    let mut tries = (0..8).map(try_once);
    let (quiet, _) = tries.find(|(before, after)| before == after).expect("a thread wakes again and again");
    // Output is a pipe, and no client came: no thread waits for either.
    let expected =
        [("vcpu0", true), ("vda-q0", true), ("net0-q0", true), ("hvc0", true), ("api", false), ("console-out", false)];
    for (thread, is_there) in expected {
        let has = |threads: &Vec<(String, u64)>| threads.iter().any(|(name, _)| name.starts_with(thread)) == is_there;
        assert!(quiet.iter().all(has), "{thread}: {quiet:?}");
    }
    for (axvm, talk, _host) in machines {
        talk.say("off\n");
        axvm.ends_with(0);
    }
}

#[test]
fn closed_standard_streams_are_like_empty_ones() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let machine = place.machine("shell", "--virtio-console none");
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "exec \"$@\" <&- >&-", "sh"]).arg(machine.get_program()).args(machine.get_args());
    shell.current_dir(place.path(""));
    shell.env("XDG_RUNTIME_DIR", place.path(""));
    let axvm = place.start(shell, Stdio::null(), Stdio::null());
    until_it_sleeps(&axvm);
    two_idle_seconds(&[("closed", axvm)]);
}

#[test]
fn a_console_file_is_appended_to_and_private() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("old"), "from before\n").unwrap();
    for name in ["old", "new"] {
        let command = place.machine("shell", &format!("--console file={name}"));
        let axvm = place.start(command, Stdio::null(), Stdio::null());
        until("the guest is ready", || fs::read_to_string(place.path(name)).unwrap_or_default().ends_with("ready\n> "));
        axvm.signal(rustix::process::Signal::QUIT);
        axvm.ends_with(131);
    }
    assert!(fs::read_to_string(place.path("old")).unwrap().starts_with("from before\nAXVM begin"));
    assert_eq!(place.path("new.1").metadata().unwrap().len(), 0, "room for what it holds at its limit");
    assert_eq!(place.path("new").metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_console_file_with_a_limit_keeps_one_older_generation() {
    if !has_kvm() {
        return;
    }
    const LIMIT: usize = 64 << 10;
    let place = Place::new();
    let command = place.machine("shell=hvc0", "--virtio-console file=log,limit=64K --console none");
    let axvm = place.start(command, Stdio::null(), Stdio::null());
    until("the guest is ready", || fs::read_to_string(place.path("log")).unwrap_or_default().ends_with("> "));
    let (typed, keys) = std::io::pipe().unwrap();
    let (screen, shown) = std::io::pipe().unwrap();
    let control = place.start(place.axvm("ctl ./api console"), typed, shown);
    let mut talk = Talk::new(Some(OwnedFd::from(keys)), screen);
    talk.hear("> ");
    talk.say("flood 300\n");
    assert_eq!(talk.answer_after_all(&flood(300)), "300 flood");
    talk.say("off\n");
    talk.rest();
    control.ends_with(0);
    axvm.ends_with(0);
    let (old, new) = (fs::read(place.path("log.1")).unwrap(), fs::read(place.path("log")).unwrap());
    assert!((LIMIT - 4096..=LIMIT).contains(&old.len()) && new.len() <= LIMIT, "{}, {}", old.len(), new.len());
    let both = String::from_utf8([old, new].concat()).unwrap();
    let end = both.split_once("\n= 300 flood done").expect("the answer is there").0.trim_end_matches('\r');
    assert!(flood(300).trim_end().ends_with(&end[end.len() - LIMIT / 2..].trim_end()), "nothing is missing");
}

#[test]
fn a_console_that_cannot_be_is_told_before_the_guest_starts() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("directory")).unwrap();
    for console in ["file=directory", "file=no/such/file", "unix=no/such/socket", "unix=disk.img"] {
        for option in ["--console", "--virtio-console"] {
            let words = format!("run --kernel guest.elf --memory 32M --append shell {option} {console}");
            let (code, output, errors) = place.run(&words);
            assert_eq!((code, output.as_str()), (1, ""), "{console}: {errors}");
            let path = console.split('=').next_back().unwrap();
            assert!(errors.contains(path) && !errors.contains("panicked"), "{console}: {errors}");
        }
    }
}

#[test]
fn a_pty_is_attached_left_and_attached_again() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let axvm = place.start(place.machine("shell", "--console pty"), Stdio::null(), Stdio::null());
    let path = axvm.status().console.strip_prefix("pty ").expect("status names the pty").to_owned();
    let attach = || Talk::on(open(path.as_ref()));
    let mut first = attach();
    first.hear("ready\n> ");
    assert_eq!(first.ask("raw 0"), checksum(b""));
    let before = axvm.status().exits.total;
    first.say("flood 2\n");
    drop(first);
    until("the guest said 2 KiB without a reader", || axvm.status().exits.total > before + 2048);
    let mut second = attach();
    second.hear("AXVM begin shell");
    assert!(second.hear(" flood done\n> ").contains(&flood(2)), "the replay has what no client saw");
    second.say("off\n");
    axvm.ends_with(0);
    assert!(!exists(&path), "a pty goes with its machine");
}

#[test]
fn a_socket_serves_two_clients_and_replays_the_last_64_kib() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let command = place.machine("shell=hvc0", "--console none --virtio-console unix=con");
    let axvm = place.start(command, Stdio::null(), Stdio::null());
    let mut first = place.attach("con");
    assert_eq!(place.path("con").metadata().unwrap().permissions().mode() & 0o777, 0o600);
    first.hear("ready\n> ");
    first.say("flood 100\n");
    let said = first.hear(" flood done\n> ");
    assert!(said.contains(&flood(100)));
    let mut second = place.attach("con");
    let replayed = second.hear(" flood done\n> ");
    let all = format!("ready\n> {said}");
    assert!(replayed == all[all.len() - REPLAY..], "{} bytes: {:?}", replayed.len(), &replayed[..40]);
    second.say("raw 3\nabc");
    assert_eq!(first.answer(), checksum(b"abc"));
    assert_eq!(second.answer(), checksum(b"abc"));
    first.say("off\n");
    axvm.ends_with(0);
    assert!(!exists(place.path("con")));
    assert_eq!(second.rest(), b"off\n");
}

#[test]
fn the_socket_of_a_dead_machine_is_taken_over_and_that_of_a_live_one_is_not() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let start = || {
        let axvm = place.start(place.machine("shell", "--console unix=con"), Stdio::null(), Stdio::null());
        // Once the new one answers, what lies at the path is its own.
        axvm.status();
        let mut client = place.attach("con");
        client.hear("ready\n> ");
        (axvm, client)
    };
    let (dead, _) = start();
    dead.signal(rustix::process::Signal::KILL);
    dead.ends_with(137);
    assert!(exists(place.path("con")));
    let (live, client) = start();
    let (code, _, errors) = place.run("run --kernel guest.elf --memory 32M --console unix=con");
    assert!(code == 1 && errors.contains("Cannot listen at con: a running process listens there"), "{errors}");
    client.say("off\n");
    live.ends_with(0);
}

#[test]
fn a_machine_without_a_console_has_one_by_its_control_socket() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let axvm = place.start(place.machine("shell", "--console none"), Stdio::null(), Stdio::null());
    let mut talk = Talk::on(axvm.control().console().unwrap());
    talk.hear("ready\n> ");
    assert_eq!(talk.ask("flood 1"), "1 flood");
    talk.say("off\n");
    axvm.ends_with(0);
}
