//! A test bench for guests of a few instructions, on the real KVM.
//!
//! ```text
//!   guest!(name, "assembly", ...)   bytes at 0x1000      Bench::new(kvm, bytes)   run_until(|exit| ...)
//! ```
//!
//! A guest starts in 32-bit protected mode with flat segments, paging and interrupts off, and its stack
//! below its code. Without `/dev/kvm` a test says `skipped` and why, through `kvm_or_skip!`.
#![allow(dead_code, unreachable_pub, reason = "shared by test binaries, each uses a part")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_arch::cpuid::CpuidEntry;
use axvm_arch::registers::{CpuState, RFLAGS_RESERVED, Registers, Segment, SystemRegisters, cr0};
use axvm_kvm::{Exit, Kicker, Kvm, KvmVcpu, Vcpu, VcpuSetup, Vm};
use axvm_memory::{GuestRam, RamConfig};

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
        fn $name() -> &'static [u8] {
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
            Err(error) => {
                println!("skipped: no /dev/kvm: {error}");
                return;
            }
        }
    };
}
pub(crate) use kvm_or_skip;

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
        let ram = GuestRam::allocate(&RamConfig { size: RAM, huge_pages: false }).unwrap();
        ram.write(Gpa(CODE), code).unwrap();
        let vm = kvm.create_vm(&ram).unwrap();
        let cpuid = kvm.supported_cpuid().unwrap();
        let start = flat_32bit(CODE);
        let setup = VcpuSetup { cpuid: &cpuid, msrs: &[], start: Some(&start), is_bsp: true };
        let bsp = vm.create_vcpu(0, &setup).unwrap();
        let kicker = Arc::new(bsp.kicker().unwrap());
        Bench { ram, vm, cpuid, bsp, kicker }
    }

    /// Runs the bootstrap processor until `done` says so; kicks it, and fails, after [`TIME_LIMIT`].
    pub fn run_until(&mut self, done: impl FnMut(&mut Exit<'_>) -> bool) {
        run_until(&mut self.bsp, &self.kicker, done);
    }

    pub fn peek_u32(&self, gpa: u64) -> u32 {
        let mut data = [0; 4];
        self.ram.read(Gpa(gpa), &mut data).unwrap();
        u32::from_le_bytes(data)
    }
}

/// Runs `vcpu` on this thread until `done` says so; kicks it, and fails, after [`TIME_LIMIT`].
pub fn run_until(vcpu: &mut KvmVcpu, kicker: &Arc<Kicker>, mut done: impl FnMut(&mut Exit<'_>) -> bool) {
    kicker.attach();
    let deadline = Instant::now() + TIME_LIMIT;
    let (finished, finish) = std::sync::mpsc::channel::<()>();
    let watch = {
        let kicker = kicker.clone();
        std::thread::spawn(move || {
            if finish.recv_timeout(TIME_LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                kicker.kick();
            }
        })
    };
    loop {
        let mut exit = vcpu.run().unwrap();
        if done(&mut exit) {
            break;
        }
        if Instant::now() >= deadline {
            let exit = format!("{exit:?}");
            panic!("no end after {TIME_LIMIT:?}; last exit {exit}, {:#x?}", vcpu.state());
        }
    }
    drop(finished);
    watch.join().unwrap();
}

/// Flat 32-bit protected mode at `rip`, the stack just below.
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
            cr0: cr0::PE | cr0::ET,
            ..Default::default()
        },
    }
}
