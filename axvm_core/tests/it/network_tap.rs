//! `--net tap=NAME`: taps of a network namespace that the test makes.
//!
//! ```text
//!   guest --net0--> axvm --> tap0 | 10.0.0.1/24: the test's own sockets
//! ```
//!
//! Needs /dev/kvm, root and ip(8); what cannot be tried says so.

use std::net::{SocketAddrV4, UdpSocket};
use std::process::Command;
use std::time::Duration;

use crate::common::net::{in_namespace, ip, read_udp, send, start, take_until, udp};
use crate::common::{Place, has_kvm};
use crate::errors::{AXVM, HOST, USAGE, check, judge, run};
use crate::images::bzimage;

fn with_taps(body: impl FnOnce() + Send) {
    if has_kvm() {
        in_namespace(body);
    }
}

fn make_tap(name: &str, flags: &str) {
    ip(&format!("tuntap add dev {name} mode tap vnet_hdr{flags}"));
    ip(&format!("link set {name} address 02:00:00:00:00:fe mtu 1400 up"));
    ip(&format!("address add 10.0.0.1/24 dev {name}"));
    ip(&format!("neighbor add 10.0.0.2 lladdr 02:00:00:00:00:02 dev {name}"));
}

#[test]
fn a_guest_and_the_hosts_kernel_exchange_packets_over_a_tap() {
    with_taps(|| {
        make_tap("tap0", "");
        let place = Place::new();
        let socket = UdpSocket::bind("10.0.0.1:7").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for more in ["", ",offload=off"] {
            let (axvm, mut talk) = place.shell(&format!("--net tap=tap0,mac=02:00:00:00:00:02{more}"));
            for round in 0..2 {
                assert_eq!(start(&mut talk, 0), ([2, 0, 0, 0, 0, 2], "link 1 mtu 1400 net".into()));
                let ends: [SocketAddrV4; 2] = ["10.0.0.2:9", "10.0.0.1:7"].map(|end| end.parse().unwrap());
                send(&mut talk, &udp([[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 0xfe]], ends, b"to the host"));
                let mut bytes = [0; 100];
                let (len, from) = socket.recv_from(&mut bytes).unwrap();
                assert_eq!((&bytes[..len], from), (&b"to the host"[..], ends[0].into()));
                socket.send_to(b"to the guest", from).unwrap();
                let (ends, data) =
                    take_until(&mut talk, |frame| read_udp(frame).filter(|(ends, _)| ends[1].port() == 9));
                assert_eq!((&*data, ends[0].to_string()), (&b"to the guest"[..], "10.0.0.1:7".into()));
                if round == 0 {
                    talk.say("reset\n");
                    talk.hear("ready\n> ");
                }
            }
            talk.say("off\n");
            axvm.ends_with(0);
        }
    });
}

#[test]
fn several_queues_are_taken_from_a_tap_that_has_them() {
    with_taps(|| {
        make_tap("tap0", " multi_queue");
        let place = Place::new();
        let (axvm, mut talk) = place.shell("--net tap=tap0,queues=2");
        assert!(start(&mut talk, 0).1.starts_with("link 1"));
        // A tap that is deleted is a cable that was pulled.
        talk.say("link\n");
        talk.hear("link up\n");
        ip("link del tap0");
        assert_eq!(talk.answer(), "link 0 link");
        talk.say("off\n");
        axvm.ends_with(0);
    });
}

#[test]
fn a_tap_that_cannot_be_is_told_with_the_lines_to_type() {
    with_taps(|| {
        make_tap("one", "");
        ip("tuntap add dev many mode tap vnet_hdr multi_queue");
        let place = Place::new();
        std::fs::write(place.path("k"), bzimage()).unwrap();
        let (_holder, _talk) = place.shell("--net tap=one");
        check(
            &place.path(""),
            HOST,
            &[
                ("-k k --net tap=none", &["net0", "no network interface none", "sudo ip tuntap add dev none mode tap"]),
                ("-k k --net tap=lo", &["net0", "lo is no tap"]),
                ("-k k --net tap=one", &["net0", "in use by another process", "EBUSY"]),
                ("-k k --net tap=many", &["net0", "several queues", "queues="]),
                ("-k k --net tap=many,queues=2 --net tap=many", &["net1", "several queues"]),
            ],
        );
    });
}

#[test]
fn root_makes_and_removes_taps_and_is_shown_how() {
    in_namespace(|| {
        let net = |words: &str| run(Command::new(AXVM).arg("net").args(words.split(' ')).env_remove("SUDO_USER"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let done = |words: &str| {
            let output = net(words);
            assert!(output.status.success(), "{words}: {}", text(&output.stderr));
            text(&output.stdout)
        };
        let said = done("up tap7 --address 10.7.0.1/24 --mtu 1400 --user root");
        let lines = "ip tuntap add dev tap7 mode tap user root vnet_hdr\nip address replace 10.7.0.1/24 dev tap7\n\
                     ip link set dev tap7 mtu 1400 up\n";
        assert_eq!(said, lines);
        UdpSocket::bind("10.7.0.1:7").unwrap();
        if has_kvm() {
            let place = Place::new();
            let (_axvm, mut talk) = place.shell("--net tap=tap7");
            assert_eq!(start(&mut talk, 0).1, "link 1 mtu 1400 net");
        }
        // It is there: only set up once more.
        assert_eq!(done("up tap7"), "ip link set dev tap7 up\n");
        assert_eq!(done("down tap7"), "ip link delete dev tap7\n");
        assert_eq!(done("down tap7"), "");
        for (words, code, told) in [
            ("up lo", HOST, "There is a network interface lo, and it is no tap"),
            ("down eth0", HOST, "There is a network interface eth0, and it is no tap"),
            ("up a/b", USAGE, "'a/b' cannot be the name of a network device"),
            ("up tap8 --bridge none", HOST, "`ip link set dev tap8 master none up` fails"),
            ("up", USAGE, "<NAME> is missing"),
            ("up tap8 --mtu 1", USAGE, "--mtu 1"),
        ] {
            judge(&net(words), code, &[told]).unwrap_or_else(|why| panic!("{words}: {why}"));
        }
    });
}
