//! The host's end of the guest's network: a tap in a network namespace of its own, and what answers there.
//!
//! ```text
//!   guest 192.0.2.2 == VMM == tap0 192.0.2.1 -- kernel --> 02:..:09: drops it   echo: port 7, sent back
//!                                               <-------- flood: 1472 bytes to 192.0.2.2:9, as fast as they are taken
//! ```
//!
//! The namespace is the thread's that runs the experiment, and of the VMM that this thread starts; nothing else is in it,
//! and nothing of it stays. A sender waits for room: what the tap has not given to the VMM yet counts as the socket's.
//! Needs root and ip(8). Spec: network_namespaces(7), RFC 862.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::UnshareFlags;

use crate::tool::{find, output};

/// The tap, and the guest's address at it.
pub const TAP: &str = "tap0";
/// As the guest knows it, too.
pub const MAC: &str = "02:00:00:00:00:02";
const PATIENCE: Duration = Duration::from_millis(50);

/// Whether there can be a namespace with a tap.
pub fn works() -> bool {
    rustix::process::geteuid().is_root() && find("ip").is_some() && Path::new("/dev/net/tun").exists()
}

/// The tap is there as long as this is.
pub struct Net(());

/// Runs `body` in a thread that has the tap.
pub fn in_namespace<T: Send>(body: impl FnOnce(&Net) -> Result<T> + Send) -> Result<T> {
    let run = || {
        #[allow(deprecated, reason = "unsharing the network is safe")]
        rustix::thread::unshare(UnshareFlags::NEWNET).context("Cannot make a network namespace")?;
        // The kernel's own packets would wake the guest.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").ok();
        for line in [
            "link set lo up".to_owned(),
            format!("tuntap add dev {TAP} mode tap vnet_hdr"),
            format!("link set {TAP} address 02:00:00:00:00:01 mtu 1500 up"),
            format!("address add 192.0.2.1/24 dev {TAP}"),
            format!("neighbor add 192.0.2.2 lladdr {MAC} dev {TAP}"),
        ] {
            output(Command::new("ip").args(line.split(' ')))?;
        }
        body(&Net(()))
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// A thread that ends when this is dropped.
pub struct Peer {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Net {
    /// Sends each packet back.
    pub fn echo(&self) -> Result<Peer> {
        peer("192.0.2.1:7", |socket| {
            let mut bytes = [0; 2048];
            if let Ok((len, from)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(&bytes[..len], from);
            }
        })
    }

    /// Sends packets that fill frames.
    pub fn flood(&self) -> Result<Peer> {
        peer("192.0.2.1:9", |socket| {
            if socket.send_to(&[0; 1472], "192.0.2.2:9").is_err() {
                // There is no VMM yet, or none any more.
                thread::sleep(Duration::from_millis(1));
            }
        })
    }
}

fn peer(address: &str, each: impl Fn(&UdpSocket) + Send + 'static) -> Result<Peer> {
    let socket = UdpSocket::bind(address).with_context(|| format!("Cannot bind {address}"))?;
    socket.set_read_timeout(Some(PATIENCE)).context("Cannot limit a wait")?;
    socket.set_write_timeout(Some(PATIENCE)).context("Cannot limit a wait")?;
    let ends = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&ends);
    let thread = thread::spawn(move || {
        while !seen.load(Ordering::Relaxed) {
            each(&socket);
        }
    });
    Ok(Peer { ends, thread: Some(thread) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_comes_back_and_the_tap_is_this_namespaces() {
        if !works() {
            return eprintln!("left out: needs root, ip(8) and /dev/net/tun");
        }
        in_namespace(|net| {
            let _echo = net.echo()?;
            let socket = UdpSocket::bind("192.0.2.1:0")?;
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            socket.send_to(b"there", "192.0.2.1:7")?;
            let mut bytes = [0; 9];
            let (len, _) = socket.recv_from(&mut bytes)?;
            assert_eq!(&bytes[..len], b"there");
            Ok(())
        })
        .unwrap();
        assert!(UdpSocket::bind("192.0.2.1:0").is_err());
    }
}
