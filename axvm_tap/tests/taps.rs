//! Taps of a network namespace that each test makes for itself. Needs root (CAP_NET_ADMIN) and ip(8).

use std::os::fd::OwnedFd;
use std::process::Command;

use axvm_tap::testing::{in_namespace, ip};
use axvm_tap::{Offloads, Tap, TapError};

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
