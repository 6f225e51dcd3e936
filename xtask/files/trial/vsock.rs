//! Both sides of many socket connections, for the lab: one static program, in the guest and beside AxVM.
//!
//! ```text
//!   beside AxVM                                                        in the guest
//!   vsock-trial clients PATH COUNT   --CONNECT 52-->   vsock-trial echo 52     until a connection to port 53 comes
//!   vsock-trial programs PATH_5000   <--------------   vsock-trial dial 5000 COUNT
//! ```
//!
//! Who asks sends random bytes, half-closes, and wants them back to the end; every fourth one goes in the middle. The
//! program that listens echoes. The words at the end say how many did which: `50 came back whole, 17 left`.
//!
//! Source: vsock(7), Linux include/uapi/linux/vm_sockets.h. Compiled by `rustc` alone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::exit;
use std::ptr::null_mut;
use std::thread;
use std::time::Duration;

const AF_VSOCK: i32 = 40;
const SOCK_STREAM: i32 = 1;
const CID_ANY: u32 = u32::MAX;
const CID_HOST: u32 = 2;
/// Connections at a time.
const AT_ONCE: u64 = 25;

#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    rest: [u8; 4],
}

unsafe extern "C" {
    fn socket(family: i32, kind: i32, protocol: i32) -> i32;
    fn bind(socket: i32, address: *const Address, len: u32) -> i32;
    fn listen(socket: i32, backlog: i32) -> i32;
    fn accept(socket: i32, address: *mut Address, len: *mut u32) -> i32;
    fn connect(socket: i32, address: *const Address, len: u32) -> i32;
}

/// A socket of any family: std's of Unix sockets do all that is needed with it.
fn own(descriptor: i32) -> io::Result<UnixStream> {
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }.into())
}

fn address(cid: u32, port: u32) -> Address {
    Address { family: AF_VSOCK as u16, reserved: 0, port, cid, rest: [0; 4] }
}

fn vsock_listen(port: u32) -> io::Result<impl Iterator<Item = io::Result<UnixStream>>> {
    // SAFETY: numbers only.
    let listener = own(unsafe { socket(AF_VSOCK, SOCK_STREAM, 0) })?;
    let place = address(CID_ANY, port);
    // SAFETY: the address lives, and has this length.
    if unsafe { bind(listener.as_raw_fd(), &place, 16) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: numbers only.
    if unsafe { listen(listener.as_raw_fd(), 128) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let next = move || {
        // SAFETY: null stands for no address.
        own(unsafe { accept(listener.as_raw_fd(), null_mut(), null_mut()) })
    };
    Ok(std::iter::repeat_with(next))
}

fn vsock_connect(port: u32) -> io::Result<UnixStream> {
    // SAFETY: numbers only.
    let stream = own(unsafe { socket(AF_VSOCK, SOCK_STREAM, 0) })?;
    // SAFETY: the address lives, and has this length.
    match unsafe { connect(stream.as_raw_fd(), &address(CID_HOST, port), 16) } {
        0 => Ok(stream),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A client of the guest's program at `port`: the socket, once the guest has taken the connection. A guest that needs more
/// than two seconds for that is asked again.
fn ask(path: &str, port: u32) -> io::Result<UnixStream> {
    (0..4).find_map(|_| ask_once(path, port).ok()).map_or_else(|| ask_once(path, port), Ok)
}

fn ask_once(path: &str, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    if answer.starts_with(b"OK ") { Ok(stream) } else { Err(io::Error::other("another answer than OK")) }
}

fn echo(streams: impl Iterator<Item = io::Result<UnixStream>>) -> ! {
    for stream in streams {
        let Ok(stream) = stream.inspect_err(|error| eprintln!("accept: {error}")) else { continue };
        thread::spawn(move || {
            // One that went in the middle is no fault.
            let _ = io::copy(&mut &stream, &mut &stream);
            let _ = stream.shutdown(Shutdown::Write);
        });
    }
    exit(1)
}

/// Sends `len` bytes and wants them back; or goes in the middle.
fn trial(stream: &UnixStream, number: u64) -> io::Result<&'static str> {
    let mut seed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let len = next() % [10, 1000, 40_000, 300_000][(number / 4 % 4) as usize];
    let bytes: Vec<u8> = (0..len).map(|_| next() as u8).collect();
    if number % 4 == 3 {
        (&*stream).write_all(&bytes[..bytes.len() / 2])?;
        return Ok("left");
    }
    thread::scope(|scope| {
        scope.spawn(|| (&*stream).write_all(&bytes).and_then(|()| stream.shutdown(Shutdown::Write)));
        let mut back = Vec::new();
        (&*stream).read_to_end(&mut back)?;
        if back == bytes { Ok("whole") } else { Err(io::Error::other(format!("{} of {len} bytes", back.len()))) }
    })
}

/// `count` connections, many at a time; says how they went, and whether all went well.
fn run(count: u64, connect: impl Fn() -> io::Result<UnixStream> + Sync) -> bool {
    let (mut whole, mut left, mut failed) = (0, 0, 0);
    thread::scope(|scope| {
        let one = |number| {
            let stream = connect()?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            trial(&stream, number)
        };
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|worker| scope.spawn(move || (worker..count).step_by(AT_ONCE as usize).map(one).collect::<Vec<_>>()))
            .collect();
        for result in workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()) {
            match result {
                Ok("left") => left += 1,
                Ok(_) => whole += 1,
                Err(error) => {
                    failed += 1;
                    eprintln!("failed: {error}");
                }
            }
        }
    });
    println!("{whole} came back whole, {left} left, {failed} failed");
    failed == 0
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse().unwrap_or(0);
    let good = match words[..] {
        ["echo", port] => {
            let port: u32 = number(port);
            let ends = vsock_listen(port + 1).expect("the port after it");
            thread::spawn(move || {
                let mut ends = ends;
                ends.next();
                exit(0)
            });
            // What waits for it knows by this file.
            let streams = vsock_listen(port).expect("the port");
            File::create("/tmp/listens").expect("/tmp");
            echo(streams)
        }
        ["dial", port, count] => run(number(count).into(), || vsock_connect(number(port))),
        ["programs", path] => echo(UnixListener::bind(path).expect("the path").incoming()),
        ["clients", path, count] => run(number(count).into(), || ask(path, 52)),
        ["end", path] => ask(path, 53).is_ok(),
        _ => {
            eprintln!("usage: vsock-trial echo PORT | dial PORT COUNT | programs PATH | clients PATH COUNT | end PATH");
            false
        }
    };
    exit(if good { 0 } else { 1 })
}
