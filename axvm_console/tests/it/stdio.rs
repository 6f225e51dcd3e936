//! Standard input and output: pipes, files, nothing.

use crate::common;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use axvm_console::{BackEnd, FileLimit};
use common::{assert_quiet, on, one_client_too_many, open, pattern, read, receive, send_all, until};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

fn nothing() -> File {
    File::open("/dev/null").unwrap()
}

#[test]
fn a_slow_pipe_gets_everything() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let bench = on(nothing(), &writer);
    drop(writer);
    let sent = pattern(1 << 20);
    // The reader starts later: if sending waited for it, this would not return.
    assert_eq!(bench.port.send(&sent), sent.len());
    let reading = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        got
    });
    bench.console.finish();
    assert!(reading.join().unwrap() == sent);
    assert!(bench.calls.warnings.lock().unwrap().is_empty());
}

/// Each of these would wait a whole millisecond for more to come; one that is delayed by a busy host proves nothing.
#[test]
fn what_comes_after_a_silence_is_shown_at_once() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let bench = on(nothing(), &writer);
    let echo = |_| {
        std::thread::sleep(Duration::from_millis(3));
        let since = Instant::now();
        bench.port.send(b"x");
        read(&mut reader, 1);
        since.elapsed()
    };
    let quickest = (0..50).map(echo).min().unwrap();
    assert!(quickest < Duration::from_micros(900), "{quickest:?}");
}

#[test]
fn a_pipe_without_a_reader_holds_the_guest() {
    let (_reader, writer) = std::io::pipe().unwrap();
    let bench = on(nothing(), &writer);
    let mut taken = 0;
    for _ in 0..50 {
        taken += bench.port.send(&vec![0; 1 << 20]);
        std::thread::sleep(Duration::from_millis(4));
    }
    assert!(taken < 4 << 20 && bench.port.room() == 0, "{taken} bytes are in memory");
    bench.console.give_up();
}

#[test]
fn a_non_blocking_pipe_gets_everything_and_stays_as_it_is() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    let bench = on(nothing(), &writer);
    let sent = pattern(300_000);
    bench.port.send(&sent);
    std::thread::sleep(Duration::from_millis(100));
    let got = read(&mut reader, sent.len());
    assert!(got == sent);
    assert!(fcntl_getfl(&writer).unwrap().contains(OFlags::NONBLOCK));
    bench.console.finish();
}

#[test]
fn standard_output_is_not_made_non_blocking() {
    let (reader, writer) = std::io::pipe().unwrap();
    let bench = on(nothing(), &writer);
    bench.port.send(b"x");
    assert_eq!(read(&reader, 1), b"x");
    assert!(!fcntl_getfl(&writer).unwrap().contains(OFlags::NONBLOCK));
}

#[test]
fn a_closed_pipe_gives_one_warning_and_the_guest_goes_on() {
    let (reader, writer) = std::io::pipe().unwrap();
    let bench = on(nothing(), &writer);
    drop(reader);
    for _ in 0..50 {
        send_all(&bench.port, &pattern(64 << 10));
    }
    let warnings = bench.calls.warnings.lock().unwrap().clone();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("standard output"), "{warnings:?}");
    bench.console.finish();
}

#[test]
fn a_reader_that_never_reads_can_be_given_up() {
    let (_reader, writer) = std::io::pipe().unwrap();
    let bench = on(nothing(), &writer);
    bench.port.send(&pattern(1 << 20));
    bench.console.close();
    std::thread::sleep(Duration::from_millis(50));
    assert!(!bench.console.ended().is_signalled(), "it waits for the reader");
    bench.console.give_up();
    // If this waited for the reader, it would not return.
    bench.console.finish();
}

#[test]
fn a_full_disk_gives_one_warning_and_does_not_hold_the_end() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let bench = on(nothing(), &full);
    bench.port.send(b"lost");
    until("it warns", || !bench.calls.warnings.lock().unwrap().is_empty());
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(bench.calls.warnings.lock().unwrap().len(), 1);
    bench.console.finish();
    assert!(bench.calls.warnings.lock().unwrap()[1].contains("lost the last 4 bytes"));
}

#[test]
fn input_goes_on_while_output_hangs() {
    let (_reader, output) = std::io::pipe().unwrap();
    let (input, mut keys) = std::io::pipe().unwrap();
    let bench = on(&input, &output);
    bench.port.send(&pattern(1 << 20));
    keys.write_all(b"hello").unwrap();
    assert_eq!(receive(&bench.port, 5), b"hello");
    bench.console.give_up();
}

