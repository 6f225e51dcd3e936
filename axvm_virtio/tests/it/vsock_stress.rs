//! Many connections at once through the socket device: random sizes, random ends, and each byte counted.
//!
//! ```text
//!   clients of the host, each:  all of it, half-close, the echo to its end     |  gone in the middle
//!   programs of the guest:      the echo, within the host's credit             |  reset in the middle
//!   and the other way round:    the guest connects, a program of the host echoes
//! ```

use crate::common;

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axvm_virtio::device::feature;
use common::guest::*;

/// Connections in all, and at a time, each way.
const CLIENTS: usize = 200;
const AT_ONCE: usize = 100;
/// The guest's program that echoes, and the one that resets after so many bytes.
const ECHO: u32 = 52;
const QUITTER: u32 = 53;
const QUITS_AFTER: usize = 10_000;
/// The host's program that echoes.
const HOST_ECHO: u32 = 5000;
/// Room that the guest has for a connection; it tells of it late.
const ROOM: u32 = 24 << 10;

/// A generator of Marsaglia's: the same numbers each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    /// Most are small; some are more than all buffers on the way hold.
    fn len(&mut self) -> usize {
        let limit = [1, 100, 5000, 70_000, 500_000][self.below(5)];
        self.below(limit + 1)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

/// The guest's end of a connection: it sends back what it gets, or what it was given to send.
#[derive(Default)]
struct End {
    received: u32,
    told: u32,
    sent: u32,
    peer_alloc: u32,
    peer_forwarded: u32,
    to_send: VecDeque<u8>,
    /// The host sends no more; we have said that we do not either.
    host_over: bool,
    over: bool,
    /// What shall come back, where we are the ones who ask.
    expected: Option<Vec<u8>>,
    got: Vec<u8>,
}

/// A kernel that knows nothing but sockets.
struct Kernel {
    guest: Guest,
    ends: HashMap<(u32, u32), End>,
    chance: Chance,
    /// Connections of our own that came to their end with all of their bytes.
    whole: usize,
    asked: usize,
}

impl Kernel {
    /// Serves what is there; whether there was something.
    fn turn(&mut self) -> bool {
        let mut busy = false;
        while let Some(packet) = self.guest.poll() {
            busy = true;
            self.take(&packet);
        }
        let keys = self.ends.keys().copied().collect::<Vec<_>>();
        keys.into_iter().fold(busy, |busy, key| self.send(key) || busy)
    }

    fn say(&mut self, op: u16, flags: u32, (host_port, guest_port): (u32, u32), data: &[u8]) {
        let packet = Packet { op, flags, ..Packet::data(guest_port, host_port, data) };
        let (fwd_cnt, buf_alloc) = self.ends.get(&(host_port, guest_port)).map_or((0, 0), |end| (end.received, ROOM));
        self.guest.send(&Packet { fwd_cnt, buf_alloc, ..packet });
    }

    fn take(&mut self, packet: &Packet) {
        let key = packet.ports;
        if packet.op == REQUEST {
            assert!(key.1 == ECHO || key.1 == QUITTER, "{packet:?}");
            let end = End { peer_alloc: packet.buf_alloc, peer_forwarded: packet.fwd_cnt, ..End::default() };
            assert!(self.ends.insert(key, end).is_none(), "a name is used twice: {packet:?}");
            return self.say(RESPONSE, 0, key, &[]);
        }
        // What was on its way when we reset it.
        let Some(end) = self.ends.get_mut(&key) else { return };
        (end.peer_alloc, end.peer_forwarded) = (packet.buf_alloc, packet.fwd_cnt);
        match packet.op {
            RESPONSE | CREDIT_UPDATE => {}
            CREDIT_REQUEST => self.say(CREDIT_UPDATE, 0, key, &[]),
            RW => {
                end.received += packet.data.len() as u32;
                assert!(end.received - end.told <= ROOM, "more than there is room for: {}", packet.data.len());
                match end.expected {
                    Some(_) => end.got.extend(&packet.data),
                    None => end.to_send.extend(&packet.data),
                }
                if key.1 == QUITTER && end.received as usize > QUITS_AFTER {
                    self.say(RST, 0, key, &[]);
                    self.ends.remove(&key);
                } else if end.received - end.told > ROOM / 2 {
                    end.told = end.received;
                    self.say(CREDIT_UPDATE, 0, key, &[]);
                }
            }
            SHUTDOWN if packet.flags & NO_RECEIVE != 0 => {
                self.say(RST, 0, key, &[]);
                self.end(key);
            }
            SHUTDOWN => end.host_over = true,
            RST => self.end(key),
            other => panic!("{other}"),
        }
    }

    /// Our own connections must have brought everything back.
    fn end(&mut self, key: (u32, u32)) {
        let end = self.ends.remove(&key).unwrap();
        if let Some(expected) = end.expected {
            assert!(end.got == expected, "{key:?}: {} of {}", end.got.len(), expected.len());
            self.whole += 1;
        }
    }

    /// A packet of the bytes that wait, if there is credit for one; then the half-close.
    fn send(&mut self, key: (u32, u32)) -> bool {
        let Some(end) = self.ends.get_mut(&key) else { return false };
        let credit = end.peer_alloc - (end.sent - end.peer_forwarded);
        let len = end.to_send.len().min(credit as usize).min(1 + self.chance.below(8000));
        if len > 0 {
            let data = end.to_send.drain(..len).collect::<Vec<_>>();
            (end.sent, end.told) = (end.sent + len as u32, end.received);
            self.say(RW, 0, key, &data);
            return true;
        }
        let ready = end.peer_alloc > 0 && end.to_send.is_empty() && (end.host_over || end.expected.is_some());
        if ready && !end.over {
            (end.over, end.told) = (true, end.received);
            self.say(SHUTDOWN, NO_SEND, key, &[]);
            return true;
        }
        false
    }

    /// A connection to the host's program, with all that it is to echo.
    fn ask(&mut self) {
        self.asked += 1;
        let key = (HOST_ECHO, 20_000 + self.asked as u32);
        let len = self.chance.len();
        let bytes = self.chance.bytes(len);
        let end = End { to_send: bytes.iter().copied().collect(), expected: Some(bytes), ..End::default() };
        self.ends.insert(key, end);
        self.say(REQUEST, 0, key, &[]);
    }
}

/// One client: what it sends comes back, unless it or the guest goes before.
fn client(path: &Path, chance: &mut Chance) {
    let mut stream = UnixStream::connect(path).unwrap();
    // Longer than all of it takes: where the test fails, no client waits for ever.
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let (len, kind) = (chance.len(), chance.below(4));
    let port = if kind == 0 { QUITTER } else { ECHO };
    // Sometimes data come with the command.
    let bytes = chance.bytes(len);
    let early = chance.below(2) * len.min(1000);
    stream.write_all(&[format!("CONNECT {port}\n").as_bytes(), &bytes[..early]].concat()).unwrap();
    assert!(line(&mut stream).starts_with("OK "));
    let mut writer = stream.try_clone().unwrap();
    let (rest, leaves) = (&bytes[early..], kind == 1);
    thread::scope(|scope| {
        let writing = scope.spawn(move || {
            let written = writer.write_all(rest);
            if leaves { Ok(()) } else { written.and_then(|()| writer.shutdown(Shutdown::Write)) }
        });
        if leaves {
            let mut some = vec![0; len / 3];
            stream.read_exact(&mut some).unwrap();
            assert!(some == bytes[..len / 3]);
            stream.shutdown(Shutdown::Both).unwrap();
            // It may have been in the middle.
            let _ = writing.join().unwrap();
            return;
        }
        let mut back = Vec::new();
        let read = stream.read_to_end(&mut back);
        match kind == 0 && len > QUITS_AFTER {
            true => assert!(back.len() < len && bytes.starts_with(&back), "{len} {read:?}"),
            false => assert!(read.is_ok() && back == bytes, "{len} {read:?} {}", back.len()),
        }
        let _ = writing.join().unwrap();
    });
}

fn host_echo(listener: &UnixListener) {
    for stream in listener.incoming().take(CLIENTS / 4) {
        let stream = stream.unwrap();
        thread::spawn(move || {
            std::io::copy(&mut &stream, &mut &stream).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
    }
}

#[test]
fn two_hundred_connections_lose_no_byte() {
    for features in [0, feature::EVENT_IDX] {
        let guest = Guest::new(features);
        let (path, listener) = (guest.path(), guest.listen(HOST_ECHO));
        let mut kernel = Kernel { guest, ends: HashMap::new(), chance: Chance(7), whole: 0, asked: 0 };
        // It is not waited for: where the test fails, too few connections come.
        thread::spawn(move || host_echo(&listener));
        let left = AtomicUsize::new(AT_ONCE);
        thread::scope(|scope| {
            for number in 0..AT_ONCE {
                let (path, left) = (&path, &left);
                scope.spawn(move || {
                    let mut chance = Chance(1000 + number as u64);
                    (0..CLIENTS / AT_ONCE).for_each(|_| client(path, &mut chance));
                    left.fetch_sub(1, Ordering::Relaxed);
                });
            }
            let start = Instant::now();
            while left.load(Ordering::Relaxed) > 0 || kernel.whole < CLIENTS / 4 {
                if kernel.asked < CLIENTS / 4 && kernel.asked - kernel.whole < AT_ONCE / 2 {
                    kernel.ask();
                }
                if !kernel.turn() {
                    thread::sleep(Duration::from_micros(200));
                }
                assert!(start.elapsed() < Duration::from_secs(120), "{} ends are open", kernel.ends.len());
            }
        });
        // All that ended in the middle ends here, too.
        let start = Instant::now();
        while !kernel.ends.is_empty() && start.elapsed() < Duration::from_secs(10) {
            kernel.turn();
        }
        assert!(kernel.ends.is_empty(), "{:?}", kernel.ends.keys());
        kernel.guest.check_alive();
    }
}
