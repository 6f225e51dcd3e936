//! The address of AF_VSOCK, which neither the standard library nor rustix knows: `unsafe` of its own.
//!
//! ```text
//!   struct sockaddr_vm   family u16 | reserved u16 | port u32 | cid u32 | flags u8, zero [u8; 3]
//! ```
//!
//! Source: vsock(7); Linux include/uapi/linux/vm_sockets.h.
#![allow(unsafe_code, reason = "rustix takes other addresses by an unsafe trait only")]

use std::os::fd::{AsFd, OwnedFd};

use rustix::io;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketFlags, SocketType, acceptfrom_with, bind, connect, listen, socket_with,
};

/// Any of the guest's own addresses.
const CID_ANY: u32 = u32::MAX;
/// The host.
const CID_HOST: u32 = 2;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

#[repr(C)]
struct VsockAddress {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    rest: [u8; 4],
}

// SAFETY: the address is a plain structure of the kernel's layout without padding, and lives during the call of `f`.
unsafe impl SocketAddrArg for VsockAddress {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f(std::ptr::from_ref(self).cast(), size_of::<VsockAddress>() as SocketAddrLen)
    }
}

impl VsockAddress {
    fn new(cid: u32, port: u32) -> VsockAddress {
        VsockAddress { family: AddressFamily::VSOCK.as_raw(), reserved: 0, port, cid, rest: [0; 4] }
    }
}

/// A socket that listens at `port`.
pub fn listen_at(port: u32) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    bind(&socket, &VsockAddress::new(CID_ANY, port))?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A connection to `port` of the host.
pub fn connect_host(port: u32) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    connect(&socket, &VsockAddress::new(CID_HOST, port))?;
    Ok(socket)
}

fn new_socket() -> io::Result<OwnedFd> {
    socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

/// The next connection, and whether it is the host's.
pub fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, bool)> {
    let (connection, from) = acceptfrom_with(listener, SocketFlags::CLOEXEC)?;
    Ok((connection, from.and_then(|from| cid(&from)) == Some(CID_HOST)))
}

/// The context id in an address of AF_VSOCK.
fn cid(address: &SocketAddrAny) -> Option<u32> {
    let is_whole = address.addr_len() as usize >= size_of::<VsockAddress>();
    if address.address_family() != AddressFamily::VSOCK || !is_whole {
        return None;
    }
    // SAFETY: the kernel wrote at least so many bytes there, in this layout; they are read wherever they lie.
    let address = unsafe { address.as_ptr().cast::<VsockAddress>().read_unaligned() };
    Some(address.cid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cid_of_an_address_is_read_and_of_another_is_not() {
        assert_eq!(cid(&VsockAddress::new(0x0102_0304, 7).as_any()), Some(0x0102_0304));
        let other = rustix::net::SocketAddrUnix::new("/a").unwrap();
        assert_eq!(cid(&other.as_any()), None);
    }
}
