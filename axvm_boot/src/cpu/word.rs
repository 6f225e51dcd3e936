//! One 32-bit answer of CPUID whose bits are features.
//!
//! Spec: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E. Left out: answers that are numbers.

use super::leaves::{EXTENDED, Leaves};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Leaf, subleaf, register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(pub(super) u32, pub(super) u32, pub(super) Register);

pub(super) const L1_ECX: Word = Word(1, 0, Register::Ecx);
pub(super) const L1_EDX: Word = Word(1, 0, Register::Edx);
pub(super) const L7_EBX: Word = Word(7, 0, Register::Ebx);
pub(super) const L7_ECX: Word = Word(7, 0, Register::Ecx);
pub(super) const L7_EDX: Word = Word(7, 0, Register::Edx);
pub(super) const L7_1_EAX: Word = Word(7, 1, Register::Eax);
pub(super) const L7_1_EDX: Word = Word(7, 1, Register::Edx);
pub(super) const LD1_EAX: Word = Word(0xd, 1, Register::Eax);
pub(super) const X1_ECX: Word = Word(EXTENDED + 1, 0, Register::Ecx);
pub(super) const X1_EDX: Word = Word(EXTENDED + 1, 0, Register::Edx);
pub(super) const X8_EBX: Word = Word(EXTENDED + 8, 0, Register::Ebx);

impl Word {
    /// Its value; zero where the leaf is not there.
    pub(super) fn find(self, leaves: &Leaves) -> u32 {
        leaves.get(self.0, self.1).map_or(0, |leaf| match self.2 {
            Register::Eax => leaf.eax,
            Register::Ebx => leaf.ebx,
            Register::Ecx => leaf.ecx,
            Register::Edx => leaf.edx,
        })
    }

    pub(super) fn find_mut(self, leaves: &mut Leaves) -> Option<&mut u32> {
        let leaf = leaves.get_mut(self.0, self.1)?;
        Some(match self.2 {
            Register::Eax => &mut leaf.eax,
            Register::Ebx => &mut leaf.ebx,
            Register::Ecx => &mut leaf.ecx,
            Register::Edx => &mut leaf.edx,
        })
    }
}
