//! The requests of `/dev/net/tun`, each with the type that the kernel expects: all `unsafe` of this crate.
//!
//! ```text
//!   struct ifreq   | name 16, ends with 0 | flags 2, or mtu 4 | .. |     40 bytes
//! ```
//!
//! Source: Linux `include/uapi/linux/if_tun.h`, `include/uapi/linux/if.h`, `include/uapi/linux/sockios.h`.
#![allow(unsafe_code)]

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Getter, IntegerSetter, Opcode, Setter, Updater, ioctl};

/// Flags of TUNSETIFF and TUNSETQUEUE.
pub(crate) const TAP: i16 = 2;
pub(crate) const MULTI_QUEUE: i16 = 0x100;
const ATTACH_QUEUE: i16 = 0x200;
const DETACH_QUEUE: i16 = 0x400;
pub(crate) const NO_PI: i16 = 0x1000;
pub(crate) const VNET_HDR: i16 = 0x4000;

const TUNSETIFF: Opcode = 0x4004_54ca;
const TUNSETOFFLOAD: Opcode = 0x4004_54d0;
const TUNGETIFF: Opcode = 0x8004_54d2;
const TUNSETVNETHDRSZ: Opcode = 0x4004_54d8;
const TUNSETQUEUE: Opcode = 0x4004_54d9;
const SIOCGIFMTU: Opcode = 0x8921;

/// `struct ifreq`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct IfReq {
    name: [u8; 16],
    pub(crate) flags: i16,
    rest: [u8; 22],
}

impl IfReq {
    /// About the interface called `name`, if one can be.
    pub(crate) fn named(name: &str, flags: i16) -> Option<IfReq> {
        let possible = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
        if name.is_empty() || name.len() > 15 || matches!(name, "." | "..") || !name.bytes().all(possible) {
            return None;
        }
        let mut request = IfReq { name: [0; 16], flags, rest: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        Some(request)
    }

    pub(crate) fn with(self, flags: i16) -> IfReq {
        IfReq { flags: self.flags | flags, ..self }
    }

    pub(crate) fn with_other_queues(self) -> IfReq {
        IfReq { flags: self.flags ^ MULTI_QUEUE, ..self }
    }

    pub(crate) fn name(&self) -> String {
        String::from_utf8_lossy(self.name.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
    }
}

/// Makes the descriptor a queue of the interface.
pub(crate) fn attach(device: &impl AsFd, mut request: IfReq) -> Result<(), Errno> {
    // SAFETY: TUNSETIFF reads a struct ifreq, which IfReq is in size and layout, and writes it back.
    let request = unsafe { Updater::<TUNSETIFF, IfReq>::new(&mut request) };
    // SAFETY: the same.
    unsafe { ioctl(device, request) }
}

/// The interface that the descriptor is a queue of, and the flags.
pub(crate) fn attached(tap: &impl AsFd) -> Result<IfReq, Errno> {
    // SAFETY: TUNGETIFF writes a whole struct ifreq, which IfReq is in size and layout; any bytes are one.
    let request = unsafe { Getter::<TUNGETIFF, IfReq>::new() };
    // SAFETY: the same.
    unsafe { ioctl(tap, request) }
}

pub(crate) fn set_offload(tap: &impl AsFd, bits: usize) -> Result<(), Errno> {
    // SAFETY: TUNSETOFFLOAD takes its argument as a number, and refuses those that it does not know.
    let request = unsafe { IntegerSetter::<TUNSETOFFLOAD>::new_usize(bits) };
    // SAFETY: the same.
    unsafe { ioctl(tap, request) }
}

pub(crate) fn set_header_len(tap: &impl AsFd, len: i32) -> Result<(), Errno> {
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    let request = unsafe { Setter::<TUNSETVNETHDRSZ, i32>::new(len) };
    // SAFETY: the same.
    unsafe { ioctl(tap, request) }
}

pub(crate) fn set_queue(tap: &impl AsFd, attached: bool) -> Result<(), Errno> {
    let flags = if attached { ATTACH_QUEUE } else { DETACH_QUEUE };
    let argument = IfReq { name: [0; 16], flags, rest: [0; 22] };
    // SAFETY: TUNSETQUEUE reads a struct ifreq, which IfReq is in size and layout.
    let request = unsafe { Setter::<TUNSETQUEUE, IfReq>::new(argument) };
    // SAFETY: the same.
    unsafe { ioctl(tap, request) }
}

/// The MTU of an interface, by any socket.
pub(crate) fn mtu(any: &impl AsFd, about: &IfReq) -> Result<u32, Errno> {
    let mut argument = *about;
    // SAFETY: SIOCGIFMTU reads a struct ifreq, which IfReq is in size and layout, and writes it back.
    let request = unsafe { Updater::<SIOCGIFMTU, IfReq>::new(&mut argument) };
    // SAFETY: the same.
    unsafe { ioctl(any, request) }?;
    let [low, high] = argument.flags.to_le_bytes();
    Ok(u32::from_le_bytes([low, high, argument.rest[0], argument.rest[1]]))
}
