//! Says how long a process and all its threads, also those that have ended, have been on a processor, in nanoseconds:
//! `cpu_time PID`. The benchmarks ask it, for /proc knows that in hundredths of a second only.
//!
//! Spec: clock_getcpuclockid(3).

use std::io::{Error, Result};

fn main() -> Result<()> {
    let pid = std::env::args().nth(1).and_then(|word| word.parse().ok());
    let pid = pid.ok_or_else(|| Error::other("Cannot tell a CPU time: give a process id"))?;
    let mut clock = 0;
    // SAFETY: it writes the number of a clock, into memory of ours that lives through the call.
    let code = unsafe { libc::clock_getcpuclockid(pid, &mut clock) };
    if code != 0 {
        return Err(Error::from_raw_os_error(code));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes a time, into memory of ours that lives through the call.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return Err(Error::last_os_error());
    }
    println!("{}", time.tv_sec * 1_000_000_000 + time.tv_nsec);
    Ok(())
}
