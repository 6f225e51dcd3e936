//! `--net`: a network card, and what is at the other end of its cable.
//!
//! ```text
//!   --net user,forward=2222:22,mtu=1500      [[net]]   user = true   forward = ["2222:22"]   mtu = 1500
//!   --net stream=vm.sock,mac=02:00:00:00:00:01  [[net]]   stream = "vm.sock"   mac = "02:00:00:00:00:01"
//! ```
//!
//! A word alone is a switch; a part that may be said several times is a list in the file. Commas in a path are written
//! twice, as in the name of a disk.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use axvm_virtio::block;
use axvm_virtio::limiter::{RateError, RateLimit};
use axvm_virtio::net::MAX_PAIRS;
use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::setting::Value;
use super::text::is_text;

/// One network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case", expecting = "a table: [[net]] with user = true")]
pub struct NetSetting {
    /// The host's network by passt, without any right: DHCP, DNS, connections to outside.
    #[serde(skip_serializing_if = "ops::Not::not")]
    pub user: bool,
    /// A tap device of the host, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// A descriptor that AxVM is started with: a stream or datagram socket, or an open tap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<u32>,
    /// A stream socket to connect to: frames with their length before them, as QEMU and passt have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<PathBuf>,
    /// Datagrams, a frame each, between two places: LOCAL:REMOTE, paths of sockets or ADDRESS:PORT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dgram: Option<Datagrams>,
    /// With user: ports of the host that lead to the guest, `[tcp:|udp:][ADDRESS:]HOST:GUEST` (default: tcp, 127.0.0.1)
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forward: Vec<Forward>,
    /// With user: the gateway's address reaches the host's own services.
    #[serde(skip_serializing_if = "ops::Not::not")]
    pub host: bool,
    /// The card's address [default: from the machine's name and the card's number]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Largest packet, as the guest is told, from 68 to 65535 [default: 65520 with user, else the guest's own]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 68, max = 65535))]
    pub mtu: Option<u16>,
    /// With tap: queue pairs, a thread each, from 1 to 64 [default: 1]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub queues: Option<u16>,
    /// With tap: false has each side compute its checksums and cut its packets itself [default: true]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload: Option<bool>,
    /// What may come to the guest in a time: 10M/s, 1000ops/s (frames), or both [default: none]
    #[serde(skip_serializing_if = "RateLimit::is_none")]
    pub rx: RateLimit,
    /// What the guest may send in a time, likewise [default: none]
    #[serde(skip_serializing_if = "RateLimit::is_none")]
    pub tx: RateLimit,
}

/// What is at the other end of the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetEnd<'a> {
    /// passt.
    User,
    /// A tap device.
    Tap(&'a str),
    /// A descriptor that was inherited.
    Fd(u32),
    /// A stream socket.
    Stream(&'a Path),
    /// Datagrams.
    Datagrams(&'a Datagrams),
}

/// As on the command line.
impl fmt::Display for NetEnd<'_> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetEnd::User => to.write_str("user"),
            NetEnd::Tap(name) => write!(to, "tap={name}"),
            NetEnd::Fd(number) => write!(to, "fd={number}"),
            NetEnd::Stream(path) => write!(to, "stream={}", path.display()),
            NetEnd::Datagrams(places) => write!(to, "dgram={places}"),
        }
    }
}

/// Smallest MTU that there is (RFC 791).
const LEAST_MTU: u16 = 68;
/// Longest name of a network device, of 16 bytes with the zero at its end.
const TAP_NAME_LEN: usize = 15;

const ENDS: &str = "user, tap=NAME, fd=N, stream=PATH, dgram=LOCAL:REMOTE";
const PARTS: &str = "forward=HOST:GUEST, host=on|off, mac=ADDRESS, mtu=N, queues=N, offload=on|off, rx=RATE, tx=RATE";

