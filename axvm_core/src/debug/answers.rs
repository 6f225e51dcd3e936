//! Tables that `monitor` shows: what a vCPU's interrupt controller, CPUID and MSRs hold, and what is where in memory.
//!
//! Spec: Intel SDM volume 3, table 12-1 "Local APIC Register Address Map", 12.5.1 "Local Vector Table"; volume 2A, "CPUID".

use std::fmt::Write;

use axvm_arch::cpuid::CpuidEntry;
use axvm_arch::irqchip::LapicState;
use axvm_arch::msr::{self, Msr};
use axvm_machine::Machine;
use axvm_memory::GuestRam;

/// The registers of a local APIC that tell of interrupts, by their offsets.
const LAPIC: &[(&str, usize)] = &[
    ("ID", 0x20),
    ("version", 0x30),
    ("TPR, task priority", 0x80),
    ("PPR, processor priority", 0xa0),
    ("LDR, logical destination", 0xd0),
    ("SVR, spurious vector", LapicState::SVR),
    ("ESR, errors", 0x280),
    ("ICR, low", 0x300),
    ("ICR, high", 0x310),
    ("timer: initial count", 0x380),
    ("timer: current count", 0x390),
    ("timer: divide", 0x3e0),
];

/// The local vector table.
const VECTORS: &[(&str, usize)] = &[
    ("LVT timer", LapicState::LVT_TIMER),
    ("LVT thermal", 0x330),
    ("LVT counters", 0x340),
    ("LVT LINT0", LapicState::LVT_LINT0),
    ("LVT LINT1", LapicState::LVT_LINT1),
    ("LVT error", 0x370),
];

/// The vector sets: waiting, in service, level-triggered.
const SETS: &[(&str, usize)] =
    &[("IRR, waiting", LapicState::IRR), ("ISR, in service", LapicState::ISR), ("TMR, by level", 0x180)];

/// A local APIC.
pub fn lapic(lapic: &LapicState) -> String {
    let mut text = String::new();
    for (name, offset) in LAPIC {
        let _ = writeln!(text, "{name:<26} {:#x}", lapic.register(*offset));
    }
    for (name, offset) in VECTORS {
        let entry = lapic.register(*offset);
        let delivery = match entry >> 8 & 7 {
            0 => "fixed",
            2 => "SMI",
            4 => "NMI",
            5 => "INIT",
            7 => "ExtINT",
            _ => "reserved",
        };
        let masked = if entry >> 16 & 1 != 0 { ", masked" } else { "" };
        let mode = match (*offset == LapicState::LVT_TIMER, entry >> 17 & 3) {
            (true, 0) => ", one-shot",
            (true, 1) => ", periodic",
            (true, 2) => ", TSC deadline",
            _ => "",
        };
        let _ = writeln!(text, "{name:<26} {entry:#x}: vector {:#x}, {delivery}{mode}{masked}", entry & 0xff);
    }
    for (name, offset) in SETS {
        let is_set = |vector: &u32| lapic.register(offset + (vector / 32) as usize * 16) >> (vector % 32) & 1 != 0;
        let vectors: Vec<_> = (0..256).filter(is_set).map(|vector| format!("{vector:#x}")).collect();
        let all = if vectors.is_empty() { "none".into() } else { vectors.join(", ") };
        let _ = writeln!(text, "{name:<26} {all}");
    }
    text
}

/// CPUID as the guest sees it: all of it, or one leaf.
pub fn cpuid(leaves: &[CpuidEntry], only: Option<u64>) -> String {
    let mut text = String::new();
    for leaf in leaves.iter().filter(|leaf| only.is_none_or(|only| only == u64::from(leaf.function))) {
        let _ = writeln!(text, "{leaf:?}");
    }
    if text.is_empty() { "There is no such leaf; its registers are 0, or those of the last one\n".into() } else { text }
}

/// MSRs that are part of the vCPU's state: all of them, or one.
pub fn msrs(msrs: &[Msr], only: Option<u64>) -> String {
    let mut text = String::new();
    let mut all: Vec<_> = msrs.iter().filter(|msr| only.is_none_or(|only| only == u64::from(msr.index))).collect();
    all.sort_by_key(|msr| msr.index);
    for Msr { index, value } in all {
        let name = msr::name(*index).unwrap_or("");
        let _ = writeln!(text, "{}", format!("{index:#010x} {value:#018x} {name}").trim_end());
    }
    if text.is_empty() { "KVM keeps no such MSR of this vCPU\n".into() } else { text }
}

/// What is where in guest-physical memory.
pub fn memory_map(ram: &GuestRam, machine: &Machine) -> String {
    let mut text = String::new();
    for region in ram.regions() {
        let _ = writeln!(text, "{:#x}..{:#x} RAM", region.gpa.0, region.gpa.0 + region.len);
    }
    machine.plan().parts().iter().for_each(|part| _ = writeln!(text, "{part}"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_arch::HexBytes;

    #[test]
    fn a_local_apic_tells_what_waits_and_how_its_timer_runs() {
        let mut page = vec![0; LapicState::LEN];
        page[0x320..0x324].copy_from_slice(&(1_u32 << 17 | 0xec).to_le_bytes());
        page[0x350..0x354].copy_from_slice(&(1_u32 << 16 | 7 << 8).to_le_bytes());
        // Vector 0x24 is bit 4 of the second register.
        page[0x210] = 1 << 4;
        let text = lapic(&LapicState(HexBytes(page)));
        for line in [
            "LVT timer                  0x200ec: vector 0xec, fixed, periodic\n",
            "LVT LINT0                  0x10700: vector 0x0, ExtINT, masked\n",
            "IRR, waiting               0x24\n",
            "ISR, in service            none\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn one_leaf_or_msr_is_found_and_a_missing_one_is_said() {
        let leaf = CpuidEntry { function: 7, index: 1, indexed: true, eax: 1, ebx: 2, ecx: 3, edx: 4 };
        assert_eq!(cpuid(&[leaf], Some(7)), "0x7.1: eax 0x1, ebx 0x2, ecx 0x3, edx 0x4\n");
        assert!(cpuid(&[leaf], Some(8)).starts_with("There is no such leaf"));
        let tsc = Msr { index: msr::TSC, value: 5 };
        assert!(msrs(&[tsc], None).starts_with("0x00000010 0x0000000000000005"));
        assert!(msrs(&[tsc], Some(0x11)).starts_with("KVM keeps no such MSR"));
    }
}
