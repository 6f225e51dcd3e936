//! What stops a guest on this KVM: found by trying, for KVM does not say.
//!
//! ```text
//!   for each privilege level, 0 and 3, and each kind of stop: a vCPU of its own
//!     nop, nop, write to 0x4000, nop, write to 0x200000    a step, a breakpoint at the second, a watchpoint at the third
//!     INT3, write to 0x200000
//!                    '-- no RAM there    Exit::Debug comes first: it works; Exit::MmioWrite or a crash: it does not
//! ```
//!
//! KVM_SET_GUEST_DEBUG takes every breakpoint and promises none: without hardware virtualization, or nested in a machine
//! that keeps the debug registers, some are never met. That may differ between a kernel and its programs, where one of them
//! is interpreted.
//!
//! Spec: KVM API 4.87 `KVM_SET_GUEST_DEBUG`; Intel SDM volume 3, chapter 5 "Paging". Left out: 32-bit guests, breakpoints
//! on reads alone, which no processor has.

use axvm_arch::Gpa;
use axvm_arch::registers::{
    CpuState, DescriptorTable, RFLAGS_RESERVED, Registers, Segment, SystemRegisters, cr0, cr4, efer,
};
use axvm_memory::GuestRam;
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state};

use crate::{DebugControl, Exit, Kvm, KvmError, KvmVcpu, Vcpu, VcpuSetup, Vm, Watch};

const LEVEL_4_TABLE: u64 = 0x1000;
const LEVEL_3_TABLE: u64 = 0x2000;
const LEVEL_2_TABLE: u64 = 0x3000;
const DATA: u64 = 0x4000;
const CODE: u64 = 0x5000;
const RAM: u64 = 2 << 20;
/// Present, writable, for programs, too.
const ENTRY: u64 = 0b111;
/// An entry of level 2 that is a page of 2 MiB.
const LARGE: u64 = 1 << 7;

/// `nop; nop; mov [DATA], al; nop`
const STEPS: &[u8] = &[0x90, 0x90, 0x88, 0x04, 0x25, 0x00, 0x40, 0x00, 0x00, 0x90];
const INT3: &[u8] = &[0xcc];
/// `mov [RAM], al`: where no RAM is.
const END: &[u8] = &[0x88, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00];

/// What stops code of one privilege level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stopping {
    /// INT3.
    pub int3: bool,
    /// A hardware breakpoint on an instruction.
    pub execute: bool,
    /// One on a write.
    pub write: bool,
    /// The end of one instruction.
    pub step: bool,
}

/// What stops a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugSupport {
    /// At privilege level 0.
    pub kernel: Stopping,
    /// At privilege level 3.
    pub program: Stopping,
}

impl Kvm {
    /// Tries out what stops a guest, on a VM that ends again.
    pub fn try_debugging(&self) -> Result<DebugSupport, KvmError> {
        let ram = GuestRam::allocate_to_inspect(RAM).map_err(|error| failed("have RAM", error))?;
        let vm = self.create_vm(&ram)?;
        let cpuid = self.supported_cpuid()?;
        let write = |at: u64, bytes: &[u8]| ram.write(Gpa(at), bytes).map_err(|error| failed("fill its RAM", error));
        for (table, entry) in [
            (LEVEL_4_TABLE, LEVEL_3_TABLE | ENTRY),
            (LEVEL_3_TABLE, LEVEL_2_TABLE | ENTRY),
            (LEVEL_2_TABLE, ENTRY | LARGE),
            (LEVEL_2_TABLE + 8, RAM | ENTRY | LARGE),
        ] {
            write(table, &entry.to_le_bytes())?;
        }
        write(CODE, &[STEPS, END, INT3, END].concat())?;

        // One vCPU for each: what a stop leaves behind is of no consequence then.
        let mut ids = 0..;
        let mut stops = |privilege: u8, control: DebugControl, skip: usize| {
            let start = start(privilege, CODE + skip as u64);
            let id = ids.next().unwrap_or_default();
            let setup = VcpuSetup { cpuid: &cpuid, msrs: &[], start: Some(&start), is_bsp: id == 0 };
            stops(&vm, id, &setup, &control)
        };
        let mut level = |privilege: u8| -> Result<Stopping, KvmError> {
            let hardware = |watch| DebugControl { hardware: vec![watch], ..DebugControl::default() };
            let int3 = DebugControl { int3: vec![CODE + (STEPS.len() + END.len()) as u64], ..DebugControl::default() };
            Ok(Stopping {
                int3: stops(privilege, int3, STEPS.len() + END.len())?,
                execute: stops(privilege, hardware((CODE + 1, Watch::Execute)), 0)?,
                write: stops(privilege, hardware((DATA, Watch::Write(1))), 0)?,
                step: stops(privilege, DebugControl { step: true, ..DebugControl::default() }, 0)?,
            })
        };
        Ok(DebugSupport { kernel: level(0)?, program: level(3)? })
    }
}

/// 64-bit code at `rip`.
fn start(privilege: u8, rip: u64) -> CpuState {
    let own =
        |segment: Segment| Segment { dpl: privilege, selector: segment.selector | u16::from(privilege), ..segment };
    let data = own(Segment::data(0x18));
    CpuState {
        regs: Registers { rip, rsp: CODE, rflags: RFLAGS_RESERVED, ..Registers::default() },
        system: SystemRegisters {
            cs: own(Segment::code64(0x10)),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Segment::tss(0x20, 0),
            gdt: DescriptorTable::default(),
            // Without an entry: an exception is a crash, and an end.
            idt: DescriptorTable::default(),
            cr0: cr0::PE | cr0::ET | cr0::NE | cr0::PG,
            cr3: LEVEL_4_TABLE,
            cr4: cr4::PAE,
            efer: efer::LME | efer::LMA,
        },
    }
}

/// Whether a new vCPU comes to a stop of the kind that `control` wants, before the end.
fn stops(vm: &Vm, id: u32, setup: &VcpuSetup<'_>, control: &DebugControl) -> Result<bool, KvmError> {
    let mut vcpu: KvmVcpu = vm.create_vcpu(id, setup)?;
    let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
    vcpu.fd.set_mp_state(runnable).map_err(|error| failed("start its vCPU", error))?;
    if vcpu.set_debug(control).is_err() {
        return Ok(false);
    }
    loop {
        match vcpu.run() {
            // A signal for this thread.
            Ok(Exit::Interrupted) => {}
            // A step that runs on to the next exit is none.
            Ok(Exit::Debug { pc, .. }) => return Ok(!control.step || pc == CODE + 1),
            Ok(_) | Err(_) => return Ok(false),
        }
    }
}

fn failed(step: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> KvmError {
    KvmError::CreateVm { step, source: std::io::Error::other(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_works_is_found_out_again_and_again() {
        let Ok(kvm) = Kvm::open() else {
            eprintln!("skipped: no /dev/kvm");
            return;
        };
        let found = kvm.try_debugging().unwrap();
        assert!(found.kernel.step, "every KVM steps a kernel: {found:?}");
        assert_eq!(kvm.try_debugging().unwrap(), found);
    }
}
