//! The MP table: processors and interrupt lines, for kernels that read no ACPI tables.
//!
//! ```text
//!  layout::MP_TABLE   floating pointer, 16 bytes: "_MP_", where the table is      (found by scanning 0xf0000..0xfffff)
//!             +16     header "PCMP" | processors ... | bus ISA | IOAPIC | line n -> pin n ... | LINT0, LINT1
//!                      44             20 each          8         8        8 each                8 each
//! ```
//!
//! Every machine has it, with ACPI or without, as PCs had for years: a kernel with ACPI ignores it, one that is told
//! `acpi=off` keeps its processors by it, and small kernels (xv6, GNU Mach) read nothing else. Linux needs
//! CONFIG_X86_MPPARSE, which distributions for clouds leave out.
//!
//! Spec: Intel MultiProcessor Specification 1.4 (1997), 4 "MP Configuration Table". Left out: the PCI bus, which has no
//! device; APIC ids above 254, for which the table has no room: only ACPI can name them.

use axvm_arch::layout::{self, gsi};
use axvm_memory::GuestRam;

use crate::linux::BootError;

/// The highest APIC id that an entry can hold; 255 is the broadcast.
const LAST_ID: u32 = 254;
/// "Specification 1.4".
const REVISION: u8 = 4;
const POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;

/// Version of KVM's local APIC, as in its register.
const LAPIC_VERSION: u8 = 0x14;
/// Version and id of KVM's IOAPIC, as in its registers.
const IOAPIC_VERSION: u8 = 0x11;
const IOAPIC_ID: u8 = 0;
/// Processor flags: usable; the one that starts.
const ENABLED: u8 = 1 << 0;
const BOOTSTRAP: u8 = 1 << 1;
/// Family 6, with FPU and local APIC. It counts for processors without CPUID, and no such one runs here.
const SIGNATURE: u32 = 0x600;
const FEATURES: u32 = 1 << 9 | 1 << 0;

/// Number of the one bus.
const ISA: u8 = 0;
/// Kinds of interrupts.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// As the bus does: ISA is edge-triggered, active high.
const CONFORMING: u16 = 0;
/// Level, active high.
const HIGH_LEVEL: u16 = 0b11_01;
/// All local APICs.
const ALL: u8 = 0xff;

/// The table of one machine, with the pointer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MpTable {
    bytes: Vec<u8>,
    processors: usize,
}

/// Describes a machine with these processors, the first of which starts. `apic_ids`: the local APIC id of each vCPU.
pub fn build(apic_ids: &[u32]) -> MpTable {
    let ids: Vec<u8> = apic_ids.iter().filter(|&&id| id <= LAST_ID).map(|&id| id as u8).collect();
    let mut entries = Vec::new();
    for (n, &id) in ids.iter().enumerate() {
        entries.push(processor(id, n == 0));
    }
    entries.push([&[1, ISA][..], b"ISA   "].concat());
    entries.push([&[2, IOAPIC_ID, IOAPIC_VERSION, ENABLED][..], &(layout::IOAPIC.0 as u32).to_le_bytes()].concat());
    // Line 2 is where the second 8259 hangs on the first.
    for irq in (0..gsi::ISA_COUNT).filter(|&irq| irq != 2) {
        let pin = if irq == gsi::TIMER { gsi::TIMER_PIN } else { irq };
        let trigger = if irq == gsi::SCI { HIGH_LEVEL } else { CONFORMING };
        entries.push(interrupt(3, INT, trigger, irq as u8, [IOAPIC_ID, pin as u8]));
    }
    entries.push(interrupt(4, EXT_INT, CONFORMING, 0, [ids.first().copied().unwrap_or(0), 0]));
    entries.push(interrupt(4, NMI, CONFORMING, 0, [ALL, 1]));
    let bytes = [&pointer()[..], &table(&entries)].concat();
    MpTable { bytes, processors: ids.len() }
}

impl MpTable {
    /// How many processors it names: all whose APIC ids are below 255.
    pub fn processors(&self) -> usize {
        self.processors
    }

    /// The pointer with the table behind it, as they lie at [`layout::MP_TABLE`].
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Copies it to where kernels look for it.
    pub fn place(&self, ram: &GuestRam) -> Result<(), BootError> {
        let what = "the MP table";
        ram.write(layout::MP_TABLE, &self.bytes).map_err(|source| BootError::Write { what, source })
    }
}

/// 4.1 "MP Floating Pointer Structure". No IMCR: the PICs' interrupts come through LINT0 until they are masked.
fn pointer() -> [u8; POINTER_LEN] {
    let mut bytes = [0; POINTER_LEN];
    bytes[..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&(layout::MP_TABLE.0 as u32 + POINTER_LEN as u32).to_le_bytes());
    bytes[8] = 1; // its own length, in units of 16 bytes
    bytes[9] = REVISION;
    bytes[10] = checksum(&bytes);
    bytes
}

/// 4.2 "MP Configuration Table Header", and the entries.
fn table(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN);
    let len = HEADER_LEN + entries.iter().map(Vec::len).sum::<usize>();
    bytes.extend(b"PCMP");
    bytes.extend((len as u16).to_le_bytes());
    bytes.extend([REVISION, 0]); // the checksum follows
    bytes.extend(b"AXVM    ");
    bytes.extend(b"AXVMCORE    ");
    bytes.extend([0; 6]); // no table of the maker
    bytes.extend((entries.len() as u16).to_le_bytes());
    bytes.extend((layout::LAPIC.0 as u32).to_le_bytes());
    bytes.extend([0; 4]); // no extended entries
    entries.iter().for_each(|entry| bytes.extend(entry));
    bytes[7] = checksum(&bytes);
    bytes
}

