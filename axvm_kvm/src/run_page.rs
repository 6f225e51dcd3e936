//! The pages KVM shares with us for one vCPU: `struct kvm_run`, and behind it data of port I/O.
//!
//! ```text
//!   +0     request_interrupt_window, immediate_exit, ..., exit_reason, ...
//!   +32    union: what the exit is about (io, mmio, fail_entry, internal, ...)
//!   +4096  port data (at io.data_offset)
//! ```
//!
//! Each [`RunPage`] is a mapping of its own. Two of them may show the same vCPU: the vCPU's owner
//! reads exits through one, a [`Kicker`](crate::Kicker) sets `immediate_exit` through another.
//! They share no byte that both use from Rust, and KVM writes only inside `KVM_RUN`.
//!
//! Spec: KVM API chapter 5 "The kvm_run structure". Left out: the ring of coalesced MMIO, dirty pages.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{self as kvm, kvm_run};

use crate::Exit;

/// A shared mapping of a vCPU's file; it keeps that file open as long as it lives.
#[derive(Debug)]
pub(crate) struct RunPage {
    start: NonNull<kvm_run>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for RunPage {}
// SAFETY: through `&RunPage` only `immediate_exit` is reachable, and that as an atomic.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps the first `len` bytes (`KVM_GET_VCPU_MMAP_SIZE`) of a vCPU's file.
    pub(crate) fn map(vcpu: &impl AsRawFd, len: usize) -> io::Result<RunPage> {
        assert!(len >= size_of::<kvm_run>(), "KVM shares {len} bytes, less than one kvm_run");
        let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, vcpu.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, fd, 0) };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(RunPage { start: start.cast(), len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether the next (or current, see [`Kicker`](crate::Kicker)) `KVM_RUN` is to return at once.
    pub(crate) fn set_immediate_exit(&self, exit: bool) {
        // SeqCst: see `Kicker::attach`, which needs this store and its own in one order.
        self.immediate_exit().store(exit.into(), Ordering::SeqCst);
    }

    /// Whether it was told to.
    pub(crate) fn is_to_exit(&self) -> bool {
        // SeqCst, as the store: KVM has looked at the flag before this does, and must not have seen more.
        self.immediate_exit().load(Ordering::SeqCst) != 0
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the mapping is at least one kvm_run long.
        let byte = unsafe { &raw mut (*self.start.as_ptr()).immediate_exit };
        // SAFETY: a byte inside a mapping that lives as long as `self`, which Rust code uses only through this atomic.
        unsafe { AtomicU8::from_ptr(byte) }
    }

    /// Whether each `KVM_RUN` is to leave the general registers in the page (KVM_CAP_SYNC_REGS).
    pub(crate) fn leave_registers(&mut self, leave: bool) {
        let wanted = if leave { u64::from(kvm::KVM_SYNC_X86_REGS) } else { 0 };
        // SAFETY: the mapping is at least one kvm_run long, and KVM reads the field only inside `KVM_RUN`.
        unsafe { (*self.start.as_ptr()).kvm_valid_regs = wanted };
    }

    /// Where RIP is then. A place, for who holds an [`Exit`] has the page borrowed; it is there as long as the page.
    pub(crate) fn rip(&self) -> *const u64 {
        // SAFETY: the mapping is at least one kvm_run long, and nothing is read.
        unsafe { &raw const (*self.start.as_ptr()).s.regs.regs.rip }
    }

    /// What the `KVM_RUN` that just returned 0 wants.
    pub(crate) fn exit(&mut self) -> Exit<'_> {
        let run = self.start.as_ptr();
        // SAFETY: the mapping is at least one kvm_run long, and KVM wrote the field.
        let reason = unsafe { (*run).exit_reason };
        // SAFETY: KVM leaves the page alone until the next `KVM_RUN`, which needs the vCPU that holds
        // this page mutably; kickers never touch the union.
        let about = unsafe { &mut (*run).__bindgen_anon_1 };
        match reason {
            kvm::KVM_EXIT_IO => {
                // SAFETY: the reason names the member that KVM wrote.
                let io = unsafe { about.io };
                let (port, size) = (io.port, usize::from(io.size));
                let data = self.data(io.data_offset as usize, size * io.count as usize);
                match u32::from(io.direction) {
                    kvm::KVM_EXIT_IO_IN => Exit::IoIn { port, size, data },
                    _ => Exit::IoOut { port, size, data },
                }
            }
            kvm::KVM_EXIT_MMIO => {
                // SAFETY: the reason names the member that KVM wrote.
                let mmio = unsafe { &mut about.mmio };
                let address = mmio.phys_addr;
                let data = &mut mmio.data[..mmio.len as usize];
                if mmio.is_write != 0 { Exit::MmioWrite { address, data } } else { Exit::MmioRead { address, data } }
            }
            kvm::KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the reason names the member that KVM wrote.
                let fail = unsafe { about.fail_entry };
                Exit::FailEntry { reason: fail.hardware_entry_failure_reason, cpu: fail.cpu }
            }
            kvm::KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: the reason names the member that KVM wrote.
                let internal = unsafe { about.internal };
                let data = internal.data.into_iter().take(internal.ndata as usize).collect();
                Exit::Internal { suberror: internal.suberror, data }
            }
            kvm::KVM_EXIT_SYSTEM_EVENT => {
                // SAFETY: the reason names the member that KVM wrote.
                let event = unsafe { about.system_event };
                Exit::SystemEvent { kind: event.type_ }
            }
            kvm::KVM_EXIT_DEBUG => {
                // SAFETY: the reason names the member that KVM wrote.
                let debug = unsafe { about.debug.arch };
                Exit::Debug { pc: debug.pc, dr6: debug.dr6, exception: debug.exception }
            }
            kvm::KVM_EXIT_HLT => Exit::Halted,
            kvm::KVM_EXIT_INTR => Exit::Interrupted,
            kvm::KVM_EXIT_SHUTDOWN => Exit::Shutdown,
            reason => Exit::Other { reason },
        }
    }

    /// Port and byte, if the exit is an OUT of one byte.
    pub(crate) fn byte_out(&mut self) -> Option<(u16, u8)> {
        match self.exit() {
            Exit::IoOut { port, size: 1, data: &[byte] } => Some((port, byte)),
            _ => None,
        }
    }

    /// `len` bytes of port data, `offset` bytes into the mapping.
    fn data(&mut self, offset: usize, len: usize) -> &mut [u8] {
        let inside = offset >= size_of::<kvm_run>() && offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "KVM's port data ({len} bytes at {offset:#x}) is outside the {} bytes it shares", self.len);
        // SAFETY: inside the mapping, as just checked.
        let start = unsafe { self.start.as_ptr().cast::<u8>().add(offset) };
        // SAFETY: the bytes are inside the mapping and behind kvm_run, so no other code in this process
        // uses them while `self` is borrowed; KVM writes them only inside `KVM_RUN`.
        unsafe { slice::from_raw_parts_mut(start, len) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`, and nothing borrowed from it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
