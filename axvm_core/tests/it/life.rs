//! Life cycle: exit codes, signals, resets, limits, the service manager, and what is left behind: nothing.
//!
//! Needs /dev/kvm; without it each test says that it was skipped. The sandbox is on, as for users.

use crate::common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use axvm_api::types::{VmUpdate, WantedState};
use common::{Axvm, PATIENCE, Place, Talk, exists, has_kvm, until};
use rustix::process::Signal;

pub fn pause(axvm: &Axvm) {
    axvm.control().patch("/vm", &VmUpdate { state: WantedState::Paused }).unwrap();
}

pub fn resume(axvm: &Axvm) {
    axvm.control().patch("/vm", &VmUpdate { state: WantedState::Resumed }).unwrap();
}

#[test]
fn the_exit_code_tells_how_it_ended() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for (said, words, code, told) in [
        ("off", "", 0, ""),
        ("reset", "--on-reboot end", 3, ""),
        ("reset", "--on-reboot exit", 3, ""),
        ("panic", "", 4, "The guest's kernel panicked"),
        ("triple", "", 5, "The guest crashed: triple fault"),
    ] {
        let (axvm, talk) = place.shell(words);
        talk.say(format!("{said}\n"));
        let end = axvm.ends_with(code);
        assert!(end.errors.contains(told), "{said}: {end:?}");
    }
    assert_eq!(place.run("run --kernel none.elf").0, 1);
    assert_eq!(place.run("run --kernel guest.elf --cpus 0").0, 2);
    assert_eq!(place.run("run --no-such-option").0, 2);
}

#[test]
fn a_kernel_needs_no_option() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for words in ["guest.elf", "run guest.elf", "run ./guest.elf", "-m 64M guest.elf"] {
        let (code, said, errors) = place.run(&format!("{words} --cpus 1 --timeout 60s"));
        assert_eq!(code, 0, "{words}: {errors}");
        assert!(said.contains("AXVM begin"), "{words}: {said}");
    }
    let (code, told, _) = place.run("config --from-args guest.elf -c 2");
    assert!(code == 0 && told.contains("kernel = \"guest.elf\""), "{told}");
}

#[test]
fn a_jump_to_the_reset_vector_is_a_reset() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for acpi in ["", "--no-acpi"] {
        let words = "run --kernel guest.elf --memory 32M --cpus 2 --api-sock api --on-reboot exit --append shell";
        let (axvm, talk) = place.talking(place.axvm(&format!("{words} {acpi}")));
        talk.say("vector\n");
        axvm.ends_with(3);
    }
}

#[test]
fn what_axvm_says_needs_no_reader() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let closed = || std::io::pipe().unwrap().1;
    for (typed, words, code) in [("off", "", 0), ("panic", "", 4), ("triple", "", 5)] {
        let (input, mut keys) = std::io::pipe().unwrap();
        let mut axvm = place.machine("shell", words);
        // A reader that left makes a warning, and that has no reader either.
        let mut axvm = axvm.stdin(input).stdout(closed()).stderr(closed()).spawn().unwrap();
        // What is typed before the guest empties the FIFO is lost, as on a PC.
        keys.write_all(("\n".repeat(20) + typed + "\n").as_bytes()).unwrap();
        assert_eq!(axvm.wait().unwrap().code(), Some(code), "{typed}");
    }
    for words in ["run --kernel none.elf", "ps", "ps --json", "ctl none status", "doctor", "man", "selftest"] {
        let status = place.axvm(words).stdin(Stdio::null()).stdout(closed()).stderr(closed()).status().unwrap();
        assert!(status.code().is_some_and(|code| code < 2), "{words}: {status}");
    }
}

#[test]
fn a_reader_that_takes_nothing_holds_up_nothing() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    // -v says more than it holds.
    let (_unread, errors) = std::io::pipe().unwrap();
    hundred_resets_with(&place, errors.into());
}

/// Another process fills the pipe again as soon as its reader has made room: between a look at it and a write, too.
#[test]
fn a_pipe_that_another_process_fills_holds_up_nothing() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (mut reader, errors) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&errors, 4096).unwrap();
    let mut other =
        std::process::Command::new("cat").arg("/dev/zero").stdout(errors.try_clone().unwrap()).spawn().unwrap();
    let (stopped, stop) = std::io::pipe().unwrap();
    let reading = std::thread::spawn(move || {
        use std::io::Read;
        let mut page = [0; 4096];
        let mut fds = [rustix::event::PollFd::new(&stopped, rustix::event::PollFlags::IN)];
        let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 300_000 };
        // It goes on for a while, and then reads no more.
        for _ in 0..10_000 {
            if rustix::event::poll(&mut fds, Some(&moment)) != Ok(0) || reader.read(&mut page).is_err() {
                break;
            }
        }
        reader
    });
    hundred_resets_with(&place, errors.into());
    drop(stop);
    let _reader = reading.join().unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
}

