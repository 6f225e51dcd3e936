//! A debugger at a machine: gdb's remote protocol over a stream, one session after the other.
//!
//! ```text
//!   gdb --"target remote | axvm ctl NAME gdb"--> descriptor --PUT /gdb--\
//!   gdb --"target remote PATH", --gdb------------> listener --thread gdb--> session: stopped <--> running
//!                                                                             held     resume, breakpoint, Ctrl-C
//! ```
//!
//! gdbstub takes the protocol apart; [`target`] does what it asks. A session ends with its stream: then every breakpoint is
//! taken out and the guest goes on, as after `detach`. A reset of the guest is a stop at its first instruction.
//!
//! Spec: GDB manual, appendix E "GDB Remote Serial Protocol".

mod answers;
mod breakpoints;
mod errands;
mod listen;
mod monitor;
mod registers;
mod target;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axvm_kvm::Watch;
use axvm_machine::{Hit, Machine, Resources, Step};
use axvm_memory::GuestRam;
use axvm_sandbox::Role;
use axvm_sync::{lock, wait_any};
use gdbstub::common::{Signal, Tid};
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{GdbStub, MultiThreadStopReason};
use gdbstub::target::ext::breakpoints::WatchKind;

use self::errands::Errands;
pub use self::listen::OpenedGdb;
use self::target::{GdbTarget, tid};
use crate::config::Config;
use crate::current::Current;
use crate::explain::Explainer;
use crate::speech;

/// How long a vCPU may take to come out of the host.
const PATIENCE: Duration = Duration::from_secs(2);
/// From one look whether the machine is still the same to the next, while it runs.
const LOOK: Duration = Duration::from_millis(20);

/// What sessions have in common.
pub struct Debugger {
    current: Arc<Current>,
    ram: Arc<GuestRam>,
    explainer: Arc<Explainer>,
    errands: Arc<Errands>,
    /// Whether one is there. The next machine stops before its first instruction then.
    is_attached: AtomicBool,
    /// The first machine waits in any case.
    waits: AtomicBool,
    /// What a client said that is not understood was told: once is enough.
    told: AtomicBool,
    /// The process is about to end with this code.
    ending: Mutex<Option<u8>>,
    gone: Condvar,
}

/// A stream to gdb.
struct Stream(File);

impl Connection for Stream {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.write_all(&[byte])
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Why a machine that ran has stopped.
type Stop = MultiThreadStopReason<u64>;

impl Debugger {
    /// For the machines of this process, of which the first one waits for gdb if the user said so.
    pub fn open(
        config: &Config,
        resources: &Resources,
        current: &Arc<Current>,
        explainer: &Arc<Explainer>,
    ) -> Result<Arc<Debugger>> {
        let (is_attached, told, ending, gone) = Default::default();
        let errands = Errands::open(resources.kvm()).context("Cannot make an event for gdb (see ulimit -n)")?;
        Ok(Arc::new(Debugger {
            current: Arc::clone(current),
            ram: Arc::clone(resources.ram()),
            explainer: Arc::clone(explainer),
            errands: Arc::new(errands),
            is_attached,
            waits: AtomicBool::new(config.settings.gdb_wait()),
            told,
            ending,
            gone,
        }))
    }

    /// What the main thread is asked for.
    pub fn errands(&self) -> &Errands {
        &self.errands
    }

    /// Whether a session is on.
    pub fn is_attached(&self) -> bool {
        self.is_attached.load(Ordering::Acquire)
    }

    /// Whether the first machine is still to come, and is to wait.
    fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Whether the machine that is about to be built is to wait before its first instruction.
    pub fn wants_stop(&self) -> bool {
        self.waits.swap(false, Ordering::Relaxed) || self.is_attached()
    }

    /// The process ends: tells gdb how, and waits a moment until that is done.
    pub fn finish(&self, code: u8) {
        if !self.is_attached() {
            return;
        }
        let mut ending = lock(&self.ending);
        *ending = Some(code);
        let is_there = |_: &mut Option<u8>| self.is_attached();
        drop(self.gone.wait_timeout_while(ending, Duration::from_millis(500), is_there));
    }

