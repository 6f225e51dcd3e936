//! A guest's memory and registers as an ELF core file: what gdb and `crash` open.
//!
//! ```text
//!   0        | ELF header | PT_NOTE | PT_LOAD ram 0 | PT_LOAD ram 1 | PT_LOAD kernel ... |
//!            | notes: NT_PRSTATUS of each vCPU, VMCOREINFO ................................ |
//!   4 KiB .. | ram 0, at p_paddr 0 .................. holes where it is zero .............. |
//!            | ram 1, at p_paddr 4 GiB ................................................... |
//! ```
//!
//! Bytes of RAM are in the file once. A PT_LOAD of a region of RAM names them by guest-physical address alone (its linear
//! address is said to be the same); those behind it name parts of them again by the linear addresses of the kernel's half,
//! as the page tables of the first vCPU have them, so that a debugger finds a kernel's variables at their addresses.
//!
//! Spec: System V ABI, "Program Header", "Note Section"; Linux `include/uapi/linux/elf.h` (`struct elf_prstatus`),
//! `Documentation/admin-guide/kdump/vmcoreinfo.rst`. Left out: floating-point and vector registers, memory of devices.

use axvm_arch::Gpa;
use axvm_arch::paging::Mapping;
use axvm_arch::registers::CpuState;

/// Where the bytes of RAM begin, at least.
const PAGE: u64 = 4096;
const EHDR: u64 = 64;
const PHDR: u64 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Readable, writable, executable.
const RWX: u32 = 7;
const NT_PRSTATUS: u32 = 1;
/// What the notes of a vCPU and of a kernel have at most, with their heads.
const STATUS_NOTE: u64 = 512;
const KERNEL_NOTE: u64 = 2 * PAGE;
/// Mappings of the kernel that are named: the longest. A program header counts them with 16 bits.
const MOST_MAPPINGS: usize = 4096;

/// A run of RAM: guest-physical address and length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its first address.
    pub gpa: Gpa,
    /// Bytes.
    pub len: u64,
}

/// Where everything comes to lie in a core file.
#[derive(Debug)]
pub struct CoreFile {
    regions: Vec<Region>,
    mappings: Vec<(Mapping, u64)>,
    notes: u64,
    start: u64,
}

impl CoreFile {
    /// For these regions of RAM, by ascending address, so many vCPUs, and what the kernel maps. Of a mapping only what lies in
    /// RAM counts.
    pub fn new(regions: &[Region], vcpus: usize, mappings: &[Mapping]) -> CoreFile {
        let mut core = CoreFile { regions: regions.to_vec(), mappings: Vec::new(), notes: 0, start: 0 };
        let mut longest: Vec<Mapping> =
            mappings.iter().flat_map(|mapping| regions.iter().filter_map(|region| within(mapping, region))).collect();
        longest.sort_by_key(|mapping| std::cmp::Reverse(mapping.len));
        longest.truncate(MOST_MAPPINGS);
        longest.sort_by_key(|mapping| mapping.linear);
        core.notes = EHDR + PHDR * (1 + regions.len() + longest.len()) as u64;
        core.start = (core.notes + STATUS_NOTE * vcpus as u64 + KERNEL_NOTE).next_multiple_of(PAGE);
        core.mappings =
            longest.into_iter().filter_map(|mapping| Some((mapping, core.offset(mapping.physical)?))).collect();
        core
    }

    /// Where the byte at `gpa` is in the file, if it is RAM.
    pub fn offset(&self, gpa: Gpa) -> Option<u64> {
        let mut at = self.start;
        for region in &self.regions {
            if let Some(inside) = gpa.0.checked_sub(region.gpa.0).filter(|&inside| inside < region.len) {
                return Some(at + inside);
            }
            at += region.len;
        }
        None
    }

    /// Bytes of the whole file.
    pub fn file_len(&self) -> u64 {
        self.start + self.regions.iter().map(|region| region.len).sum::<u64>()
    }

    /// What stands before RAM: headers, and the notes of these vCPUs and of their kernel. `crash` wants notes there.
    pub fn head(&self, cpus: &[CpuState], vmcoreinfo: Option<&[u8]>) -> Vec<u8> {
        let notes = notes(cpus, vmcoreinfo);
        let mut head = self.headers(notes.len() as u64);
        head.extend(notes);
        head
    }

