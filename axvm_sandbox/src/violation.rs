//! What happens when a thread steps outside: one line that names it and the call, and the end of the process.
//!
//! The kernel sends SIGSYS to the thread instead of doing the call. The handler may only do what is safe at any
//! moment: no allocation, no lock, no print. It formats into its stack and writes once. Where the C library blocks all
//! signals (while it makes a thread), the kernel ends the process with SIGSYS and there is no line.
//!
//! Spec: sigaction(2), SIGSYS and `si_syscall`; signal-safety(7); exit code 128 + n as shells say it.
#![allow(unsafe_code, reason = "a signal handler is a C function that gets pointers")]

use std::fmt::{self, Write};
use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use libc::{c_int, c_void, siginfo_t};

use crate::SandboxError;
use crate::names;

static FIRST: OnceLock<fn()> = OnceLock::new();

/// Has `first` called before the line is written, such as to give the terminal back. Call it before `arm`. It runs in
/// a signal handler: system calls on what is known already (tcsetattr) and nothing else; no allocation, no lock.
pub fn on_violation(first: fn()) {
    // The first one stays.
    let _ = FIRST.set(first);
}

/// The head of `siginfo_t` as SIGSYS fills it.
#[repr(C)]
struct Sigsys {
    _signo_errno_code_pad: [c_int; 4],
    _call_addr: *const c_void,
    syscall: c_int,
}

/// Installs the handler.
pub(crate) fn catch() -> Result<(), SandboxError> {
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = stop;
    // SAFETY: all zeroes is a valid sigaction: no handler, no flags, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    // One time only, and the filter lets no thread install it again: an attacker who changes what it does (it is memory
    // like any other) and lives on after a first call ends with the second.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
    // SAFETY: `action` is initialized and outlives the call; the handler has the signature that SA_SIGINFO asks for.
    match unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(SandboxError::Rights { what: "catch SIGSYS", source: io::Error::last_os_error() }),
    }
}

extern "C" fn stop(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes a siginfo_t of 128 bytes, whose head is `Sigsys` for SIGSYS (sigaction(2)).
    let number = unsafe { (*info.cast::<Sigsys>()).syscall };
    if let Some(first) = FIRST.get() {
        first();
    }
    let mut name = [0u8; 16];
    let name = thread_name(&mut name);
    let mut line = Line::default();
    let _ = writeln!(
        line,
        "axvm: The sandbox stopped thread {name}: system call {number} ({}) is not on its list, or not so. This is a \
         bug of AxVM or an attack; --sandbox off shows whether AxVM works without",
        names::name(number)
    );
    let _ = rustix::io::write(io::stderr().as_fd(), line.bytes());
    // SAFETY: _exit is async-signal-safe and takes any code.
    unsafe { libc::_exit(128 + libc::SIGSYS) };
}

/// The name of the calling thread, in `buffer`.
pub(crate) fn thread_name(buffer: &mut [u8; 16]) -> &str {
    // SAFETY: PR_GET_NAME writes at most 16 bytes, with a zero at the end.
    unsafe { libc::prctl(libc::PR_GET_NAME, buffer.as_mut_ptr()) };
    std::ffi::CStr::from_bytes_until_nul(buffer).ok().and_then(|name| name.to_str().ok()).unwrap_or("?")
}

/// Text on the stack; what does not fit is cut.
pub(crate) struct Line {
    bytes: [u8; 320],
    len: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line { bytes: [0; 320], len: 0 }
    }
}

impl Line {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = text.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..][..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        Ok(())
    }
}
