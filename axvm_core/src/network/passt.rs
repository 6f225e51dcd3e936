//! passt: the host's network for a guest, without any right on the host.
//!
//! ```text
//!   guest --frames--> AxVM --socketpair--> passt --sockets of this user--> the host's network
//!                       |                    '-- answers ARP, DHCP, DNS, NDP itself
//!                       '<---- stderr, end ----'      thread "passt"
//! ```
//!
//! It is a process of its own, started before the sandbox closes, with a socket that is connected already: as root it
//! becomes another user, who could make none. It is ready when it answers ARP, which it does for any address; what it
//! says before it ends is why it cannot. It ends when its socket does, however AxVM ends.
//!
//! Source: passt(1), of Debian 12 and later: `-F` means one connection, and no path.
//! Left out: pasta; vhost-user; an end of passt that is followed by another.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axvm_events::{Event, Events};
use axvm_sandbox::Role;
use axvm_virtio::net::{Link, LinkKind, NetHandle, Offloads};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::NetworkError;
use super::resolver::{self, Resolvers};
use crate::settings::{Forward, Mac, NetSetting, Transport};

/// The program.
const PROGRAM: &str = "passt";
/// What the guest is told: the longest packet in a frame that passt takes.
pub const MTU: u16 = 65520;
/// How long a passt may be silent that neither ends nor answers ARP: of a host with IPv6 only it never does.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long its end is waited for.
const LAST_TURN: Duration = Duration::from_secs(1);

/// A passt that answers.
pub struct Passt {
    card: String,
    child: Child,
    words: Words,
    /// The guest has no name server.
    is_nameless: bool,
    /// Our end once more, to hang up.
    socket: UnixStream,
}

impl Passt {
    /// Starts one for the card called `card`, and waits until it answers.
    pub fn start(card: &str, setting: &NetSetting, mac: Mac) -> Result<(Link, Passt), NetworkError> {
        let error = |source: io::Error| NetworkError::Link { card: card.into(), source };
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.map_err(|errno| error(errno.into()))?;
        // The only descriptor of ours that it inherits. No other thread starts a program meanwhile: there is none yet.
        fcntl_setfd(&theirs, FdFlags::empty()).map_err(|errno| error(errno.into()))?;
        let mut command = Command::new(PROGRAM);
        let resolvers = if setting.host { Resolvers::Found } else { resolver::look() };
        command
            .args(arguments(setting, &theirs, &resolvers))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // Ctrl-C at a terminal is meant for AxVM, whose guest may need the network to end.
        let mut child = command.process_group(0).spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => NetworkError::NoPasst { card: card.into() },
            _ => NetworkError::PasstStart { card: card.into(), source },
        })?;
        drop(theirs);
        let ours = UnixStream::from(ours);
        let pipe = child.stderr.take().ok_or_else(|| error(io::ErrorKind::BrokenPipe.into()))?;
        let mut words = Words::of(pipe);
        if !is_answering(&ours, &mut words, mac).map_err(error)? {
            while words.read(|_| {}) {}
            let status = child.wait().map_err(error)?;
            return Err(NetworkError::Passt { card: card.into(), said: words.told(status), remedy: words.remedy() });
        }
        let socket = ours.try_clone().map_err(error)?;
        // It looks at no checksum of TCP and UDP, and gives good ones.
        let offloads = Offloads { checksum: true, ..Offloads::NONE };
        let link = Link::new(LinkKind::Stream, ours.into()).map_err(error)?.offering(offloads);
        let is_nameless = resolvers == Resolvers::Unreachable;
        Ok((link, Passt { card: card.into(), child, words, is_nameless, socket }))
    }

    /// Listens to it from now on, in a thread.
    pub fn watch(self, handle: NetHandle, events: &Events) -> io::Result<Watched> {
        let Passt { card, mut child, mut words, is_nameless, socket } = self;
        if is_nameless {
            let message = format!("{card}: {NAMELESS}");
            events.warn(|| Event::Warning { from: "passt", message });
        }
        let (events, closing) = (events.clone(), Arc::<AtomicBool>::default());
        let asked = Arc::clone(&closing);
        let watcher = axvm_sandbox::spawn(Role::Console, "passt", move || {
            let tell = |line: &str| {
                events.emit(|| Event::Warning { from: "passt", message: format!("{card}: {line}") });
            };
            while words.read(tell) {}
            let status = child.wait();
            if asked.load(Ordering::Acquire) {
                return;
            }
            let said = status.map_or_else(|error| error.to_string(), |status| words.told(status));
            let message = || Event::Warning {
                from: "passt",
                message: format!(
                    "{card}: passt has ended: {said}. The guest sees its link down and goes on; start the machine again \
                     for a new one"
                ),
            };
            // The card's worker may have seen its end first, and told it.
            if handle.end() { events.warn(message) } else { events.emit(message) }
        })?;
        Ok(Watched { watcher: Some(watcher), closing, socket })
    }
}

