//! A test bench for guests of a few instructions, on the real KVM.
//!
//! ```text
//!   0x04f0  operand for LGDT                      guest!(name, "assembly", ...)   --> name() -> bytes
//!   0x0500  GDT: 08 code64, 10 code32, 18 data    Bench::new(&kvm, name())        --> at 0x1000
//!   0x0600  IDT, 96 gates                         bench.place(0x2000, handler())
//!   0x1000  code; the stack grows down from it    bench.run_until(|exit| ...)
//! ```
//!
//! A guest starts in 32-bit protected mode with flat segments, paging and interrupts off. Without
//! `/dev/kvm` a test says `skipped` and why, through `kvm_or_skip!`.
#![allow(dead_code, unreachable_pub, reason = "shared by test binaries, each uses a part")]

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_arch::cpuid::CpuidEntry;
use axvm_arch::msr::Msr;
use axvm_arch::registers::{CpuState, DescriptorTable, RFLAGS_RESERVED, Registers, Segment, SystemRegisters, cr0};
use axvm_kvm::{Exit, Kicker, Kvm, KvmVcpu, Vcpu, VcpuSetup, Vm, VmState};
use axvm_memory::{GuestRam, RamConfig};

/// Operand for LGDT: limit and base of the GDT.
pub const GDT_OPERAND: u64 = 0x4f0;
/// The GDT.
pub const GDT: u64 = 0x500;
/// The IDT, as long as vectors 0 to 0x5f need.
pub const IDT: u64 = 0x600;
/// Where a guest's code lies and starts.
pub const CODE: u64 = 0x1000;
/// Guest RAM, in bytes.
pub const RAM: u64 = 4 << 20;
/// Longer than any guest here needs, even interpreted.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);

/// The bytes of a guest, assembled into the test binary (Intel syntax), as a function.
macro_rules! guest {
    ($name:ident, $($line:expr),+ $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata.guests, \"a\"",
            concat!(stringify!($name), "_start:"),
            $($line,)+
            concat!(stringify!($name), "_end:"),
            ".code64",
            ".popsection",
            concat!(".globl ", stringify!($name), "_start, ", stringify!($name), "_end"),
        );
        pub(crate) fn $name() -> &'static [u8] {
            mod symbols {
                unsafe extern "C" {
                    #[link_name = concat!(stringify!($name), "_start")]
                    pub(super) static START: u8;
                    #[link_name = concat!(stringify!($name), "_end")]
                    pub(super) static END: u8;
                }
            }
            let (start, end) = (&raw const symbols::START, &raw const symbols::END);
            // SAFETY: both labels are in the block above, in this order, in read-only data.
            unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
        }
    };
}
pub(crate) use guest;

/// An open KVM, or the end of the test.
macro_rules! kvm_or_skip {
    () => {
        match axvm_kvm::Kvm::open() {
            Ok(kvm) => kvm,
            Err(error) => return $crate::common::say_skipped(&error),
        }
    };
}
pub(crate) use kvm_or_skip;

/// Says on the real standard error, which the test harness does not swallow, that a test did not run.
pub fn say_skipped(error: &axvm_kvm::KvmError) {
    say_skipped_for("no /dev/kvm", error);
}

/// The same for another reason.
pub fn say_skipped_for(reason: &str, more: impl std::fmt::Display) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "skipped: {reason}: {test}: {more}");
}

/// How a bench differs from the usual one.
#[derive(Default)]
pub struct Special<'a> {
    /// APIC ids above 254 are allowed.
    pub x2apic: bool,
    /// No performance counters, where KVM can do that.
    pub no_pmu: bool,
    /// Leaves in addition to those KVM supports.
    pub cpuid: &'a [CpuidEntry],
    /// MSRs of the bootstrap processor.
    pub msrs: &'a [Msr],
}

/// A VM with 4 MiB of RAM and a bootstrap processor that starts at [`CODE`].
pub struct Bench {
    pub ram: Arc<GuestRam>,
    pub vm: Vm,
    pub cpuid: Vec<CpuidEntry>,
    pub bsp: KvmVcpu,
    pub kicker: Arc<Kicker>,
}

impl Bench {
    pub fn new(kvm: &Kvm, code: &[u8]) -> Bench {
        Bench::special(kvm, code, &Special::default())
    }

    /// A bench that differs from the usual one.
    pub fn special(kvm: &Kvm, code: &[u8], special: &Special<'_>) -> Bench {
        let ram = GuestRam::allocate(&RamConfig::new(RAM)).unwrap();
        let vm = kvm.create_vm(&ram).unwrap();
        if special.x2apic {
            vm.enable_x2apic_api().unwrap();
        }
        if special.no_pmu && kvm.capabilities().pmu_disable {
            vm.disable_pmu().unwrap();
        }
        let cpuid = [&kvm.supported_cpuid().unwrap(), special.cpuid].concat();
        let start = flat_32bit(CODE);
        let setup = VcpuSetup { cpuid: &cpuid, msrs: special.msrs, start: Some(&start), is_bsp: true };
        let bsp = vm.create_vcpu(0, &setup).unwrap();
        let kicker = Arc::new(bsp.kicker().unwrap());
        let bench = Bench { ram, vm, cpuid, bsp, kicker };
        let gdt = [0, Segment::code64(8).descriptor(), Segment::code32(0x10).descriptor()];
        bench.place(GDT, gdt.map(u64::to_le_bytes).as_flattened());
        bench.place(GDT + 0x18, &Segment::data(0x18).descriptor().to_le_bytes());
        bench.place(GDT_OPERAND, &[0x1f, 0, 0, 0x05, 0, 0]);
        bench.place(CODE, code);
        bench
    }