/// A machine that is reset a hundred times and says so each time.
fn hundred_resets_with(place: &Place, errors: Stdio) {
    let mut axvm = place.axvm("run --kernel guest.elf --memory 64M -v --on-reboot restart --grace 1 --append");
    let mut axvm = axvm.arg("shell reset=1").stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().unwrap();
    let pid = axvm.id();
    let control = || {
        let mut ctl = place.axvm(&format!("ctl {pid} reset")).stderr(Stdio::null()).spawn().unwrap();
        until("AxVM answers", || ctl.try_wait().unwrap().is_some());
        ctl.wait().unwrap()
    };
    until("a hundred resets, each told by -v", || (0..100).filter(|_| control().success()).count() == 100);
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), Signal::QUIT).unwrap();
    assert_eq!(axvm.wait().unwrap().code(), Some(128 + 3));
}

#[test]
fn a_signal_that_the_starter_blocked_is_heard_all_the_same() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let mut command = Command::new("env");
    command.args(["--block-signal=TERM", "--"]);
    let (axvm, _talk) = place.talking(started_by(command, &place.machine("shell", "--grace 0")));
    axvm.signal(Signal::TERM);
    axvm.ends_with(128 + 15);
}

/// `starter COMMAND`.
fn started_by(mut starter: Command, command: &Command) -> Command {
    starter.arg(command.get_program()).args(command.get_args());
    starter.current_dir(command.get_current_dir().unwrap());
    starter.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    starter
}

#[test]
fn a_signal_that_the_starter_ignores_stays_ignored() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let ignoring = |name: &str| {
        let mut starter = Command::new("env");
        // The program that started the tests may ignore some, too, as a shell does for what it runs in the background.
        starter.arg("--default-signal=HUP,INT,QUIT,TERM,USR1");
        match name {
            "nohup" => starter.arg("nohup"),
            name => starter.args([&format!("--ignore-signal={name}"), "--"]),
        };
        started_by(starter, &place.machine_as_started("shell", "--grace 0"))
    };
    for (name, signal) in [
        ("nohup", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("TERM", Signal::TERM),
        ("USR1", Signal::USR1),
    ] {
        let (axvm, mut talk) = place.talking(ignoring(name));
        axvm.signal(signal);
        axvm.signal(signal);
        assert_eq!(talk.ask("flood 1"), "1 flood", "{name}");
        // The others act as ever.
        let (other, code) = if signal == Signal::TERM { (Signal::QUIT, 131) } else { (Signal::TERM, 143) };
        axvm.signal(other);
        axvm.ends_with(code);
    }
}

#[test]
fn a_guest_that_takes_the_sci_for_a_level_gets_the_button_from_signals_and_clients() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for by_signal in [true, false] {
        let (axvm, mut talk) = place.shell("--grace 50");
        talk.say("pic-button\n");
        talk.hear("waiting\n");
        match by_signal {
            true => axvm.signal(Signal::TERM),
            false => assert_eq!(place.run("ctl ./api power-button").0, 0),
        }
        talk.hear("pressed\n");
        let end = axvm.end();
        assert!([0, 143].contains(&end.code), "{end:?}");
    }
}

#[test]
fn a_first_signal_presses_the_power_button_and_the_guest_shuts_down() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let (axvm, mut talk) = place.shell("");
        talk.say("button\n");
        talk.hear("waiting\n");
        axvm.signal(signal);
        talk.hear("pressed\n");
        axvm.ends_with(0);
    }
}

#[test]
fn a_guest_that_does_not_shut_down_has_so_many_seconds() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, talk) = place.shell("--grace 1");
    talk.say("hang\n");
    let start = Instant::now();
    axvm.signal(Signal::TERM);
    let end = axvm.ends_with(143);
    assert!(start.elapsed() >= Duration::from_secs(1));
    let told = "axvm: power button pressed; ending in 1 s, a second signal ends now\n";
    assert_eq!(end.errors.matches(told).count(), 1, "{end:?}");
}

#[test]
fn a_button_that_is_not_there_is_not_pressed() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, _talk) = place.shell("--no-acpi --grace 1");
    let (code, _, errors) = place.run("ctl ./api shutdown");
    assert!(code == 1 && errors.contains("no power button") && errors.contains("axvm ctl MACHINE stop"), "{errors}");
    axvm.signal(Signal::TERM);
    let end = axvm.ends_with(143);
    let told = "axvm: no power button without ACPI; ending in 1 s, a second signal ends now\n";
    assert!(end.errors.contains(told), "{end:?}");
}