    /// Serves gdb at the other end of a stream that a client of the control socket has made, on a thread of its own.
    pub fn begin(debugger: &Arc<Debugger>, streams: Vec<OwnedFd>) -> std::result::Result<(), String> {
        let stream = streams
            .into_iter()
            .next()
            .ok_or("The stream must come with the request (SCM_RIGHTS): axvm ctl MACHINE gdb does that")?;
        if debugger.is_attached() {
            return Err("Another debugger is at this machine; one at a time".into());
        }
        let own = Arc::clone(debugger);
        let thread = axvm_sandbox::spawn(Role::Gdb, "gdb".to_owned(), move || _ = own.serve(stream));
        thread.map(drop).map_err(|error| format!("The host starts no thread for gdb: {error}"))
    }

    /// Serves gdb at the other end of `stream` until one of them leaves. One at a time: false if there is another.
    pub fn serve(&self, stream: OwnedFd) -> bool {
        if self.is_attached.swap(true, Ordering::AcqRel) {
            return false;
        }
        if let Some(machine) = self.current.wait_for_machine(PATIENCE) {
            let mut target =
                GdbTarget::new(machine, Arc::clone(&self.ram), Arc::clone(&self.explainer), Arc::clone(&self.errands));
            // A stream that breaks is an end like others.
            if let Err(error) = self.session(File::from(stream), &mut target)
                && error.kind() == io::ErrorKind::Other
                && !self.told.swap(true, Ordering::Relaxed)
            {
                let _ = speech::try_tell(format_args!("gdb has said what is not understood: {error}"));
            }
            if target.machine.hold_vcpus(Instant::now() + PATIENCE).is_ok() {
                target.disarm();
                target.machine.stops().take();
                if !target.was_paused {
                    let _ = target.go_on();
                }
            }
        }
        self.is_attached.store(false, Ordering::Release);
        let _ending = lock(&self.ending);
        self.gone.notify_all();
        true
    }

    fn session(&self, mut input: File, target: &mut GdbTarget) -> io::Result<()> {
        if target.machine.hold_vcpus(Instant::now() + PATIENCE).is_err() {
            return Ok(());
        }
        let stub = GdbStub::new(Stream(input.try_clone()?));
        let mut stub = stub.run_state_machine(target).map_err(io::Error::other)?;
        let mut bytes = Bytes::default();
        loop {
            stub = match stub {
                GdbStubStateMachine::Idle(idle) => {
                    let Some(byte) = bytes.next(&mut input)? else { return Ok(()) };
                    idle.incoming_data(target, byte).map_err(io::Error::other)?
                }
                GdbStubStateMachine::Running(running) => match self.run(target, &input, &mut bytes) {
                    Ran::Stopped(stop) => running.report_stop(target, stop).map_err(io::Error::other)?,
                    Ran::Readable => match bytes.next(&mut input)? {
                        Some(byte) => running.incoming_data(target, byte).map_err(io::Error::other)?,
                        None => return Ok(()),
                    },
                },
                GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                    let stop = self.hold(target, Signal::SIGINT);
                    interrupt.interrupt_handled(target, Some(stop)).map_err(io::Error::other)?
                }
                GdbStubStateMachine::Disconnected(_) => return Ok(()),
            };
        }
    }

    /// Lets the guest run, or one vCPU step, until something stops it or gdb speaks.
    fn run(&self, target: &mut GdbTarget, input: &File, bytes: &mut Bytes) -> Ran {
        if let Some(vcpu) = target.take_step() {
            return Ran::Stopped(self.step(target, vcpu));
        }
        // After a byte that was none of its business it runs still.
        if target.machine.is_paused() {
            target.was_paused = false;
            target.arm(&target.breakpoints.control());
            if !target.go_on() {
                return Ran::Stopped(self.hold(target, Signal::SIGTRAP));
            }
        }
        loop {
            if bytes.is_some() {
                return Ran::Readable;
            }
            let stops = target.machine.stops().event_fd();
            let ready = wait_any(&[input.as_fd(), stops.as_fd()], Some(Instant::now() + LOOK)).unwrap_or_default();
            if ready.get(1) == Some(&true) {
                return Ran::Stopped(self.hold(target, Signal::SIGTRAP));
            }
            if ready.first() == Some(&true) {
                return Ran::Readable;
            }
            if let Some(stop) = self.ended(target) {
                return Ran::Stopped(stop);
            }
        }
    }

