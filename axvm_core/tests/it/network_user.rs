//! `--net user`: a real passt between the guest and a network namespace that the test makes.
//!
//! ```text
//!   guest --net0--> axvm --> passt --> 198.51.100.7: a server of the test        outwards
//!   guest <--net0-- axvm <-- passt <-- 127.0.0.1:2222: a client of the test      forward=
//! ```
//!
//! Needs /dev/kvm, root and passt; what cannot be tried says so.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::common::net::{in_namespace, read_udp, send, start, take, take_until, udp};
use crate::common::{Axvm, Place, Talk, has_kvm, skip, until};
use crate::errors::{AXVM, HOST, judge, run};

/// Runs `body` where passt finds a network.
fn with_passt(body: impl FnOnce() + Send) {
    if !has_kvm() {
        return;
    }
    match Command::new("passt").arg("--version").output() {
        Ok(_) => in_namespace(body),
        Err(error) => skip(&format!("no passt: {error}")),
    }
}

/// The guest's address, by DHCP as RFC 2131 has it: DISCOVER, OFFER; and the router's hardware address.
fn discover(talk: &mut Talk, mac: [u8; 6]) -> (Ipv4Addr, [u8; 6], Vec<u8>) {
    let mut message = [&[1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef][..], &[0; 20], &mac, &[0; 202]].concat();
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 55, 4, 1, 3, 6, 26, 255]);
    message.resize(300, 0);
    let ends = [SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68), SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
    send(talk, &udp([mac, [0xff; 6]], ends, &message));
    take_until(talk, |frame| {
        let ([from, _], offer) = read_udp(frame)?;
        let router = frame[6..12].try_into().unwrap();
        let given = Ipv4Addr::new(offer[16], offer[17], offer[18], offer[19]);
        (from.port() == 67).then(|| (given, router, offer[240..].to_vec()))
    })
}

/// The value of a DHCP option.
fn option(options: &[u8], code: u8) -> Option<&[u8]> {
    let (mut rest, mut found) = (options, None);
    while let [kind, len, tail @ ..] = rest
        && *kind != 255
        && found.is_none()
    {
        let (value, after) = tail.split_at(usize::from(*len));
        found = (*kind == code).then_some(value);
        rest = after;
    }
    found
}

/// The passts that this process started.
fn passts(axvm: &Axvm) -> Vec<u32> {
    let children = Command::new("pgrep").args(["-P", &axvm.pid().to_string()]).output().unwrap();
    String::from_utf8(children.stdout).unwrap().lines().map(|id| id.parse().unwrap()).collect()
}

fn is_there(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), None | Some('Z'))
}

#[test]
fn a_guest_gets_its_address_and_reaches_what_the_host_reaches() {
    with_passt(|| {
        let place = Place::new();
        let (axvm, mut talk) = place.shell("--net user,mtu=1400");
        let (mac, said) = start(&mut talk, 0);
        assert_eq!(said, "link 1 mtu 1400 net");
        let (address, router, options) = discover(&mut talk, mac);
        assert_eq!(address, Ipv4Addr::new(192, 0, 2, 2), "that of the host");
        assert_eq!(option(&options, 3), Some(&[192, 0, 2, 1][..]));
        assert_eq!(option(&options, 26), Some(&1400_u16.to_be_bytes()[..]));
        let server = UdpSocket::bind("198.51.100.7:7").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let ends = [SocketAddrV4::new(address, 4000), "198.51.100.7:7".parse().unwrap()];
        send(&mut talk, &udp([mac, router], ends, b"to the server"));
        let mut bytes = [0; 100];
        let (len, client) = server.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"to the server");
        server.send_to(b"to the guest", client).unwrap();
        let answer = take_until(&mut talk, |frame| read_udp(frame).filter(|(ends, _)| ends[1].port() == 4000));
        assert_eq!((answer.0[0], &*answer.1), (ends[1], &b"to the guest"[..]));
        talk.say("off\n");
        axvm.ends_with(0);
    });
}