impl NetSetting {
    /// What is at the other end. (A card that was not checked has passt.)
    pub fn end(&self) -> NetEnd<'_> {
        self.one_end().unwrap_or(NetEnd::User)
    }

    /// Queue pairs.
    pub fn queues(&self) -> u16 {
        self.queues.unwrap_or(1)
    }

    /// Whether each side may leave checksums and cutting to the other.
    pub fn offload(&self) -> bool {
        self.offload.unwrap_or(true)
    }

    /// What is at the other end: one thing.
    fn one_end(&self) -> Result<NetEnd<'_>, String> {
        let mut ends = [
            self.user.then_some(NetEnd::User),
            self.tap.as_deref().map(NetEnd::Tap),
            self.fd.map(NetEnd::Fd),
            self.stream.as_deref().map(NetEnd::Stream),
            self.dgram.as_ref().map(NetEnd::Datagrams),
        ]
        .into_iter()
        .flatten();
        match (ends.next(), ends.next()) {
            (Some(end), None) => Ok(end),
            (None, _) => Err(format!("what the card is connected to is missing; there are {ENDS}")),
            (Some(_), Some(_)) => Err(format!("a card has one cable; give one of {ENDS}")),
        }
    }

    /// Whether all of it goes together.
    fn check(&self) -> Result<(), String> {
        let end = self.one_end()?;
        if end != NetEnd::User && (self.host || !self.forward.is_empty()) {
            return Err("forward= and host= are for --net user; another network has its own ways to the host".into());
        }
        if let Some(twice) = self.forward.iter().enumerate().find_map(|(n, one)| one.is_among(&self.forward[..n])) {
            return Err(format!("forward= has the host's port {twice} twice; say it once"));
        }
        if !matches!(end, NetEnd::Tap(_)) && self.queues.is_some() {
            return Err("queues= is for --net tap=NAME; other cables have one".into());
        }
        if !matches!(end, NetEnd::Tap(_) | NetEnd::Fd(_)) && self.offload.is_some() {
            return Err("offload= is for a tap; other cables carry whole frames".into());
        }
        if self.queues.is_some_and(|queues| !(1..=MAX_PAIRS as u16).contains(&queues)) {
            return Err(QUEUES.into());
        }
        if let NetEnd::Tap(name) = end {
            check_tap_name(name)?;
        }
        if let NetEnd::Fd(number @ 0..=2) = end {
            return Err(format!("descriptor {number} is standard input, output or errors; pass another, from 3 on"));
        }
        if self.mtu.is_some_and(|mtu| mtu < LEAST_MTU) {
            return Err(MTU.into());
        }
        Ok(())
    }
}

const QUEUES: &str = "queues= needs a number from 1 to 64, not more than there are vCPUs to be of use";
const MTU: &str = "mtu= needs a number of bytes from 68 to 65535, such as 1500";

/// Whether a network device can have this name.
pub fn check_tap_name(name: &str) -> Result<(), String> {
    let is_good = |letter: char| letter.is_ascii_graphic() && !matches!(letter, '/' | '%' | ':');
    match name.len() {
        1..=TAP_NAME_LEN if name.chars().all(is_good) && name != "." && name != ".." => Ok(()),
        _ => Err(format!("'{name}' cannot be the name of a network device; it has 1 to {TAP_NAME_LEN} letters: tap0")),
    }
}

impl Value for NetSetting {
    fn move_to(&mut self, directory: &Path) {
        self.stream.iter_mut().for_each(|path| path.move_to(directory));
        if let Some(Datagrams::Unix { local, remote }) = &mut self.dgram {
            local.move_to(directory);
            remote.move_to(directory);
        }
    }
}

impl FromStr for NetSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<NetSetting, String> {
        let mut net = NetSetting::default();
        for part in block::parts(text.as_bytes()) {
            let part = String::from_utf8_lossy(&part).into_owned();
            let (key, value) = part.split_once('=').map_or((&*part, None), |(key, value)| (key, Some(value)));
            match (key, value) {
                ("user", None) => net.user = true,
                ("forward", Some(value)) => net.forward.push(value.parse()?),
                ("host", Some("on" | "off")) => net.host = value == Some("on"),
                ("host", _) => return Err("host= is on or off".into()),
                ("tap", Some(value)) => once(&mut net.tap, key, value.to_owned())?,
                ("stream", Some("")) => return Err("stream= needs the path of a socket".into()),
                ("stream", Some(value)) => once(&mut net.stream, key, value.into())?,
                ("dgram", Some(value)) => once(&mut net.dgram, key, value.parse()?)?,
                ("mac", Some(value)) => once(&mut net.mac, key, value.parse()?)?,
                ("fd", Some(value)) => once(&mut net.fd, key, value.parse().map_err(|_| FD)?)?,
                ("queues", Some(value)) => once(&mut net.queues, key, value.parse().map_err(|_| QUEUES)?)?,
                ("offload", Some("on" | "off")) => once(&mut net.offload, key, value == Some("on"))?,
                ("offload", _) => return Err("offload= is on or off".into()),
                ("rx", Some(value)) => net.rx = rate(value)?,
                ("tx", Some(value)) => net.tx = rate(value)?,
                ("mtu", Some(value)) => once(&mut net.mtu, key, value.parse().map_err(|_| MTU)?)?,
                _ => return Err(format!("'{part}' is unknown; there are {ENDS}, then {PARTS}")),
            }
        }
        net.check()?;
        Ok(net)
    }
}

const FD: &str = "fd= needs the number of a descriptor, such as 3";

fn rate(text: &str) -> Result<RateLimit, String> {
    text.parse().map_err(|error: RateError| error.to_string())
}

fn once<T>(slot: &mut Option<T>, key: &str, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{key}= is given twice; say it once")),
    }
}

