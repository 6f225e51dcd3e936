//! Debugging a guest: steps, breakpoints, and registers that a debugger sets.
//!
//! ```text
//!   hardware   DR0 to DR3 of the guest's processor   --KVM_EXIT_DEBUG--> Exit::Debug
//!   INT3       the byte 0xcc in the guest's code     --KVM_EXIT_DEBUG-->   likewise, where KVM intercepts #BP
//!   OUT        e6 80 (or ee) in the guest's code     --KVM_EXIT_IO----->   likewise: run() knows the place
//!   step       one instruction, interrupts held back --KVM_EXIT_DEBUG-->   likewise
//! ```
//!
//! A KVM without hardware virtualization, or one that is nested, may intercept no #BP and have no debug registers; port I/O
//! exits everywhere. So a breakpoint can be an OUT, at privilege level 0: its exit is no access to a device, the
//! instruction is completed without effect, and RIP set back. (KVM leaves RIP at or behind an OUT, as it likes.)
//!
//! Spec: KVM API 4.87 `KVM_SET_GUEST_DEBUG`, chapter 5 `KVM_EXIT_DEBUG`; Intel SDM volume 3, 18.2 "Debug Registers".
//! Left out: breakpoints on ports; other system registers, which no thread of a vCPU may set (see `axvm_sandbox`).

use std::io;

use axvm_arch::registers::Registers;
use kvm_bindings::{kvm_guest_debug, kvm_guest_debug_arch};

use crate::{Exit, KvmVcpu, registers};

const ENABLE: u32 = 1;
const SINGLE_STEP: u32 = 1 << 1;
const USE_SOFTWARE: u32 = 1 << 16;
const USE_HARDWARE: u32 = 1 << 17;
const INJECT_BREAKPOINT: u32 = 1 << 19;
const BLOCK_INTERRUPTS: u32 = 1 << 20;
/// #BP.
pub(crate) const BREAKPOINT: u32 = 3;
/// DR7: what is always set.
const DR7: u64 = 0x400;

/// How many hardware breakpoints there are.
pub const HARDWARE_COUNT: usize = 4;

/// What a hardware breakpoint waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// The instruction here.
    Execute,
    /// A write to so many bytes: 1, 2, 4 or 8, and aligned so.
    Write(u8),
    /// A read or a write.
    Access(u8),
}

/// What makes a vCPU stop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugControl {
    /// After one instruction; no interrupt comes meanwhile.
    pub step: bool,
    /// At an INT3 that was put at one of these linear addresses. The guest's own are given back to it.
    pub int3: Vec<u64>,
    /// At these linear addresses; at most [`HARDWARE_COUNT`].
    pub hardware: Vec<(u64, Watch)>,
    /// At an OUT that was put there.
    pub traps: Vec<Trap>,
}

/// An OUT in the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Its linear address.
    pub at: u64,
    /// Bytes: those of [`LONG_TRAP`] or of [`SHORT_TRAP`].
    pub len: u8,
}

/// What an OUT was.
pub(crate) enum Trapped {
    /// The guest's own, and it waits for its device.
    No,
    /// The guest's own, beside a trap: it is completed, and its device has not got the byte.
    Elsewhere,
    /// The trap here.
    Here(u64),
}

/// `out 0x80, al`: to a port that KVM does not serve itself.
pub const LONG_TRAP: [u8; 2] = [0xe6, 0x80];
/// `out dx, al`.
pub const SHORT_TRAP: [u8; 1] = [0xee];

impl DebugControl {
    fn dr7(&self) -> u64 {
        let fields = |(n, (_, watch)): (usize, &(u64, Watch))| {
            let (kind, len) = match watch {
                Watch::Execute => (0, 1),
                Watch::Write(len) => (1, *len),
                Watch::Access(len) => (3, *len),
            };
            // One byte 0, two 1, four 3, eight 2.
            let len = match len {
                2 => 1,
                4 => 3,
                8 => 2,
                _ => 0,
            };
            // Global enable, and four bits of type and length.
            2 << (2 * n) | (kind | len << 2) << (16 + 4 * n)
        };
        self.hardware.iter().take(HARDWARE_COUNT).enumerate().map(fields).fold(DR7, |all, own| all | own)
    }
}

impl KvmVcpu {
    /// From the next run on the vCPU stops as `control` says.
    pub fn set_debug(&mut self, control: &DebugControl) -> io::Result<()> {
        let mut flags = 0;
        for (wanted, bits) in [
            (control.step, ENABLE | SINGLE_STEP | BLOCK_INTERRUPTS),
            (!control.int3.is_empty(), ENABLE | USE_SOFTWARE),
            (!control.hardware.is_empty(), ENABLE | USE_HARDWARE),
        ] {
            flags |= if wanted { bits } else { 0 };
        }
        let mut debugreg = [0; 8];
        for (register, (address, _)) in debugreg.iter_mut().zip(control.hardware.iter().take(HARDWARE_COUNT)) {
            *register = *address;
        }
        debugreg[7] = control.dr7();
        self.traps.clone_from(&control.traps);
        self.int3.clone_from(&control.int3);
        self.guest_debug =
            kvm_guest_debug { control: flags, arch: kvm_guest_debug_arch { debugreg }, ..Default::default() };
        Ok(self.fd.set_guest_debug(&self.guest_debug)?)
    }

