//! Network cards in the hand of a test: frames by way of the guest's interpreter, and namespaces for what is real.
//!
//! ```text
//!   test --"send 60", bytes--> guest --> net0 ...        in_namespace: a thread with a network of its own:
//!        <--"frame 0011.."---- guest <-- net0            lo, and eth0 192.0.2.2/24 with a default route
//! ```
//!
//! IPv4 and UDP as far as a test needs them. Spec: RFC 768, 791, 2131.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;

use rustix::thread::UnshareFlags;

use super::{Talk, skip};

/// Has the guest send a frame.
#[track_caller]
pub fn send(talk: &mut Talk, frame: &[u8]) {
    talk.say(format!("send {}\n", frame.len()));
    talk.hear("\n");
    talk.say(frame);
    assert_eq!(talk.answer(), format!("sent {} send", frame.len()));
}

/// The next frame that comes to the guest; none within two seconds.
#[track_caller]
pub fn take(talk: &mut Talk) -> Option<Vec<u8>> {
    talk.say("take 2000\n");
    let said = talk.hear("done\n> ");
    let digits = said.lines().find_map(|line| line.strip_prefix("frame "))?;
    Some((0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect())
}

/// The next frame that `wanted` finds something in; others are passed over.
#[track_caller]
pub fn take_until<T>(talk: &mut Talk, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
    for _ in 0..20 {
        if let Some(found) = take(talk).and_then(|frame| wanted(&frame)) {
            return found;
        }
    }
    panic!("the frame did not come");
}

/// Starts card `number` of the guest; its address, and what else it says.
#[track_caller]
pub fn start(talk: &mut Talk, number: usize) -> ([u8; 6], String) {
    let said = talk.ask(&format!("net {number}"));
    let digits = said.strip_prefix("mac ").unwrap_or_else(|| panic!("no card {number}: {said}"));
    let byte = |n: usize| u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).unwrap();
    (std::array::from_fn(byte), digits[12..].trim().to_owned())
}

/// Runs `body` where it has a network and mounts of its own; says so where it cannot. Programs that it starts are there,
/// too.
pub fn in_namespace(body: impl FnOnce() + Send) {
    let run = || {
        #[allow(deprecated, reason = "unsharing these is safe")]
        let unshared = rustix::thread::unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS);
        if let Err(error) = unshared {
            return skip(&format!("only root makes network namespaces: {error}"));
        }
        if Command::new("ip").arg("-V").output().is_err() {
            return skip("no ip(8) here");
        }
        for words in ["--make-rprivate /", "-t sysfs none /sys"] {
            assert!(Command::new("mount").args(words.split(' ')).status().unwrap().success(), "mount {words}");
        }
        for line in [
            "link set lo up",
            "link add eth0 type veth peer name router",
            "link set router up",
            "link set eth0 up",
            "address add 192.0.2.2/24 dev eth0",
            "route add default via 192.0.2.1",
            "address add 198.51.100.7/32 dev lo",
        ] {
            ip(line);
        }
        body();
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
}

#[track_caller]
pub fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A UDP datagram, in a frame.
pub fn udp(macs: [[u8; 6]; 2], [from, to]: [SocketAddrV4; 2], data: &[u8]) -> Vec<u8> {
    let total = (28 + data.len()) as u16;
    let mut head = [&[0x45, 0][..], &total.to_be_bytes(), &[0; 4], &[64, 17, 0, 0]].concat();
    head.extend([from.ip().octets(), to.ip().octets()].concat());
    let sum = head.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let [source, destination] = macs;
    let length = (8 + data.len() as u16).to_be_bytes();
    [&destination[..], &source, &[8, 0], &head, &ports, &length, &[0, 0], data].concat()
}

/// What a frame with a UDP datagram says: from, to, data.
pub fn read_udp(frame: &[u8]) -> Option<([SocketAddrV4; 2], Vec<u8>)> {
    let packet = frame.get(14..).filter(|packet| frame[12..14] == [8, 0] && packet[0] == 0x45 && packet[9] == 17)?;
    let address = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    let number = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let ends = [SocketAddrV4::new(address(12), number(20)), SocketAddrV4::new(address(16), number(22))];
    Some((ends, packet.get(28..20 + usize::from(number(24)))?.to_vec()))
}
