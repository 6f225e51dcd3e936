//! `axvm exec`, with the agent that axvm carries as a process of this host, behind a socket like a machine's vsock.
//!
//! ```text
//!   axvm exec --socket vsock <--> the test: "CONNECT 348" --> "OK 1" <--> axvm-agent --unix agent
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::terminal::Terminal;
use crate::common::{Place, Talk, skip, until};

/// A guest, as far as commands see one.
pub struct Guest {
    pub place: Place,
    agent: Child,
}

impl Guest {
    pub fn start() -> Guest {
        // Signals as a guest has them.
        Guest::start_by(&["env", "--default-signal"])
    }

    /// The words of `wrapper` start the agent.
    fn start_by(wrapper: &[&str]) -> Guest {
        let place = Place::new();
        let program = place.path("axvm-agent");
        let written = place.axvm("agent").stdout(File::create(&program).unwrap()).status().unwrap();
        assert!(written.success());
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(&program).arg("--unix").arg(place.path("agent"));
        let agent = command.stdin(Stdio::null()).spawn().unwrap();
        until("the agent listens", || UnixStream::connect(place.path("agent")).is_ok());
        let vsock = UnixListener::bind(place.path("vsock")).unwrap();
        let inside = place.path("agent");
        thread::spawn(move || vsock.incoming().for_each(|client| bridge(client.unwrap(), &inside)));
        Guest { place, agent }
    }

    /// `axvm exec OPTIONS -- WORDS`, with WORDS as they are.
    fn command(&self, options: &str, words: &[&str]) -> Command {
        let mut command = self.place.axvm(&format!("exec --socket vsock {options} --"));
        command.args(words);
        command
    }

