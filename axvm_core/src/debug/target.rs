//! A machine as gdb's target: threads are vCPUs, memory is what their page tables map.
//!
//! ```text
//!   packet --gdbstub--> read_registers, read_addrs, add_sw_breakpoint, resume ... --visits--> vCPUs at the gate
//! ```
//!
//! While it is stopped, registers are read once and kept. Memory is read by the page tables of the thread that gdb names,
//! at any privilege, and written whatever they permit.
//!
//! Spec: GDB manual, appendix E "GDB Remote Serial Protocol".

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use axvm_arch::Gpa;
use axvm_arch::paging::{Page, Paging};
use axvm_inspect::hang::{Doing, Seen, VcpuFacts};
use axvm_inspect::snapshot::{Processor, Snapshot};
use axvm_kvm::{DebugControl, KvmVcpu, Watch};
use axvm_machine::Machine;
use axvm_memory::GuestRam;
use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints as BreakpointsExt, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::MonitorCmdOps;
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};

use super::PATIENCE;
use super::breakpoints::{Breakpoints, Place};
use super::errands::Errands;
use super::registers::{Amd64, GdbRegisters};
use crate::explain::Explainer;

const PAGE: u64 = 4096;

/// What gdb acts on.
pub struct GdbTarget {
    pub(super) machine: Arc<Machine>,
    pub(super) ram: Arc<GuestRam>,
    pub(super) explainer: Arc<Explainer>,
    pub(super) breakpoints: Breakpoints,
    pub(super) errands: Arc<Errands>,
    /// The vCPU that stopped last.
    pub(super) current: u32,
    /// A pause of its user's, which outlasts the session unless gdb lets the guest go on.
    pub(super) was_paused: bool,
    /// What the next resume does: the vCPU to step, if it is a step.
    step: Option<u32>,
    /// Registers that were read since the stop.
    known: BTreeMap<u32, (GdbRegisters, Processor)>,
}

impl GdbTarget {
    /// For a machine, before its vCPUs are held.
    pub fn new(
        machine: Arc<Machine>,
        ram: Arc<GuestRam>,
        explainer: Arc<Explainer>,
        errands: Arc<Errands>,
    ) -> GdbTarget {
        let (breakpoints, known) = Default::default();
        let was_paused = machine.is_paused();
        GdbTarget { machine, ram, explainer, breakpoints, errands, current: 0, was_paused, step: None, known }
    }

    /// The vCPU that is to be stepped, if the resume was a step; once.
    pub fn take_step(&mut self) -> Option<u32> {
        self.step.take()
    }

    /// What was read of the vCPUs is of no use any more.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// Lets the machine go on; whether it does.
    pub fn go_on(&self) -> bool {
        if !self.machine.holds_devices() {
            return self.machine.resume(Instant::now() + PATIENCE).is_ok();
        }
        let machine = Arc::clone(&self.machine);
        self.errands.ask(move || machine.resume(Instant::now() + PATIENCE).is_ok()).unwrap_or(false)
    }

    /// Tells each vCPU when to stop.
    pub fn arm(&self, control: &DebugControl) {
        for index in 0..self.machine.exits().len() as u32 {
            let control = control.clone();
            let _ = self.machine.alter(index, move |vcpu| vcpu.set_debug(&control));
        }
    }

    /// Takes every breakpoint out, and lets the vCPUs run as if there had been none.
    pub fn disarm(&mut self) {
        self.breakpoints.clear(&self.ram);
        self.arm(&DebugControl::default());
    }

    pub(super) fn snapshot(&self, index: u32) -> Option<(Snapshot, Processor)> {
        self.machine.alter(index, |vcpu: &mut KvmVcpu| Snapshot::take(vcpu).ok()).flatten()
    }

