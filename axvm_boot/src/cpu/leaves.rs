//! A set of CPUID leaves under construction.

use axvm_arch::cpuid::CpuidEntry;

/// First leaf of the extended range, which starts with its own highest leaf.
pub(super) const EXTENDED: u32 = 0x8000_0000;

/// Who made the host's processor: the guest sees the same, because its kernel picks MSRs, errata and
/// system call paths by it, and these are the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vendor {
    /// GenuineIntel.
    Intel,
    /// AuthenticAMD, and Hygon, which builds AMD's design.
    Amd,
    /// All others.
    Other,
}

/// The leaves, in the order KVM gave them.
pub(super) struct Leaves {
    entries: Vec<CpuidEntry>,
}

impl Leaves {
    pub(super) fn new(supported: &[CpuidEntry]) -> Leaves {
        Leaves { entries: supported.to_vec() }
    }

    pub(super) fn into_entries(self) -> Vec<CpuidEntry> {
        self.entries
    }

    pub(super) fn get(&self, function: u32, index: u32) -> Option<&CpuidEntry> {
        self.entries.iter().find(|entry| entry.function == function && entry.index == index)
    }

    pub(super) fn get_mut(&mut self, function: u32, index: u32) -> Option<&mut CpuidEntry> {
        self.entries.iter_mut().find(|entry| entry.function == function && entry.index == index)
    }

    /// All subleaves of `function`.
    pub(super) fn subleaves_mut(&mut self, function: u32) -> impl Iterator<Item = &mut CpuidEntry> {
        self.entries.iter_mut().filter(move |entry| entry.function == function)
    }

    /// Adds `new`, in place of an older answer to the same question.
    pub(super) fn put(&mut self, new: CpuidEntry) {
        match self.get_mut(new.function, new.index) {
            Some(entry) => *entry = new,
            None => self.entries.push(new),
        }
    }

    /// Keeps only the leaves for which `keep` says so.
    pub(super) fn retain(&mut self, keep: impl Fn(&CpuidEntry) -> bool) {
        self.entries.retain(keep);
    }

    /// Highest leaf of the range that starts at `base` (0 or [`EXTENDED`]).
    pub(super) fn last_of(&self, base: u32) -> u32 {
        self.get(base, 0).map_or(0, |entry| entry.eax)
    }

    /// The name in /proc/cpuinfo, cut at 47 bytes: three leaves of 16 bytes, NUL-terminated.
    pub(super) fn put_name(&mut self, name: &str) {
        let mut text = [0; 48];
        let len = name.len().min(47);
        text[..len].copy_from_slice(&name.as_bytes()[..len]);
        for (function, part) in (EXTENDED + 2..).zip(text.as_chunks::<16>().0) {
            let word = |number: usize| u32::from_le_bytes(part.as_chunks::<4>().0[number]);
            let [eax, ebx, ecx, edx] = [0, 1, 2, 3].map(word);
            self.put(CpuidEntry { function, eax, ebx, ecx, edx, ..CpuidEntry::default() });
        }
    }

    pub(super) fn vendor(&self) -> Vendor {
        let name = self.get(0, 0).map(|entry| [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes));
        match name.as_ref().map(|name| name.as_flattened()) {
            Some(b"GenuineIntel") => Vendor::Intel,
            Some(b"AuthenticAMD" | b"HygonGenuine") => Vendor::Amd,
            _ => Vendor::Other,
        }
    }
}
