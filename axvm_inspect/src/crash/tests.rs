//! Crashes made by hand, each with its whole report as a file beside this one; `BLESS=1` writes them anew.

use std::path::Path;

use axvm_arch::Gpa;
use axvm_arch::cpuid::Vendor;
use axvm_arch::registers::{CpuState, DescriptorTable, Registers, Segment, SystemRegisters, cr4, efer};
use axvm_kvm::failure::{EntryFailure, VectoringInfo};
use proptest::prelude::*;

use super::*;

/// RAM of 1 MiB: tables for the first 4 GiB at 0x1000, code at 0x8000, an IDT at 0x4000.
struct Guest {
    ram: Vec<u8>,
    snapshot: Snapshot,
    processor: Processor,
}

const CODE: u64 = 0x8000;
const IDT: u64 = 0x4000;

impl Guest {
    /// In long mode, with this code at RIP.
    fn new(code: &[u8]) -> Guest {
        let data = Segment::data(0x18);
        let system = SystemRegisters {
            cs: Segment::code64(0x10),
            ss: data,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            tr: Segment::tss(0x20, 0x600),
            gdt: DescriptorTable { base: 0x500, limit: 0x2f },
            idt: DescriptorTable { base: IDT, limit: 0xfff },
            cr0: 0x8000_0011,
            cr3: 0x1000,
            cr4: cr4::PAE,
            efer: efer::LME | efer::LMA,
        };
        let regs = Registers { rip: CODE, rsp: 0x7000, rflags: 2, ..Registers::default() };
        let processor = Processor { vendor: Vendor::Intel, physical_bits: 40, linear_bits: 48, ..Processor::default() };
        let snapshot = Snapshot::from(CpuState { regs, system });
        let mut guest = Guest { ram: vec![0; 1 << 20], snapshot, processor };
        guest.put(0x1000, 0x2003);
        (0..4).for_each(|gib| guest.put(0x2000 + gib * 8, gib << 30 | 0x83));
        for vector in 0..32 {
            guest.put(IDT + vector * 16, 0x8e00_0010_9000);
        }
        guest.code(code);
        guest
    }

    fn put(&mut self, at: u64, word: u64) {
        self.ram[at as usize..][..8].copy_from_slice(&word.to_le_bytes());
    }

    fn code(&mut self, code: &[u8]) {
        self.ram[CODE as usize..][..code.len()].copy_from_slice(code);
    }

    fn without_idt(mut self) -> Guest {
        self.snapshot.cpu.system.idt = DescriptorTable::default();
        self
    }

    fn told(mut self, vector: u8, error_code: Option<u32>, cr2: u64) -> Guest {
        (self.snapshot.events.exception.vector, self.snapshot.events.exception.error_code) = (vector, error_code);
        self.snapshot.cr2 = cr2;
        self
    }

    fn report(&self, failure: &Failure) -> CrashReport {
        let read = |gpa: Gpa, data: &mut [u8]| {
            let from = usize::try_from(gpa.0).ok().and_then(|at| self.ram.get(at..at.checked_add(data.len())?));
            from.map(|from| data.copy_from_slice(from)).is_some()
        };
        let console = ["Booting".to_owned(), "\u{1b}[31mred".to_owned()];
        let (snapshot, processor) = (&self.snapshot, &self.processor);
        CrashFacts { vcpu: 0, failure, snapshot, processor, read: &read, console: &console }.report()
    }

    /// The report is what the file says, and its likeliest cause has these words.
    fn tells(&self, failure: Failure, file: &str, words: &str) {
        let report = self.report(&failure);
        assert!(report.causes[0].what.contains(words), "{:#?}", report.causes);
        let text = report.to_string();
        text.lines().for_each(|line| assert!(line.chars().count() <= TERMINAL, "{line}"));
        assert!(!text.contains('\u{1b}'), "no escape of a guest reaches a terminal");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/crash/snapshots").join(file);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{}", path.display());
        serde_json::to_string(&report).unwrap();
    }
}