    fn registers(&mut self, index: u32) -> Result<&(GdbRegisters, Processor), TargetError<io::Error>> {
        if !self.known.contains_key(&index) {
            let read = self.machine.alter(index, |vcpu: &mut KvmVcpu| match vcpu.save() {
                Ok(state) => {
                    let cpu = axvm_arch::registers::CpuState { regs: state.regs, system: state.system };
                    Some((GdbRegisters::new(cpu, state.cr2, &state.xsave.0), Processor::of(&state.cpuid)))
                }
                Err(_) => Some((GdbRegisters::new(vcpu.state().ok()?, 0, &[]), Processor::default())),
            });
            self.known.insert(index, read.flatten().ok_or(TargetError::NonFatal)?);
        }
        self.known.get(&index).ok_or(TargetError::NonFatal)
    }

    /// How this vCPU translates, and the bits of its code.
    pub(super) fn paging(&mut self, index: u32) -> Option<(Paging, u32)> {
        let (registers, processor) = self.registers(index).ok()?;
        Some((processor.paging(&registers.cpu), registers.cpu.mode().cpu.bits()))
    }

    /// The page of a linear address.
    pub(super) fn page(&mut self, index: u32, address: u64) -> Result<Page, String> {
        let (paging, _) = self.paging(index).ok_or("the vCPU does not tell its registers")?;
        if paging.scheme.linear_bits() == 32 && address > u64::from(u32::MAX) {
            return Err("a guest outside of long mode has addresses of 32 bits; stop it later, or try hbreak".into());
        }
        let walk = paging.walk(address, &|gpa, data| self.ram.read(gpa, data).is_ok());
        walk.end.map_err(|fault| fault.to_string())
    }

    /// Whether the next instruction of a kernel is HLT.
    pub fn is_before_halt(&mut self, index: u32) -> bool {
        let Ok((registers, _)) = self.registers(index) else { return false };
        let (rip, privilege) = (registers.cpu.linear_rip(), registers.cpu.system.ss.dpl);
        let mut code = [0];
        let Ok(page) = self.page(index, rip) else { return false };
        let is_ram = self.ram.read(page.gpa, &mut code).is_ok();
        self.breakpoints.hide(page.gpa, &mut code);
        is_ram && privilege == 0 && code == [0xf4]
    }

    /// Where a breakpoint is to be.
    fn place(&mut self, at: u64) -> Place {
        let page = self.page(self.current, at);
        let bits = self.paging(self.current).map_or(64, |(_, bits)| bits);
        Place { at, page, bits, support: self.errands.support() }
    }

    /// Each page of a range, until one is not there; how many bytes.
    fn pages(
        &mut self,
        index: u32,
        start: u64,
        len: usize,
        mut act: impl FnMut(&mut Self, Gpa, usize, usize) -> bool,
    ) -> usize {
        let mut done = 0;
        while done < len {
            let Some(at) = start.checked_add(done as u64) else { break };
            let count = ((PAGE - at % PAGE) as usize).min(len - done);
            let Ok(page) = self.page(index, at) else { break };
            if !act(self, page.gpa, done, count) {
                break;
            }
            done += count;
        }
        done
    }
}

/// Threads count from 1.
fn index(tid: Tid) -> u32 {
    tid.get().saturating_sub(1) as u32
}

/// The thread of a vCPU.
pub fn tid(index: u32) -> Tid {
    Tid::new(index as usize + 1).unwrap_or(Tid::MIN)
}

impl Target for GdbTarget {
    type Arch = Amd64;
    type Error = io::Error;

    fn base_ops(&mut self) -> BaseOps<'_, Amd64, io::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for GdbTarget {
    fn read_registers(&mut self, regs: &mut GdbRegisters, tid: Tid) -> TargetResult<(), Self> {
        regs.clone_from(&self.registers(index(tid))?.0);
        Ok(())
    }

