//! A tap of the host: a network card of the host's kernel whose cable ends in a descriptor.
//!
//! ```text
//!   kernel: bridge, routes <--> interface tap0 <--read, write--> queue 0, queue 1, ..     a Tap each
//!                                                |
//!     each frame:   | virtio header 12 | addresses, type, .. |
//! ```
//!
//! A frame may be more than the wire takes: one whose checksum is missing, or a packet of up to 64 KiB that is to be cut
//! into segments ([`Offloads`]). The kernel takes such frames at any time, and gives them after a request that says so.
//!
//! AxVM makes no interface: who may, and with which addresses and bridges, is the host's. A tap that is not there is
//! refused with the command that makes it.
//!
//! Source: Linux `Documentation/networking/tuntap.rst`, `include/uapi/linux/if_tun.h`, `include/uapi/linux/if.h`.
//! Left out: tun (packets without addresses), filters, steering programs, other byte orders.
#![deny(unsafe_code)]

mod error;
mod requests;
#[doc(hidden)]
pub mod testing;

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

pub use error::TapError;

use requests::{IfReq, MULTI_QUEUE, NO_PI, TAP, VNET_HDR};

/// Length of the header before each frame, of a driver that speaks virtio 1.0.
pub const HEADER_LEN: i32 = 12;

/// Where taps are opened.
const DEVICE: &CStr = c"/dev/net/tun";

/// The flags of each queue, but for the one that says that there are more.
const FLAGS: i16 = TAP | NO_PI | VNET_HDR;

/// What a receiver of frames does itself. Without `checksum` the others mean nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames come with a checksum that is not computed.
    pub checksum: bool,
    /// TCP packets over IPv4 come uncut.
    pub tso4: bool,
    /// TCP packets over IPv6 come uncut.
    pub tso6: bool,
    /// Such packets come with congestion marks, too.
    pub ecn: bool,
    /// UDP datagrams that are to be cut into datagrams come uncut, over IPv4 and IPv6: the kernel knows only both.
    pub uso: bool,
}

impl Offloads {
    /// Nothing but whole frames.
    pub const NONE: Offloads = Offloads { checksum: false, tso4: false, tso6: false, ecn: false, uso: false };
    /// All that there is.
    pub const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true };

    /// Those of `self` that are in `other`, too.
    pub fn and(self, other: Offloads) -> Offloads {
        Offloads {
            checksum: self.checksum && other.checksum,
            tso4: self.tso4 && other.tso4,
            tso6: self.tso6 && other.tso6,
            ecn: self.ecn && other.ecn,
            uso: self.uso && other.uso,
        }
    }

    /// The argument of TUNSETOFFLOAD.
    fn bits(self) -> usize {
        let bits = [(self.tso4, 2), (self.tso6, 4), (self.ecn && (self.tso4 || self.tso6), 8), (self.uso, 0x60)];
        let cut = bits.into_iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, bit)| all | bit);
        if self.checksum { 1 | cut } else { 0 }
    }
}

/// One queue of a tap.
#[derive(Debug)]
pub struct Tap {
    descriptor: OwnedFd,
    name: String,
    offloads: Offloads,
}

impl Tap {
    /// Opens the tap called `name` with so many queues, none in use by another process. It must be there.
    pub fn open(name: &str, queues: u16) -> Result<Vec<Tap>, TapError> {
        let request = IfReq::named(name, FLAGS).ok_or_else(|| TapError::Name(name.to_owned()))?;
        let any = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(|source| TapError::Host { source })?;
        // TUNSETIFF would make it, if we may.
        if name_to_index(&any, name).is_err() {
            return Err(TapError::Absent { name: name.to_owned(), queues });
        }
        let flags = if queues > 1 { MULTI_QUEUE } else { 0 };
        let queue = |_| Tap::from_fd(attach(request.with(flags), queues)?);
        (0..queues).map(queue).collect()
    }

