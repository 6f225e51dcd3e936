//! Why there is no tap, and the command that makes one.
//!
//! ```text
//!   what we tried, on which interface, what the kernel said --> sudo ip tuntap add dev NAME mode tap ..
//! ```
//!
//! Source: ip-tuntap(8).

use rustix::io::Errno;
use thiserror::Error;

/// A tap cannot be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// A name that no interface has.
    #[error("{0:?} is no name of a network interface: 1 to 15 letters, without blank, slash and colon")]
    Name(String),
    /// No interface of that name.
    #[error("There is no network interface {name}. Make it: {}", make(name, *queues))]
    Absent {
        /// Its name.
        name: String,
        /// Queues that are wanted.
        queues: u16,
    },
    /// The device of all taps.
    #[error(
        "Cannot open /dev/net/tun: {source}. Load its driver (sudo modprobe tun), and give yourself access \
         (sudo setfacl -m u:$USER:rw /dev/net/tun)"
    )]
    Device {
        /// What the kernel said.
        source: Errno,
    },
    /// An interface of another kind.
    #[error("The network interface {name} is no tap (ip -d link show {name} says what it is)")]
    Other {
        /// Its name.
        name: String,
    },
    /// One queue and several do not go together.
    #[error(
        "The tap {name} was made for {}, but {queues} are wanted. Say so (queues=), or make it anew: \
         sudo ip tuntap del dev {name} mode tap{}; {}",
        if *queues > 1 { "one queue" } else { "several queues" },
        if *queues > 1 { "" } else { " multi_queue" },
        make(name, *queues)
    )]
    Queues {
        /// Its name.
        name: String,
        /// Queues that are wanted.
        queues: u16,
    },
    /// Another process has it.
    #[error("The tap {name} is in use by another process, or has no queue left (TUNSETIFF: EBUSY)")]
    Busy {
        /// Its name.
        name: String,
    },
    /// Another user's.
    #[error("The tap {name} belongs to another user. Make one of your own: {}", make(name, *queues))]
    NotOurs {
        /// Its name.
        name: String,
        /// Queues that are wanted.
        queues: u16,
    },
    /// A descriptor of something else.
    #[error("The descriptor is no open tap (TUNGETIFF: {source})")]
    NoTap {
        /// What the kernel said.
        source: Errno,
    },
    /// A descriptor of a tap that was opened another way.
    #[error("The descriptor is the interface {name}, but was not opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    Flags {
        /// Its name.
        name: String,
    },
    /// The kernel refused something else.
    #[error("The kernel refuses {call} for the tap {name}: {source}")]
    Request {
        /// Its name.
        name: String,
        /// The request.
        call: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// No socket to ask about interfaces.
    #[error("Cannot ask the kernel about network interfaces: {source}")]
    Host {
        /// What the kernel said.
        source: Errno,
    },
}

/// The commands that make a tap.
fn make(name: &str, queues: u16) -> String {
    let many = if queues > 1 { " multi_queue" } else { "" };
    format!("sudo ip tuntap add dev {name} mode tap user $USER vnet_hdr{many}; sudo ip link set {name} up")
}
