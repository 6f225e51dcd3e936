//! The pseudo-terminal that programs open, leave, and open again.

use crate::common;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::time::{Duration, Instant};

use axvm_console::BackEnd;
use common::{Bench, assert_quiet, open, pattern, read, receive, send_all, until};
use rustix::termios::{LocalModes, tcgetattr};

fn program(bench: &Bench) -> File {
    let flags = rustix::fs::OFlags::NOCTTY.bits().cast_signed();
    let path = bench.console.pty_path().unwrap();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

#[test]
fn a_program_attaches_leaves_and_attaches_again() {
    let bench = open(&BackEnd::Pty).unwrap();
    for round in 0..3 {
        let mut program = program(&bench);
        if round > 0 {
            let replayed = (0..round).map(|n| format!("round {n}")).collect::<String>();
            assert_eq!(read(&program, replayed.len()), replayed.as_bytes());
        }
        assert_quiet(&program);
        bench.port.send(format!("round {round}").as_bytes());
        assert_eq!(read(&program, 7), format!("round {round}").as_bytes());
        program.write_all(b"ls\r\x03").unwrap();
        assert_eq!(receive(&bench.port, 4), b"ls\r\x03", "raw: nothing is changed");
        drop(program);
        std::thread::sleep(Duration::from_millis(30));
    }
}

#[test]
fn typing_counts_however_soon_the_program_leaves() {
    let bench = open(&BackEnd::Pty).unwrap();
    for at_once in [1, 20] {
        for round in 0..50 {
            let typed: Vec<_> = (0..at_once).map(|n| format!("{round}.{n}\r")).collect();
            typed.iter().for_each(|line| program(&bench).write_all(line.as_bytes()).unwrap());
            let typed = typed.concat();
            assert_eq!(String::from_utf8_lossy(&receive(&bench.port, typed.len())), typed);
        }
    }
    // And who stays is shown what comes.
    let program = program(&bench);
    bench.port.send(b"shown");
    assert_eq!(read(&program, 5), b"shown");
}

#[test]
fn a_late_program_sees_exactly_the_last_64_kib() {
    let sent = pattern(1 << 20);
    let time_on = |back_end| {
        let (bench, start) = (open(&back_end).unwrap(), Instant::now());
        send_all(&bench.port, &sent);
        (start.elapsed(), bench)
    };
    let (alone, _) = time_on(BackEnd::None);
    let (elapsed, bench) = time_on(BackEnd::Pty);
    // A guest that is held for a reader waits 2 s.
    assert!(elapsed < Duration::from_secs(1) + 4 * alone, "waits for a program, none is attached: {elapsed:?}");
    until("all is taken", || bench.port.room() == 64 << 10);
    let program = program(&bench);
    assert!(read(&program, 64 << 10) == sent[sent.len() - (64 << 10)..]);
    assert_quiet(&program);
}

#[test]
fn what_a_program_left_unread_is_not_shown_twice() {
    let bench = open(&BackEnd::Pty).unwrap();
    bench.port.send(b"unread");
    let first = program(&bench);
    until("it is there", || rustix::io::ioctl_fionread(&first).unwrap() == 6);
    drop(first);
    std::thread::sleep(Duration::from_millis(50));
    let second = program(&bench);
    assert_eq!(read(&second, 6), b"unread");
    assert_quiet(&second);
}

#[test]
fn a_program_that_reads_loses_nothing() {
    let bench = open(&BackEnd::Pty).unwrap();
    let program = program(&bench);
    bench.port.send(b"#");
    assert_eq!(read(&program, 1), b"#");
    let sent = pattern(1 << 20);
    let (copy, port) = (sent.clone(), bench.port.clone());
    let sending = std::thread::spawn(move || send_all(&port, &copy));
    assert!(read(&program, sent.len()) == sent);
    sending.join().unwrap();
}

#[test]
fn a_program_that_does_not_read_holds_nothing_and_sees_the_latest() {
    let bench = open(&BackEnd::Pty).unwrap();
    let program = program(&bench);
    bench.port.send(b"#");
    assert_eq!(read(&program, 1), b"#");
    let sent = pattern(4 << 20);
    send_all(&bench.port, &sent);
    until("all is taken", || bench.port.room() == 64 << 10);
    assert!(bench.calls.warnings.lock().unwrap().iter().all(|text| text.contains("unread")));
    assert!(!bench.calls.warnings.lock().unwrap().is_empty());
    bench.port.send(b"the end");
    let mut got = Vec::new();
    until("the latest comes", || {
        got.extend(common::read_within(&program, 1 << 16, Duration::from_millis(20)));
        got.ends_with(b"the end")
    });
    assert!(got[..got.len() - 7].ends_with(&sent[sent.len() - (64 << 10)..]));
}

#[test]
fn the_last_words_are_read_before_the_pty_goes() {
    let bench = open(&BackEnd::Pty).unwrap();
    let program = program(&bench);
    bench.port.send(b"#");
    assert_eq!(read(&program, 1), b"#");
    bench.port.send(b"Power down");
    let ending = std::thread::spawn(move || bench.console.finish());
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(read(&program, 100), b"Power down");
    ending.join().unwrap();
}

#[test]
fn the_pty_is_raw_and_the_users_alone() {
    let bench = open(&BackEnd::Pty).unwrap();
    let mode = bench.console.pty_path().unwrap().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for _ in 0..2 {
        let program = program(&bench);
        let mut mode = tcgetattr(&program).unwrap();
        assert!(!mode.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
        mode.local_modes |= LocalModes::ICANON | LocalModes::ECHO;
        rustix::termios::tcsetattr(&program, rustix::termios::OptionalActions::Now, &mode).unwrap();
        drop(program);
        std::thread::sleep(Duration::from_millis(50));
    }
}
