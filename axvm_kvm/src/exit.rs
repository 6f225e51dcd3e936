//! Why a vCPU came back, and what it wants.
//!
//! An exit borrows the page that KVM shares with us. What a read exit wants is written into its
//! `data` in place, and KVM takes it from there on the next run:
//!
//! ```text
//!   guest: in al, 0x3fd --> Exit::IoIn { port: 0x3fd, size: 1, data: [?] }
//!                           data[0] = 0x60;  run() --> guest goes on with al = 0x60
//! ```
//!
//! Spec: KVM API chapter 5 "The kvm_run structure". Left out: exits that KVM makes only when asked to, but for
//! those of debugging.

use std::io;

use crate::KvmVcpu;

/// Why a vCPU stopped running guest code.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit<'a> {
    /// The guest reads a port; fill `data`.
    ///
    /// A string instruction (`rep insb`) may ask for many elements at once, all from the same
    /// port: `data.chunks_exact_mut(size)` are the accesses, in order.
    IoIn {
        /// Port number.
        port: u16,
        /// Width of one access, in bytes: 1, 2 or 4.
        size: usize,
        /// Where the answer goes; a multiple of `size` long.
        data: &'a mut [u8],
    },
    /// The guest writes a port; `data.chunks_exact(size)` are the accesses, in order (`rep outsb`).
    IoOut {
        /// Port number.
        port: u16,
        /// Width of one access, in bytes: 1, 2 or 4.
        size: usize,
        /// What is written; a multiple of `size` long.
        data: &'a [u8],
    },
    /// The guest reads an address where there is no RAM; fill `data`, 1 to 8 bytes.
    MmioRead {
        /// Guest-physical address.
        address: u64,
        /// Where the answer goes; its length is the width of the access.
        data: &'a mut [u8],
    },
    /// The guest writes to an address where there is no RAM, 1 to 8 bytes.
    MmioWrite {
        /// Guest-physical address.
        address: u64,
        /// What is written; its length is the width of the access.
        data: &'a [u8],
    },
    /// HLT, on a vCPU whose APIC is not in KVM (an APIC in KVM waits there for the interrupt).
    Halted,
    /// A [`Kicker`](crate::Kicker) kicked the vCPU, or its thread got a signal. The guest asked for nothing.
    Interrupted,
    /// Triple fault. On AMD the registers are those after reset by then.
    Shutdown,
    /// KVM reports an event of the whole machine (`KVM_EXIT_SYSTEM_EVENT`).
    SystemEvent {
        /// Which: 1 shutdown, 2 reset, 3 crash.
        kind: u32,
    },
    /// The processor refused to enter the guest (`KVM_EXIT_FAIL_ENTRY`).
    FailEntry {
        /// The processor's reason: on Intel the VM-entry exit reason, on AMD the exit code.
        reason: u64,
        /// Host CPU on which it happened.
        cpu: u32,
    },
    /// KVM gave up on an instruction or an event (`KVM_EXIT_INTERNAL_ERROR`).
    Internal {
        /// 1 emulation, 2 simultaneous exceptions, 3 event delivery, 4 unexpected exit reason.
        suberror: u32,
        /// What KVM tells; for emulation failures its flags, then instruction length and bytes.
        data: Vec<u64>,
    },
    /// A step is done, or a breakpoint was met; only after [`KvmVcpu::set_debug`].
    Debug {
        /// Linear address of the next instruction.
        pc: u64,
        /// Debug register 6: which hardware breakpoint (bits 0 to 3), or a step (bit 14).
        dr6: u64,
        /// The exception: 1 #DB, 3 #BP.
        exception: u32,
    },
    /// An exit this project does not ask KVM for.
    Other {
        /// `KVM_EXIT_*`.
        reason: u32,
    },
}

/// One virtual CPU, seen from the loop that runs it.
pub trait Vcpu: Send {
    /// Runs guest code until the guest needs something, or another thread kicks.
    ///
    /// Answers to the previous exit, written into its `data`, reach the guest now. An error means
    /// that the host failed; the guest cannot go on.
    fn run(&mut self) -> io::Result<Exit<'_>>;

    /// The same, and RIP as it was at that exit: at the instruction or just behind it. 0 where it was not left behind.
    fn run_and_locate(&mut self) -> io::Result<(Exit<'_>, u64)> {
        Ok((self.run()?, 0))
    }

    /// Whether the registers are to be left behind at each exit from now on, which costs some time at each.
    fn leave_registers(&mut self, _leave: bool) {}

    /// Says that the vCPU stood still for a while, so that the guest's watchdogs do not bark at the lost time.
    fn was_paused(&mut self) {}

    /// Where it is in the guest's program: after an exit for a device, at that instruction or just behind it.
    fn rip(&self) -> Option<u64> {
        None
    }

    /// The guest's entry for system calls (MSR LSTAR), if it has set one.
    fn syscall_entry(&self) -> Option<u64> {
        None
    }

    /// The vCPU as KVM has it, to change it.
    fn as_kvm_mut(&mut self) -> Option<&mut KvmVcpu> {
        None
    }

    /// The vCPU as KVM has it, for what only KVM can say of it; `None` for one that is played.
    fn as_kvm(&self) -> Option<&KvmVcpu> {
        None
    }
}