    fn headers(&self, notes: u64) -> Vec<u8> {
        let count = 1 + self.regions.len() + self.mappings.len();
        let mut out = b"\x7fELF\x02\x01\x01".to_vec();
        out.resize(16, 0);
        // ET_CORE, EM_X86_64, EV_CURRENT; no entry; program headers behind this one; no section headers.
        for half in [4_u16, 62, 1, 0] {
            out.extend(half.to_le_bytes());
        }
        for word in [0, EHDR, 0] {
            out.extend(word.to_le_bytes());
        }
        for half in [0, 0, EHDR as u16, PHDR as u16, count as u16, 64, 0, 0] {
            out.extend(half.to_le_bytes());
        }
        program_header(&mut out, PT_NOTE, [self.notes, 0, 0, notes]);
        for region in &self.regions {
            let at = self.offset(region.gpa).unwrap_or_default();
            program_header(&mut out, PT_LOAD, [at, region.gpa.0, region.gpa.0, region.len]);
        }
        for (mapping, at) in &self.mappings {
            program_header(&mut out, PT_LOAD, [*at, mapping.linear, mapping.physical.0, mapping.len]);
        }
        out
    }
}

/// The part of a mapping that lies in a region of RAM.
fn within(mapping: &Mapping, region: &Region) -> Option<Mapping> {
    let first = mapping.physical.0.max(region.gpa.0);
    let end = mapping.physical.0.checked_add(mapping.len)?.min(region.gpa.0 + region.len);
    let len = end.checked_sub(first).filter(|&len| len > 0)?;
    Some(Mapping { linear: mapping.linear + (first - mapping.physical.0), physical: Gpa(first), len })
}

/// Offset in the file, linear and physical address, length.
fn program_header(out: &mut Vec<u8>, kind: u32, [offset, linear, physical, len]: [u64; 4]) {
    out.extend(kind.to_le_bytes());
    out.extend(if kind == PT_NOTE { 0 } else { RWX }.to_le_bytes());
    for word in [offset, linear, physical, len, if kind == PT_NOTE { 0 } else { len }, 0] {
        out.extend(word.to_le_bytes());
    }
}

/// The notes: the registers of each vCPU, whose thread number is its own plus one, and what the kernel says of itself.
fn notes(cpus: &[CpuState], vmcoreinfo: Option<&[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, cpu) in (1..).zip(cpus) {
        note(&mut out, b"CORE\0", NT_PRSTATUS, &prstatus(number, cpu));
    }
    if let Some(text) = vmcoreinfo {
        note(&mut out, b"VMCOREINFO\0", 0, text);
    }
    out
}