    /// Creates an application processor: it waits for INIT and SIPI.
    pub fn ap(&self, id: u32) -> KvmVcpu {
        let setup = VcpuSetup { cpuid: &self.cpuid, msrs: &[], start: None, is_bsp: false };
        self.vm.create_vcpu(id, &setup).unwrap()
    }

    /// Saves all vCPUs and the VM, ends them, and goes on in a new VM with the same RAM; by way of text.
    pub fn moved(self, kvm: &Kvm, aps: Vec<KvmVcpu>) -> (Bench, Vec<KvmVcpu>) {
        let Bench { ram, vm, cpuid, bsp, kicker } = self;
        let vm_text = serde_json::to_string(&vm.save().unwrap()).unwrap();
        let save = |vcpu: &KvmVcpu| serde_json::to_string(&vcpu.save().unwrap()).unwrap();
        let texts: Vec<String> = std::iter::once(&bsp).chain(&aps).map(save).collect();
        drop((bsp, aps, kicker, vm));

        let state: VmState = serde_json::from_str(&vm_text).unwrap();
        let vm = kvm.create_vm(&ram).unwrap();
        if state.x2apic_ids {
            vm.enable_x2apic_api().unwrap();
        }
        let restore = |text: &String| vm.restore_vcpu(&serde_json::from_str(text).unwrap()).unwrap();
        let mut vcpus: Vec<KvmVcpu> = texts.iter().map(restore).collect();
        vm.restore(&state).unwrap();
        let bsp = vcpus.remove(0);
        let kicker = Arc::new(bsp.kicker().unwrap());
        (Bench { ram, vm, cpuid, bsp, kicker }, vcpus)
    }

    pub fn place(&self, gpa: u64, bytes: &[u8]) {
        self.ram.write(Gpa(gpa), bytes).unwrap();
    }

    /// Points interrupt `vector` at 32-bit code.
    pub fn interrupt_gate(&self, vector: u64, handler: u64) {
        let gate = handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
        self.place(IDT + vector * 8, &gate.to_le_bytes());
    }

    /// Runs the bootstrap processor until `done` says so; kicks it, and fails, after [`TIME_LIMIT`].
    pub fn run_until(&mut self, done: impl FnMut(&mut Exit<'_>) -> bool) {
        run_until(&mut self.bsp, &self.kicker, done);
    }

    /// Runs until the bootstrap processor reports, and lets it finish the instruction that did.
    pub fn run_to_standstill(&mut self) -> u8 {
        let report = self.run_to_report();
        self.kicker.kick();
        self.kicker.attach();
        assert_eq!(self.bsp.run().unwrap(), Exit::Interrupted);
        self.kicker.clear();
        report
    }

    /// Runs the bootstrap processor until it writes a byte to port 0x80, and returns the byte. Any other
    /// exit fails the test.
    pub fn run_to_report(&mut self) -> u8 {
        let mut report = 0;
        self.run_until(|exit| {
            let Exit::IoOut { port: 0x80, size: 1, data: &[value] } = *exit else { panic!("not a report: {exit:x?}") };
            report = value;
            true
        });
        report
    }

    pub fn peek<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut data = [0; N];
        self.ram.read(Gpa(gpa), &mut data).unwrap();
        data
    }
}

/// Runs `vcpu` on this thread until `done` says so; kicks it, and fails, after [`TIME_LIMIT`].
pub fn run_until(vcpu: &mut KvmVcpu, kicker: &Arc<Kicker>, mut done: impl FnMut(&mut Exit<'_>) -> bool) {
    let _watchdog = Watchdog::over(kicker);
    kicker.attach();
    let deadline = Instant::now() + TIME_LIMIT;
    while !done(&mut vcpu.run().unwrap()) {
        assert!(Instant::now() < deadline, "no end after {TIME_LIMIT:?}: {:x?}", vcpu.state());
    }
}

/// While it lives, a vCPU has [`TIME_LIMIT`] until it is kicked, and a little more until all tests end.
pub struct Watchdog(Option<(Sender<()>, JoinHandle<()>)>);

impl Watchdog {
    pub fn over(kicker: &Arc<Kicker>) -> Watchdog {
        let (alive, ended) = channel();
        let kicker = kicker.clone();
        let too_late = move |limit| ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        let watch = move || {
            if too_late(TIME_LIMIT) {
                kicker.kick();
                if too_late(TIME_LIMIT / 4) {
                    let _ = writeln!(std::io::stderr(), "a guest hangs, and a kick does not end its run");
                    std::process::abort();
                }
            }
        };
        Watchdog(Some((alive, thread::spawn(watch))))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some((alive, thread)) = self.0.take() {
            drop(alive);
            let _ = thread.join();
        }
    }
}

/// Flat 32-bit protected mode at `rip`, the stack just below [`CODE`].
pub fn flat_32bit(rip: u64) -> CpuState {
    let data = Segment::data(0x18);
    CpuState {
        regs: Registers { rip, rsp: CODE, rflags: RFLAGS_RESERVED, ..Default::default() },
        system: SystemRegisters {
            cs: Segment::code32(0x10),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Segment::tss(0x20, 0),
            gdt: DescriptorTable { base: GDT, limit: 0x1f },
            idt: DescriptorTable { base: IDT, limit: 0x2ff },
            cr0: cr0::PE | cr0::ET,
            ..Default::default()
        },
    }
}