fn emulation(code: &[u8]) -> Failure {
    Failure::Internal(InternalError::Emulation { code: code.to_vec(), exit_reason: Some(48) })
}

#[test]
fn an_undefined_instruction_without_an_idt() {
    Guest::new(&[0x0f, 0x0b]).without_idt().tells(
        Failure::TripleFault,
        "missing-idt.txt",
        "#UD (6, invalid opcode) has no handler",
    );
}

#[test]
fn a_page_that_is_not_present() {
    let mut guest = Guest::new(&[0x48, 0x8b, 0x43, 0x08]).without_idt().told(14, Some(0), 0x10_0000_0008);
    guest.snapshot.cpu.regs.rbx = 64 << 30;
    guest.tells(Failure::TripleFault, "not-present.txt", "0x1000000008 has no page: the PDPTE is not present");
}

#[test]
fn a_reserved_bit() {
    let mut guest = Guest::new(&[0x89, 0x01]).without_idt().told(14, Some(0b1010), 0x1_0000_0000);
    guest.snapshot.cpu.regs.rcx = 4 << 30;
    guest.put(0x2020, 0x3003);
    guest.put(0x3000, 1 << 13 | 0x83);
    guest.tells(Failure::TripleFault, "reserved-bit.txt", "the PDE has reserved bits set: 0x2000");
}

#[test]
fn an_instruction_that_kvm_does_not_emulate() {
    let code = [0x66, 0x0f, 0x74, 0x00, 0xe9, 0xac, 0x07, 0x00, 0x00, 0x48, 0x8d, 0x8c, 0x24, 0x31, 0x03];
    let mut guest = Guest::new(&code);
    guest.snapshot.cpu.system.cr4 |= cr4::OSFXSR;
    guest.snapshot.cpu.regs.rax = 0xcc00_0000;
    guest.tells(emulation(&code), "unsupported-instruction.txt", "`pcmpeqb xmm0, [rax]` accesses 0xcc000000");
    guest.snapshot.cpu.regs.rax = 0x9000;
    let report = guest.report(&emulation(&code));
    assert!(report.causes[0].what.contains("host's KVM does not know: `pcmpeqb"), "{:?}", report.causes);
}

#[test]
fn efer_without_lme_while_paging_is_on() {
    let mut guest = Guest::new(&[0x0f, 0x30]).without_idt().told(13, Some(0), 0);
    guest.snapshot.cpu.regs.rcx = 0xc000_0080;
    guest.tells(Failure::TripleFault, "efer-and-cr0.txt", "With paging, EFER.LMA is what EFER.LME is [efer-lma-lme]");
}

#[test]
fn paging_with_long_mode_and_without_pae() {
    let mut guest = Guest::new(&[0x0f, 0x22, 0xc0]).without_idt();
    let system = &mut guest.snapshot.cpu.system;
    (system.cs, system.cr0, system.cr4, system.efer) = (Segment::code32(0x10), 0x11, 0, efer::LME);
    guest.snapshot.cpu.regs.rax = 0x8000_0011;
    let report = guest.report(&Failure::TripleFault);
    assert!(report.causes[0].what.contains("[long-needs-pae]"), "{:?}", report.causes);
    assert!(report.walks.is_empty(), "paging is off");
}

#[test]
fn a_jump_to_where_no_ram_is() {
    let mut guest = Guest::new(&[]);
    guest.snapshot.cpu.regs.rip = 0xcc00_0000;
    guest.tells(emulation(&[]), "outside-of-ram.txt", "The guest jumped to where no RAM is: RIP 0xcc000000");
}