    fn write_registers(&mut self, regs: &GdbRegisters, tid: Tid) -> TargetResult<(), Self> {
        // What gdb does not change is as it was read.
        let old = self.registers(index(tid))?.0.clone();
        let mut new = old.clone();
        let mut bytes = Vec::new();
        gdbstub::arch::Registers::gdb_serialize(regs, |byte| bytes.extend(byte));
        gdbstub::arch::Registers::gdb_deserialize(&mut new, &bytes).map_err(|()| TargetError::NonFatal)?;
        let (general, moved) = (new.cpu.regs, new.cpu.regs.rip != old.cpu.regs.rip);
        let set = self.machine.alter(index(tid), move |vcpu| {
            // Else a halted vCPU would not go on there.
            if moved {
                vcpu.wake()?;
            }
            vcpu.set_general(&general)
        });
        self.known.remove(&index(tid));
        set.and_then(Result::ok).ok_or(TargetError::NonFatal)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let len = data.len();
        let read = self.pages(index(tid), start, len, |own, gpa, at, count| {
            let Some(piece) = data.get_mut(at..at + count) else { return false };
            let is_ram = own.ram.read(gpa, piece).is_ok();
            own.breakpoints.hide(gpa, piece);
            is_ram
        });
        if read == 0 && len > 0 { Err(TargetError::NonFatal) } else { Ok(read) }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let written = self.pages(index(tid), start, data.len(), |own, gpa, at, count| {
            data.get(at..at + count).is_some_and(|piece| own.ram.write(gpa, piece).is_ok())
        });
        if written == data.len() { Ok(()) } else { Err(TargetError::NonFatal) }
    }

    fn list_active_threads(&mut self, thread: &mut dyn FnMut(Tid)) -> Result<(), io::Error> {
        (0..self.machine.exits().len() as u32).map(tid).for_each(thread);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for GdbTarget {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, io::Error> {
        let seen: Option<Seen> =
            self.machine.see_vcpus().and_then(|all| all.into_iter().nth(index(tid) as usize)).flatten();
        let doing = match VcpuFacts::of(seen).doing() {
            Doing::InHost => "in the host",
            Doing::NotStarted => "waits for SIPI",
            Doing::Idle | Doing::HaltedForGood => "halted",
            Doing::Spinning(_) | Doing::Polling(_) | Doing::Running => "runs",
        };
        let text = format!("vCPU {} ({doing})", index(tid));
        let len = text.len().min(buf.len());
        buf.iter_mut().zip(text.bytes()).for_each(|(to, byte)| *to = byte);
        Ok(len)
    }
}

impl MultiThreadResume for GdbTarget {
    /// What happens is the session's business: it waits for the end of it.
    fn resume(&mut self) -> Result<(), io::Error> {
        self.forget();
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), io::Error> {
        self.step = None;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, _: Tid, _: Option<Signal>) -> Result<(), io::Error> {
        Ok(())
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for GdbTarget {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), io::Error> {
        self.step = Some(index(tid));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for GdbTarget {
    /// In a step the others are held anyway; those that go on do so together.
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), io::Error> {
        Ok(())
    }
}

impl BreakpointsExt for GdbTarget {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for GdbTarget {
    fn add_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        let place = self.place(addr);
        Ok(self.breakpoints.add_soft(&self.ram, &place))
    }

    fn remove_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.breakpoints.remove_soft(&self.ram, addr))
    }
}

impl HwBreakpoint for GdbTarget {
    fn add_hw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        let place = self.place(addr);
        Ok(self.breakpoints.add_hard(&place, Watch::Execute))
    }

    fn remove_hw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.breakpoints.remove_hard(addr, Watch::Execute))
    }
}

/// What the processor can watch; it has no breakpoint on reads alone.
fn watch(addr: u64, len: u64, kind: WatchKind) -> Option<Watch> {
    let len =
        u8::try_from(len).ok().filter(|len| [1, 2, 4, 8].contains(len) && addr.is_multiple_of(u64::from(*len)))?;
    Some(if kind == WatchKind::Write { Watch::Write(len) } else { Watch::Access(len) })
}

impl HwWatchpoint for GdbTarget {
    fn add_hw_watchpoint(&mut self, addr: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let place = self.place(addr);
        Ok(watch(addr, len, kind).is_some_and(|watch| self.breakpoints.add_hard(&place, watch)))
    }

    fn remove_hw_watchpoint(&mut self, addr: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        Ok(watch(addr, len, kind).is_some_and(|watch| self.breakpoints.remove_hard(addr, watch)))
    }
}