    fn step(&self, target: &mut GdbTarget, vcpu: u32) -> Stop {
        let is_halt = target.is_before_halt(vcpu);
        target.forget();
        target.current = vcpu;
        if is_halt {
            let _ = target.machine.alter(vcpu, |own| own.halt());
            return signal(vcpu, Signal::SIGTRAP);
        }
        let control = axvm_kvm::DebugControl { step: true, ..target.breakpoints.control() };
        let _ = target.machine.alter(vcpu, move |own| own.set_debug(&control));
        let end = target.machine.step(vcpu);
        target.machine.stops().take();
        match end {
            Step::Over => self.ended(target).unwrap_or_else(|| signal(vcpu, Signal::SIGSEGV)),
            Step::Done | Step::Waits => signal(vcpu, Signal::SIGTRAP),
        }
    }

    /// Holds the machine, and says what stopped it: a breakpoint, or `or`.
    fn hold(&self, target: &mut GdbTarget, or: Signal) -> Stop {
        target.forget();
        // By its user, while it ran.
        target.was_paused |= target.machine.is_paused();
        let held = target.machine.hold_vcpus(Instant::now() + PATIENCE);
        let hits = target.machine.stops().take();
        if held.is_err()
            && let Some(stop) = self.ended(target)
        {
            return stop;
        }
        // Of several, the others meet theirs again when they go on.
        match hits.into_iter().next() {
            Some((vcpu, hit)) => {
                target.current = vcpu;
                met(target, vcpu, hit)
            }
            None => signal(target.current, or),
        }
    }

    /// What to tell of a machine that has ended, or was reset.
    fn ended(&self, target: &mut GdbTarget) -> Option<Stop> {
        if let Some(code) = *lock(&self.ending) {
            return Some(Stop::Exited(code));
        }
        let is_same = |machine: &Arc<Machine>| Arc::ptr_eq(machine, &target.machine);
        let next = self.current.machine().filter(|machine| !is_same(machine))?;
        // Its RAM is new: no breakpoint is in it.
        target.machine = next;
        target.was_paused = false;
        target.forget();
        target.current = 0;
        let _ = target.machine.hold_vcpus(Instant::now() + PATIENCE);
        Some(signal(0, Signal::SIGTRAP))
    }
}

/// What ended a run.
enum Ran {
    Stopped(Stop),
    /// gdb says something.
    Readable,
}

fn signal(vcpu: u32, signal: Signal) -> Stop {
    Stop::SignalWithThread { tid: tid(vcpu), signal }
}

/// What a vCPU has met.
fn met(target: &GdbTarget, vcpu: u32, hit: Hit) -> Stop {
    let tid: Tid = tid(vcpu);
    match target.breakpoints.met(hit.dr6) {
        _ if hit.exception == 3 || target.breakpoints.is_soft(hit.pc) => Stop::SwBreak(tid),
        Some((_, Watch::Execute)) => Stop::HwBreak(tid),
        Some((addr, Watch::Write(_))) => Stop::Watch { tid, kind: WatchKind::Write, addr },
        Some((addr, Watch::Access(_))) => Stop::Watch { tid, kind: WatchKind::ReadWrite, addr },
        None => signal(vcpu, Signal::SIGTRAP),
    }
}

/// What came and was not looked at.
#[derive(Default)]
struct Bytes {
    buffer: Vec<u8>,
    next: usize,
}

impl Bytes {
    fn is_some(&self) -> bool {
        self.next < self.buffer.len()
    }

    /// The next one, which is waited for; none at the end.
    fn next(&mut self, input: &mut File) -> io::Result<Option<u8>> {
        if !self.is_some() {
            self.buffer.resize(4096, 0);
            let count = input.read(&mut self.buffer)?;
            self.buffer.truncate(count);
            self.next = 0;
        }
        let byte = self.buffer.get(self.next).copied();
        self.next += 1;
        Ok(byte)
    }
}
