//! What carries the frames on the host: open descriptors, and how frames lie in their bytes.
//!
//! ```text
//!   Tap        | header 12 | frame |       a read or a write each
//!   Stream     | length 4, big-endian | frame | length 4 | frame | ..       cut anywhere by a read, or by a full pipe
//!   Datagram   | frame |                   a datagram each
//! ```
//!
//! A tap has a descriptor for each queue pair, the others have one. What a link offers beyond whole frames is said by
//! the kernel (a tap), or by the caller, who knows what sits at the other end ([`Link::offering`]).
//!
//! Source: tun(4) in Linux `Documentation/networking/tuntap.rst`; unix(7), recv(2), send(2).
//! Left out: who opens it, and who opens it again after its end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use axvm_tap::{Offloads, Tap};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketType, sockopt::socket_type};
use thiserror::Error;

/// Shortest frame: two addresses and a type.
pub const MIN_FRAME: usize = 14;
/// Longest frame: addresses, type, a VLAN tag, and the longest IP packet.
pub const MAX_FRAME: usize = 14 + 4 + 65535;

/// Most queue pairs of a card: as many as a vCPU each of a large guest could want.
pub const MAX_PAIRS: usize = 64;

/// How frames lie in the bytes of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A tap with a 12-byte virtio header before each frame (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR; TUNSETVNETHDRSZ 12).
    Tap,
    /// A stream socket of QEMU's and passt's form: a length of four bytes, big-endian, before each frame.
    Stream,
    /// A connected datagram socket: each datagram is a frame.
    Datagram,
}

impl LinkKind {
    /// The sockets that it is; none for a tap.
    fn socket_type(self) -> Option<SocketType> {
        match self {
            LinkKind::Tap => None,
            LinkKind::Stream => Some(SocketType::STREAM),
            LinkKind::Datagram => Some(SocketType::DGRAM),
        }
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// What a datagram socket says, once for each datagram sent, of a peer that is not there, perhaps not yet.
const ABSENT: [Errno; 4] = [Errno::CONNREFUSED, Errno::CONNRESET, Errno::HOSTUNREACH, Errno::NETUNREACH];

/// An open link.
#[derive(Debug)]
pub struct Link {
    pub(super) ends: Vec<LinkEnd>,
    pub(super) offloads: Offloads,
}

impl Link {
    /// A link over an open `descriptor`, which becomes non-blocking. It offers whole frames only.
    pub fn new(kind: LinkKind, descriptor: OwnedFd) -> io::Result<Link> {
        if kind.socket_type().is_some_and(|wanted| socket_type(&descriptor) != Ok(wanted)) {
            return Err(invalid(format!(
                "The descriptor of a network link is not the socket that was said ({kind:?})"
            )));
        }
        Link::over(kind, vec![Descriptor::Plain(descriptor)], Offloads::NONE)
    }

    /// The queues of a tap, one for each queue pair of the card. It offers what the kernel can.
    pub fn tap(taps: Vec<Tap>) -> io::Result<Link> {
        let offloads = taps.first().map_or(Offloads::NONE, Tap::offloads);
        Link::over(LinkKind::Tap, taps.into_iter().map(Descriptor::Tap).collect(), offloads)
    }

    /// Sockets for datagrams in the place of a tap's queues, for tests.
    #[doc(hidden)]
    pub fn stand_in(queues: Vec<OwnedFd>, offloads: Offloads) -> io::Result<Link> {
        Link::over(LinkKind::Tap, queues.into_iter().map(Descriptor::Plain).collect(), offloads)
    }

    /// A link that another process has opened, with these [descriptors](Link::descriptors), and which offers this. They
    /// are looked at and not changed, for a process that may do no more.
    pub fn adopt(kind: LinkKind, descriptors: Vec<OwnedFd>, offloads: Offloads) -> io::Result<Link> {
        if kind != LinkKind::Tap && descriptors.len() != 1 {
            return Err(invalid(format!("A link of this kind has one descriptor, not {}", descriptors.len())));
        }
        for descriptor in &descriptors {
            let is_right = match kind.socket_type() {
                Some(wanted) => socket_type(descriptor) == Ok(wanted),
                None => FileType::from_raw_mode(fstat(descriptor)?.st_mode) == FileType::CharacterDevice,
            };
            if !is_right || !fcntl_getfl(descriptor)?.contains(OFlags::NONBLOCK) {
                return Err(invalid(format!("What was handed over is no open cable of this kind ({kind:?})")));
            }
        }
        let adopt = |descriptor| match kind {
            LinkKind::Tap => Descriptor::Tap(Tap::prepared(descriptor, String::new(), offloads)),
            LinkKind::Stream | LinkKind::Datagram => Descriptor::Plain(descriptor),
        };
        Link::over(kind, descriptors.into_iter().map(adopt).collect(), offloads)
    }

    /// Its descriptors, for a process that [adopts](Link::adopt) it.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.ends.iter().map(LinkEnd::as_fd).collect()
    }

    /// What it offers.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Offers the driver these instead. Of a tap, only fewer have an effect. Of a socket, only `checksum` has one: its
    /// other end neither looks at the checksums of what it gets nor gives what is wrong (passt).
    pub fn offering(self, offloads: Offloads) -> Link {
        let possible = match self.kind() {
            LinkKind::Tap => self.offloads,
            LinkKind::Stream | LinkKind::Datagram => Offloads { checksum: true, ..Offloads::NONE },
        };
        Link { offloads: possible.and(offloads), ..self }
    }

    /// How many queue pairs it has.
    pub fn pairs(&self) -> u16 {
        self.ends.len() as u16
    }

    /// How frames lie in its bytes.
    pub fn kind(&self) -> LinkKind {
        self.ends[0].kind
    }

    fn over(kind: LinkKind, descriptors: Vec<Descriptor>, offloads: Offloads) -> io::Result<Link> {
        if !(1..=MAX_PAIRS).contains(&descriptors.len()) {
            return Err(invalid(format!("A network link has 1 to {MAX_PAIRS} queues, not {}", descriptors.len())));
        }
        for descriptor in &descriptors {
            let flags = fcntl_getfl(descriptor)?;
            // One that is handed over is so already.
            if !flags.contains(OFlags::NONBLOCK) {
                fcntl_setfl(descriptor, flags | OFlags::NONBLOCK)?;
            }
        }
        let ends = descriptors.into_iter().map(|descriptor| LinkEnd { kind, descriptor }).collect();
        Ok(Link { ends, offloads })
    }
}

/// One descriptor of a link: the cable of one queue pair.
#[derive(Debug)]
pub(super) struct LinkEnd {
    pub(super) kind: LinkKind,
    descriptor: Descriptor,
}

#[derive(Debug)]
enum Descriptor {
    Tap(Tap),
    Plain(OwnedFd),
}

impl LinkEnd {
    pub(super) fn read(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| rustix::io::read(self, &mut *bytes))
    }

