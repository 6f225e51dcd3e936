//! Clients on sockets: the console's own, and those attached at run time.

use crate::common;

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axvm_console::{BackEnd, Console, Hooks, Port};
use common::{Bench, Calls, assert_quiet, one_client_too_many, open, pattern, read, receive, send_all, until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

fn listening() -> (TempDir, PathBuf, Bench) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console.sock");
    let bench = open(&BackEnd::Unix(path.clone())).unwrap();
    (directory, path, bench)
}

/// A client whose presence the console has noticed.
fn greeted(path: &PathBuf, bench: &Bench, greeting: &[u8]) -> UnixStream {
    let client = UnixStream::connect(path).unwrap();
    bench.port.send(greeting);
    assert!(read(&client, greeting.len()).ends_with(greeting));
    client
}

#[test]
fn all_clients_see_the_output_and_all_may_type() {
    let (_directory, path, bench) = listening();
    let mut one = UnixStream::connect(&path).unwrap();
    let mut two = UnixStream::connect(&path).unwrap();
    bench.port.send(b"login: ");
    assert_eq!((read(&one, 7), read(&two, 7)), (b"login: ".to_vec(), b"login: ".to_vec()));
    one.write_all(b"ro").unwrap();
    assert_eq!(receive(&bench.port, 2), b"ro");
    two.write_all(b"ot\x01x").unwrap();
    assert_eq!(receive(&bench.port, 4), b"ot\x01x", "escape keys are the terminal's");
}

#[test]
fn a_late_client_gets_exactly_the_last_64_kib() {
    let (_directory, path, bench) = listening();
    let sent = pattern(200_001);
    send_all(&bench.port, &sent);
    until("all is taken", || bench.port.room() == 64 << 10);
    let client = UnixStream::connect(&path).unwrap();
    assert!(read(&client, 64 << 10) == sent[sent.len() - (64 << 10)..]);
    assert_quiet(&client);
    bench.port.send(b"live");
    assert_eq!(read(&client, 4), b"live");
}

/// How long a client that reads takes for `bytes`, sent by a guest that waits.
fn time_to_read(client: &UnixStream, bench: &Bench, bytes: &[u8]) -> Duration {
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| send_all(&bench.port, bytes));
        assert!(read(client, bytes.len()) == bytes, "a client that reads loses nothing");
    });
    start.elapsed()
}

#[test]
fn a_stuck_client_holds_up_the_guest_and_the_others_only_once() {
    let (_directory, path, bench) = listening();
    let reader = greeted(&path, &bench, b"#");
    let sent = pattern(8 << 20);
    let alone = time_to_read(&reader, &bench, &sent);
    let stuck = UnixStream::connect(&path).unwrap();
    assert_eq!(read(&stuck, 64 << 10).len(), 64 << 10, "it is in, and has read what was before");
    let both = time_to_read(&reader, &bench, &sent);
    // A tenth of a second, then two; the rest is this host's speed.
    assert!(both < Duration::from_secs(3) + 4 * alone, "{both:?}, alone {alone:?}");
    let warnings = bench.calls.warnings.lock().unwrap().clone();
    assert!(warnings.len() == 1 && warnings[0].contains("disconnected"), "{warnings:?}");
    let left = read(&stuck, 16 << 20).len();
    assert!(left < 4 << 20, "the stuck one was disconnected, {left} bytes");
}

#[test]
fn a_slow_client_loses_nothing() {
    let (_directory, path, bench) = listening();
    let client = greeted(&path, &bench, b"#");
    let sent = pattern(4 << 20);
    let (copy, port) = (sent.clone(), bench.port.clone());
    let sending = std::thread::spawn(move || send_all(&port, &copy));
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let piece = read(&client, (256 << 10).min(sent.len() - got.len()));
        assert!(!piece.is_empty(), "disconnected after {} bytes", got.len());
        got.extend(piece);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(got == sent);
    sending.join().unwrap();
}

#[test]
fn a_client_that_hangs_up_has_still_typed() {
    let (_directory, path, bench) = listening();
    let typed = pattern(100_000);
    let mut client = UnixStream::connect(&path).unwrap();
    let copy = typed.clone();
    let typing = std::thread::spawn(move || client.write_all(&copy));
    assert!(receive(&bench.port, typed.len()) == typed);
    typing.join().unwrap().unwrap();
    greeted(&path, &bench, b"next");
}

/// What one client may bring along.
const BROUGHT: usize = 16 << 10;

#[test]
fn what_refused_and_gone_clients_typed_is_bounded_in_all() {
    let bench = open(&BackEnd::None).unwrap();
    for _ in 0..2000 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        bench.console.attacher().attach(theirs, vec![b'x'; BROUGHT]);
        drop(ours);
    }
    // Whatever is kept reaches the guest in the end.
    let (mut kept, mut buffer) = (0, [0; 4096]);
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_millis(300) {
        match bench.port.receive(&mut buffer) {
            0 => std::thread::sleep(Duration::from_millis(1)),
            count => (kept, quiet) = (kept + count, Instant::now()),
        }
    }
    // Port, what is being typed, 64 clients and 128 arrivals.
    let bound = (64 << 10) + BROUGHT * (1 + 64 + 128);
    assert!((BROUGHT..=bound).contains(&kept), "{kept} bytes, at most {bound}");
}

#[test]
fn clients_that_left_their_typing_behind_keep_no_one_out() {
    // The console may see the one that comes before the end of those that went.
    for _ in 0..50 {
        let bench = open(&BackEnd::None).unwrap();
        let gone: Vec<_> = one_client_each(&bench, 64, BROUGHT);
        bench.port.send(b"login: ");
        gone.iter().for_each(|client| assert_eq!(read(client, 7), b"login: "));
        drop(gone);
        let late = one_client_each(&bench, 1, 0);
        assert_eq!(read(&late[0], 7), b"login: ");
        assert!(bench.calls.warnings.lock().unwrap().is_empty());
    }
}

