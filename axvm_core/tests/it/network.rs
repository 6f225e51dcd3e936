//! Network cards: what a guest sends goes over the cable, what comes is there, with the sandbox on.
//!
//! ```text
//!   test --types a frame--> guest --net0--> axvm --socket--> test        and back
//! ```
//!
//! Needs /dev/kvm; without it each test says that it was skipped.

use std::fs;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use crate::common::net::{send, take};
use crate::common::{Place, Talk, has_kvm, until};

/// What the guest sends, and gets.
fn frame(fill: u8) -> Vec<u8> {
    [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5], &[fill; 46]].concat()
}

/// A frame each way.
pub fn exchange(talk: &mut Talk, fill: u8, mut to_guest: impl FnMut(&[u8]), mut from_guest: impl FnMut() -> Vec<u8>) {
    send(talk, &frame(fill));
    assert!(from_guest() == frame(fill));
    to_guest(&frame(!fill));
    assert!(take(talk) == Some(frame(!fill)));
}

pub fn read_frame(mut stream: &UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    stream.read_exact(&mut frame).unwrap();
    frame
}

pub fn write_frame(mut stream: &UnixStream, frame: &[u8]) {
    stream.write_all(&[&(frame.len() as u32).to_be_bytes(), frame].concat()).unwrap();
}

#[test]
fn a_stream_carries_frames_both_ways_and_over_a_reset() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let listener = UnixListener::bind(place.path("cable")).unwrap();
    let (axvm, mut talk) = place.shell("--net stream=cable,mac=02:00:00:00:00:01,mtu=1400");
    let (peer, _) = listener.accept().unwrap();
    for fill in [1, 2] {
        assert_eq!(talk.ask("net 0"), "mac 020000000001 link 1 mtu 1400 net");
        exchange(&mut talk, fill, |frame| write_frame(&peer, frame), || read_frame(&peer));
        talk.say("reset\n");
        talk.hear("ready\n> ");
    }
    assert_eq!(talk.ask("net 0"), "mac 020000000001 link 1 mtu 1400 net");
    // A cable that is pulled at the other end.
    talk.say("link\n");
    talk.hear("link up\n");
    drop(peer);
    assert_eq!(talk.answer(), "link 0 link");
    talk.say("off\n");
    let end = axvm.ends_with(0);
    assert!(end.errors.contains("net0: The network link has ended: its other end closed it"), "{end:?}");
}

#[test]
fn a_descriptor_may_be_a_socket_of_either_kind() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (stream, stream_end) = UnixStream::pair().unwrap();
    let (datagram, datagram_end) = UnixDatagram::pair().unwrap();
    // A shell hands them on: what this process opens is closed at exec.
    let ends = [std::os::fd::OwnedFd::from(stream_end), datagram_end.into()];
    let numbers = ends.iter().map(|end| rustix::io::fcntl_setfd(end, rustix::io::FdFlags::empty()).map(|()| end));
    let numbers: Vec<_> = numbers.map(|end| std::os::fd::AsRawFd::as_raw_fd(end.unwrap())).collect();
    let (axvm, mut talk) = place.shell(&format!("--net fd={} --net fd={}", numbers[0], numbers[1]));
    drop(ends);
    assert!(talk.ask("net 0").ends_with("link 1 mtu 0 net"));
    exchange(&mut talk, 1, |frame| write_frame(&stream, frame), || read_frame(&stream));
    assert!(talk.ask("net 1").ends_with("link 1 mtu 0 net"));
    let receive = || {
        let mut bytes = vec![0; 2000];
        let len = datagram.recv(&mut bytes).unwrap();
        bytes[..len].to_vec()
    };
    exchange(&mut talk, 2, |frame| assert_eq!(datagram.send(frame).unwrap(), frame.len()), receive);
    talk.say("off\n");
    axvm.ends_with(0);
}

#[test]
fn two_machines_exchange_datagrams() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    // Two ports that were free a moment ago.
    let ports = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    let [a, b] = ports.map(|socket| socket.local_addr().unwrap());
    let (one, mut talk) = place.shell(&format!("--net dgram={a}:{b}"));
    let words = "run --kernel guest.elf --memory 32M --cpus 1 --append shell --name other";
    let (two, mut other) = place.talking(place.axvm(&format!("{words} --net dgram={b}:{a}")));
    let addresses = [&mut talk, &mut other].map(|talk| talk.ask("net 0"));
    assert!(addresses[0] != addresses[1], "{addresses:?}");
    send(&mut talk, &frame(7));
    assert!(take(&mut other) == Some(frame(7)));
    send(&mut other, &frame(8));
    assert!(take(&mut talk) == Some(frame(8)));
    assert_eq!(take(&mut talk), None);
    drop((one, two));
}