/// 4.3.1 "Processor Entries".
fn processor(id: u8, first: bool) -> Vec<u8> {
    let mut entry = vec![0, id, LAPIC_VERSION, if first { ENABLED | BOOTSTRAP } else { ENABLED }];
    entry.extend(SIGNATURE.to_le_bytes());
    entry.extend(FEATURES.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

/// 4.3.4 "I/O Interrupt Assignment Entries" (kind 3), 4.3.5 "Local Interrupt Assignment Entries" (kind 4).
fn interrupt(entry: u8, kind: u8, flags: u16, irq: u8, [to, pin]: [u8; 2]) -> Vec<u8> {
    let [low, high] = flags.to_le_bytes();
    vec![entry, kind, low, high, ISA, irq, to, pin]
}

/// The byte that makes the sum zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_arch::Gpa;
    use axvm_memory::RamConfig;

    /// A kernel that looks for the table as the specification says, and believes nothing that does not add up.
    #[derive(Debug, Default, PartialEq)]
    struct Found {
        /// APIC id, and whether it is the one that starts.
        processors: Vec<(u8, bool)>,
        /// Number and name.
        buses: Vec<(u8, String)>,
        /// Id and address.
        ioapics: Vec<(u8, u32)>,
        /// Kind, flags, source, pin: of the IOAPIC, and of local APICs.
        lines: Vec<(u8, u16, u8, u8)>,
        local: Vec<(u8, u8, u8)>,
        lapic: u32,
    }

    fn look(ram: &GuestRam) -> Found {
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            ram.read(Gpa(at), &mut bytes).unwrap();
            bytes
        };
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let is_pointer = |bytes: &[u8]| &bytes[..4] == b"_MP_" && bytes[8] == 1 && sum(bytes) == 0;
        let mut pointers = (0xf_0000..0x10_0000).step_by(16).map(|at| read(at, 16)).filter(|at| is_pointer(at));
        let pointer = pointers.next().expect("a pointer that a scan finds");
        assert_eq!((pointers.next(), pointer[9], &pointer[11..]), (None, 4, &[0; 5][..]));
        let at = u64::from(word(&pointer, 4));
        let header = read(at, 44);
        let len = usize::from(u16::from_le_bytes([header[4], header[5]]));
        let all = read(at, len);
        assert!(&all[..4] == b"PCMP" && sum(&all) == 0 && at + len as u64 <= layout::FACS.0);
        let mut found = Found { lapic: word(&all, 36), ..Found::default() };
        let (mut rest, mut count) = (&all[44..], 0);
        while let Some(&kind) = rest.first() {
            let (entry, next) = rest.split_at(if kind == 0 { 20 } else { 8 });
            match kind {
                0 => {
                    assert_eq!((entry[2], entry[3] & 1), (0x14, 1));
                    found.processors.push((entry[1], entry[3] & 2 != 0));
                }
                1 => found.buses.push((entry[1], String::from_utf8_lossy(&entry[2..]).into_owned())),
                2 => found.ioapics.push((entry[1], word(entry, 4))),
                3 => {
                    assert_eq!((entry[4], entry[6]), (found.buses[0].0, found.ioapics[0].0));
                    found.lines.push((entry[1], u16::from_le_bytes([entry[2], entry[3]]), entry[5], entry[7]));
                }
                4 => found.local.push((entry[1], entry[6], entry[7])),
                other => panic!("an entry of kind {other}"),
            }
            (rest, count) = (next, count + 1);
        }
        assert_eq!(count, u16::from_le_bytes([all[34], all[35]]), "entries");
        found
    }

    fn placed(ids: &[u32]) -> (MpTable, Found) {
        let ram = GuestRam::allocate(&RamConfig::new(2 << 20)).unwrap();
        let table = build(ids);
        table.place(&ram).unwrap();
        (table, look(&ram))
    }

    #[test]
    fn a_kernel_finds_every_processor_and_the_first_one_starts() {
        let gaps: Vec<u32> = (0..20).map(|n| n / 5 * 8 + n % 5).collect();
        for ids in [vec![0], (0..4).collect(), gaps, (0..255).collect()] {
            let (table, found) = placed(&ids);
            let expected: Vec<_> = ids.iter().map(|&id| (id as u8, id == 0)).collect();
            assert_eq!((table.processors(), found.processors), (ids.len(), expected));
        }
    }

    #[test]
    fn ids_that_it_has_no_room_for_are_left_to_acpi() {
        let (table, found) = placed(&(0..300).collect::<Vec<_>>());
        assert_eq!((table.processors(), found.processors.len()), (255, 255));
        assert_eq!(found.processors.last(), Some(&(254, false)));
    }

    #[test]
    fn lines_arrive_as_the_madt_says() {
        let (_, found) = placed(&[0, 1]);
        assert_eq!((found.lapic, found.ioapics), (0xfee0_0000, vec![(0, 0xfec0_0000)]));
        assert_eq!(found.buses, [(0, "ISA   ".to_owned())]);
        let pin = |irq| if irq == 0 { 2 } else { irq };
        let flags = |irq| if irq == 9 { 0b1101 } else { 0 };
        let expected: Vec<_> = (0..16).filter(|&irq| irq != 2).map(|irq| (INT, flags(irq), irq, pin(irq))).collect();
        assert_eq!(found.lines, expected);
        assert_eq!(found.local, [(EXT_INT, 0, 0), (NMI, 0xff, 1)]);
    }

    #[test]
    fn the_largest_one_fits_its_room() {
        let table = build(&(0..255).collect::<Vec<_>>());
        assert!(table.bytes.len() as u64 <= layout::FACS.0 - layout::MP_TABLE.0, "{:#x}", table.bytes.len());
    }
}