#[test]
fn a_machine_has_the_time_that_it_is_given() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    // A guest that hangs, one that is paused, and one that starts again and again.
    let (axvm, talk) = place.shell("--timeout 1s");
    talk.say("hang\n");
    let end = axvm.ends_with(124);
    assert!(end.errors.contains("axvm: The time is over: the machine was ended after 1s (--timeout)"), "{end:?}");
    let (axvm, _talk) = place.shell("--timeout 1");
    pause(&axvm);
    axvm.ends_with(124);
    let (axvm, mut talk) = place.shell_on_hvc0("--timeout 1s --restart-limit 0");
    talk.say("reset\n".repeat(2000));
    thread::scope(|scope| {
        scope.spawn(|| talk.rest());
        axvm.ends_with(124);
    });
    // One that is in time, and one whose output nothing reads.
    let (axvm, talk) = place.shell("--timeout 1h");
    talk.say("off\n");
    axvm.ends_with(0);
    let (axvm, talk) = place.shell("--timeout 1s");
    talk.say("flood 200\n");
    axvm.ends_with(124);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let (axvm, mut talk) = place.shell("--grace 1000");
        talk.say("button\n");
        talk.hear("waiting\n");
        pause(&axvm);
        axvm.signal(signal);
        // Two equal signals at once are one.
        until("the second signal ends it", || {
            axvm.signal(signal);
            thread::sleep(Duration::from_millis(20));
            axvm.is_zombie()
        });
        axvm.ends_with(code);
    }
}

#[test]
fn a_guest_that_resets_again_and_again_can_be_ended() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    type Way = fn(&Place, &Axvm);
    let stop: Way = |place, _| assert_eq!(place.run("ctl ./api stop").0, 0);
    let ways: [(Way, i32); 3] =
        [(|_, axvm| axvm.signal(Signal::QUIT), 131), (|_, axvm| axvm.signal(Signal::TERM), 143), (stop, 0)];
    for (way, code) in [ways, ways, ways].concat() {
        let (axvm, mut talk) = place.shell_on_hvc0("--grace 1 --restart-limit 0");
        // Typed ahead: each start takes one.
        talk.say("reset\n".repeat(2000));
        talk.hear("ready\n> reset\n");
        thread::scope(|scope| {
            // Read on, so that nothing but the resets keeps it busy.
            scope.spawn(|| talk.rest());
            way(&place, &axvm);
            axvm.ends_with(code);
        });
    }
}

#[test]
fn a_machine_that_is_just_starting_can_be_ended() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for micros in [0, 500, 1000, 2000, 4000, 8000, 16_000, 32_000] {
        let axvm = place.start(place.machine("shell", "--grace 0 --disk disk.img"), Stdio::null(), Stdio::null());
        thread::sleep(Duration::from_micros(micros));
        axvm.signal(Signal::TERM);
        axvm.ends_with(143);
    }
    let axvm = place.start(place.machine("shell", "--disk disk.img"), Stdio::null(), Stdio::null());
    until("it can be stopped", || place.run("ctl ./api stop").0 == 0);
    axvm.ends_with(0);
}

#[test]
fn a_signal_while_the_initrd_is_loaded_ends_it_before_the_guest_starts() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let initrd = File::create(place.path("initrd")).unwrap();
    initrd.set_len(320 << 20).unwrap();
    (&initrd).write_all(b"070701").unwrap();
    let words = "run -v --kernel guest.elf --initrd initrd --memory 384M --append shell --grace 1000";
    let is_in_time = || {
        let screen = File::create(place.path("screen")).unwrap();
        let axvm = place.start(place.axvm(words), Stdio::null(), screen);
        until("its parts are wired", || axvm.errors().contains("] board: "));
        axvm.signal(Signal::TERM);
        let guest_runs = || fs::metadata(place.path("screen")).unwrap().len() > 0;
        until("it ends or the guest speaks", || axvm.is_zombie() || guest_runs());
        let is_in_time = !guest_runs();
        if is_in_time {
            axvm.ends_with(143);
        }
        is_in_time
    };
    // On a crowded machine the signal may come too late.
    assert!((0..5).any(|_| is_in_time()));
}

#[test]
fn fifty_resets_in_place_leave_nothing() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) =
        place.talking(place.machine("shell=hvc0", "--virtio-console stdio --disk disk.img --restart-limit 0"));
    let mut reset = |count: usize| {
        for _ in 0..count {
            talk.say("reset\n");
            talk.hear("ready\n> ");
        }
        (axvm.count("fd"), axvm.count("task"), resident_kib(&axvm))
    };
    let (fds, threads, memory) = reset(10);
    let (fds_after, threads_after, memory_after) = reset(40);
    assert_eq!((fds, threads), (fds_after, threads_after));
    assert!(memory_after < memory + 512, "{memory} KiB, then {memory_after} KiB");
    talk.say("off\n");
    axvm.ends_with(0);
}