#[test]
fn registers_that_amd_has_reset() {
    let mut guest = Guest::new(&[]);
    let real = Segment { limit: 0xffff, granularity: false, db: false, ..Segment::data(0) };
    guest.snapshot.cpu.system = SystemRegisters {
        cs: Segment { base: 0xffff_0000, selector: 0xf000, kind: 0xb, ..real },
        ss: real,
        ds: real,
        es: real,
        fs: real,
        gs: real,
        tr: Segment { limit: 0xffff, ..Segment::tss(0, 0) },
        gdt: DescriptorTable { base: 0, limit: 0xffff },
        idt: DescriptorTable { base: 0, limit: 0xffff },
        cr0: 0x6000_0010,
        ..SystemRegisters::default()
    };
    guest.snapshot.cpu.regs = Registers { rip: 0xfff0, rdx: 0x80_0f12, rflags: 2, ..Registers::default() };
    guest.processor.vendor = Vendor::Amd;
    guest.tells(Failure::TripleFault, "amd-reset.txt", "which one, this processor does not tell");
    assert!(guest.report(&Failure::TripleFault).was_reset);
    assert!(!guest.report(&emulation(&[])).was_reset, "an INIT is no crash by itself");
}

#[test]
fn an_entry_that_the_processor_refuses() {
    let mut guest = Guest::new(&[0xf4]);
    guest.snapshot.cpu.regs.rflags = 0;
    guest.snapshot.cpu.system.tr.kind = 9;
    let failure = EntryFailure { reason: 0x8000_0021, host_cpu: 1 };
    guest.tells(Failure::Entry(failure), "entry.txt", "The task register holds a busy TSS");
    let other = guest.report(&Failure::Entry(EntryFailure { reason: 0x8000_0029, host_cpu: 3 }));
    assert!(other.causes.len() == 2, "what is broken is told all the same: {:?}", other.causes);
    let clean = Guest::new(&[0xf4]).report(&Failure::Entry(EntryFailure { reason: 0x8000_0029, host_cpu: 3 }));
    assert!(clean.causes[0].what.contains("with KVM, on host CPU 3"), "{:?}", clean.causes);
}

#[test]
fn the_trigger_is_what_the_instruction_does() {
    let find = |code: &[u8], change: fn(&mut Guest)| {
        let mut guest = Guest::new(code).without_idt();
        change(&mut guest);
        let trigger = guest.report(&Failure::TripleFault).trigger;
        trigger.map(|trigger| (trigger.vector.0, trigger.what)).unwrap_or_default()
    };
    for (code, change, vector, words) in [
        (&[0xff, 0xff][..], (|_| {}) as fn(&mut Guest), 6, "no instruction"),
        (&[0xcc], |_| {}, 3, "INT3"),
        (&[0xcd, 0x80], |_| {}, 0x80, "INT 0x80"),
        (&[0x66, 0x0f, 0xef, 0xc0], |_| {}, 6, "CR4.OSFXSR is clear"),
        (&[0xc5, 0xf8, 0x57, 0xc0], |g| g.snapshot.cpu.system.cr4 |= cr4::OSFXSR, 0, ""),
        (&[0xc5, 0xfc, 0x57, 0xc0], |g| g.snapshot.cpu.system.cr4 |= cr4::OSFXSR, 6, "CR4.OSXSAVE is clear"),
        (&[0x50], |g| g.snapshot.cpu.regs.rsp = 1 << 40, 14, "the stack at"),
        (&[0x48, 0x8b, 0x00], |g| g.snapshot.cpu.regs.rax = 1 << 60, 13, "is not canonical"),
        (&[0x90], |g| g.snapshot.cpu.regs.rip = 1 << 40, 14, "the code at RIP 0x10000000000 has no page"),
        (&[0x90], |g| g.snapshot.cpu.regs.rip = 1 << 60, 13, "RIP 0x1000000000000000 is not canonical"),
        (&[0x0f, 0x22, 0xd8], |g| g.snapshot.cpu.regs.rax = 1 << 50, 13, "[cr3-reserved]"),
        (&[0x0f, 0x22, 0xe0], |_| {}, 13, "CR4 = 0x0, which the processor refuses"),
        (&[0x0f, 0x22, 0xe0], |g| g.snapshot.cpu.regs.rax = 0x1020, 13, "CR4.LA57 cannot change"),
        (&[0x0f, 0x22, 0xc0], |g| g.snapshot.cpu.regs.rax = 0x11, 13, "64-bit code cannot switch paging off"),
        (&[0x8b, 0x00], |g| g.snapshot.cpu.system.ss.dpl = 3, 14, "CPL 3 accesses"),
        (&[0x48, 0x8d, 0x00], |g| g.snapshot.cpu.regs.rax = 1 << 40, 0, ""),
        (&[0xf4], |g| g.snapshot.cpu.system.ss.dpl = 3, 13, "`hlt` is for the kernel only, and the CPL is 3"),
        (&[0x0f, 0x32], |g| g.snapshot.cpu.regs.rcx = 0x1a0, 0, ""),
        (&[0x90], |_| {}, 0, ""),
    ] {
        let (found, what) = find(code, change);
        assert!(found == vector && what.contains(words), "{code:x?}: {found} {what}");
    }
}

