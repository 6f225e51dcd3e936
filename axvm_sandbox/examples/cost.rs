//! What the filters cost a system call: an open process and a closed one take turns, and the medians are compared.
//!
//! `cargo run --release -p axvm_sandbox --example cost`
#![allow(clippy::disallowed_methods, reason = "an example starts threads of its own")]
#![allow(unsafe_code, reason = "system calls are timed without a library around them")]

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

use axvm_sandbox::{Files, Role, arm, enter};

const TURNS: usize = 61;
const CALLS: u32 = 20_000;
/// Request code of KVM_RUN; the descriptor is none, so that only the way in and out is timed.
const KVM_RUN: libc::c_ulong = 0xae80;

/// A system call; the argument is an eventfd.
type Call = fn(i32);
const TIMED: [(&str, Call); 3] = [
    ("ioctl KVM_RUN on nothing", |_| {
        // SAFETY: descriptor -1 is none: the kernel answers EBADF.
        black_box(unsafe { libc::ioctl(-1, KVM_RUN as _, 0) });
    }),
    ("write to an eventfd", |eventfd| {
        // SAFETY: eight bytes are read from a live array.
        black_box(unsafe { libc::write(eventfd, [1u8, 0, 0, 0, 0, 0, 0, 0].as_ptr().cast(), 8) });
    }),
    ("getpid", |_| {
        // SAFETY: getpid takes nothing.
        black_box(unsafe { libc::syscall(libc::SYS_getpid) });
    }),
];

fn main() -> std::io::Result<()> {
    println!("ns a call, medians of {TURNS} turns of {CALLS} calls each");
    for role in [Role::Vcpu, Role::Queue] {
        let (mut open, end) = UnixStream::pair()?;
        apart(|| as_role(role, move || serve(end, eventfd())));
        let (mut closed, end) = UnixStream::pair()?;
        apart(|| {
            let eventfd = eventfd();
            arm(&Files::default()).expect("this host can close the sandbox");
            as_role(role, move || serve(end, eventfd));
        });
        for (number, (name, _)) in TIMED.iter().enumerate().filter(|(number, _)| *number > 0 || role == Role::Vcpu) {
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..TURNS {
                times[0].push(turn(&mut open, number)?);
                times[1].push(turn(&mut closed, number)?);
            }
            let [open, closed] = times.map(median);
            println!("{role:?}, {name}: open {open:.0}, closed {closed:.0}, {:+.0}", closed - open);
        }
    }
    Ok(())
}

/// Queue threads are made by vCPUs and have their filters, too. Unless the sandbox is closed, a role means nothing.
fn as_role(role: Role, work: impl FnOnce() + Send) {
    thread::scope(|scope| {
        scope.spawn(|| {
            enter(Role::Vcpu);
            match role {
                Role::Queue => thread::scope(|scope| {
                    scope.spawn(|| {
                        enter(Role::Queue);
                        work();
                    });
                }),
                _ => work(),
            }
        });
    });
}

/// A process that ends when its work does, or this one.
fn apart(work: impl FnOnce()) {
    // SAFETY: there is one thread, so nothing of it is missing in the child.
    if unsafe { libc::fork() } == 0 {
        // SAFETY: the option takes a number. The child holds the parent's end of its socket too, so it sees no end there.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        work();
        std::process::exit(0);
    }
}

/// Times what it is asked to, until the other end closes.
fn serve(end: UnixStream, eventfd: i32) {
    // As a file: read and write, which every role may, where a socket takes recv and send.
    let mut end = File::from(OwnedFd::from(end));
    let mut number = [0];
    while end.read_exact(&mut number).is_ok() {
        let since = Instant::now();
        (0..CALLS).for_each(|_| (TIMED[usize::from(number[0])].1)(eventfd));
        let nanoseconds = since.elapsed().as_nanos() as f64 / f64::from(CALLS);
        if end.write_all(&nanoseconds.to_ne_bytes()).is_err() {
            return;
        }
    }
}

fn eventfd() -> i32 {
    // SAFETY: eventfd takes numbers.
    unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) }
}

fn turn(end: &mut UnixStream, number: usize) -> std::io::Result<f64> {
    end.write_all(&[number as u8])?;
    let mut answer = [0; 8];
    end.read_exact(&mut answer)?;
    Ok(f64::from_ne_bytes(answer))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