    /// [`KvmVcpu::enter`]. An INT3 of the guest's own beside those of a debugger goes to its handler, and it runs on.
    pub(crate) fn enter_debugged(&mut self) -> io::Result<bool> {
        while self.enter() {
            if self.int3.is_empty() {
                return Ok(true);
            }
            match self.page.exit() {
                Exit::Debug { pc, exception: BREAKPOINT, .. } if !self.int3.contains(&pc) => {
                    self.inject_breakpoint()?
                }
                _ => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Has the guest's handler of #BP run next, as after an INT3.
    pub fn inject_breakpoint(&self) -> io::Result<()> {
        let control = self.guest_debug.control | ENABLE | INJECT_BREAKPOINT;
        Ok(self.fd.set_guest_debug(&kvm_guest_debug { control, ..self.guest_debug })?)
    }

    /// Gives the vCPU other general registers. It must stand still.
    pub fn set_general(&self, general: &Registers) -> io::Result<()> {
        Ok(self.fd.set_regs(&registers::kvm_regs_for(general))?)
    }

    /// Ends a HLT, as an SMI may: to a step, the instruction behind it is the next.
    pub fn wake(&self) -> io::Result<()> {
        if self.fd.get_mp_state()?.mp_state == kvm_bindings::KVM_MP_STATE_HALTED {
            self.fd.set_mp_state(kvm_bindings::kvm_mp_state { mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE })?;
        }
        Ok(())
    }

    /// Does the HLT of one byte that the vCPU stands before: behind it, and halted. In a step, a KVM that interprets HLT
    /// keeps in mind that it was to halt, and does so behind a later instruction.
    pub fn halt(&self) -> io::Result<()> {
        let mut regs = self.fd.get_regs()?;
        regs.rip = regs.rip.wrapping_add(1);
        let mut events = self.fd.get_vcpu_events()?;
        // Else the STI before it would hold back the interrupt that is to end it.
        events.interrupt.shadow = 0;
        self.fd.set_regs(&regs)?;
        self.fd.set_vcpu_events(&events)?;
        Ok(self.fd.set_mp_state(kvm_bindings::kvm_mp_state { mp_state: kvm_bindings::KVM_MP_STATE_HALTED })?)
    }

    /// Whether the next run comes back at once. A vCPU that waits at a gate was told so; one that is stepped there is not.
    pub fn hold_back(&self, hold: bool) {
        self.page.set_immediate_exit(hold);
    }

    /// After an OUT of one byte: the trap that it was, if it was one, with the vCPU standing before it again.
    ///
    /// Only completed, an OUT tells where it was: KVM leaves RIP at it or behind it, as it likes.
    pub(crate) fn trapped(&mut self, port: u16) -> io::Result<Trapped> {
        let before = self.state()?.linear_rip();
        let is_near = |trap: &&Trap| trap.at == before || trap.at.wrapping_add(trap.len.into()) == before;
        if !self.traps.iter().any(|trap| is_near(&trap)) {
            return Ok(Trapped::No);
        }
        self.hold_back(true);
        self.enter();
        let mut state = self.state()?;
        let after = state.linear_rip();
        let is_it = |trap: &&Trap| {
            let end = trap.at.wrapping_add(trap.len.into());
            let is_place = end == after && (before == after || trap.at == before);
            is_place && (trap.len == 1 || port == u16::from(LONG_TRAP[1]))
        };
        let Some(trap) = self.traps.iter().find(is_it).copied() else {
            return Ok(Trapped::Elsewhere);
        };
        state.regs.rip = state.regs.rip.wrapping_sub(trap.len.into());
        self.set_general(&state.regs)?;
        Ok(Trapped::Here(trap.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_registers_are_as_the_manual_has_them() {
        let dr7 =
            |hardware: &[(u64, Watch)]| DebugControl { hardware: hardware.to_vec(), ..DebugControl::default() }.dr7();
        assert_eq!(dr7(&[]), 0x400);
        assert_eq!(dr7(&[(0, Watch::Execute)]), 0x402);
        // Breakpoint 1: a write of four bytes, type 01, length 11.
        assert_eq!(dr7(&[(0, Watch::Execute), (8, Watch::Write(4))]), 0x00d0_040a);
        assert_eq!(dr7(&[(0, Watch::Access(8))]), 0x000b_0402);
        assert_eq!(dr7(&[(0, Watch::Write(2)); 9]), 0x5555_04aa, "four, whatever is asked");
    }
}
