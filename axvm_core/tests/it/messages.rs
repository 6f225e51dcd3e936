//! Messages on standard error whose reader takes nothing: no thread that serves the guest waits for it.
//!
//! ```text
//!   vCPU, queue, console --try_tell--> [ lines ] --thread stderr--> a pipe that is full for ever
//! ```
//!
//! Needs /dev/kvm; without it each test says that it was skipped. The sandbox is on, as for users.

use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::common::terminal::Terminal;
use crate::common::{AXVM, Place, Talk, has_kvm, skip};

/// Dozens of lines, or the sixteen warnings that are told at once, would take longer if each waited as long as an
/// important one does.
const WAITED: Duration = Duration::from_secs(20);

/// An AxVM; it does not outlive a test that fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

/// A pipe that is full, and the end that is never read.
fn full() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    writer.write_all(&[b'x'; 4096]).unwrap();
    (reader, writer)
}

/// An interpreter on pipes, whose messages go to `errors`.
fn shell(place: &Place, mut starter: Command, words: &str, errors: PipeWriter) -> (Running, Talk) {
    let (input, keys) = std::io::pipe().unwrap();
    let (screen, output) = std::io::pipe().unwrap();
    let machine = place.machine_as_started("shell", words);
    starter.args(machine.get_args()).current_dir(machine.get_current_dir().unwrap());
    starter.envs(machine.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let child = starter.stdin(input).stdout(output).stderr(errors).spawn().unwrap();
    let mut talk = Talk::new(Some(OwnedFd::from(keys)), screen);
    talk.hear("ready\n> ");
    (Running(child), talk)
}

#[test]
fn vcpus_and_queues_that_have_something_to_tell_wait_for_no_reader() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    // With -v each start of the driver is told by the vCPU's thread, dozens of lines in all.
    let (_unread, errors) = full();
    let (mut axvm, mut talk) = shell(&place, Command::new(AXVM), "-v --disk disk.img", errors);
    let since = Instant::now();
    assert_eq!(talk.ask("work 10").lines().last(), Some("10 of 10 work"));
    assert!(since.elapsed() < WAITED, "{:?}", since.elapsed());
    talk.say("off\n");
    assert_eq!(axvm.0.wait().unwrap().code(), Some(0));

    // Each write fails at the limit of a file's size, which the thread of the queue tells.
    let (_unread, errors) = full();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 1; exec \"$0\" \"$@\"", AXVM]);
    let (mut axvm, mut talk) = shell(&place, limited, "--disk disk.img", errors);
    let since = Instant::now();
    assert_eq!(talk.ask("work 20").lines().last(), Some("0 of 20 work"));
    assert!(since.elapsed() < WAITED, "{:?}", since.elapsed());
    talk.say("off\n");
    assert_eq!(axvm.0.wait().unwrap().code(), Some(0));
}

#[test]
fn what_set_up_has_to_say_comes_before_the_guests_first_byte() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    for round in 0..60 {
        // Both go to one place, as with a terminal or `2>&1`. Linux would find nothing in such an initrd.
        let (input, keys) = std::io::pipe().unwrap();
        let (seen, both) = std::io::pipe().unwrap();
        let mut axvm = place.machine("shell", "--initrd disk.img");
        axvm.stdin(input).stdout(both.try_clone().unwrap()).stderr(both);
        let mut child = Running(axvm.spawn().unwrap());
        drop(axvm);
        let mut talk = Talk::new(Some(OwnedFd::from(keys)), seen);
        let all = talk.hear("ready\n> ");
        let told = all.lines().take_while(|line| line.starts_with("axvm: ")).count();
        assert!(told > 0 && !all.lines().skip(told).any(|line| line.contains("axvm: ")), "round {round}: {all}");
        talk.say("off\n");
        assert!(child.0.wait().unwrap().success());
    }
}

#[test]
fn a_console_that_tells_its_keys_waits_for_no_reader() {
    if !has_kvm() {
        return;
    }
    if Command::new("setsid").arg("--version").output().is_err() {
        return skip("setsid is not there");
    }
    let place = Place::new();
    let terminal = Terminal::new();
    let (screen, output) = std::io::pipe().unwrap();
    let (_unread, errors) = full();
    let machine = place.machine("shell", "");
    let mut session = Command::new("setsid");
    session.arg("--ctty").arg(machine.get_program()).args(machine.get_args());
    session.current_dir(machine.get_current_dir().unwrap());
    session.envs(machine.get_envs().filter_map(|(name, value)| Some((name, value?))));
    session.stdin(terminal.program.try_clone().unwrap()).stdout(output).stderr(errors);
    let mut axvm = Running(session.spawn().unwrap());
    let mut talk = Talk::new(Some(terminal.user.try_clone().unwrap()), screen);
    talk.hear("ready\n> ");
    let since = Instant::now();
    talk.say("\x01h".repeat(50));
    assert_eq!(talk.ask("flood 1").lines().last(), Some("1 flood"));
    assert!(since.elapsed() < WAITED, "{:?}", since.elapsed());
    talk.say("off\n");
    assert_eq!(axvm.0.wait().unwrap().code(), Some(0));
}
