//! When AxVM itself crashes: the terminal is given back, one line says where, and the signal does what it would have.
//!
//! ```text
//!   SIGSEGV, SIGBUS, SIGILL, SIGFPE --> this handler --> the handler before it, when the instruction faults again
//!   SIGABRT, and all that were sent -->              --> the default: the end, with a core
//! ```
//!
//! The handler before is the standard library's, which tells a stack overflow.
//!
//! Spec: sigaction(2); signal-safety(7).
#![allow(unsafe_code, reason = "a signal handler is a C function that gets pointers")]

use std::fmt::Write;
use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use libc::{c_int, c_void, sigaction, siginfo_t};

use crate::violation::{Line, thread_name};

const SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// What to call first, and the handlers before ours.
static BEFORE: OnceLock<(fn(), [sigaction; SIGNALS.len()])> = OnceLock::new();

/// Has `first` called when a signal that means a crash arrives, such as to give the terminal back; before the first
/// thread is made. It runs in a signal handler: no allocation, no lock.
pub fn on_crash(first: fn()) {
    // SAFETY: all zeroes is a valid sigaction: default handler, no flags, empty mask.
    let nothing: sigaction = unsafe { std::mem::zeroed() };
    let mut before = [nothing; SIGNALS.len()];
    for (signal, before) in SIGNALS.iter().zip(&mut before) {
        // SAFETY: a null new action only reads the present one into `before`, which is ours.
        unsafe { libc::sigaction(*signal, std::ptr::null(), before) };
    }
    // The first one stays.
    if BEFORE.set((first, before)).is_err() {
        return;
    }
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = crashed;
    let flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    let action = sigaction { sa_sigaction: handler as usize, sa_flags: flags, ..nothing };
    for signal in SIGNALS {
        // SAFETY: `action` is initialized and outlives the call; its handler has the signature that its flags ask for.
        unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
    }
}

extern "C" fn crashed(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    let Some((first, before)) = BEFORE.get() else { return };
    first();
    let mut name = [0; 16];
    let mut line = Line::default();
    let _ = writeln!(line, "axvm: Thread {} crashed by signal {signal}. This is a bug of AxVM", thread_name(&mut name));
    let _ = rustix::io::write(io::stderr().as_fd(), line.bytes());
    // SAFETY: the kernel passes a siginfo_t that is valid while the handler runs.
    let was_sent = unsafe { (*info).si_code } <= 0;
    let number = SIGNALS.iter().position(|&other| other == signal).unwrap_or(0);
    // SAFETY: all zeroes is a valid sigaction: the default.
    let default: sigaction = unsafe { std::mem::zeroed() };
    let next = if was_sent { &default } else { &before[number] };
    // SAFETY: `next` is a valid action: the default, or one that was in force before.
    unsafe { libc::sigaction(signal, next, std::ptr::null_mut()) };
    if was_sent {
        // It waits until this handler returns.
        // Not `raise`: it is tkill in some C libraries, which the filter refuses.
        // SAFETY: takes nothing, always succeeds.
        let thread = unsafe { libc::gettid() };
        // SAFETY: async-signal-safe, and takes any numbers.
        unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, signal) };
    }
}
