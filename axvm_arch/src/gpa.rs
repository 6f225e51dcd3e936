//! The guest-physical address, as a type of its own.
//!
//! No specification: 64 bits are more than any processor's physical address has. Left out: host and linear addresses.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A guest-physical address (GPA), in bytes from the start of the guest's address space.
///
/// A `Gpa` is a claim, not a proof: it may point outside RAM. `axvm_memory` turns claims into proofs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gpa(pub u64);

impl Gpa {
    /// The address `offset` bytes further, or `None` past the end of the 64-bit space.
    pub const fn checked_add(self, offset: u64) -> Option<Gpa> {
        match self.0.checked_add(offset) {
            Some(address) => Some(Gpa(address)),
            None => None,
        }
    }

    /// Whether the address is a multiple of `align` (a power of two).
    pub const fn is_aligned(self, align: u64) -> bool {
        self.0 & (align - 1) == 0
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