/// Reads every `[[net]]`, and refuses what does not go together.
pub fn possible_nets<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<NetSetting>, D::Error> {
    let nets = Vec::<NetSetting>::deserialize(from)?;
    let check = |net: &NetSetting| net.check().map_err(|why| D::Error::custom(format_args!("[[net]]: {why}")));
    nets.iter().try_for_each(check)?;
    Ok(nets)
}

/// The address of a network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The same each time for card `number` of the machine `name`: locally administered, for one receiver.
    pub fn of(name: &str, number: usize) -> Mac {
        // FNV-1a: short, and the same in all versions.
        let hash =
            name.bytes().chain([0]).chain(number.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        let [_, _, _, bytes @ ..] = hash.to_be_bytes();
        let [a, b, c, d, e] = bytes;
        Mac([0x02, a, b, c, d, e])
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        let read = |part: &str| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2 && !part.starts_with('+'));
        let complete = mac.iter_mut().all(|byte| match parts.next().and_then(read) {
            Some(value) => {
                *byte = value;
                true
            }
            None => false,
        });
        if !complete || parts.next().is_some() {
            return Err(format!("'{text}' is no address of a card; write such as 02:00:00:00:00:01"));
        }
        match (mac[0] & 1, mac) {
            (1, _) => Err(format!("{text} is an address of groups; the first byte of a card's is even: 02:...")),
            (_, [0, 0, 0, 0, 0, 0]) => Err("a card needs an address that is not zero: 02:00:00:00:00:01".into()),
            _ => Ok(Mac(mac)),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(to, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// Two places between which datagrams go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datagrams {
    /// Socket files.
    Unix {
        /// Ours.
        local: PathBuf,
        /// The other side's.
        remote: PathBuf,
    },
    /// UDP.
    Udp {
        /// Where we are.
        local: SocketAddr,
        /// Where the other side is.
        remote: SocketAddr,
    },
}

impl FromStr for Datagrams {
    type Err = String;

    fn from_str(text: &str) -> Result<Datagrams, String> {
        let mut halves = text.match_indices(':').map(|(at, _)| (&text[..at], &text[at + 1..]));
        let addresses = halves.find_map(|(local, remote)| Some((local.parse().ok()?, remote.parse().ok()?)));
        if let Some((local, remote)) = addresses {
            return Ok(Datagrams::Udp { local, remote });
        }
        match text.split_once(':') {
            Some((local, remote)) if !local.is_empty() && !remote.is_empty() && !remote.contains(':') => {
                Ok(Datagrams::Unix { local: local.into(), remote: remote.into() })
            }
            _ => Err(format!(
                "'{text}' are not two places; write dgram=LOCAL:REMOTE, two paths without a colon, or \
                 dgram=127.0.0.1:4001:127.0.0.1:4002"
            )),
        }
    }
}

impl fmt::Display for Datagrams {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Datagrams::Unix { local, remote } => write!(to, "{}:{}", local.display(), remote.display()),
            Datagrams::Udp { local, remote } => write!(to, "{local}:{remote}"),
        }
    }
}

/// A transport whose ports can be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to a port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Its transport.
    pub transport: Transport,
    /// Where the host listens.
    pub host: SocketAddr,
    /// Port of the guest.
    pub guest: u16,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Forward, String> {
        let (transport, rest) = match (text.strip_prefix("tcp:"), text.strip_prefix("udp:")) {
            (Some(rest), _) => (Transport::Tcp, rest),
            (_, Some(rest)) => (Transport::Udp, rest),
            (None, None) => (Transport::Tcp, text),
        };
        let wrong = || {
            format!(
                "'{text}' is no forward; write forward=HOST:GUEST, two ports, such as 2222:22, tcp:8080:80, udp:5353:53, \
                 or 0.0.0.0:8080:80 for clients from everywhere"
            )
        };
        let port = |text: &str| text.parse::<u16>().ok().filter(|&port| port != 0 && !text.starts_with('+'));
        let (host, guest) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let guest = port(guest).ok_or_else(wrong)?;
        let host = match port(host) {
            Some(host) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), host),
            None => host.parse().ok().filter(|host: &SocketAddr| host.port() != 0).ok_or_else(wrong)?,
        };
        Ok(Forward { transport, host, guest })
    }
}

impl Forward {
    /// The port of the host, if one of `others` has it too.
    fn is_among(&self, others: &[Forward]) -> Option<SocketAddr> {
        others.iter().any(|other| (other.transport, other.host) == (self.transport, self.host)).then_some(self.host)
    }
}

/// What is usual is left out, but for the transport.
impl fmt::Display for Forward {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = if self.transport == Transport::Tcp { "tcp" } else { "udp" };
        match self.host.ip() {
            IpAddr::V4(Ipv4Addr::LOCALHOST) => write!(to, "{transport}:{}:{}", self.host.port(), self.guest),
            _ => write!(to, "{transport}:{}:{}", self.host, self.guest),
        }
    }
}

