//! Commands with pipes: streams apart, codes as a shell's, input, signals.

use std::io::Write;
use std::time::{Duration, Instant};

use axvm_exec::{CHUNK, FromHost, Outcome, Refusal, Request, WINDOW};

use crate::common::{Agent, LIMIT, request};

#[test]
fn output_and_errors_stay_apart_and_the_code_is_the_commands() {
    let said = Agent::start().run(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((said.stdout.as_slice(), said.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(said.outcome, Some(Outcome::Code(7)));
}

#[test]
fn a_signal_is_told_as_one() {
    let said = Agent::start().run(&["sh", "-c", "kill -TERM $$"]);
    assert_eq!((said.outcome, said.code()), (Some(Outcome::Signal(15)), Some(143)));
}

#[test]
fn what_cannot_run_is_refused_with_a_reason() {
    let agent = Agent::start();
    for terminal in [None, Some(axvm_exec::Size { columns: 80, rows: 24 })] {
        let refused = |words: &[&str]| {
            let said = agent.ask(Request { terminal, ..request(words) }).ended();
            said.refused.unwrap_or_else(|| panic!("{words:?} was not refused"))
        };
        let (why, text) = refused(&["no-such-program", "-x"]);
        assert_eq!((why, text.as_str()), (Refusal::NotFound, "There is no program no-such-program in the guest"));
        let (why, text) = refused(&["/etc/passwd"]);
        assert_eq!(why, Refusal::CannotRun);
        assert!(text.starts_with("The guest cannot run /etc/passwd: Permission denied"), "{text}");
        let nowhere = Request { directory: "/none".into(), terminal, ..request(&["true"]) };
        let (why, text) = agent.ask(nowhere).ended().refused.unwrap();
        assert_eq!(why, Refusal::Other);
        assert!(text.starts_with("Cannot go to directory /none: No such file"), "{text}");
    }
}

#[test]
fn directory_and_environment_are_the_requests() {
    let agent = Agent::start();
    let mut wanted = request(&["sh", "-c", "pwd; echo $A; echo $PATH"]);
    (wanted.directory, wanted.environment) = ("/usr".into(), vec!["A=b=c".into(), "PATH=/bin:/here".into()]);
    assert_eq!(agent.ask(wanted).ended().text(), "/usr\nb=c\n/bin:/here\n");
}

#[test]
fn input_flows_as_it_is_granted_and_comes_back_whole() {
    let agent = Agent::start();
    let mut host = agent.ask(request(&["cat"]));
    let all: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 / 3) as u8).collect();
    let mut sent = 0;
    while sent < all.len() {
        let left = (host.said.granted as usize - sent).min(all.len() - sent).min(CHUNK);
        if left == 0 {
            assert!(host.turn());
            continue;
        }
        host.say(&FromHost::Stdin(&all[sent..sent + left]));
        sent += left;
    }
    host.say(&FromHost::StdinEnd);
    let said = host.ended();
    assert_eq!(said.code(), Some(0));
    assert!(said.stdout == all, "{} bytes came back of {}", said.stdout.len(), all.len());
}

#[test]
fn a_signal_reaches_a_command_that_reads_nothing() {
    let agent = Agent::start();
    let mut host =
        agent.ask(request(&["sh", "-c", "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done"]));
    host.expect("ready");
    assert_eq!(host.said.granted, u64::from(WINDOW));
    for _ in 0..WINDOW as usize / CHUNK {
        host.say(&FromHost::Stdin(&[0; CHUNK]));
    }
    host.say(&FromHost::Signal(2));
    let said = host.ended();
    assert_eq!((said.text().as_str(), said.code()), ("ready\ncaught\n", Some(3)));
}

/// A shell has what it starts in the background ignore SIGINT, and that is inherited.
#[test]
fn a_command_gets_signals_that_a_script_had_the_agent_ignore() {
    let agent = Agent::start_by_script();
    for (signal, code) in [(2, 130), (3, 131)] {
        let mut host = agent.ask(request(&["sh", "-c", "echo ready; exec sleep 60"]));
        host.expect("ready");
        host.say(&FromHost::Signal(signal));
        assert_eq!(host.ended().code(), Some(code));
    }
}

#[test]
fn a_signal_is_for_all_that_the_command_started() {
    let agent = Agent::start();
    let mut host = agent.ask(request(&["sh", "-c", "sleep 60 & echo ready; wait"]));
    host.expect("ready");
    let begin = Instant::now();
    host.say(&FromHost::Signal(15));
    assert_eq!(host.ended().code(), Some(143));
    assert!(begin.elapsed() < LIMIT);
}

#[test]
fn the_end_of_a_command_is_not_that_of_what_it_leaves_behind() {
    let begin = Instant::now();
    let said = Agent::start().run(&["sh", "-c", "echo out; sleep 60 & exit 4"]);
    assert_eq!((said.text().as_str(), said.code()), ("out\n", Some(4)));
    assert!(begin.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_slow_reader_gets_all_of_it() {
    let agent = Agent::start();
    let mut host = agent.ask(request(&["sh", "-c", "head -c 2000000 /dev/zero; echo end"]));
    std::thread::sleep(Duration::from_millis(300));
    while host.turn() {}
    assert_eq!((host.said.stdout.len(), host.said.code()), (2_000_004, Some(0)));
}

#[test]
fn a_host_that_goes_away_hangs_up() {
    let agent = Agent::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    let script = format!(
        "exec 2>/dev/null; trap 'echo hung up >{}; exit' HUP; echo ready; while :; do sleep 0.05; done",
        file.path().display()
    );
    // A shell tells of what a signal ended, and no reader is there any more.
    let mut host = agent.ask(request(&["sh", "-c", &script]));
    host.expect("ready");
    drop(host);
    let begin = Instant::now();
    while std::fs::read_to_string(file.path()).unwrap() != "hung up\n" {
        assert!(begin.elapsed() < LIMIT, "the command goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn many_commands_run_at_once_and_leave_nothing() {
    let agent = Agent::start();
    let mut hosts: Vec<_> = (0..20).map(|n| agent.ask(request(&["sh", "-c", &format!("read x; exit {n}")]))).collect();
    for host in hosts.iter_mut().rev() {
        while host.said.granted == 0 {
            assert!(host.turn());
        }
        host.say(&FromHost::Stdin(b"go\n"));
    }
    for (n, host) in hosts.into_iter().enumerate() {
        assert_eq!(host.ended().code(), Some(n as u8));
    }
    agent.leaves_no_process_behind();
}

#[test]
fn a_request_without_a_hello_is_cut_off() {
    let agent = Agent::start();
    let mut stream = agent.connect();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut said = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut said).unwrap_or_default();
    assert!(said.is_empty() || said == b"axexec\x01\0", "{said:?}");
    assert_eq!(agent.run(&["echo", "on"]).text(), "on\n", "and the next one is served");
}
