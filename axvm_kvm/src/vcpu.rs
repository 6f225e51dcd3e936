//! A vCPU: creating one, giving it its power-on state, running it.
//!
//! ```text
//!   KVM_CREATE_VCPU -> CPUID -> MSRs -> REGS, SREGS -> LAPIC -> KVM_RUN, KVM_RUN, ...
//! ```
//!
//! CPUID comes first, because it decides which MSRs and control register bits exist; the APIC base in
//! SREGS comes before the APIC's registers, because it decides their format. Two things are right without
//! us: KVM starts with the FPU as FNINIT leaves it, and lets vCPU 0, the bootstrap processor, run at once
//! while all others wait for INIT and SIPI.
//!
//! Spec: KVM API 4.7 `KVM_CREATE_VCPU`, 4.10 `KVM_RUN`, 4.11 to 4.23, 4.57 `KVM_GET_LAPIC`, 4.63
//! `KVM_KVMCLOCK_CTRL`; Intel SDM volume 3, "Local Vector Table"; MultiProcessor Specification 1.4, 3.6.2.2
//! "Virtual Wire Mode". Left out: taking up the state of a saved vCPU, see `state`.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use axvm_arch::cpuid::CpuidEntry;
use axvm_arch::msr::{self, Msr};
use axvm_arch::registers::CpuState;
use axvm_memory::GuestRam;
use kvm_bindings::{self as kvm, CpuId, Msrs, kvm_lapic_state};
use kvm_ioctls::VcpuFd;

use crate::debug::{BREAKPOINT, Trapped};
use crate::run_page::RunPage;
use crate::{Exit, Kicker, KvmError, Trap, Vcpu, Vm, registers};

/// `_IO(0xae, 0x80)`.
const KVM_RUN: libc::Ioctl = 0xae80;
/// IA32_APIC_BASE bit 10: x2APIC mode.
const APIC_BASE_X2APIC: u64 = 1 << 10;
/// Local APIC register: spurious-interrupt vector (SVR).
const APIC_SVR: usize = 0xf0;
/// Local APIC register: LVT LINT0.
const APIC_LVT_LINT0: usize = 0x350;
/// Local APIC register: LVT LINT1.
const APIC_LVT_LINT1: usize = 0x360;
/// SVR: APIC software-enabled, vector 0xff.
const SVR_ENABLED: u32 = 1 << 8 | 0xff;
/// LVT delivery mode NMI, not masked.
const LVT_NMI: u32 = 0b100 << 8;
/// LVT delivery mode ExtINT, not masked: the PIC answers.
const LVT_EXTINT: u32 = 0b111 << 8;

/// What a vCPU is to look like when it first runs.
#[derive(Clone, Copy, Debug)]
pub struct VcpuSetup<'a> {
    /// CPUID as this vCPU's guest sees it (APIC id and topology are already in it).
    pub cpuid: &'a [CpuidEntry],
    /// MSRs to load; one that KVM refuses is an error.
    pub msrs: &'a [Msr],
    /// Registers to start with; `None` leaves those of a reset.
    pub start: Option<&'a CpuState>,
    /// The bootstrap processor (the one with APIC id 0, for KVM) takes the PIC's interrupts and NMIs.
    pub is_bsp: bool,
}

/// One vCPU of a [`Vm`]; belongs to the thread that runs it.
#[derive(Debug)]
pub struct KvmVcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) page: RunPage,
    id: u32,
    run_size: usize,
    /// The MSRs of its state.
    msrs: Arc<[u32]>,
    /// What the guest runs in stays mapped while it can run.
    ram: Arc<GuestRam>,
    /// Where a debugger has put an OUT.
    pub(crate) traps: Vec<Trap>,
    /// Where a debugger has put INT3.
    pub(crate) int3: Vec<u64>,
    /// What KVM was told for a debugger.
    pub(crate) guest_debug: kvm::kvm_guest_debug,
    /// The byte of an OUT that is done, but for its device.
    late_out: [u8; 1],
    /// The next run is told to come back by this vCPU itself.
    holds_itself: bool,
    /// Whether KVM can leave registers in the page.
    sync_regs: bool,
}