#[test]
fn a_paste_reaches_a_slow_device_complete_and_as_it_is() {
    let (input, mut keys) = std::io::pipe().unwrap();
    let bench = on(&input, nothing());
    // Ctrl-A x means nothing in a pipe.
    let typed = [pattern(300_000), b"\x01x".to_vec()].concat();
    let copy = typed.clone();
    let typing = std::thread::spawn(move || {
        keys.write_all(&copy).unwrap();
        keys
    });
    until("the port is full", || bench.port.pending() == 64 << 10);
    let mut got = Vec::<u8>::new();
    while got.len() < typed.len() {
        let mut buffer = [0; 16];
        let count = bench.port.receive(&mut buffer);
        got.extend(&buffer[..count]);
        if got.len().is_multiple_of(4096) || count == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    assert!(got == typed);
    assert!(bench.calls.keys.lock().unwrap().is_empty());
    drop(typing.join());
}

#[test]
fn what_came_before_the_end_of_input_arrives() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"echo hello\n").unwrap();
    file.rewind().unwrap();
    let bench = on(&file, nothing());
    assert_eq!(receive(&bench.port, 11), b"echo hello\n");
}

#[test]
fn each_warning_comes_from_the_named_thread_that_met_the_trouble() {
    let bench = on(nothing(), File::options().write(true).open("/dev/full").unwrap());
    bench.port.send(b"lost");
    until("the writer warns", || !bench.calls.warnings.lock().unwrap().is_empty());
    let clients = one_client_too_many(&bench.console);
    until("the hub warns", || bench.calls.warnings.lock().unwrap().len() == 2);
    assert_eq!(*bench.calls.threads.lock().unwrap(), ["console-out", "console"]);
    drop(clients);
}

#[test]
fn a_file_keeps_what_it_has_and_is_the_users_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console.log");
    for text in [b"first boot\n", b"other boot\n"] {
        let bench = open(&BackEnd::File(path.clone(), FileLimit::default())).unwrap();
        bench.port.send(text);
        bench.console.finish();
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"first boot\nother boot\n");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_at_its_limit_starts_over_and_one_older_generation_is_kept() {
    const LIMIT: usize = 64 << 10;
    let directory = tempfile::tempdir().unwrap();
    let (path, older) = (directory.path().join("log"), directory.path().join("log.1"));
    let before = pattern(150_000);
    std::fs::write(&path, &before).unwrap();
    std::fs::write(&older, b"older still").unwrap();
    let bench = open(&BackEnd::File(path.clone(), FileLimit(Some(LIMIT as u64)))).unwrap();
    let read = || (std::fs::read(&older).unwrap(), std::fs::read(&path).unwrap());
    bench.port.send(b"short");
    until("it starts over", || read().1 == b"short");
    assert!(read().0 == before[before.len() - LIMIT..], "the end of what was too long");
    let sent = pattern(1 << 20);
    send_all(&bench.port, &sent);
    bench.console.finish();
    let (old, new) = read();
    assert!(new.len() <= LIMIT && (LIMIT - 4096..=LIMIT).contains(&old.len()), "{} {}", old.len(), new.len());
    let both = [old, new].concat();
    assert!(both == sent[sent.len() - both.len()..], "nothing is missing between them");
}

#[test]
fn what_is_no_file_has_no_limit_and_no_older_generation() {
    let bench = open(&BackEnd::File("/dev/null".into(), FileLimit::default())).unwrap();
    send_all(&bench.port, &pattern(1 << 20));
    bench.console.finish();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    open(&BackEnd::File(path, FileLimit(None))).unwrap().console.finish();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn an_older_generation_that_cannot_be_opened_is_named() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("log.1")).unwrap();
    let error = open(&BackEnd::File(directory.path().join("log"), FileLimit::default())).err().unwrap().to_string();
    assert!(error.contains("log.1") && error.contains("limit=none"), "{error}");
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let error = open(&BackEnd::File("/nowhere/console.log".into(), FileLimit::default())).err().unwrap().to_string();
    assert!(error.contains("/nowhere/console.log") && error.contains("choose"), "{error}");
    assert!(open(&BackEnd::File("/tmp".into(), FileLimit::default())).is_err());
}

#[test]
fn a_fifo_without_a_reader_is_an_error_and_not_a_wait() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
    assert!(open(&BackEnd::File(path, FileLimit::default())).is_err());
}

#[test]
fn output_without_a_reader_is_quiet() {
    let (reader, writer) = std::io::pipe().unwrap();
    let _bench = on(nothing(), &writer);
    assert_quiet(&reader);
}