is_text!(Datagrams, Forward, Mac);

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NetSetting, String> {
        text.parse()
    }

    #[test]
    fn a_card_has_one_cable_and_its_parts() {
        let user = NetSetting { user: true, ..NetSetting::default() };
        assert_eq!(read("user"), Ok(user.clone()));
        let forward = vec!["2222:22".parse().unwrap(), "udp:5353:53".parse().unwrap()];
        let mac = Some(Mac([2, 0, 0, 0, 0, 0xab]));
        assert_eq!(
            read("user,forward=2222:22,forward=udp:5353:53,host=on,mac=02:00:00:00:00:AB,mtu=1500"),
            Ok(NetSetting { forward, host: true, mac, mtu: Some(1500), ..user })
        );
        let limited = read("fd=3,rx=100Mbit/s,tx=1M/s:500ops/s").unwrap();
        assert_eq!([limited.rx, limited.tx].map(|rate| rate.to_string()), ["12500000/s", "1M/s:500ops/s"]);
        assert_eq!(read("stream=a,,b").unwrap().end(), NetEnd::Stream(Path::new("a,b")));
        assert_eq!(read("mtu=68,fd=3").unwrap().end(), NetEnd::Fd(3));
        assert_eq!(read("tap=tap0").unwrap().end(), NetEnd::Tap("tap0"));
        for (text, word) in [
            ("", "'' is unknown; there are user, tap=NAME"),
            ("mtu=1500", "what the card is connected to is missing; there are user"),
            ("user,tap=tap0", "one cable"),
            ("fd=3,fd=4", "fd= is given twice"),
            ("fd=x", "fd= needs the number"),
            ("fd=1", "descriptor 1 is standard input"),
            ("user=yes", "'user=yes' is unknown"),
            ("tap=", "'' cannot be the name"),
            ("tap=0123456789abcdef", "1 to 15 letters"),
            ("tap=a/b", "cannot be the name"),
            ("stream=", "stream= needs the path"),
            ("tap=tap0,forward=1:1", "forward= and host= are for --net user"),
            ("user,host=yes", "host= is on or off"),
            ("user,queues=2", "queues= is for --net tap=NAME"),
            ("user,offload=off", "offload= is for a tap"),
            ("tap=a,queues=0", "from 1 to 64"),
            ("tap=a,queues=65", "from 1 to 64"),
            ("tap=a,offload=no", "offload= is on or off"),
            ("user,forward=1:1,forward=tcp:127.0.0.1:1:2", "the host's port 127.0.0.1:1 twice"),
            ("user,mtu=67", "from 68 to 65535"),
            ("user,mtu=65536", "from 68 to 65535"),
            ("user,mac=1:2:3:4:5:6", "no address of a card"),
            ("user,mac=03:00:00:00:00:01", "address of groups"),
            ("user,mac=00:00:00:00:00:00", "not zero"),
            ("user,mac=02:00:00:00:00:01:02", "no address of a card"),
            ("user,rx=10", "\"10\" is no rate"),
            ("user,tx=0/s", "lets nothing pass"),
            ("user,forward=22", "two ports, such as 2222:22"),
            ("user,forward=0:22", "'0:22' is no forward"),
            ("user,forward=sctp:1:2", "no forward"),
            ("dgram=a", "two places"),
            ("dgram=:b", "two places"),
            ("dgram=a:b:c", "two places"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        for text in ["tcp:2222:22", "udp:5353:53", "tcp:0.0.0.0:80:8080", "udp:[::]:53:53"] {
            assert_eq!(text.parse::<Forward>().unwrap().to_string(), text);
        }
        assert_eq!("2222:22".parse::<Forward>(), "tcp:127.0.0.1:2222:22".parse());
        for text in ["a.sock:b.sock", "127.0.0.1:4001:127.0.0.1:4002", "[::1]:1:[::1]:2"] {
            assert_eq!(text.parse::<Datagrams>().unwrap().to_string(), text);
        }
        let is_udp = |text: &str| matches!(text.parse(), Ok(Datagrams::Udp { .. }));
        assert!(is_udp("[::1]:1:[::1]:2") && is_udp("10.0.0.1:1:10.0.0.2:2") && !is_udp("a:b"));
    }

    #[test]
    fn an_address_is_the_cards_own_and_stays() {
        let macs = [("web", 0), ("web", 1), ("db", 0)].map(|(name, number)| Mac::of(name, number));
        assert!(macs[0] != macs[1] && macs[0] != macs[2]);
        assert!(macs.iter().all(|mac| mac.0[0] == 2 && mac.to_string().parse() == Ok(*mac)));
        assert_eq!(Mac::of("web", 0).to_string(), "02:94:fb:2d:e1:e3", "an address that machines have is not changed");
    }
}