impl Vm {
    /// Creates the vCPU with APIC id `id` and gives it its first state.
    pub fn create_vcpu(&self, id: u32, setup: &VcpuSetup<'_>) -> Result<KvmVcpu, KvmError> {
        let create_error = |source| {
            let (max_vcpus, max_vcpu_id) = (self.capabilities.max_vcpus, self.capabilities.max_vcpu_id);
            KvmError::CreateVcpu { id, max_vcpus, max_vcpu_id, source }
        };
        let fd = self.fd.create_vcpu(id.into()).map_err(|errno| create_error(errno.into()))?;
        let run_size = self.fd.run_size();
        let page = RunPage::map(&fd, run_size).map_err(create_error)?;
        let vcpu = KvmVcpu {
            fd,
            page,
            id,
            run_size,
            msrs: self.msrs.clone(),
            ram: self.ram.clone(),
            traps: Vec::new(),
            int3: Vec::new(),
            guest_debug: kvm::kvm_guest_debug::default(),
            late_out: [0],
            holds_itself: false,
            sync_regs: self.capabilities.sync_regs,
        };
        vcpu.set_cpuid(setup.cpuid)?;
        vcpu.set_msrs(setup.msrs)?;
        vcpu.set_registers(setup.start, self.x2apic())?;
        vcpu.announce_apic(setup.is_bsp)?;
        Ok(vcpu)
    }
}

impl KvmVcpu {
    /// The APIC id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The RAM that its guest runs in.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// A handle for other threads to stop this vCPU with.
    pub fn kicker(&self) -> Result<Kicker, KvmError> {
        Kicker::new(&self.fd, self.run_size).map_err(|source| KvmError::Kicker { id: self.id, source })
    }

    /// The registers as they are now. While the vCPU waits for an answer to an exit, the instruction
    /// that exited may count as done or not; after [`Exit::Interrupted`] it is done.
    pub fn state(&self) -> io::Result<CpuState> {
        Ok(registers::state_of(&self.fd.get_regs()?, &self.fd.get_sregs()?))
    }

    pub(crate) fn set_cpuid(&self, entries: &[CpuidEntry]) -> Result<(), KvmError> {
        let entry = |leaf: &CpuidEntry| kvm::kvm_cpuid_entry2 {
            function: leaf.function,
            index: leaf.index,
            flags: if leaf.indexed { kvm::KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: leaf.eax,
            ebx: leaf.ebx,
            ecx: leaf.ecx,
            edx: leaf.edx,
            ..Default::default()
        };
        let step = "CPUID (KVM_SET_CPUID2)";
        let leaves: Vec<_> = entries.iter().map(entry).collect();
        let cpuid = CpuId::from_entries(&leaves).map_err(|_| KvmError::VcpuSetup {
            id: self.id,
            step,
            source: io::Error::from_raw_os_error(libc::E2BIG),
        })?;
        self.fd.set_cpuid2(&cpuid).map_err(self.failed(step))
    }

    fn set_msrs(&self, msrs: &[Msr]) -> Result<(), KvmError> {
        for some in msrs.chunks(kvm::KVM_MAX_MSR_ENTRIES) {
            let taken = self.write_msrs(some).map_err(self.failed("MSRs (KVM_SET_MSRS)"))?;
            if let Some(refused) = some.get(taken) {
                return Err(KvmError::Msr { id: self.id, msr: refused.index, value: refused.value });
            }
        }
        Ok(())
    }

    /// Loads `msrs`, at most [`kvm::KVM_MAX_MSR_ENTRIES`], in order; how many KVM took before it refused one.
    pub(crate) fn write_msrs(&self, msrs: &[Msr]) -> Result<usize, kvm_ioctls::Error> {
        let entry = |msr: &Msr| kvm::kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() };
        let entries: Vec<_> = msrs.iter().map(entry).collect();
        self.fd.set_msrs(&Msrs::from_entries(&entries).expect("a list as long as it may be"))
    }

    /// Numbers of the MSRs that a state has, as far as KVM lets them be read.
    pub(crate) fn msr_indices(&self) -> &[u32] {
        &self.msrs
    }

    fn set_registers(&self, start: Option<&CpuState>, x2apic: bool) -> Result<(), KvmError> {
        let mut sregs = self.fd.get_sregs().map_err(self.failed("system registers (KVM_GET_SREGS)"))?;
        if x2apic {
            sregs.apic_base |= APIC_BASE_X2APIC;
        }
        if let Some(state) = start {
            registers::apply(&state.system, &mut sregs);
            let regs = registers::kvm_regs_for(&state.regs);
            self.fd.set_regs(&regs).map_err(self.failed("registers (KVM_SET_REGS)"))?;
        }
        self.fd.set_sregs(&sregs).map_err(self.failed("system registers (KVM_SET_SREGS)"))
    }