fn note(out: &mut Vec<u8>, name: &[u8], kind: u32, text: &[u8]) {
    for word in [name.len() as u32, text.len() as u32, kind] {
        out.extend(word.to_le_bytes());
    }
    for part in [name, text] {
        out.extend(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// `struct elf_prstatus` of x86-64.
fn prstatus(number: u32, cpu: &CpuState) -> Vec<u8> {
    let (r, s) = (&cpu.regs, &cpu.system);
    let mut out = vec![0; 112];
    out[32..36].copy_from_slice(&number.to_le_bytes());
    // The order of `struct user_regs_struct`; orig_rax says that no system call is under way.
    let general = [
        r.r15,
        r.r14,
        r.r13,
        r.r12,
        r.rbp,
        r.rbx,
        r.r11,
        r.r10,
        r.r9,
        r.r8,
        r.rax,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        u64::MAX,
        r.rip,
    ];
    let segments = [s.ds, s.es, s.fs, s.gs].map(|segment| u64::from(segment.selector));
    let rest = [s.cs.selector.into(), r.rflags, r.rsp, s.ss.selector.into(), s.fs.base, s.gs.base];
    for word in general.iter().chain(&rest).chain(&segments) {
        out.extend(word.to_le_bytes());
    }
    out.resize(336, 0);
    out
}

/// What a Linux kernel says of itself for those who read its memory, if it is at the start of this page: the text of the
/// note that it keeps for a crash.
pub fn vmcoreinfo(page: &[u8]) -> Option<&[u8]> {
    let (head, rest) = page.split_first_chunk::<12>()?;
    let [name, text, kind] = [0, 4, 8].map(|at| head[at..at + 4].try_into().map_or(0, u32::from_le_bytes));
    let text = rest.get(12..)?.get(..text as usize)?;
    (name == 11 && kind == 0 && rest.starts_with(b"VMCOREINFO\0") && text.starts_with(b"OSRELEASE=")).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::read::elf::{ElfFile64, ProgramHeader};
    use object::{Endianness, Object, ObjectKind, ObjectSegment};

    const RAM: [Region; 2] = [Region { gpa: Gpa(0), len: 0x4000 }, Region { gpa: Gpa(0x1_0000_0000), len: 0x2000 }];

    #[test]
    fn another_reader_finds_ram_by_both_addresses() {
        let mappings = [
            // Over the end of the first region: what is behind it is no RAM.
            Mapping { linear: 0xffff_8880_0000_0000, physical: Gpa(0x3000), len: 0x5000 },
            Mapping { linear: 0xffff_ffff_8100_0000, physical: Gpa(0x1_0000_1000), len: 0x1000 },
            Mapping { linear: 0xffff_ffff_9000_0000, physical: Gpa(0xfee0_0000), len: 0x1000 },
        ];
        let core = CoreFile::new(&RAM, 2, &mappings);
        let cpus = [CpuState::default(), CpuState::default()];
        let mut file = core.head(&cpus, Some(b"OSRELEASE=6.8\n"));
        file.resize(core.file_len() as usize, 0);
        file[core.offset(Gpa(0x3010)).unwrap() as usize] = 1;
        file[core.offset(Gpa(0x1_0000_1fff)).unwrap() as usize] = 2;
        assert_eq!((core.offset(Gpa(0x4000)), core.offset(Gpa(0x1_0000_2000))), (None, None));

        let elf = ElfFile64::<Endianness>::parse(&*file).unwrap();
        assert_eq!((elf.kind(), elf.endianness()), (ObjectKind::Core, Endianness::Little));
        let segments: Vec<_> = elf.segments().map(|segment| (segment.address(), segment.size())).collect();
        let expected =
            [(0, 0x4000), (0x1_0000_0000, 0x2000), (0xffff_8880_0000_0000, 0x1000), (0xffff_ffff_8100_0000, 0x1000)];
        assert_eq!(segments, expected);
        let byte = |address: u64| {
            elf.segments().find_map(|segment| segment.data_range(address, 1).ok().flatten()).map(|byte| byte[0])
        };
        assert_eq!([0x3010, 0xffff_8880_0000_0010, 0xffff_ffff_8100_0fff].map(byte), [Some(1), Some(1), Some(2)]);
        let headers = elf.elf_program_headers();
        assert_eq!(headers[4].p_paddr(Endianness::Little), 0x1_0000_1000);
        let found: Vec<_> = headers
            .iter()
            .filter_map(|header| header.notes(Endianness::Little, &*file).unwrap())
            .flat_map(|mut notes| std::iter::from_fn(move || notes.next().unwrap()))
            .map(|note| (note.name().to_vec(), note.n_type(Endianness::Little).0, note.desc().len()))
            .collect();
        let status = (b"CORE".to_vec(), 1, 336);
        assert_eq!(found, [status.clone(), status, (b"VMCOREINFO".to_vec(), 0, 14)]);
    }

    #[test]
    fn a_vcpu_is_a_thread_with_its_registers() {
        let mut cpu = CpuState::default();
        (cpu.regs.rip, cpu.regs.r15, cpu.regs.rsp, cpu.system.gs.base) = (0x1234, 15, 0x8000, 77);
        let status = prstatus(3, &cpu);
        let word = |at: usize| u64::from_le_bytes(status[at..at + 8].try_into().unwrap());
        assert_eq!(status.len(), 336);
        // pr_pid; then, from 112 on, r15 is the first register, rip the 17th, rsp the 20th, gs_base the 23rd.
        assert_eq!((word(32), word(112), word(112 + 16 * 8)), (3, 15, 0x1234));
        assert_eq!((word(112 + 19 * 8), word(112 + 22 * 8)), (0x8000, 77));
    }

    #[test]
    fn a_kernels_own_note_is_found_at_the_start_of_its_page() {
        let mut page = Vec::new();
        note(&mut page, b"VMCOREINFO\0", 0, b"OSRELEASE=6.8.0\nBUILD-ID=1\n");
        page.resize(4096, 0);
        assert_eq!(vmcoreinfo(&page), Some(&b"OSRELEASE=6.8.0\nBUILD-ID=1\n"[..]));
        for (at, byte) in [(0, 12), (5, 0x10), (8, 1), (12, b'v'), (24, b'X')] {
            let mut other = page.clone();
            other[at] = byte;
            assert_eq!(vmcoreinfo(&other), None, "byte {at}");
        }
        assert_eq!(vmcoreinfo(&page[..20]), None);
    }

    #[test]
    fn tables_of_a_hostile_guest_make_no_file_that_cannot_be_read() {
        let mappings: Vec<_> = (0..100_000)
            .map(|n| Mapping { linear: n << 12, physical: Gpa(0x1000), len: 0x1000 + (n & 1) * 0x1000 })
            .chain([Mapping { linear: u64::MAX - 0xfff, physical: Gpa(u64::MAX - 0xfff), len: 0x2000 }])
            .collect();
        let core = CoreFile::new(&RAM, 300, &mappings);
        assert_eq!(core.mappings.len(), MOST_MAPPINGS);
        assert!(core.mappings.iter().all(|(mapping, _)| mapping.len == 0x2000), "the longest");
        let said = vec![b'x'; 4096];
        assert!(core.head(&[CpuState::default(); 300], Some(&said)).len() as u64 <= core.start);
    }
}
