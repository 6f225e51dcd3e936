//! Commands with a terminal: size, keys, one stream.

use axvm_exec::{FromHost, Request, Size};

use crate::common::{Agent, Host, request};

fn terminal(agent: &Agent, words: &[&str]) -> Host {
    agent.ask(Request { terminal: Some(Size { columns: 100, rows: 30 }), ..request(words) })
}

#[test]
fn it_is_the_controlling_one_and_has_the_size() {
    let agent = Agent::start();
    let mut host = terminal(
        &agent,
        &["sh", "-c", "stty size </dev/tty; test -t 0 -a -t 1 -a -t 2 && echo all; read x; stty size; exit 5"],
    );
    host.expect("30 100\r\nall\r\n");
    host.say(&FromHost::Resize(Size { columns: 50, rows: 20 }));
    host.say(&FromHost::Stdin(b"\n"));
    let said = host.ended();
    assert!(said.text().contains("20 50\r\n"), "{}", said.text());
    assert_eq!((said.code(), said.stderr.len()), (Some(5), 0));
}

#[test]
fn ctrl_c_interrupts_and_ctrl_d_ends_the_input() {
    let agent = Agent::start();
    // The key may come before a sleep begins, or between two.
    let script = "trap 'done=1; echo interrupted' INT; echo ready; until [ $done ]; do sleep 0.1; done; cat; echo over";
    let mut host = terminal(&agent, &["sh", "-c", script]);
    host.expect("ready");
    host.say(&FromHost::Stdin(b"\x03"));
    host.expect("interrupted");
    host.say(&FromHost::Stdin(b"line\n"));
    host.expect("line\r\nline\r\n");
    host.say(&FromHost::Stdin(b"\x04"));
    let said = host.ended();
    assert!(said.text().contains("over"), "{}", said.text());
    assert_eq!(said.code(), Some(0));
}

#[test]
fn a_signal_reaches_what_is_in_the_foreground() {
    let agent = Agent::start();
    let mut host = terminal(&agent, &["sh", "-c", "echo ready; exec sleep 60"]);
    host.expect("ready");
    host.say(&FromHost::Signal(15));
    assert_eq!(host.ended().code(), Some(143));
}

#[test]
fn all_that_was_written_comes_before_the_end() {
    let agent = Agent::start();
    for _ in 0..20 {
        let said = terminal(&agent, &["sh", "-c", "seq 1 2000"]).ended();
        assert!(said.text().ends_with("\r\n1999\r\n2000\r\n"), "{}", said.text().len());
    }
}

#[test]
fn a_host_that_goes_away_takes_its_command_along() {
    let agent = Agent::start();
    let mut host = terminal(&agent, &["sh", "-c", "echo ready; sleep 60"]);
    host.expect("ready");
    drop(host);
    agent.leaves_no_process_behind();
}
