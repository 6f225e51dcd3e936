//! A network of one's own for a test, in which root makes taps as it likes.
//!
//! ```text
//!   thread of the test --unshare--> an empty namespace --ip tuntap add--> tap0, gone with the thread
//! ```
//!
//! Source: network_namespaces(7).
#![allow(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "tests start threads of their own")]

use std::fs::OpenOptions;
use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `body` in a network namespace of its own. Says so, and does not, where the user is not root or ip(8) is missing.
pub fn in_namespace(body: impl FnOnce() + Send) {
    let run = || {
        let may_open = || OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_ok();
        // SAFETY: another network concerns no memory and no descriptor.
        if unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.is_err() || !may_open() {
            println!("skipped: only root makes network namespaces and taps");
        } else if Command::new("ip").arg("-V").output().is_err() {
            println!("skipped: ip(8) is not there");
        } else {
            body();
        }
    };
    std::thread::scope(|scope| scope.spawn(run).join().expect("the test passes"));
}

/// Runs ip(8) with these words, which must succeed.
pub fn ip(line: &str) {
    let status = Command::new("ip").args(line.split(' ')).status().expect("ip(8) runs");
    assert!(status.success(), "ip {line}");
}
