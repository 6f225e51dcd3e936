//! Which MSRs are a vCPU's state, and how they are read and loaded.
//!
//! ```text
//!   KVM's index list + MTRRs - LEFT_OUT --read--> state --load--> all others, TSC, TSC_DEADLINE
//! ```
//!
//! KVM reads and loads in order and stops at the first register that it refuses. One that it does not let us read does
//! not exist for this guest's CPUID, and is no state. One that it does not let us load is no fault if it has that value.
//!
//! Spec: KVM API 4.3 `KVM_GET_MSR_INDEX_LIST`, 4.18 `KVM_GET_MSRS`, 4.19 `KVM_SET_MSRS`; Intel SDM volume 4, chapter 2.
//! Left out: [`LEFT_OUT`] and its reasons; the banks of machine checks, in which KVM reports nothing unless it is told to.

use axvm_arch::msr::{self, Msr};
use kvm_bindings::{self as kvm, Msrs};

use crate::{KvmError, KvmVcpu, Owner};

/// MSRs that are in KVM's list and not in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// First number.
    pub first: u32,
    /// Last number.
    pub last: u32,
    /// Why.
    pub why: &'static str,
}

const fn one(index: u32, why: &'static str) -> LeftOut {
    LeftOut { first: index, last: index, why }
}

/// What a state does not carry, and why.
pub const LEFT_OUT: [LeftOut; 8] = [
    one(msr::APIC_BASE, "the system registers carry it"),
    one(msr::EFER, "the system registers carry it"),
    one(msr::kvm::WALL_CLOCK_OLD, "loading it makes KVM write into guest RAM at once"),
    one(msr::kvm::WALL_CLOCK, "loading it makes KVM write into guest RAM at once"),
    one(msr::kvm::SYSTEM_TIME_OLD, "an older number of a register that is carried"),
    one(msr::kvm::ASYNC_PF_ACK, "writing it is an event, not a state"),
    LeftOut { first: 0x480, last: 0x493, why: "what nested VMX can do: as on the host; in use, nothing is saved" },
    LeftOut { first: 0x4000_0000, last: 0x4000_0fff, why: "Hyper-V's, which no guest here is shown" },
];

/// Pairs of variable-range MTRRs that KVM has.
const VARIABLE_MTRRS: u32 = 8;

/// The MSRs of a state, from `listed`, KVM's own list. MTRRs are not in that list, though guests have them.
pub(crate) fn indices(listed: &[u32]) -> Vec<u32> {
    let variable = (0..2 * VARIABLE_MTRRS).map(|n| msr::MTRR_VARIABLE + n);
    let mtrrs = variable.chain(msr::MTRR_FIXED).chain([msr::MTRR_DEF_TYPE]);
    let mut all: Vec<u32> = listed.to_vec();
    all.extend(mtrrs.filter(|index| !listed.contains(index)));
    all.retain(|&index| !LEFT_OUT.iter().any(|some| (some.first..=some.last).contains(&index)));
    all
}

/// `msrs` in the order to load them: the clock late, and the timer that compares with it last.
fn in_order(msrs: &[Msr]) -> Vec<Msr> {
    let rank = |msr: &Msr| match msr.index {
        msr::TSC => 1,
        msr::TSC_DEADLINE => 2,
        _ => 0,
    };
    let mut msrs = msrs.to_vec();
    msrs.sort_by_key(rank);
    msrs
}

impl KvmVcpu {
    /// Those of `indices` that KVM lets us read.
    pub(crate) fn read_msrs(&self, indices: &[u32]) -> Result<Vec<Msr>, KvmError> {
        let mut found = Vec::with_capacity(indices.len());
        let mut rest = indices;
        while !rest.is_empty() {
            let some = &rest[..rest.len().min(kvm::KVM_MAX_MSR_ENTRIES)];
            let entry = |&index: &u32| kvm::kvm_msr_entry { index, ..Default::default() };
            let entries: Vec<_> = some.iter().map(entry).collect();
            let mut list = Msrs::from_entries(&entries).expect("a chunk is as long as a list may be");
            let count = self.fd.get_msrs(&mut list).map_err(self.not_saved("MSRs (KVM_GET_MSRS)"))?;
            let read = &list.as_slice()[..count];
            found.extend(read.iter().map(|entry| Msr { index: entry.index, value: entry.data }));
            // The one that was refused is passed over.
            rest = &rest[(count + 1).min(some.len())..];
        }
        Ok(found)
    }

    /// Loads `msrs` in the right order.
    pub(super) fn load_msrs(&self, msrs: &[Msr]) -> Result<(), KvmError> {
        let ordered = in_order(msrs);
        let mut rest = &ordered[..];
        while !rest.is_empty() {
            let some = &rest[..rest.len().min(kvm::KVM_MAX_MSR_ENTRIES)];
            let taken = self.write_msrs(some).map_err(self.not_restored("MSRs (KVM_SET_MSRS)"))?;
            let mut done = taken;
            if let Some(&refused) = some.get(taken) {
                if !self.read_msrs(&[refused.index])?.contains(&refused) {
                    let Msr { index, value } = refused;
                    return Err(KvmError::Msr { id: self.id(), msr: index, value });
                }
                done += 1;
            }
            rest = &rest[done..];
        }
        Ok(())
    }

    fn not_saved(&self, what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
        super::not_saved(Owner::Vcpu(self.id()), what)
    }

    fn not_restored(&self, what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
        super::not_restored(Owner::Vcpu(self.id()), what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtrrs_are_added_once_and_what_is_left_out_is_gone() {
        let list = indices(&[msr::TSC, msr::APIC_BASE, msr::MTRR_DEF_TYPE, msr::kvm::WALL_CLOCK, msr::STAR, 0x485]);
        assert_eq!(list[..3], [msr::TSC, msr::MTRR_DEF_TYPE, msr::STAR]);
        assert_eq!(list.len(), 2 + 1 + 16 + 11);
        assert!(list.contains(&0x200) && list.contains(&0x20f) && !list.contains(&0x210));
    }

    #[test]
    fn the_clock_is_loaded_late_and_its_deadline_last() {
        let msrs = [msr::TSC_DEADLINE, msr::STAR, msr::TSC, msr::LSTAR].map(|index| Msr { index, value: 1 });
        let order: Vec<u32> = in_order(&msrs).iter().map(|msr| msr.index).collect();
        assert_eq!(order, [msr::STAR, msr::LSTAR, msr::TSC, msr::TSC_DEADLINE]);
    }

    #[test]
    fn every_gap_has_a_reason() {
        assert!(LEFT_OUT.iter().all(|some| some.first <= some.last && !some.why.is_empty()));
    }
}