#[test]
fn a_datagram_socket_is_private_and_goes_with_the_machine() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let remote = UnixDatagram::bind(place.path("remote")).unwrap();
    // What a process left that was killed is in no one's way.
    drop(UnixDatagram::bind(place.path("local")).unwrap());
    let (axvm, mut talk) = place.shell("--net dgram=local:remote");
    assert_eq!(fs::metadata(place.path("local")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(talk.ask("net 0").contains("link 1"));
    let receive = || {
        let mut bytes = vec![0; 2000];
        let len = remote.recv(&mut bytes).unwrap();
        bytes[..len].to_vec()
    };
    exchange(
        &mut talk,
        3,
        |frame| assert_eq!(remote.send_to(frame, place.path("local")).unwrap(), frame.len()),
        receive,
    );
    talk.say("off\n");
    axvm.ends_with(0);
    assert!(!place.path("local").exists());
}

#[test]
fn cards_are_told_and_their_cables_pulled_and_plugged_in() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let listener = UnixListener::bind(place.path("cable")).unwrap();
    let (axvm, mut talk) =
        place.shell("--net stream=cable,mac=02:00:00:00:00:01,tx=1G/s --net dgram=127.0.0.1:9:127.0.0.1:9");
    let (peer, _) = listener.accept().unwrap();
    talk.ask("net 0");
    exchange(&mut talk, 5, |frame| write_frame(&peer, frame), || read_frame(&peer));
    let table = || place.run("ctl ./api net").1;
    let said = table();
    let rows: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..4], ["NAME", "ADDRESS", "LINK", "CABLE"]);
    assert_eq!(rows[1].join(" "), "net0 02:00:00:00:00:01 up stream=cable tx=1G/s 1 frames, 60 B 1 frames, 60 B");
    assert_eq!((rows[2][0], rows[2][3]), ("net1", "dgram=127.0.0.1:9:127.0.0.1:9"));
    let status = place.run("ctl ./api status").1;
    assert!(status.contains("net0     stream=cable; 02:00:00:00:00:01, link up\n"), "{status}");

    // What the user does to a cable the guest sees, also while it is paused, and over a reset.
    talk.say("link\n");
    talk.hear("link up\n");
    assert_eq!(place.run("ctl ./api net net0 down"), (0, String::new(), String::new()));
    assert_eq!(talk.answer(), "link 0 link");
    assert!(place.run("ctl ./api net net0").1.lines().nth(1).unwrap().contains(" down "));
    send(&mut talk, &frame(9));
    assert!(table().contains("1 frames, 60 B, 1 dropped"), "{}", table());
    talk.say("reset\n");
    talk.hear("ready\n> ");
    assert!(talk.ask("net 0").contains("link 0"));
    talk.say("link\n");
    talk.hear("link down\n");
    assert_eq!(place.run("ctl ./api pause").0, 0);
    assert_eq!(place.run("ctl ./api net net0 up").0, 0);
    assert_eq!(place.run("ctl ./api resume").0, 0);
    assert_eq!(talk.answer(), "link 1 link");
    exchange(&mut talk, 6, |frame| write_frame(&peer, frame), || read_frame(&peer));

    // One frame for the guest, then no other before the limit is gone.
    assert_eq!(place.run("ctl ./api net net0 --rx 1ops/10000s --tx 1M/s").0, 0);
    assert!(table().contains("stream=cable rx=1ops/10000s tx=1M/s "), "{}", table());
    exchange(&mut talk, 7, |frame| write_frame(&peer, frame), || read_frame(&peer));
    assert_eq!(place.run("ctl ./api net net0 --rx none --tx none").0, 0);
    exchange(&mut talk, 8, |frame| write_frame(&peer, frame), || read_frame(&peer));
    assert!(!table().contains("x="), "{}", table());

    for (words, complaint) in [
        ("net net7", "There is no network card net7 in this machine"),
        ("net net7 up", "There is no network card net7; this machine has net0, net1"),
        ("net net0 --rx 5", "\"5\" is no rate"),
        ("net net0 off", "LINK off: not one of up, down"),
    ] {
        let (code, _, errors) = place.run(&format!("ctl ./api {words}"));
        assert!(code != 0 && errors.contains(complaint) && errors.lines().count() == 1, "{words}: {errors}");
    }
    drop(peer);
    until("the end is noticed", || place.run("ctl ./api net net0").1.contains(" ended "));
    let (code, _, errors) = place.run("ctl ./api net net0 up");
    assert!(code == 1 && errors.contains("The cable of net0 has come to its end"), "{errors}");
    let config: serde_json::Value = axvm.control().get("/vm/config").unwrap();
    assert_eq!(config["network-interfaces"][0]["host_dev_name"], "stream=cable");
    talk.say("off\n");
    axvm.ends_with(0);
}