#[test]
fn a_page_that_forbids_execution_or_is_user_spaces() {
    let mut guest = Guest::new(&[0x90]);
    guest.snapshot.cpu.system.efer |= efer::NXE;
    guest.put(0x2000, 1 << 63 | 0x83);
    assert!(guest.report(&Failure::TripleFault).causes[0].what.contains("forbids execution (XD)"));
    let mut guest = Guest::new(&[0x90]);
    guest.snapshot.cpu.system.cr4 |= cr4::SMEP;
    guest.put(0x1000, 0x2007);
    guest.put(0x2000, 0x87);
    assert!(guest.report(&Failure::TripleFault).causes[0].what.contains("CR4.SMEP"));
}

#[test]
fn kvm_is_believed_where_an_exception_is_on_its_way() {
    let mut guest = Guest::new(&[0x90]).told(14, Some(0b11), 0x1234);
    let causes = guest.report(&Failure::TripleFault).causes;
    assert!(
        causes[0].what.contains("KVM knows of was a write by the kernel against the page's rights, at 0x1234"),
        "{causes:?}"
    );
    // What it remembers from before does not fit an instruction that faults otherwise.
    guest.code(&[0x0f, 0x0b]);
    let trigger = guest.report(&Failure::TripleFault).trigger.unwrap();
    assert_eq!((trigger.vector.0, trigger.error_code), (6, None));
    guest.snapshot.events.exception.injected = true;
    assert_eq!(guest.report(&Failure::TripleFault).trigger.unwrap().vector.0, 14);
}

#[test]
fn an_msr_that_kvm_refuses_has_a_name() {
    let mut guest = Guest::new(&[0x0f, 0x30]).told(13, Some(0), 0);
    (guest.snapshot.cpu.regs.rcx, guest.snapshot.cpu.regs.rax) = (0x1a0, 5);
    let what = |guest: &Guest| guest.report(&Failure::TripleFault).trigger.unwrap().what;
    assert_eq!(what(&guest), "`wrmsr` of MSR 0x1a0 (IA32_MISC_ENABLE) with 0x5, which this vCPU does not take");
    guest.code(&[0x0f, 0x32]);
    guest.snapshot.cpu.regs.rcx = 0x9999;
    assert_eq!(what(&guest), "`rdmsr` of MSR 0x9999, which this vCPU does not have");
}

#[test]
fn why_there_is_no_handler() {
    let fault = |change: fn(&mut Guest)| {
        let mut guest = Guest::new(&[0x0f, 0x0b]);
        change(&mut guest);
        guest.report(&Failure::TripleFault).gates[0].fault.clone().unwrap_or_default()
    };
    assert_eq!(fault(|_| {}), "");
    assert!(fault(|g| g.snapshot.cpu.system.idt.limit = 0x6e).contains("the IDT ends before it"));
    assert!(fault(|g| g.snapshot.cpu.system.idt.base = 1 << 40).contains("cannot be read: the PML4E is not present"));
    assert!(fault(|g| g.snapshot.cpu.system.idt.base = 0xcc00_0000).contains("not in RAM"));
    assert!(fault(|g| g.put(IDT + 6 * 16, 0)).contains("no interrupt, trap or task gate"));
    assert!(fault(|g| g.put(IDT + 6 * 16, 0x0e00_0010_9000)).contains("not present"));
    assert!(fault(|g| g.put(IDT + 6 * 16 + 8, 0x1000)).contains("its handler 0x100000009000 has no page"));
}

