//! Taps of a network namespace that each test makes for itself. Needs root (CAP_NET_ADMIN) and ip(8).
//!
//! ```text
//!   thread of the test --unshare--> an empty namespace --ip tuntap add--> tap0, gone with the thread
//! ```
#![allow(clippy::disallowed_methods, reason = "tests start threads of their own")]

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::process::Command;

use axvm_tap::{Offloads, Tap, TapError};

/// Runs `body` in a network namespace of its own; says if it cannot.
fn in_namespace(body: impl FnOnce() + Send) {
    let run = || {
        // SAFETY: it concerns this thread only, and reads no memory.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0
            || OpenOptions::new().read(true).open("/dev/net/tun").is_err()
        {
            println!("skipped: only root makes network namespaces and taps");
        } else if Command::new("ip").arg("-V").output().is_err() {
            println!("skipped: ip(8) is not there");
        } else {
            body();
        }
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap());
}

fn ip(line: &str) {
    assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success(), "ip {line}");
}

fn error(name: &str, queues: u16) -> String {
    Tap::open(name, queues).unwrap_err().to_string()
}

#[test]
fn a_tap_opens_and_says_what_it_can() {
    in_namespace(|| {
        ip("tuntap add dev tap0 mode tap vnet_hdr");
        ip("link set tap0 mtu 9000");
        let taps = Tap::open("tap0", 1).unwrap();
        let [tap] = &taps[..] else { panic!("one queue") };
        assert_eq!((tap.name(), tap.mtu()), ("tap0", Ok(9000)));
        assert!(tap.offloads().checksum && tap.offloads().tso4 && tap.offloads().tso6, "{:?}", tap.offloads());
        tap.set_offloads(tap.offloads()).unwrap();
        tap.set_offloads(Offloads::NONE).unwrap();
        assert!(tap.set_attached(true).is_err(), "there is but one queue");
        assert!(matches!(Tap::open("tap0", 1), Err(TapError::Busy { .. })), "it is in use");
        // What another process hands over.
        let again = Tap::from_fd(OwnedFd::from(taps.into_iter().next().unwrap())).unwrap();
        assert_eq!(again.name(), "tap0");
    });
}

#[test]
fn a_tap_with_several_queues_opens_with_several() {
    in_namespace(|| {
        ip("tuntap add dev tap0 mode tap vnet_hdr multi_queue");
        let taps = Tap::open("tap0", 4).unwrap();
        assert_eq!(taps.len(), 4);
        for attached in [false, true] {
            taps[1..].iter().for_each(|tap| tap.set_attached(attached).unwrap());
        }
    });
}

#[test]
fn a_tap_of_another_shape_is_refused_with_the_command_that_makes_one() {
    in_namespace(|| {
        ip("tuntap add dev one mode tap vnet_hdr");
        ip("tuntap add dev many mode tap vnet_hdr multi_queue");
        ip("tuntap add dev packets mode tun");
        let many = error("one", 2);
        assert!(many.contains("made for one queue") && many.contains("vnet_hdr multi_queue"), "{many}");
        let one = error("many", 1);
        assert!(one.contains("several queues") && one.contains("del dev many mode tap multi_queue"), "{one}");
        assert!(error("packets", 1).contains("is no tap") && error("lo", 1).contains("is no tap"));
        assert!(error("none", 1).contains("ip tuntap add dev none mode tap user $USER vnet_hdr;"));
        assert!(!Command::new("ip").args(["link", "show", "none"]).output().unwrap().status.success(), "none is made");
    });
}