    /// Runs it: code, output, errors.
    fn run(&self, options: &str, words: &[&str], input: &[u8]) -> (i32, String, String) {
        let mut command = self.command(options, words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // A command need not read its input.
        thread::spawn(move || _ = stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    fn sh(&self, script: &str) -> (i32, String, String) {
        self.run("", &["sh", "-c", script], b"")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        _ = self.agent.kill();
        _ = self.agent.wait();
    }
}

/// What a vsock does with a client: its line, and bytes both ways, each end by itself.
fn bridge(mut client: UnixStream, agent: &Path) {
    let mut line = [0; 12];
    client.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"CONNECT 348\n");
    let Ok(agent) = UnixStream::connect(agent) else { return };
    client.write_all(b"OK 1073741824\n").unwrap();
    for (mut from, mut to) in
        [(&client, &agent), (&agent, &client)].map(|(from, to)| (from.try_clone().unwrap(), to.try_clone().unwrap()))
    {
        thread::spawn(move || {
            _ = io::copy(&mut from, &mut to);
            _ = to.shutdown(Shutdown::Write);
        });
    }
}

#[test]
fn streams_are_apart_and_the_exit_code_is_the_commands() {
    let guest = Guest::start();
    assert_eq!(guest.sh("echo out; echo err >&2; exit 42"), (42, "out\n".into(), "err\n".into()));
    assert_eq!(guest.sh("kill -9 $$"), (137, String::new(), String::new()));
    let code = guest.run("", &["no-such"], b"");
    assert_eq!(code, (127, String::new(), "axvm: There is no program no-such in the guest\n".into()));
    let (code, _, errors) = guest.run("", &["/etc/passwd"], b"");
    assert!(code == 126 && errors.starts_with("axvm: The guest cannot run /etc/passwd: Permission denied"), "{errors}");
}

#[test]
fn words_environment_and_directory_arrive_as_they_are() {
    let guest = Guest::start();
    let options = "--env A=b=c -e XDG_RUNTIME_DIR --directory /usr";
    let script = "pwd; echo $A; echo $XDG_RUNTIME_DIR; for word; do echo \"<$word>\"; done";
    let (code, output, errors) = guest.run(options, &["sh", "-c", script, "sh", "a b", "", "-x", "--"], b"");
    let here = guest.place.path("").display().to_string();
    let expected = format!("/usr\nb=c\n{}\n<a b>\n<>\n<-x>\n<-->\n", here.trim_end_matches('/'));
    assert_eq!((code, output, errors), (0, expected, String::new()));
}

#[test]
fn input_and_output_flow_whole_at_once() {
    let guest = Guest::start();
    let input: Vec<u8> = (0..5_000_000_u32).map(|n| b'a' + (n % 26) as u8).collect();
    let (code, output, errors) = guest.run("", &["cat"], &input);
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(output.as_bytes() == input, "{} bytes came back", output.len());
}

#[test]
fn a_command_that_reads_nothing_ends_all_the_same() {
    let guest = Guest::start();
    let (code, output, _) = guest.run("", &["echo", "done"], &[b'x'; 1 << 20]);
    assert_eq!((code, output.as_str()), (0, "done\n"));
}

#[test]
fn an_output_without_a_reader_ends_the_command() {
    let guest = Guest::start();
    let mut child = guest.command("", &["yes"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0; 1000]).unwrap();
    drop(output);
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn signals_are_the_commands_and_the_third_is_ours() {
    let guest = Guest::start();
    let (screen, output) = io::pipe().unwrap();
    let script =
        "exec 2>/dev/null; trap 'echo int' INT; trap 'echo term' TERM; echo ready; while :; do sleep 0.02; done";
    let axvm = guest.place.start(guest.command("", &["sh", "-c", script]), Stdio::null(), output);
    let mut talk = Talk::new(None, screen);
    talk.hear("ready\n");
    axvm.signal(Signal::INT);
    talk.hear("int\n");
    axvm.signal(Signal::TERM);
    talk.hear("term\n");
    axvm.signal(Signal::TERM);
    assert_eq!(axvm.ends_with(128 + 15).errors, "");
}

#[test]
fn a_command_that_a_signal_ends_has_its_code() {
    let guest = Guest::start();
    let (screen, output) = io::pipe().unwrap();
    let axvm = guest.place.start(guest.command("", &["sh", "-c", "echo ready; exec sleep 60"]), Stdio::null(), output);
    Talk::new(None, screen).hear("ready\n");
    axvm.signal(Signal::INT);
    axvm.ends_with(128 + 2);
}

#[test]
fn a_terminal_here_is_one_there() {
    let guest = Guest::start();
    let terminal = Terminal::new();
    let before = terminal.settings();
    let script =
        "tty >/dev/null && stty size; echo $TERM; read line; echo got $line; stty size; echo last; exec sleep 60";
    let mut command = guest.command("", &["sh", "-c", script]);
    command.env("TERM", "vt220");
    let (axvm, mut talk) = terminal.start(&guest.place, &command);
    talk.hear("25 80\r\nvt220\r\n");
    assert!(terminal.is_raw());
    terminal.resize(100, 40);
    axvm.signal(Signal::WINCH);
    talk.say("word\r");
    // Before that a shell may wait for another program, which Ctrl-C is for then.
    talk.hear("got word\r\n40 100\r\nlast\r\n");
    talk.say("\x03");
    axvm.ends_with(130);
    assert_eq!(terminal.settings(), before);
}

#[test]
fn a_terminal_is_no_terminal_there_if_it_is_not_wanted() {
    let guest = Guest::start();
    let terminal = Terminal::new();
    let (axvm, mut talk) = terminal.start(&guest.place, &guest.command("-T", &["sh", "-c", "tty; exit 3"]));
    talk.hear("not a tty");
    axvm.ends_with(3);
}

#[test]
fn a_guest_without_terminals_says_what_it_misses() {
    let bare =
        ["unshare", "--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs none /dev/pts && exec \"$@\"", "sh"];
    let tried = Command::new(bare[0]).args(&bare[1..]).arg("true").status();
    if !tried.is_ok_and(|status| status.success()) {
        return skip("no unshare(1) here, or no user namespaces");
    }
    let guest = Guest::start_by(&bare);
    let terminal = Terminal::new();
    let (axvm, _talk) = terminal.start(&guest.place, &guest.command("", &["true"]));
    let end = axvm.ends_with(125);
    assert!(end.errors.contains("The guest has no terminal to give: No such device"), "{}", end.errors);
    assert!(end.errors.contains("mount -t devpts devpts /dev/pts"), "{}", end.errors);
    assert_eq!(guest.run("", &["true"], b"").0, 0);
}

#[test]
fn three_keys_leave_a_command_that_hangs() {
    let guest = Guest::start();
    let terminal = Terminal::new();
    let before = terminal.settings();
    let (axvm, mut talk) =
        terminal.start(&guest.place, &guest.command("", &["sh", "-c", "stty raw; echo ready; sleep 60"]));
    talk.hear("ready");
    talk.say("\x1d\x1d\x1d");
    let end = axvm.end();
    assert_eq!(end.code, 125);
    assert!(end.errors.contains("Left the command by Ctrl-]"), "{}", end.errors);
    assert_eq!(terminal.settings(), before);
}

#[test]
fn a_guest_that_goes_away_is_told_and_is_our_failure() {
    let guest = Guest::start();
    let (screen, output) = io::pipe().unwrap();
    let script = "echo ready; exec sleep 60";
    let axvm = guest.place.start(guest.command("", &["sh", "-c", script]), Stdio::null(), output);
    Talk::new(None, screen).hear("ready\n");
    // The session, for a guest that is off has none.
    let session = fs::read_to_string(format!("/proc/{0}/task/{0}/children", guest.agent.id())).unwrap();
    Command::new("kill").arg("-9").arg(session.trim()).status().unwrap();
    let end = axvm.end();
    assert_eq!(end.code, 125);
    assert!(end.errors.starts_with("axvm: The guest went away while the command ran"), "{}", end.errors);
}

/// A guest whose agent says these bytes, and no more.
fn lying(bytes: &'static [u8]) -> (Place, PathBuf) {
    let place = Place::new();
    let path = place.path("vsock");
    let vsock = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for client in vsock.incoming() {
            let mut client = client.unwrap();
            client.read_exact(&mut [0; 12]).unwrap();
            client.write_all(b"OK 1\n").unwrap();
            client.write_all(bytes).unwrap();
            thread::spawn(move || _ = io::copy(&mut client, &mut io::sink()));
        }
    });
    (place, path)
}

#[test]
fn an_agent_that_lies_is_our_failure_and_prints_nothing() {
    for (bytes, why) in [
        (&b"SSH-2.0-OpenSSH\r\n"[..], "it does not speak AxVM's protocol for commands"),
        (b"axexec\x01\0\x11\x01\0\0\0x", "it sent a frame of kind 17 at the wrong time"),
        (b"axexec\x01\0\x10\x04\0\0\0\0\0\0\0\x11\xff\xff\xff\xff", "it sent a frame of kind 17 with 4294967295 bytes"),
    ] {
        let (place, _) = lying(bytes);
        let (code, output, errors) = place.run("exec --socket vsock -- true");
        assert_eq!((code, output.as_str()), (125, ""));
        assert!(
            errors.starts_with("axvm: The guest's agent is none, or of another AxVM: ") && errors.contains(why),
            "{errors}"
        );
    }
}

#[test]
fn a_guest_that_floods_is_held_up_by_its_reader() {
    let guest = Guest::start();
    let mut child = guest.command("", &["yes"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let rss = || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0").trim().to_owned();
        line.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(500) {
        assert!(rss() < 64 << 10, "{} KiB", rss());
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_is_in_the_way_is_said_and_is_125() {
    let place = Place::new();
    for (words, why) in [
        ("exec --socket none -- true", "axvm: Cannot connect to none: No such file or directory"),
        ("exec web -- true", "axvm: No machine 'web': no machine of yours runs. Start one with `axvm run`"),
        ("exec --socket none --env =x -- true", "axvm: --env =x: there is no name before the ="),
        (
            "exec --socket none --env NO_SUCH -- true",
            "axvm: --env NO_SUCH: there is no such variable here; write NAME=VALUE",
        ),
        ("exec web --", "axvm: axvm exec: <COMMAND>... is missing; axvm exec --help tells more"),
    ] {
        let (code, _, errors) = place.run(words);
        assert!(code == 125 && errors.starts_with(why), "{words}: {code} {errors}");
    }
}

#[test]
fn the_agent_is_one_static_program_and_has_a_unit() {
    let guest = Guest::start();
    let program = guest.place.path("axvm-agent");
    let output = Command::new(&program).arg("--version").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("axvm-agent {}\n", env!("CARGO_PKG_VERSION")));
    let bytes = fs::read(&program).unwrap();
    // Program headers: where they are, how long and how many; PT_INTERP is 3.
    let number = |at: usize, len: usize| {
        bytes[at..at + len].iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
    };
    let (start, len, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    assert!((0..count).all(|header| number(start + header * len, 4) != 3), "it wants a loader");
    assert!(bytes.len() < 2 << 20, "{} bytes are many for an initrd", bytes.len());
    let (code, unit, _) = guest.place.run("agent --systemd");
    assert!(code == 0 && unit.contains("ExecStart=/usr/local/sbin/axvm-agent\n"), "{unit}");
}