    pub(super) fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| match self.kind {
            LinkKind::Tap => rustix::io::write(self, bytes),
            // The peer's end is an error, not a signal.
            LinkKind::Stream | LinkKind::Datagram => rustix::net::send(self, bytes, SendFlags::NOSIGNAL),
        })
    }

    /// Whether the link is of no use after this error. Of a stream any may have cut a frame; a tap's is gone.
    pub(super) fn is_broken_by(&self, error: Errno) -> bool {
        match self.kind {
            LinkKind::Stream => true,
            LinkKind::Tap => error == Errno::BADFD,
            LinkKind::Datagram => false,
        }
    }

    /// Whether a look for input may go on after this error: it came in the place of a frame.
    pub(super) fn is_passed_by(&self, error: Errno) -> bool {
        self.kind == LinkKind::Datagram && ABSENT.contains(&error)
    }

    /// Frames come as a driver takes them that agreed on these.
    pub(super) fn set_offloads(&self, offloads: Offloads) -> Result<(), Errno> {
        match &self.descriptor {
            Descriptor::Tap(tap) => tap.set_offloads(offloads),
            Descriptor::Plain(_) => Ok(()),
        }
    }

    /// Frames come at all.
    pub(super) fn set_attached(&self, attached: bool) -> Result<(), Errno> {
        match &self.descriptor {
            Descriptor::Tap(tap) => tap.set_attached(attached),
            Descriptor::Plain(_) => Ok(()),
        }
    }
}

impl AsFd for LinkEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Descriptor::Tap(tap) => tap.as_fd(),
            Descriptor::Plain(descriptor) => descriptor.as_fd(),
        }
    }
}

/// Why a link is of no use any more.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum LinkError {
    #[error("its other end closed it")]
    Closed,
    #[error("its other end announced a frame of {0} bytes, at most {MAX_FRAME} are possible")]
    TooLong(usize),
    #[error("the host cannot use it any more: {0}")]
    Host(Errno),
}