/// Its passt is a child of `axvm ctl`, which ends before it, and belongs to the card.
#[test]
fn a_card_that_is_added_has_a_passt_of_its_own() {
    with_passt(|| {
        let place = Place::new();
        let (axvm, mut talk) = place.shell("--bus pci");
        talk.say("came\n");
        let (code, said, errors) = place.run("ctl api net add user,mtu=1400");
        assert_eq!((code, &*said), (0, "net0 at 00:03.0\n"), "{errors}");
        assert!(talk.answer().contains("proved"));
        let (mac, said) = start(&mut talk, 0);
        assert_eq!(said, "link 1 mtu 1400 net");
        assert_eq!(discover(&mut talk, mac).0, Ipv4Addr::new(192, 0, 2, 2));
        let ours = || {
            let found = Command::new("pgrep").args(["-f", "passt.*--mtu 1400"]).output().unwrap();
            String::from_utf8(found.stdout).unwrap().lines().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>()
        };
        let there: Vec<_> = ours().into_iter().filter(|&id| is_there(id)).collect();
        assert!(!there.is_empty());
        talk.say("went\n");
        assert_eq!(place.run("ctl api net remove net0").0, 0);
        talk.answer();
        until("its passt ends with it", || !there.iter().any(|&id| is_there(id)));
        talk.say("off\n");
        axvm.ends_with(0);
    });
}

#[test]
fn the_hosts_own_services_are_out_of_reach_unless_asked_for() {
    with_passt(|| {
        let server = UdpSocket::bind("127.0.0.1:7").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        for (words, reached) in [("user", false), ("user,host=on", true)] {
            let place = Place::new();
            let (_axvm, mut talk) = place.shell(&format!("--net {words}"));
            let (mac, said) = start(&mut talk, 0);
            assert_eq!(said, "link 1 mtu 65520 net");
            let (address, router, _) = discover(&mut talk, mac);
            let ends = [SocketAddrV4::new(address, 4000), "192.0.2.1:7".parse().unwrap()];
            send(&mut talk, &udp([mac, router], ends, b"to the gateway"));
            assert_eq!(server.recv_from(&mut [0; 100]).is_ok(), reached, "{words}");
        }
    });
}

#[test]
fn a_port_of_the_host_leads_to_the_guest_over_a_reset_and_is_free_at_the_end() {
    with_passt(|| {
        let place = Place::new();
        let words = "--net user,forward=udp:2222:22,forward=tcp:198.51.100.7:8080:80";
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..2 {
            let (axvm, mut talk) = place.shell(words);
            for round in 0..2 {
                let (mac, _) = start(&mut talk, 0);
                // passt sends where it has seen the guest.
                discover(&mut talk, mac);
                client.send_to(b"knock", "127.0.0.1:2222").unwrap();
                let (ends, data) =
                    take_until(&mut talk, |frame| read_udp(frame).filter(|(ends, _)| ends[1].port() == 22));
                assert_eq!((&*data, ends[1].ip()), (&b"knock"[..], &Ipv4Addr::new(192, 0, 2, 2)), "round {round}");
                if round == 0 {
                    talk.say("reset\n");
                    talk.hear("ready\n> ");
                }
            }
            // TCP: the guest gets a SYN to its port.
            let connecting = std::thread::spawn(|| std::net::TcpStream::connect("198.51.100.7:8080"));
            take_until(&mut talk, |frame| {
                let is_syn =
                    frame[12..14] == [8, 0] && frame[23] == 6 && frame[36..38] == [0, 80] && frame[47] & 2 != 0;
                is_syn.then_some(())
            });
            talk.say("off\n");
            axvm.ends_with(0);
            _ = connecting.join();
        }
    });
}

#[test]
fn a_passt_that_dies_is_a_cable_that_was_pulled() {
    with_passt(|| {
        let place = Place::new();
        let (axvm, mut talk) = place.shell("--net user");
        start(&mut talk, 0);
        talk.say("link\n");
        talk.hear("link up\n");
        let children = passts(&axvm);
        let [passt] = children[..] else { panic!("one passt: {children:?}") };
        rustix::process::kill_process(rustix::process::Pid::from_raw(passt as i32).unwrap(), Signal::KILL).unwrap();
        assert_eq!(talk.answer(), "link 0 link");
        // It is waited for, and nothing of it is left.
        until("its end is noticed", || passts(&axvm).is_empty());
        assert_eq!(talk.ask("raw 0"), "0 0 raw");
        talk.say("off\n");
        let end = axvm.ends_with(0);
        let told = end.errors.lines().filter(|line| line.contains("ended")).count();
        assert_eq!(told, 1, "{end:?}");
    });
}