/// A passt that is listened to. Dropped, it is ended.
pub struct Watched {
    watcher: Option<JoinHandle<()>>,
    closing: Arc<AtomicBool>,
    socket: UnixStream,
}

impl Drop for Watched {
    /// Its ports are free when this comes back, so that the next machine can have them.
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Release);
        _ = self.socket.shutdown(std::net::Shutdown::Both);
        let deadline = Instant::now() + LAST_TURN;
        while self.watcher.as_ref().is_some_and(|watcher| !watcher.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(watcher) = self.watcher.take_if(|watcher| watcher.is_finished()) {
            _ = watcher.join();
        }
    }
}

/// What a guest without a name server can do.
const NAMELESS: &str = "the guest gets no name server: this host's is on its own loopback (/etc/resolv.conf). In the guest \
                        nameserver 169.254.1.1 asks it; with host=on the guest is told of it, and reaches the host's \
                        other services, too";
/// Where it can be asked, by a guest that is told so by its user.
const DNS: &str = "169.254.1.1";

fn arguments(setting: &NetSetting, socket: &OwnedFd, resolvers: &Resolvers) -> Vec<String> {
    let mut words: Vec<String> = ["--foreground", "--quiet", "--stderr", "--fd"].map(String::from).into();
    words.push(socket.as_raw_fd().to_string());
    if !setting.host {
        words.push("--no-map-gw".into());
    }
    if let Some(mtu) = setting.mtu {
        words.extend(["--mtu".into(), mtu.to_string()]);
    }
    match resolvers {
        Resolvers::Found => {}
        Resolvers::Servers(servers) => {
            words.extend(servers.iter().flat_map(|server| ["--dns".into(), server.to_string()]));
        }
        Resolvers::Unreachable => words.extend(["--dns-forward", DNS].map(String::from)),
    }
    words.extend(setting.forward.iter().flat_map(forward));
    words
}

/// `-t 127.0.0.1/2222:22`.
fn forward(Forward { transport, host, guest }: &Forward) -> [String; 2] {
    let option = match transport {
        Transport::Tcp => "--tcp-ports",
        Transport::Udp => "--udp-ports",
    };
    [option.into(), format!("{}/{}:{guest}", host.ip(), host.port())]
}

/// Asks who has an address until an answer comes. False if there will be none, because it has ended.
fn is_answering(socket: &UnixStream, words: &mut Words, mac: Mac) -> io::Result<bool> {
    // A frame that has begun comes whole, or its sender is gone.
    socket.set_read_timeout(Some(PATIENCE))?;
    if (&mut &*socket).write_all(&question(mac)).is_err() {
        return Ok(false);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(true);
        }
        let limit = Timespec::try_from(left).ok();
        let mut ends = [PollFd::new(socket, PollFlags::IN), PollFd::new(&words.pipe, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut ends, limit.as_ref()))?;
        let [has_frame, has_words] = ends.map(|end| !end.revents().is_empty());
        if has_words && !words.read(|_| {}) {
            return Ok(false);
        }
        if has_frame {
            match read_frame(socket) {
                Ok(frame) if frame.get(TYPE) == Some(&ARP) => return Ok(true),
                Ok(_) => {}
                Err(_) => return Ok(false),
            }
        }
    }
}

/// Where a frame says its type, and that of ARP (RFC 826).
const TYPE: std::ops::Range<usize> = 12..14;
const ARP: [u8; 2] = [0x08, 0x06];

/// An ARP request of the guest to be, with its length before it: who has 169.254.1.2, tell 169.254.1.1.
fn question(Mac(mac): Mac) -> Vec<u8> {
    let kinds = [0, 1, 8, 0, 6, 4, 0, 1];
    let frame = [&[0xff; 6][..], &mac, &ARP, &kinds, &mac, &[169, 254, 1, 1], &[0; 6], &[169, 254, 1, 2]].concat();
    [&(frame.len() as u32).to_be_bytes(), &*frame].concat()
}

fn read_frame(mut socket: &UnixStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    socket.read_exact(&mut len)?;
    let mut frame = vec![0; u32::from_be_bytes(len).min(MTU.into()) as usize];
    socket.read_exact(&mut frame)?;
    Ok(frame)
}

/// What it says, line by line.
struct Words {
    pipe: ChildStderr,
    /// A line that has no end yet.
    begun: Vec<u8>,
    last: String,
}

