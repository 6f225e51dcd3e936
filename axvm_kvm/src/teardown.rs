//! The end of a VM when the process has ended: no program waits for it.
//!
//! ```text
//!   hold(vm):            ring, a table of descriptors in the kernel <-- the VM
//!   process ends:        its descriptors and its memory go; the program that waits for it goes on
//!   a kernel's thread:   the ring goes, and with it the VM      some 10 to 20 ms, most of it waiting for RCU
//! ```
//!
//! The kernel takes the interrupt controllers and the timer of a VM apart when its last holder lets go, and waits
//! several times until no processor can use them any more. In a process that ends, that holder is the process, and its
//! parent waits with it. A descriptor that is registered with an io_uring is held by the ring, and a ring is taken apart
//! by a thread of the kernel's own.
//!
//! Guest RAM, disks and their locks do not wait for that: they go with the process, as ever. This ring is never enabled:
//! no request can be made through it. Where the host has no io_uring, or forbids it, the process ends as without.
//!
//! The thread that opens it is signalled when it is dropped: a vCPU that this thread runs comes back once. So it is not for
//! a thread that runs one.
//!
//! Spec: io_uring_setup(2) IORING_SETUP_R_DISABLED, io_uring_register(2) IORING_REGISTER_FILES.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::Vm;

/// `struct io_uring_params`, in words; the third are the flags.
const PARAMETERS: usize = 30;
const FLAGS: usize = 2;
const IORING_SETUP_R_DISABLED: u32 = 1 << 6;
const IORING_REGISTER_FILES: libc::c_uint = 2;

/// What holds a VM longer than the process lives.
#[derive(Debug)]
pub struct Teardown(OwnedFd);

impl Teardown {
    /// None where the host has none.
    pub fn open() -> Option<Teardown> {
        let mut parameters = [0u32; PARAMETERS];
        parameters[FLAGS] = IORING_SETUP_R_DISABLED;
        // SAFETY: the kernel reads and writes a structure of this length, which lives through the call.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
        let fd = RawFd::try_from(fd).ok().filter(|&fd| fd >= 0)?;
        // SAFETY: it was made just now, so nothing else owns it.
        Some(Teardown(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Leaves the end of `vm` to the kernel: for the last VM of a process, whose vCPUs have stopped. Where that does not
    /// work, or for a second one, nothing changes.
    pub fn hold(&self, vm: &Vm) {
        let _ = self.register(&vm.fd);
    }

    fn register(&self, fd: &impl AsRawFd) -> io::Result<()> {
        let (ring, fd) = (self.0.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: the kernel reads one descriptor's number, which lives through the call.
        let done = unsafe { libc::syscall(libc::SYS_io_uring_register, ring, IORING_REGISTER_FILES, &raw const fd, 1) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// A pipe stands for the VM: its reader sees when the last writer has gone.
    #[test]
    fn what_is_held_goes_after_the_teardown() {
        let Some(teardown) = Teardown::open() else {
            return println!("skipped: this host has no io_uring");
        };
        let (mut reader, writer) = io::pipe().unwrap();
        teardown.register(&writer).unwrap();
        assert!(teardown.register(&writer).is_err(), "one only");
        drop(writer);
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        assert_eq!(reader.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock, "it is still held");
        rustix::io::ioctl_fionbio(&reader, false).unwrap();
        drop(teardown);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}
