//! `axvm`: the program. All of it is in the library beside this file, so that tests and fuzzing reach it.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | the guest powered off, or the user quit |
//! | 1 | host or set-up error |
//! | 2 | wrong usage |
//! | 3 | the guest rebooted, with `--on-reboot end` |
//! | 4 | the guest's kernel panicked (pvpanic) |
//! | 5 | the guest crashed |
//! | 6 | the guest halted for good |
//! | 7 | a driver of the guest broke a rule of virtio (`--virtio-check stop`) |
//! | 124 | its time was over (`--timeout`) |
//! | 128+n | ended by signal n |
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    axvm_core::main()
}
