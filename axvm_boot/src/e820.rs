//! The memory map that firmware hands to the kernel: e820.
//!
//! ```text
//!   0        0x9fc00  RAM
//!   0x9fc00  0xa0000  reserved (where a PC's EBDA is)
//!   0xe0000  0xff000  ACPI, MP tables    \  or reserved as a whole,
//!   0xff000  1 MiB    ACPI NVS (FACS)    /  without ACPI
//!   1 MiB    3 GiB    RAM, as far as it goes
//!   ECAM, IOAPIC, local APIC, KVM's pages      reserved
//!   4 GiB    ...      the rest of RAM
//! ```
//!
//! Spec: ACPI 6.5, 15 "System Address Map Interfaces".

use axvm_arch::{Gpa, layout};

/// What a range of addresses is, with the number that ACPI gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// RAM, free for use.
    Ram = 1,
    /// Not for use.
    Reserved = 2,
    /// ACPI tables; usable as RAM once they are read.
    AcpiData = 3,
    /// Memory of the firmware that must be kept over sleep.
    AcpiNvs = 4,
}

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First address.
    pub gpa: Gpa,
    /// Length in bytes.
    pub len: u64,
    /// What is there.
    pub kind: E820Kind,
}

impl E820Entry {
    fn new(start: Gpa, end: Gpa, kind: E820Kind) -> E820Entry {
        E820Entry { gpa: start, len: end.0 - start.0, kind }
    }

    /// First address behind the range.
    pub fn end(&self) -> Gpa {
        Gpa(self.gpa.0 + self.len)
    }
}

/// The map of a machine with `ram_size` bytes of RAM (at least 2 MiB), with or without ACPI tables and the ECAM of PCI.
pub fn map(ram_size: u64, acpi: bool, ecam: bool) -> Vec<E820Entry> {
    use E820Kind::{AcpiData, AcpiNvs, Ram, Reserved};
    let below = ram_size.min(layout::HOLE.0);
    let page = |gpa: Gpa| E820Entry::new(gpa, Gpa(gpa.0 + 0x1000), Reserved);
    let mut map = vec![
        E820Entry::new(Gpa(0), layout::LOW_RAM_END, Ram),
        E820Entry::new(layout::LOW_RAM_END, Gpa(0xa_0000), Reserved),
    ];
    if acpi {
        map.push(E820Entry::new(layout::ACPI_TABLES, layout::FACS, AcpiData));
        map.push(E820Entry::new(layout::FACS, layout::HIGH_RAM, AcpiNvs));
    } else {
        map.push(E820Entry::new(layout::ACPI_TABLES, layout::HIGH_RAM, Reserved));
    }
    map.push(E820Entry::new(layout::HIGH_RAM, Gpa(below), Ram));
    if ecam {
        let end = Gpa(layout::PCI_ECAM.0 + layout::PCI_ECAM_LEN);
        map.push(E820Entry::new(layout::PCI_ECAM, end, Reserved));
    }
    map.push(page(layout::IOAPIC));
    map.push(page(layout::LAPIC));
    map.push(E820Entry::new(layout::KVM_IDENTITY_MAP, Gpa(layout::KVM_TSS.0 + 0x3000), Reserved));
    if ram_size > below {
        let start = layout::RAM_ABOVE_4G;
        map.push(E820Entry::new(start, Gpa(start.0 + ram_size - below), Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const SIZES: [u64; 6] = [2 * MIB, 128 * MIB, GIB, 3 * GIB, 3 * GIB + MIB, 6 * GIB];

    #[test]
    fn ranges_ascend_and_never_overlap() {
        for (size, acpi) in SIZES.into_iter().flat_map(|size| [(size, true), (size, false)]) {
            let map = map(size, acpi, true);
            assert!(map.windows(2).all(|pair| pair[0].end() <= pair[1].gpa), "{map:?}");
            assert!(map.iter().all(|entry| entry.len > 0), "{map:?}");
        }
    }

    #[test]
    fn all_ram_is_listed_but_the_legacy_area() {
        let legacy = layout::HIGH_RAM.0 - layout::LOW_RAM_END.0;
        for size in SIZES {
            let ram: u64 =
                map(size, true, false).iter().filter(|entry| entry.kind == E820Kind::Ram).map(|entry| entry.len).sum();
            assert_eq!(size - legacy, ram);
        }
    }

    #[test]
    fn no_ram_is_promised_in_the_hole() {
        let hole = layout::HOLE..layout::RAM_ABOVE_4G;
        for entry in map(6 * GIB, true, true).iter().filter(|entry| entry.kind == E820Kind::Ram) {
            assert!(entry.end() <= hole.start || entry.gpa >= hole.end, "{entry:?}");
        }
    }

    #[test]
    fn acpi_areas_exist_only_with_acpi() {
        let is_acpi = |entry: &E820Entry| matches!(entry.kind, E820Kind::AcpiData | E820Kind::AcpiNvs);
        assert_eq!(map(GIB, true, false).iter().filter(|entry| is_acpi(entry)).count(), 2);
        assert_eq!(map(GIB, false, false).iter().filter(|entry| is_acpi(entry)).count(), 0);
    }
}
