//! An idle console sleeps: alone in its process, so that its threads can be counted.

#[path = "it/common/mod.rs"]
mod common;

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use axvm_console::{BackEnd, FileLimit};
use common::{Bench, on, open, read};
use rustix::time::{ClockId, clock_gettime};

/// How often the console's threads went to sleep so far.
fn sleeps() -> u64 {
    let mut sleeps = 0;
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
        if status.starts_with("Name:\tconsole") {
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            sleeps += line.unwrap().trim().parse::<u64>().unwrap();
        }
    }
    sleeps
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap()
}

fn assert_idle(what: &str, bench: Bench) {
    assert_sleeps(what);
    bench.console.give_up();
}

fn assert_sleeps(what: &str) {
    // A client that does not read is waited for a little.
    std::thread::sleep(Duration::from_millis(250));
    let (time, count) = (cpu_time(), sleeps());
    std::thread::sleep(Duration::from_millis(300));
    let (used, woken) = (cpu_time() - time, sleeps() - count);
    // One that spins takes all of it; the host may be busy, and the clock counts in ticks.
    assert!(used < Duration::from_millis(60), "{what}: {used:?}");
    assert_eq!(woken, 0, "{what}");
}

#[test]
fn an_idle_console_never_wakes() {
    let directory = tempfile::tempdir().unwrap();
    let (null, file) = (File::open("/dev/null").unwrap(), tempfile::tempfile().unwrap());
    let (input, keys) = std::io::pipe().unwrap();
    assert_idle("no input", on(&null, &null));
    assert_idle("a regular file", on(&file, &null));
    assert_idle("a silent pipe", on(&input, &null));
    drop(keys);
    assert_idle("a closed pipe", on(&input, &null));

    let (unread, output) = std::io::pipe().unwrap();
    let bench = on(&null, &output);
    bench.port.send(&vec![0; 1 << 20]);
    assert_idle("a reader that sleeps", bench);
    drop(unread);

    assert_idle("no client", open(&BackEnd::None).unwrap());
    assert_idle("a file", open(&BackEnd::File(directory.path().join("log"), FileLimit::default())).unwrap());
    assert_idle("a pty without a program", open(&BackEnd::Pty).unwrap());

    let bench = open(&BackEnd::Pty).unwrap();
    drop(File::open(bench.console.pty_path().unwrap()));
    assert_idle("a pty whose program left", bench);

    let path = directory.path().join("socket");
    let bench = open(&BackEnd::Unix(path.clone())).unwrap();
    let _client = UnixStream::connect(&path).unwrap();
    let stuck = UnixStream::connect(&path).unwrap();
    bench.port.send(&vec![0; 1 << 20]);
    assert_eq!(read(&stuck, 1).len(), 1);
    assert_idle("clients that do not read", bench);

    a_client_gone_while_its_typing_waits_wakes_no_thread();
}

fn a_client_gone_while_its_typing_waits_wakes_no_thread() {
    let bench = open(&BackEnd::None).unwrap();
    let (client, server) = UnixStream::pair().unwrap();
    bench.console.attacher().attach(server, Vec::new());
    client.set_nonblocking(true).unwrap();
    let mut typed = 0;
    common::until("the port and the socket are full", || {
        match rustix::io::write(&client, &[b'x'; 4096]) {
            Ok(count) => typed += count,
            Err(_) => return bench.port.pending() == 64 << 10,
        }
        false
    });
    drop(client);
    assert_sleeps("a client that typed and went");
    assert!(common::receive(&bench.port, typed).iter().all(|&byte| byte == b'x'));
}
