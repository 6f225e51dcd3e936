//! One vCPU as it stands, and the processor it is: what lint and crash report look at.
//!
//! ```text
//!   axvm_boot: CpuState (power-on) ---\
//!                                      > Snapshot     CPUID leaves --> Processor
//!   axvm_kvm: VcpuState (as it is) ---/
//! ```
//!
//! Spec: Intel SDM volume 3, table 10-1 "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT"; volume
//! 2A, CPUID leaves 0, 7, 0x8000_0001 and 0x8000_0008. Left out: FPU and vector registers, the APIC.

use std::io;

use axvm_arch::cpuid::{CpuidEntry, Vendor};
use axvm_arch::msr::Msr;
use axvm_arch::paging::Paging;
use axvm_arch::registers::{CpuState, Segment};
use axvm_kvm::state::{DebugRegisters, EventState};
use axvm_kvm::{KvmVcpu, VcpuState};
use serde::Serialize;

/// Registers of one vCPU, and the events on their way into it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    /// General registers, segments, control registers.
    pub cpu: CpuState,
    /// LDTR.
    pub ldt: Segment,
    /// Where the last page fault was.
    pub cr2: u64,
    /// DR0 to DR3, DR6, DR7.
    pub debug: DebugRegisters,
    /// MSRs, as far as they are known.
    pub msrs: Vec<Msr>,
    /// Exceptions and interrupts on their way.
    pub events: EventState,
}

impl From<CpuState> for Snapshot {
    /// The state of a first entry: what it does not say is as after a reset.
    fn from(cpu: CpuState) -> Snapshot {
        let ldt = Segment { limit: 0xffff, kind: 2, present: true, ..Segment::default() };
        let debug = DebugRegisters { addresses: [0; 4], dr6: 0xffff_0ff0, dr7: 0x400 };
        Snapshot { cpu, ldt, cr2: 0, debug, msrs: Vec::new(), events: EventState::default() }
    }
}

impl From<&VcpuState> for Snapshot {
    fn from(state: &VcpuState) -> Snapshot {
        Snapshot {
            cpu: CpuState { regs: state.regs, system: state.system },
            ldt: state.ldt,
            cr2: state.cr2,
            debug: state.debug,
            msrs: state.msrs.clone(),
            events: state.events,
        }
    }
}

impl Snapshot {
    /// The vCPU as KVM has it; it must stand still. Only its registers, if KVM does not tell the rest.
    pub fn take(vcpu: &KvmVcpu) -> io::Result<(Snapshot, Processor)> {
        Ok(match vcpu.save() {
            Ok(state) => (Snapshot::from(&state), Processor::of(&state.cpuid)),
            Err(_) => (Snapshot::from(vcpu.state()?), Processor::default()),
        })
    }

    /// The value of an MSR, if it is known.
    pub fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.iter().find(|msr| msr.index == index).map(|msr| msr.value)
    }
}

/// What the rules need to know of the processor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Processor {
    /// Who made it.
    pub vendor: Vendor,
    /// MAXPHYADDR.
    pub physical_bits: u8,
    /// Bits of a linear address, at most.
    pub linear_bits: u8,
    /// It has pages of 1 GiB.
    pub gib_pages: bool,
    /// All that CPUID says; empty if it is not known.
    #[serde(skip)]
    pub cpuid: Vec<CpuidEntry>,
}

impl Default for Processor {
    /// A processor that may be any: as many bits as there can be.
    fn default() -> Processor {
        Processor { vendor: Vendor::Unknown, physical_bits: 52, linear_bits: 57, gib_pages: true, cpuid: Vec::new() }
    }
}

impl Processor {
    /// The processor that answers CPUID like this.
    pub fn of(cpuid: &[CpuidEntry]) -> Processor {
        let any = Processor { cpuid: cpuid.to_vec(), ..Processor::default() };
        let sizes = any.leaf(0x8000_0008, 0).map(|leaf| leaf.eax.to_le_bytes());
        let [physical, linear, ..] = sizes.unwrap_or([36, 48, 0, 0]);
        Processor {
            vendor: Vendor::of(cpuid),
            // No more than a page table has room for, whatever CPUID says.
            physical_bits: physical.clamp(32, 52),
            linear_bits: linear.clamp(32, 57),
            gib_pages: any.leaf(0x8000_0001, 0).is_some_and(|leaf| leaf.edx & 1 << 26 != 0),
            ..any
        }
    }

    /// A leaf of CPUID, if it is known.
    pub fn leaf(&self, function: u32, index: u32) -> Option<&CpuidEntry> {
        self.cpuid.iter().find(|leaf| leaf.function == function && (!leaf.indexed || leaf.index == index))
    }

    /// How this processor translates with the registers of `cpu`.
    pub fn paging(&self, cpu: &CpuState) -> Paging {
        Paging { gib_pages: self.gib_pages, ..Paging::of(&cpu.system, self.physical_bits) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_known_by_its_cpuid() {
        let text = |n: usize| u32::from_le_bytes(b"AuthenticAMD"[n..n + 4].try_into().unwrap());
        let leaves = [
            CpuidEntry { function: 0, ebx: text(0), edx: text(4), ecx: text(8), ..CpuidEntry::default() },
            CpuidEntry { function: 0x8000_0001, edx: 1 << 26, ..CpuidEntry::default() },
            CpuidEntry { function: 0x8000_0008, eax: 48 << 8 | 40, ..CpuidEntry::default() },
        ];
        let processor = Processor::of(&leaves);
        assert_eq!((processor.vendor, processor.physical_bits, processor.linear_bits), (Vendor::Amd, 40, 48));
        assert!(processor.gib_pages && !Processor::of(&leaves[..1]).gib_pages);
        let odd = [CpuidEntry { function: 0x8000_0008, eax: 0xffff, ..CpuidEntry::default() }];
        assert_eq!(Processor::of(&odd).physical_bits, 52, "no page table has more");
    }

    #[test]
    fn an_entry_state_is_completed_as_by_a_reset() {
        let snapshot = Snapshot::from(CpuState::default());
        assert_eq!((snapshot.debug.dr7, snapshot.ldt.words()), (0x400, "LDT, DPL 0".into()));
    }
}