impl Words {
    fn of(pipe: ChildStderr) -> Words {
        Words { pipe, begun: Vec::new(), last: String::new() }
    }

    /// Reads once, and tells each line that ends; false at the end.
    fn read(&mut self, mut tell: impl FnMut(&str)) -> bool {
        let mut bytes = [0; 1024];
        let count = match self.pipe.read(&mut bytes) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(_) => 0,
        };
        for byte in &bytes[..count] {
            match byte {
                b'\n' => self.end_line(&mut tell),
                _ if self.begun.len() < LINE_LEN => self.begun.push(*byte),
                _ => {}
            }
        }
        count > 0
    }

    fn end_line(&mut self, tell: &mut impl FnMut(&str)) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.begun)).trim().to_owned();
        if line.is_empty() || NOISE.iter().any(|noise| line.starts_with(noise)) {
            return;
        }
        tell(&line);
        self.last = line;
    }

    /// How it ended, and what it said last.
    fn told(&self, status: ExitStatus) -> String {
        if self.last.is_empty() { status.to_string() } else { format!("{} ({status})", self.last) }
    }

    /// What to do about it.
    fn remedy(&self) -> &'static str {
        let known = REMEDIES.iter().find(|(words, _)| self.last.contains(words));
        known.map_or("passt --foreground --stderr says the same by itself, passt(1) tells more", |(_, remedy)| remedy)
    }
}

/// The longest line that is told whole.
const LINE_LEN: usize = 500;
/// Lines about nothing that matters here.
const NOISE: [&str; 3] = ["Failed to send ", "Don't run as root", "Started as root"];
/// What it says, and what to do.
const REMEDIES: [(&str, &str); 3] = [
    (
        "Failed to bind",
        "another process has that port of the host, or it is below 1024 and only root may have it: choose another with \
         forward=",
    ),
    ("External interface not usable", "give this host a default route (ip route), or the card another cable"),
    ("Overlapping", "name each port of the host once"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    /// What a shell says that prints these lines.
    fn words(lines: &str) -> Words {
        let printed = Command::new("sh").args(["-c", "printf %b \"$0\" >&2", lines]).stderr(Stdio::piped()).spawn();
        let mut child = printed.unwrap();
        let mut words = Words::of(child.stderr.take().unwrap());
        while words.read(|_| {}) {}
        child.wait().unwrap();
        words
    }

    #[test]
    fn its_last_line_says_why_it_ended_and_lead_to_what_helps() {
        let ended = ExitStatus::from_raw(1 << 8);
        let taken = words("Failed to send 9 bytes to syslog\\n\\nFailed to bind any port for '-t 1:1', exiting\\n");
        assert_eq!(taken.told(ended), "Failed to bind any port for '-t 1:1', exiting (exit status: 1)");
        assert!(taken.remedy().contains("choose another with forward="));
        let route = words("a\\nNo external routable interface for IPv4\\nb\\nExternal interface not usable\\n");
        assert_eq!(route.told(ended), "External interface not usable (exit status: 1)");
        assert!(route.remedy().contains("default route"));
        assert_eq!(words("").told(ExitStatus::from_raw(9)), "signal: 9 (SIGKILL)");
        assert_eq!(words(&"x".repeat(2000)).told(ended), "exit status: 1", "a line without an end is none");
    }

    #[test]
    fn words_and_ports_become_arguments() {
        let socket = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let asking = |text: &str, of: &Resolvers| arguments(&text.parse().unwrap(), &socket, of)[5..].join(" ");
        let said = |text: &str| asking(text, &Resolvers::Found);
        assert_eq!(said("user"), "--no-map-gw");
        assert_eq!(said("user,host=on,mtu=1500"), "--mtu 1500");
        let servers = Resolvers::Servers(vec!["192.0.2.53".parse().unwrap()]);
        assert_eq!(asking("user", &servers), "--no-map-gw --dns 192.0.2.53");
        assert_eq!(asking("user", &Resolvers::Unreachable), "--no-map-gw --dns-forward 169.254.1.1");
        assert_eq!(
            said("user,forward=2222:22,forward=udp:[::]:53:5353"),
            "--no-map-gw --tcp-ports 127.0.0.1/2222:22 --udp-ports ::/53:5353"
        );
    }

    #[test]
    fn the_question_is_an_arp_request_that_passt_takes_whole() {
        let bytes = question(Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!(bytes.len(), 4 + 42);
        assert_eq!(bytes[..4], [0, 0, 0, 42]);
        assert_eq!((&bytes[4 + 12..4 + 14], bytes[4 + 21]), (&ARP[..], 1));
    }
}