#[test]
fn passt_ends_with_axvm_however_that_ends() {
    with_passt(|| {
        for signal in [Signal::TERM, Signal::KILL] {
            let place = Place::new();
            let (axvm, talk) = place.shell("--net user --grace 0 --net user,mtu=1500");
            let children = passts(&axvm);
            assert_eq!(children.len(), 2);
            axvm.signal(signal);
            let end = axvm.end();
            assert!(!end.errors.contains("passt"), "{end:?}");
            until("passt is gone", || !children.iter().any(|child| is_there(*child)));
            drop(talk);
        }
    });
}

#[test]
fn a_passt_that_cannot_says_why_and_what_to_do() {
    with_passt(|| {
        let place = Place::new();
        let start = |path: &str, words: &str| {
            let arguments = format!("run --kernel guest.elf --memory 32M --append shell --net {words}");
            run(Command::new(AXVM).args(arguments.split(' ')).current_dir(place.path("")).env("PATH", path))
        };
        let path = std::env::var("PATH").unwrap();
        let output = start("/nowhere", "user");
        judge(&output, HOST, &["net0", "no program passt", "sudo apt install passt"]).unwrap();
        let _taken = std::net::TcpListener::bind("127.0.0.1:2222").unwrap();
        let output = start(&path, "user,forward=2222:22");
        judge(&output, HOST, &["passt has ended: Failed to bind any port for", "2222:22", "forward="]).unwrap();
        crate::common::net::ip("route del default");
        let output = start(&path, "user");
        judge(&output, HOST, &["passt has ended: External interface not usable", "default route (ip route)"]).unwrap();
    });
}

/// Puts a file over another, or a directory of ours, until the namespace is gone.
fn mount(words: &str) {
    assert!(Command::new("mount").args(words.split(' ')).status().unwrap().success(), "mount {words}");
}

#[test]
fn a_guest_asks_what_the_hosts_own_resolver_asks_or_is_told_that_there_is_none() {
    with_passt(|| {
        let place = Place::new();
        std::fs::write(place.path("resolv.conf"), "nameserver 127.0.0.53\n").unwrap();
        mount(&format!("--bind {} /etc/resolv.conf", place.path("resolv.conf").display()));
        mount("-t tmpfs none /run");
        let servers = |mut talk: Talk| {
            let (mac, _) = start(&mut talk, 0);
            let (_, _, options) = discover(&mut talk, mac);
            option(&options, 6).map(<[u8]>::to_vec)
        };
        let (axvm, talk) = place.shell("--net user");
        assert_eq!(servers(talk), None);
        assert!(axvm.errors().contains("net0: the guest gets no name server"), "{}", axvm.errors());
        drop(axvm);
        std::fs::create_dir_all("/run/systemd/resolve").unwrap();
        std::fs::write("/run/systemd/resolve/resolv.conf", "nameserver 192.0.2.53\n").unwrap();
        let (axvm, talk) = place.shell("--net user");
        assert_eq!(servers(talk), Some(vec![192, 0, 2, 53]));
        assert!(!axvm.errors().contains("name server"), "{}", axvm.errors());
    });
}

#[test]
fn dropped_frames_do_not_hold_anything_up() {
    with_passt(|| {
        let place = Place::new();
        let (axvm, mut talk) = place.shell("--net user");
        let (mac, _) = start(&mut talk, 0);
        let (address, router, _) = discover(&mut talk, mac);
        // To an address that no one has, and what is no packet at all.
        let ends = [SocketAddrV4::new(address, 1), "203.0.113.9:9".parse().unwrap()];
        for data in [&[][..], &[0; 1400]] {
            send(&mut talk, &udp([mac, router], ends, data));
        }
        send(&mut talk, &[&router[..], &mac, &[8, 0], &[0x4f; 40]].concat());
        assert!(discover(&mut talk, mac).0 == address);
        assert!(take(&mut talk).is_none_or(|frame| frame.len() > 14));
        talk.say("off\n");
        axvm.ends_with(0);
    });
}
