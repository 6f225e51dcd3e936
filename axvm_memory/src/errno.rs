//! From C to Rust: what a call of the C library returned, as a `Result`.
//!
//! Spec: errno(3). Left out: calls that return a value.

use std::io;

/// The result of a call that says 0 or sets errno.
pub(crate) fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
