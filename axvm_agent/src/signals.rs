//! Signals that a shell had this process ignore: a script that starts `axvm-agent &` leaves SIGINT and SIGQUIT so, and each
//! command would inherit that and get no Ctrl-C.
//!
//! Source: POSIX.1-2017, Shell Command Language, 2.11 "Signals and Error Handling"; execve(2). Left out: SIGHUP, which
//! `nohup` means.
#![allow(unsafe_code, reason = "the standard library resets SIGPIPE only, and rustix nothing")]

/// Heeds them again, as a program that is started at a terminal does.
pub fn heed() {
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: takes numbers, and leaves no handler behind that could run.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