    /// A queue that is open: a descriptor that a process with the rights for it has handed over.
    pub fn from_fd(descriptor: OwnedFd) -> Result<Tap, TapError> {
        let request = requests::attached(&descriptor).map_err(|source| TapError::NoTap { source })?;
        let name = request.name();
        if request.flags & FLAGS != FLAGS {
            return Err(TapError::Flags { name });
        }
        let failed = |call| move |source| TapError::Request { name: request.name(), call, source };
        requests::set_header_len(&descriptor, HEADER_LEN).map_err(failed("TUNSETVNETHDRSZ"))?;
        let offloads = accepted(&descriptor);
        let tap = Tap { descriptor, name, offloads };
        tap.set_offloads(Offloads::NONE).map_err(failed("TUNSETOFFLOAD"))?;
        Ok(tap)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel can give.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// A queue that another process has opened, asked and prepared as [`Tap::from_fd`] does: for one that may not ask.
    pub fn prepared(descriptor: OwnedFd, name: String, offloads: Offloads) -> Tap {
        Tap { descriptor, name, offloads }
    }

    /// From now on the kernel gives this, of all queues of the tap: all frames that are not in the queue yet.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<(), Errno> {
        requests::set_offload(&self.descriptor, offloads.bits())
    }

    /// Whether the kernel puts frames into this queue. Only of a tap with several.
    pub fn set_attached(&self, attached: bool) -> Result<(), Errno> {
        requests::set_queue(&self.descriptor, attached)
    }

    /// Longest packet that the interface takes, in bytes, without addresses and type.
    pub fn mtu(&self) -> Result<u32, Errno> {
        let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        requests::mtu(&any, &IfReq::named(&self.name, 0).ok_or(Errno::INVAL)?)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl From<Tap> for OwnedFd {
    fn from(tap: Tap) -> OwnedFd {
        tap.descriptor
    }
}

/// Opens one queue.
fn attach(request: IfReq, queues: u16) -> Result<OwnedFd, TapError> {
    let open = || open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty());
    let descriptor = open().map_err(|source| TapError::Device { source })?;
    let Err(source) = requests::attach(&descriptor, request) else { return Ok(descriptor) };
    let name = request.name();
    // The kernel says of a tap with other flags what it says of an interface that is no tap.
    let other = requests::attach(&open().map_err(|source| TapError::Device { source })?, request.with_other_queues());
    Err(match source {
        Errno::INVAL if other.is_ok() => TapError::Queues { name, queues },
        Errno::INVAL => TapError::Other { name },
        Errno::BUSY => TapError::Busy { name },
        Errno::PERM | Errno::ACCESS => TapError::NotOurs { name, queues },
        source => TapError::Request { name, call: "TUNSETIFF", source },
    })
}

/// What this kernel can give: asked for, since there is no list.
fn accepted(descriptor: &OwnedFd) -> Offloads {
    let without_uso = Offloads { uso: false, ..Offloads::ALL };
    let only_checksum = Offloads { checksum: true, ..Offloads::NONE };
    let choices = [Offloads::ALL, without_uso, only_checksum];
    let takes = |choice: &Offloads| requests::set_offload(descriptor, choice.bits()).is_ok();
    choices.into_iter().find(takes).unwrap_or(Offloads::NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_for_without_checksums() {
        assert_eq!(Offloads { checksum: false, ..Offloads::ALL }.bits(), 0);
        assert_eq!(Offloads::ALL.bits(), 0x6f);
        assert_eq!(Offloads { tso6: true, checksum: true, ..Offloads::NONE }.bits(), 5);
        assert_eq!(Offloads { ecn: true, checksum: true, ..Offloads::NONE }.bits(), 1, "marks on what is cut only");
        assert_eq!(
            Offloads::ALL.and(Offloads { uso: true, ..Offloads::NONE }),
            Offloads { uso: true, ..Offloads::NONE }
        );
    }

    #[test]
    fn what_is_no_tap_is_refused_by_name() {
        for name in ["", "a/b", "a b", "sixteen-letters-", ".", ".."] {
            assert!(matches!(Tap::open(name, 1), Err(TapError::Name(_))), "{name}");
        }
        let error = Tap::open("axvm-absent", 4).unwrap_err().to_string();
        assert!(error.contains("ip tuntap add dev axvm-absent mode tap") && error.contains("multi_queue"), "{error}");
        let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(matches!(Tap::from_fd(file), Err(TapError::NoTap { .. })));
    }
}
