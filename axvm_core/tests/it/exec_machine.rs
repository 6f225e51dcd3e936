//! `axvm run ... -- COMMAND`, sandbox and all. Its guest is our interpreter, which waits; what it would do as Linux, the
//! test does: the agent of this host calls.
//!
//! ```text
//!   axvm run --vsock socket=v -- COMMAND <--> v_348 <-- the test --> axvm-agent
//! ```

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::terminal::Terminal;
use crate::common::{Axvm, End, Place, Talk, exists, has_kvm, until};
use crate::exec::Guest;

/// A machine for a command.
fn command(place: &Place, more: &str, words: &[&str]) -> Command {
    let options = format!("run --kernel guest.elf --memory 32M --cpus 1 --append shell --vsock socket=v {more} --");
    let mut command = place.axvm(&options);
    command.args(words);
    command
}

/// What the agent does in a guest: it calls, and serves the host that answers.
fn call(guest: &Guest) {
    let path = guest.place.path("v_348");
    until("the host waits for the agent", || exists(&path));
    let host = UnixStream::connect(path).unwrap();
    let agent = UnixStream::connect(guest.place.path("agent")).unwrap();
    let ways =
        [(&host, &agent), (&agent, &host)].map(|(from, to)| (from.try_clone().unwrap(), to.try_clone().unwrap()));
    for (mut from, mut to) in ways {
        thread::spawn(move || {
            _ = io::copy(&mut from, &mut to);
            _ = to.shutdown(Shutdown::Write);
        });
    }
}

/// Runs a command in a machine: how it ended, and what it printed.
fn run(more: &str, words: &[&str]) -> (End, String) {
    let guest = Guest::start();
    let (mut screen, output) = io::pipe().unwrap();
    let axvm = guest.place.start(command(&guest.place, &format!("--grace 1 {more}"), words), Stdio::null(), output);
    call(&guest);
    let mut end = axvm.end();
    // Where there is no virtualization, that is said.
    end.errors =
        end.errors.lines().filter(|line| !line.starts_with("axvm: host:")).map(|line| format!("{line}\n")).collect();
    let mut text = String::new();
    screen.read_to_string(&mut text).unwrap();
    assert!(!exists(guest.place.path("v_348")) && !exists(guest.place.path("v")));
    (end, text)
}

#[test]
fn a_machine_runs_its_command_and_ends_with_its_code() {
    if !has_kvm() {
        return;
    }
    let (end, output) = run("", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((end.code, output.as_str(), end.errors.as_str()), (7, "out\n", "err\n"));
    let (end, _) = run("", &["no-such"]);
    assert_eq!((end.code, end.errors.as_str()), (127, "axvm: There is no program no-such in the guest\n"));
}

#[test]
fn input_and_output_go_through_a_closed_sandbox() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::start();
    let ((input, keys), (screen, output)) = (io::pipe().unwrap(), io::pipe().unwrap());
    let axvm = guest.place.start(
        command(&guest.place, "--grace 1", &["sh", "-c", "while read x; do echo got $x; done"]),
        input,
        output,
    );
    call(&guest);
    let mut talk = Talk::new(Some(keys.into()), screen);
    talk.say("one\n");
    talk.hear("got one\n");
    talk.say("two\n");
    talk.hear("got two\n");
    drop(talk);
    axvm.ends_with(0);
}

#[test]
fn signals_are_the_commands() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::start();
    let (screen, output) = io::pipe().unwrap();
    let script = "trap 'echo int' INT; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.02; done";
    let axvm = guest.place.start(command(&guest.place, "--grace 1", &["sh", "-c", script]), Stdio::null(), output);
    // A signal before the guest runs would end the machine.
    runs(&guest.place, &axvm);
    call(&guest);
    let mut talk = Talk::new(None, screen);
    talk.hear("ready\n");
    axvm.signal(Signal::USR1);
    talk.hear("usr1\n");
    axvm.signal(Signal::INT);
    talk.hear("int\n");
    axvm.signal(Signal::TERM);
    axvm.ends_with(143);
}