/// Attaches `count` clients, each of which has typed `typed` bytes; their other ends.
fn one_client_each(bench: &Bench, count: usize, typed: usize) -> Vec<UnixStream> {
    let attach = |_| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        bench.console.attacher().attach(theirs, vec![b'x'; typed]);
        ours
    };
    (0..count).map(attach).collect()
}

#[test]
fn a_client_that_types_no_more_still_sees() {
    let (_directory, path, bench) = listening();
    let client = greeted(&path, &bench, b"#");
    client.shutdown(Shutdown::Write).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    bench.port.send(b"$ ");
    assert_eq!(read(&client, 2), b"$ ");
}

#[test]
fn the_socket_is_the_users_alone_and_goes_with_the_console() {
    let (_directory, path, bench) = listening();
    let file = path.metadata().unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    bench.console.finish();
    assert!(!path.exists());
}

#[test]
fn someone_elses_socket_stays() {
    let (_directory, path, bench) = listening();
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    bench.console.finish();
    assert!(path.exists());
}

#[test]
fn a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let bench = open(&BackEnd::Unix(path.clone())).unwrap();
    greeted(&path, &bench, b"#");
}

fn refusal(path: PathBuf) -> String {
    let error = open(&BackEnd::Unix(path)).err().unwrap();
    error.to_string()
}

#[test]
fn a_path_in_use_is_refused_with_a_remedy() {
    let (directory, path, _bench) = listening();
    let error = refusal(path.clone());
    assert!(error.contains("a running process listens") && error.contains("Choose another path"), "{error}");
    assert!(path.exists());
    let file = directory.path().join("notes.txt");
    std::fs::write(&file, "precious").unwrap();
    assert!(refusal(file.clone()).contains("no socket"));
    assert_eq!(std::fs::read(file).unwrap(), b"precious");
}

#[test]
fn a_path_too_long_or_nowhere_is_refused() {
    let error = refusal(PathBuf::from(format!("/tmp/{}", "x".repeat(103))));
    assert!(error.contains("108 bytes") && error.contains("107"), "{error}");
    assert!(refusal("/nowhere/console.sock".into()).contains("/nowhere/console.sock"));
}

#[test]
fn a_client_is_attached_without_a_back_end() {
    let bench = open(&BackEnd::None).unwrap();
    bench.port.send(b"booting");
    until("it is kept", || bench.port.room() == 64 << 10);
    let (mut client, server) = UnixStream::pair().unwrap();
    let attacher = bench.console.attacher();
    attacher.attach(server, Vec::new());
    assert_eq!(read(&client, 7), b"booting");
    client.write_all(b"ls\n").unwrap();
    assert_eq!(receive(&bench.port, 3), b"ls\n");
    bench.port.send(b" done");
    bench.console.finish();
    assert_eq!(read(&client, 100), b" done", "what is left is flushed, then the console hangs up");
    let (late, server) = UnixStream::pair().unwrap();
    attacher.attach(server, Vec::new());
    assert_eq!(read(&late, 1), b"");
}

#[test]
fn without_anyone_the_guest_is_not_held() {
    let bench = open(&BackEnd::None).unwrap();
    let start = Instant::now();
    send_all(&bench.port, &vec![0; 16 << 20]);
    // Held a tenth of a second for each 64 KiB, it would take 25 s.
    assert!(start.elapsed() < Duration::from_secs(15));
    assert_eq!(bench.port.lost(), 0);
}

#[test]
fn a_client_stuck_at_the_end_does_not_hold_it_for_long() {
    let (_directory, path, bench) = listening();
    let _stuck = UnixStream::connect(&path).unwrap();
    send_all(&bench.port, &pattern(1 << 20));
    // If this waited until the client reads, it would not return.
    bench.console.finish();
}

#[test]
fn output_that_comes_while_the_console_looks_around_is_not_lost_at_the_end() {
    let port = Port::new().unwrap();
    let (stop_here, stopped) = channel();
    let (go_on, gone_on) = channel();
    let gone_on = Mutex::new(gone_on);
    let on_warning = Box::new(move |_| {
        stop_here.send(()).unwrap();
        gone_on.lock().unwrap().recv().unwrap();
    });
    let hooks = Hooks { on_warning, ..Arc::<Calls>::default().hooks() };
    let console = Console::open(&BackEnd::None, port.clone(), hooks).unwrap();
    let (_stuck, theirs) = UnixStream::pair().unwrap();
    console.attacher().attach(theirs, Vec::new());
    // When its backlog is full it is disconnected, with a warning: the output of that moment is taken already.
    until("it is disconnected", || {
        port.send(&[b'x'; 64 << 10]);
        stopped.try_recv().is_ok()
    });
    port.send(b"bye");
    console.close();
    go_on.send(()).unwrap();
    console.finish();
    assert_eq!(port.room(), 64 << 10, "nothing is left");
}

#[test]
fn a_console_whose_thread_failed_has_ended() {
    let failing = Hooks { on_warning: Box::new(|_| panic!("a bug, on purpose")), ..Arc::<Calls>::default().hooks() };
    let console = Console::open(&BackEnd::None, Port::new().unwrap(), failing).unwrap();
    let _clients = one_client_too_many(&console);
    until("it has ended", || {
        let mut ended = [PollFd::new(console.ended(), PollFlags::IN)];
        poll(&mut ended, Some(&Timespec::default())).unwrap() == 1
    });
    let (ours, theirs) = UnixStream::pair().unwrap();
    console.attacher().attach(theirs, Vec::new());
    assert_eq!(read(&ours, 1), b"", "a client that comes then is turned away");
}
