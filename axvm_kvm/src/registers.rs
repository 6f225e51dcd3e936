//! Between the project's words for registers and KVM's structures.
//!
//! ```text
//!   kvm_regs, kvm_sregs  <-->  Registers, SystemRegisters        kvm_cpuid_entry2  --->  CpuidEntry
//! ```
//!
//! Spec: KVM API 4.11 `KVM_GET_REGS`, 4.13 `KVM_GET_SREGS`. Left out: what only a saved state has, see `state`.

use axvm_arch::cpuid::CpuidEntry;
use axvm_arch::registers::{CpuState, DescriptorTable, Registers, Segment, SystemRegisters};
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// What KVM says about a vCPU, in our words.
pub(crate) fn state_of(regs: &kvm_regs, sregs: &kvm_sregs) -> CpuState {
    CpuState { regs: registers_of(regs), system: system_of(sregs) }
}

/// General registers for `KVM_SET_REGS`.
pub(crate) fn kvm_regs_for(regs: &Registers) -> kvm_regs {
    let Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, .. } = *regs;
    let Registers { r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags, .. } = *regs;
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

/// Puts `system` over `sregs`; what `system` does not know (LDT, APIC base, CR2, CR8) stays.
pub(crate) fn apply(system: &SystemRegisters, sregs: &mut kvm_sregs) {
    sregs.cs = kvm_segment_for(&system.cs);
    sregs.ds = kvm_segment_for(&system.ds);
    sregs.es = kvm_segment_for(&system.es);
    sregs.fs = kvm_segment_for(&system.fs);
    sregs.gs = kvm_segment_for(&system.gs);
    sregs.ss = kvm_segment_for(&system.ss);
    sregs.tr = kvm_segment_for(&system.tr);
    sregs.gdt = kvm_dtable_for(&system.gdt);
    sregs.idt = kvm_dtable_for(&system.idt);
    sregs.cr0 = system.cr0;
    sregs.cr3 = system.cr3;
    sregs.cr4 = system.cr4;
    sregs.efer = system.efer;
}

pub(crate) fn registers_of(regs: &kvm_regs) -> Registers {
    let kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, .. } = *regs;
    let kvm_regs { r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags, .. } = *regs;
    Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

pub(crate) fn system_of(sregs: &kvm_sregs) -> SystemRegisters {
    SystemRegisters {
        cs: segment_of(&sregs.cs),
        ds: segment_of(&sregs.ds),
        es: segment_of(&sregs.es),
        fs: segment_of(&sregs.fs),
        gs: segment_of(&sregs.gs),
        ss: segment_of(&sregs.ss),
        tr: segment_of(&sregs.tr),
        gdt: DescriptorTable { base: sregs.gdt.base, limit: sregs.gdt.limit },
        idt: DescriptorTable { base: sregs.idt.base, limit: sregs.idt.limit },
        cr0: sregs.cr0,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
    }
}

pub(crate) fn segment_of(segment: &kvm_segment) -> Segment {
    Segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        kind: segment.type_,
        present: segment.present != 0 && segment.unusable == 0,
        dpl: segment.dpl,
        db: segment.db != 0,
        code_or_data: segment.s != 0,
        long: segment.l != 0,
        granularity: segment.g != 0,
        available: segment.avl != 0,
    }
}

pub(crate) fn kvm_segment_for(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: segment.present.into(),
        dpl: segment.dpl,
        db: segment.db.into(),
        s: segment.code_or_data.into(),
        l: segment.long.into(),
        g: segment.granularity.into(),
        avl: segment.available.into(),
        unusable: (!segment.present).into(),
        padding: 0,
    }
}

fn kvm_dtable_for(table: &DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, ..Default::default() }
}

/// One leaf in our words.
pub(crate) fn cpuid_entry(leaf: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        function: leaf.function,
        index: leaf.index,
        indexed: leaf.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_the_way_to_kvm_and_back() {
        let state = CpuState {
            regs: Registers { rax: 1, rbx: 2, rsi: 0x7000, r15: 15, rip: 0x10_0000, rflags: 2, ..Default::default() },
            system: SystemRegisters {
                cs: Segment::code32(0x10),
                ds: Segment::data(0x18),
                tr: Segment::tss(0x20, 0x600),
                gdt: DescriptorTable { base: 0x500, limit: 0x27 },
                cr0: 0x11,
                cr3: 0x9000,
                cr4: 0x20,
                efer: 0x500,
                ..Default::default()
            },
        };
        let mut sregs = kvm_sregs { apic_base: 0xfee0_0900, ..Default::default() };
        apply(&state.system, &mut sregs);
        assert_eq!(state_of(&kvm_regs_for(&state.regs), &sregs), state);
        assert_eq!(sregs.apic_base, 0xfee0_0900);
    }

    #[test]
    fn an_absent_segment_is_unusable() {
        assert_eq!(kvm_segment_for(&Segment::default()).unusable, 1);
        assert_eq!(kvm_segment_for(&Segment::data(0x18)).unusable, 0);
    }
}