#[test]
fn a_terminal_is_the_commands() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::start();
    let terminal = Terminal::new();
    let before = terminal.settings();
    let script = "stty size; read x; echo got $x; exec sleep 60";
    let (axvm, mut talk) = terminal.start(&guest.place, &command(&guest.place, "--grace 1", &["sh", "-c", script]));
    call(&guest);
    talk.hear("25 80\r\n");
    assert!(terminal.is_raw());
    talk.say("word\r");
    talk.hear("got word\r\n");
    talk.say("\x03");
    axvm.ends_with(130);
    assert_eq!(terminal.settings(), before);
}

#[test]
fn a_signal_before_the_agent_calls_ends_the_machine() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let axvm = place.start(command(&place, "--grace 60", &["true"]), Stdio::null(), Stdio::null());
    runs(&place, &axvm);
    axvm.signal(Signal::TERM);
    let begin = Instant::now();
    axvm.ends_with(143);
    assert!(begin.elapsed() < Duration::from_secs(30));
}

/// Waits until the machine runs.
fn runs(place: &Place, axvm: &Axvm) {
    until("the machine runs", || place.run(&format!("ctl {} status", axvm.pid())).1.contains(": running"));
}

#[test]
fn a_guest_that_ends_without_its_command_is_our_failure_and_its_console_is_shown() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    // The self-test's guest proves the machine, and powers off.
    let (code, output, errors) =
        place.run("run --kernel guest.elf --memory 32M --cpus 1 --append x --vsock socket=v -- true");
    assert_eq!((code, output.as_str()), (125, ""), "{errors}");
    let last: Vec<&str> = errors.lines().collect();
    assert!(last[last.len() - 1] == "axvm: The guest ended before its command did", "{errors}");
    assert!(last[last.len() - 2].starts_with("axvm: console: AXVM end"), "{errors}");
}

#[test]
fn the_time_of_a_machine_is_over_for_its_command_too() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let axvm = place.start(command(&place, "--timeout 1", &["true"]), Stdio::null(), Stdio::null());
    let end = axvm.ends_with(124);
    assert!(end.errors.contains("The time is over: the machine was ended after 1s (--timeout)"), "{}", end.errors);
}

#[test]
fn what_does_not_go_with_a_command_is_said() {
    let place = Place::new();
    for (words, why) in [
        ("run -k guest.elf --console stdio -- true", "axvm: --console stdio: the command after -- has standard input"),
        ("run -k guest.elf --virtio-console stdio -- true", "axvm: --virtio-console stdio: the command after -- has"),
        ("run -k none -- true", "axvm: Cannot read kernel none: No such file"),
        ("run -k guest.elf --cpus 0 -- true", "axvm: --cpus 0: a machine needs at least one vCPU"),
    ] {
        let (code, _, errors) = place.run(words);
        assert!(code == 125 && errors.starts_with(why), "{words}: {code} {errors}");
    }
}

#[test]
fn a_machine_that_is_about_to_start_is_waited_for_if_that_is_said() {
    if !has_kvm() {
        return;
    }
    let guest = Guest::start();
    let waiting = guest.place.axvm("exec later --wait 60 -- echo there").stdout(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_millis(300));
    let options = "run --kernel guest.elf --memory 32M --cpus 1 --append shell --console none --name later";
    let _later = guest.place.start(guest.place.axvm(options), Stdio::null(), Stdio::null());
    // It comes, and has no vsock: that is an answer, too.
    let output = waiting.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(125), &b""[..]));
    let begin = Instant::now();
    assert_eq!(guest.place.run("exec never -- true").0, 125);
    assert!(begin.elapsed() < Duration::from_secs(5), "without it no machine is waited for");
}

#[test]
fn what_a_killed_machine_leaves_is_removed_by_the_next_look() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let options = "run --kernel guest.elf --memory 32M --cpus 1 --append shell -- true";
    let axvm = place.start(place.axvm(options), Stdio::null(), Stdio::null());
    runs(&place, &axvm);
    let left = |pid: u32| ["sock", "vsock", "vsock_348"].map(|end| exists(place.path(&format!("axvm/{pid}.{end}"))));
    let pid = axvm.pid();
    assert_eq!(left(pid), [true; 3]);
    axvm.signal(Signal::KILL);
    axvm.ends_with(137);
    place.run("ps");
    assert_eq!(left(pid), [false; 3]);
}
