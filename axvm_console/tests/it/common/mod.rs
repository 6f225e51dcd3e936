//! A console under test: its port, and what it called.
#![allow(dead_code, reason = "each test file uses a part")]

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axvm_console::{BackEnd, Console, ConsoleError, Hooks, Key, Port, Stdio};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What a console called.
#[derive(Default)]
pub struct Calls {
    pub keys: Mutex<Vec<Key>>,
    pub warnings: Mutex<Vec<String>>,
    pub help: Mutex<Vec<String>>,
    /// The threads that warned.
    pub threads: Mutex<Vec<String>>,
}

impl Calls {
    pub fn hooks(self: &Arc<Self>) -> Hooks {
        let (keys, warnings, help) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        Hooks {
            on_key: Box::new(move |key| keys.keys.lock().unwrap().push(key)),
            on_warning: Box::new(move |text| {
                let name = std::thread::current().name().unwrap().to_string();
                warnings.threads.lock().unwrap().push(name);
                warnings.warnings.lock().unwrap().push(text);
            }),
            on_help: Box::new(move |text| help.help.lock().unwrap().push(text)),
            quit: "ends the machine",
            has_break: true,
        }
    }
}

pub struct Bench {
    pub port: Port,
    pub console: Console,
    pub calls: Arc<Calls>,
}

pub fn open(back_end: &BackEnd) -> Result<Bench, ConsoleError> {
    let (port, calls) = (Port::new().unwrap(), Arc::<Calls>::default());
    Ok(Bench { console: Console::open(back_end, port.clone(), calls.hooks())?, port, calls })
}

pub fn on(input: impl AsFd, output: impl AsFd) -> Bench {
    let (port, calls) = (Port::new().unwrap(), Arc::<Calls>::default());
    let own = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned().unwrap();
    let stdio = Stdio { input: own(&input), output: own(&output) };
    Bench { console: Console::on(stdio, port.clone(), calls.hooks()).unwrap(), port, calls }
}

/// Bytes that tell where they belong.
pub fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n * 7 + n / 251) as u8).collect()
}

/// As a guest with flow control sends.
pub fn send_all(port: &Port, bytes: &[u8]) {
    let mut sent = 0;
    while sent < bytes.len() {
        let count = port.room().min(bytes.len() - sent);
        sent += port.send(&bytes[sent..sent + count]);
        if count == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Waits until `condition`, ten seconds at most.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What `fd` has within `limit`: all of it, `count` bytes at most.
pub fn read_within(fd: impl AsFd, count: usize, limit: Duration) -> Vec<u8> {
    let (start, mut bytes) = (Instant::now(), Vec::new());
    while bytes.len() < count {
        let left = Timespec::try_from(limit.saturating_sub(start.elapsed())).unwrap();
        if poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)).unwrap() == 0 {
            break;
        }
        let mut buffer = vec![0; (count - bytes.len()).min(64 << 10)];
        match rustix::io::read(&fd, &mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(read) => bytes.extend(&buffer[..read]),
        }
    }
    bytes
}

/// `count` bytes of `fd`, ten seconds at most.
pub fn read(fd: impl AsFd, count: usize) -> Vec<u8> {
    read_within(fd, count, Duration::from_secs(10))
}

/// Checks that nothing comes for a while.
pub fn assert_quiet(fd: impl AsFd) {
    assert_eq!(read_within(fd, 1, Duration::from_millis(50)), b"");
}

/// What the device received.
pub fn receive(port: &Port, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let mut received = 0;
    until("all input came", || {
        received += port.receive(&mut bytes[received..]);
        received == count
    });
    bytes
}

/// Attaches clients until the console warns that there are too many; the other ends.
pub fn one_client_too_many(console: &Console) -> Vec<UnixStream> {
    let attach = |_| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        console.attacher().attach(theirs, Vec::new());
        ours
    };
    (0..=64).map(attach).collect()
}