/// Memory that AxVM has taken, without the guest's. That is one mapping by far larger than all others.
fn resident_kib(axvm: &Axvm) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", axvm.pid())).unwrap();
    let values = |name: &str| -> Vec<u64> {
        let of_line = |line: &str| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok();
        maps.lines().filter_map(of_line).collect()
    };
    let mappings = values("Size:").into_iter().zip(values("Rss:"));
    mappings.filter(|(size, _)| *size < 32 << 10).map(|(_, resident)| resident).sum()
}

#[test]
fn the_service_manager_is_told_of_start_and_end() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    hear_of_start_and_end(&place, place.path("notify").as_os_str(), UnixDatagram::bind(place.path("notify")).unwrap());
    // The sandbox keeps abstract sockets of others out of reach, but for those connected before.
    let name = format!("axvm-life-{}", std::process::id());
    let listener = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    hear_of_start_and_end(&place, format!("@{name}").as_ref(), listener);
}

fn hear_of_start_and_end(place: &Place, address: &OsStr, listener: UnixDatagram) {
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut buffer = [0; 256];
        let len = listener.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let mut command = place.machine("shell", "");
    command.env("NOTIFY_SOCKET", address);
    let (axvm, mut talk) = place.talking(command);
    assert_eq!(heard(), "READY=1");
    talk.say("reset\n");
    talk.hear("ready\n> ");
    talk.say("off\n");
    axvm.ends_with(0);
    listener.set_nonblocking(true).unwrap();
    let rest: Vec<String> = std::iter::from_fn(|| {
        let mut buffer = [0; 256];
        let len = listener.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..len]).into_owned())
    })
    .collect();
    assert_eq!(rest.last().map(String::as_str), Some("STOPPING=1"), "{rest:?}");
    assert_eq!(rest.iter().filter(|state| *state == "STOPPING=1").count(), 1, "{rest:?}");
}

#[test]
fn a_service_manager_that_is_not_there_is_told_once_and_changes_nothing() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let file = place.path("disk.img").display().to_string();
    let long = format!("/{}", "x".repeat(200));
    let stream = place.path("stream");
    let _stream = std::os::unix::net::UnixListener::bind(&stream).unwrap();
    let stream = stream.display().to_string();
    for address in ["/no/such/socket", "@no-such-name", "@", "relative", &file, "/", &long, &stream] {
        let mut command = place.machine("shell", "-v");
        command.env("NOTIFY_SOCKET", address);
        let (axvm, mut talk) = place.talking(command);
        talk.say("reset\n");
        talk.hear("ready\n> ");
        talk.say("off\n");
        let end = axvm.ends_with(0);
        let told: Vec<&str> = end.errors.lines().filter(|line| line.contains("NOTIFY_SOCKET")).collect();
        assert!(matches!(told[..], [line] if line.contains(address)), "{address}: {end:?}");
    }
}

#[test]
fn nothing_is_left_behind_and_the_next_machine_starts_at_once() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    type Way = fn(&Axvm, &Talk);
    let ways: [(&str, Way); 6] = [
        ("off", |_, talk| talk.say("off\n")),
        ("panic", |_, talk| talk.say("panic\n")),
        ("crash", |_, talk| talk.say("triple\n")),
        ("SIGTERM", |axvm, _| axvm.signal(Signal::TERM)),
        ("SIGQUIT", |axvm, _| axvm.signal(Signal::QUIT)),
        ("SIGKILL", |axvm, _| axvm.signal(Signal::KILL)),
    ];
    for (name, way) in ways {
        let words = "--disk disk.img --console none --virtio-console unix=con --grace 0 --on-reboot exit";
        let axvm = place.start(place.machine("shell=hvc0", words), Stdio::null(), Stdio::null());
        let mut talk = Talk::on(axvm.control().console().unwrap());
        talk.hear("ready\n> ");
        let own = place.path(&format!("axvm/{}.sock", axvm.pid()));
        assert!(exists(&own) && exists(place.path("con")), "{name}");
        let (code, _, errors) = place.run("run --kernel guest.elf --memory 32M --disk disk.img");
        assert!(code == 1 && errors.contains("disk.img") && errors.contains("use"), "{name}: {errors}");
        way(&axvm, &talk);
        axvm.end();
        if name == "SIGKILL" {
            continue;
        }
        for path in [own, place.path("con"), place.path("api")] {
            assert!(!exists(&path), "{name} leaves {}", path.display());
        }
    }
    // After SIGKILL dead sockets lie there, and are no hindrance; `axvm ps` sweeps.
    let (axvm, talk) = place.shell("--disk disk.img");
    assert_eq!(place.run("ps --json").1.matches("\"pid\"").count(), 1);
    assert_eq!(fs::read_dir(place.path("axvm")).unwrap().count(), 1);
    talk.say("off\n");
    axvm.ends_with(0);
}