    /// Loads the APIC, now that the vCPU exists: KVM makes its map of destinations when an APIC changes, and made the
    /// last one a moment before this vCPU was part of the VM. Without it the last vCPU gets no addressed INIT.
    ///
    /// The bootstrap processor's is in virtual wire mode, as firmware leaves it: APIC on, the PIC's interrupts on LINT0,
    /// NMI on LINT1.
    fn announce_apic(&self, is_bsp: bool) -> Result<(), KvmError> {
        let mut lapic = self.fd.get_lapic().map_err(self.failed("the local APIC (KVM_GET_LAPIC)"))?;
        if is_bsp {
            set_apic_register(&mut lapic, APIC_SVR, SVR_ENABLED);
            set_apic_register(&mut lapic, APIC_LVT_LINT0, LVT_EXTINT);
            set_apic_register(&mut lapic, APIC_LVT_LINT1, LVT_NMI);
        }
        self.fd.set_lapic(&lapic).map_err(self.failed("the local APIC (KVM_SET_LAPIC)"))
    }

    /// `KVM_RUN`: whether it ended with an exit. The call itself, for `VcpuFd::run` takes the exit apart, too, and
    /// differently.
    pub(crate) fn enter(&mut self) -> bool {
        // SAFETY: the file is a vCPU's, and KVM_RUN takes no argument, but wants a 0. What it writes is the page that it
        // shares for this vCPU, of which no borrow is left, and guest RAM, which is mapped as long as `_ram` is.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_RUN, 0 as libc::c_ulong) == 0 }
    }

    /// Whether it waits neither for INIT nor for a SIPI.
    fn can_run(&self) -> bool {
        self.fd.get_mp_state().is_ok_and(|state| state.mp_state == kvm::KVM_MP_STATE_RUNNABLE)
    }

    fn failed(&self, step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
        let id = self.id;
        move |errno| KvmError::VcpuSetup { id, step, source: errno.into() }
    }
}

fn set_apic_register(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    let register = &mut lapic.regs[offset..offset + 4];
    register.copy_from_slice(&value.to_le_bytes().map(|byte| byte as libc::c_char));
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> io::Result<Exit<'_>> {
        if std::mem::take(&mut self.holds_itself) {
            // Who has kicked meanwhile has given an order before: it is found now, and a later kick is not taken back.
            self.hold_back(false);
            return Ok(Exit::Interrupted);
        }
        let mut could_run = false;
        while !self.enter_debugged()? {
            let failed = io::Error::last_os_error();
            match failed.raw_os_error() {
                Some(libc::EINTR) => return Ok(Exit::Interrupted),
                // KVM may say so before it looks for a kick.
                Some(libc::EAGAIN) if self.page.is_to_exit() => return Ok(Exit::Interrupted),
                // An AP that waited for INIT and SIPI got them: now it can run. One that could run before is
                // refused for another reason.
                Some(libc::EAGAIN) if !could_run => could_run = self.can_run(),
                _ => return Err(failed),
            }
        }
        let out = match self.traps.is_empty() {
            true => None,
            false => self.page.byte_out(),
        };
        if let Some((port, byte)) = out {
            match self.trapped(port)? {
                Trapped::No => {}
                Trapped::Here(pc) => return Ok(Exit::Debug { pc, dr6: 0, exception: BREAKPOINT }),
                Trapped::Elsewhere => {
                    (self.late_out, self.holds_itself) = ([byte], true);
                    return Ok(Exit::IoOut { port, size: 1, data: &self.late_out });
                }
            }
        }
        Ok(self.page.exit())
    }

    fn leave_registers(&mut self, leave: bool) {
        self.page.leave_registers(leave && self.sync_regs);
    }

    fn run_and_locate(&mut self) -> io::Result<(Exit<'_>, u64)> {
        let rip = self.page.rip();
        let exit = self.run()?;
        // SAFETY: the page is there as long as `self`, which `exit` borrows. KVM writes RIP inside `KVM_RUN` alone, and
        // an exit is of other bytes.
        Ok((exit, unsafe { rip.read() }))
    }

    fn as_kvm_mut(&mut self) -> Option<&mut KvmVcpu> {
        Some(self)
    }

    fn as_kvm(&self) -> Option<&KvmVcpu> {
        Some(self)
    }

    fn rip(&self) -> Option<u64> {
        self.fd.get_regs().ok().map(|regs| regs.rip)
    }

    fn syscall_entry(&self) -> Option<u64> {
        let read = self.read_msrs(&[msr::LSTAR]).ok()?;
        read.first().map(|msr| msr.value).filter(|&entry| entry != 0)
    }

    fn was_paused(&mut self) {
        // A guest without kvmclock makes this an error: it cannot be told.
        let _ = self.fd.kvmclock_ctrl();
    }
}