#[test]
fn a_stack_that_is_nowhere() {
    let mut guest = Guest::new(&[0x0f, 0x0b]);
    guest.snapshot.cpu.regs.rsp = 0;
    let causes = guest.report(&Failure::TripleFault).causes;
    assert!(causes[1].what.contains("No exception can be delivered on this stack, RSP 0x0"), "{causes:?}");
}

#[test]
fn other_failures_have_a_cause_too() {
    let guest = Guest::new(&[0x90]);
    let event = VectoringInfo(0x8000_0b0e);
    for (failure, words) in [
        (Failure::SystemEvent(3), "the end of the whole machine"),
        (Failure::Other(77), "AxVM did not ask for"),
        (Failure::Internal(InternalError::SimultaneousExceptions), "does not say more"),
        (Failure::Internal(InternalError::UnexpectedExit { exit_reason: 99 }), "exit reason 0x63"),
        (Failure::Internal(InternalError::Delivery { event, exit_reason: 49 }), "(EPT misconfiguration)"),
    ] {
        let causes = guest.report(&failure).causes;
        assert!(causes.iter().any(|cause| cause.what.contains(words)), "{causes:?}");
    }
    let mut guest = Guest::new(&[0x90]);
    guest.snapshot.events.interrupt.injected = true;
    guest.snapshot.events.interrupt.vector = 0x30;
    assert_eq!(guest.report(&Failure::Other(77)).gates[0].vector, Vector(0x30), "what is on its way has a gate");
    guest.snapshot.cpu.system.idt.base = 0xcc00_0000;
    let report = guest.report(&Failure::Internal(InternalError::Delivery { event, exit_reason: 49 }));
    assert_eq!(report.gates[0].vector, Vector(14));
    let causes = guest.report(&Failure::Internal(InternalError::Delivery { event, exit_reason: 49 })).causes;
    assert!(causes[0].what.contains("The IDT at 0xcc000000 cannot be read"), "{causes:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A guest may leave anything: a report is made, and fits.
    #[test]
    fn no_guest_is_too_odd(
        code in proptest::collection::vec(any::<u8>(), 0..15),
        words in proptest::collection::vec(any::<u64>(), 12),
        small in any::<[u8; 6]>(),
        kind in 0..5,
    ) {
        let mut guest = Guest::new(&code);
        let (regs, system) = (&mut guest.snapshot.cpu.regs, &mut guest.snapshot.cpu.system);
        (regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsp) = (words[0], words[1], words[2], words[3], words[4]);
        if small[0] & 1 != 0 {
            (system.cr0, system.cr4, system.efer) = (words[5], words[6], words[7]);
        }
        if small[0] & 2 != 0 {
            (system.cr3, system.idt.base, regs.rip) = (words[8], words[9], words[10]);
        }
        (system.idt.limit, system.cs.base) = (words[11] as u16, words[11] >> 16);
        (system.cs.long, system.cs.db, system.ss.dpl) = (small[0] & 4 == 0, small[0] & 8 != 0, small[1]);
        guest.snapshot.events.exception.vector = small[2];
        guest.snapshot.events.exception.injected = small[0] & 16 != 0;
        guest.snapshot.cr2 = words[0];
        let failure = match kind {
            0 => Failure::TripleFault,
            1 => Failure::Entry(EntryFailure { reason: words[1], host_cpu: 0 }),
            2 => emulation(&code),
            3 => Failure::Internal(InternalError::decode(words[2] as u32 % 6, &words[..(small[3] % 12).into()])),
            _ => Failure::SystemEvent(words[3] as u32),
        };
        let report = guest.report(&failure);
        prop_assert!(!report.causes.is_empty());
        for line in report.to_string().lines() {
            prop_assert!(line.chars().count() <= TERMINAL, "{}", line);
        }
    }
}
