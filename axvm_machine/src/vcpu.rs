//! The vCPU loop: one thread per vCPU, one loop, one line per kind of exit.
//!
//! ```text
//!          +--> KVM_RUN --> guest runs ... --+
//!          |                                 | exit
//!          +---- answer it on the bus <------+--> a reason to stop: the loop ends
//!          +---- pass the gate <-------------+ kicked: pause, stop
//! ```
//!
//! Source: KVM API, 5 "The kvm_run structure".

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

use axvm_devices::{Bus, BusNames, StopReason, StopSwitch};
use axvm_events::Events;
use axvm_events::tape::{Kind, Record, Tape};
use axvm_inspect::crash::CrashReport;
use axvm_kvm::failure::Failure;
use axvm_kvm::{Exit, Kicker, KvmVcpu, Vcpu};
use axvm_sandbox::Role;
use axvm_sync::lock;
use rustix::thread::CpuSet;

use crate::crash;
use crate::exit_tape::{ExitTape, Off, Recording};
use crate::gate::{Gate, Order, Passage};
use crate::halt::Activity;
use crate::stops::{Hit, Stops};
use crate::unclaimed::{Access, Space, Unclaimed};

/// What all vCPUs of a machine share.
pub(crate) struct VcpuShared {
    pub(crate) ports: AddressSpace,
    pub(crate) mmio: AddressSpace,
    pub(crate) stop: Arc<StopSwitch>,
    /// Where vCPUs are held and let go.
    pub(crate) gate: Arc<Gate>,
    /// Whether the guest does something.
    pub(crate) activity: Activity,
    /// Who met a breakpoint.
    pub(crate) stops: Stops,
    /// Why a vCPU cannot go on: that of the first.
    pub(crate) crash: OnceLock<CrashReport>,
    /// Where a recorder would be.
    pub(crate) events: Events,
}

impl VcpuShared {
    /// Answers an exit that asks for a device, and says whether it was one; of no count and on no tape.
    pub(crate) fn answer(&self, exit: Exit<'_>) -> bool {
        match exit {
            Exit::IoIn { port, size, data } => _ = self.ports.read(port.into(), size, data),
            Exit::IoOut { port, size, data } => _ = self.ports.write(port.into(), size, data),
            Exit::MmioRead { address, data } => _ = self.mmio.read(address, data.len(), data),
            Exit::MmioWrite { address, data } => _ = self.mmio.write(address, data.len(), data),
            _ => return false,
        }
        true
    }

    /// An exit, for people.
    pub(crate) fn words(&self, exit: &Record) -> String {
        let (space, name) = match exit.kind {
            Kind::PortRead | Kind::PortWrite => ("port", self.ports.names().name(exit.address, exit.kind.is_write())),
            Kind::MmioRead | Kind::MmioWrite => ("mmio", self.mmio.names().name(exit.address, exit.kind.is_write())),
            Kind::Kick => return "held or kicked".into(),
            _ => return "another exit".into(),
        };
        let name = name.unwrap_or_else(|| format!("{space} {:#x}", exit.address));
        let way = if exit.kind.is_write() { "write" } else { "read" };
        format!("{name} {way} {:#x}", exit.value)
    }
}

/// A bus, and what is known of accesses that no chip on it answers.
pub(crate) struct AddressSpace {
    bus: Bus,
    unclaimed: Unclaimed,
}

impl AddressSpace {
    pub(crate) fn new(space: Space, bus: Bus, events: &Events) -> AddressSpace {
        AddressSpace { bus, unclaimed: Unclaimed::new(space, events) }
    }

    /// How the bus's registers are called, to those who come later.
    pub(crate) fn names(&self) -> BusNames {
        self.bus.names()
    }

    /// The machine has stopped: tells how often the guest found no chip.
    pub(crate) fn tell_counts(&self) {
        self.unclaimed.tell_counts();
    }

    /// The guest reads `data.len()` bytes, `size` at a time: a string instruction gives several elements at once, one access
    /// each. The first access that no chip answered, with the number of them, if they are told at all.
    #[inline]
    fn read(&self, address: u64, size: usize, data: &mut [u8]) -> Option<Access> {
        if data.len() == size {
            return self.unanswered(self.bus.read(address, data), || Access::read(address, size));
        }
        self.read_each(address, size, data)
    }

    #[cold]
    fn read_each(&self, address: u64, size: usize, data: &mut [u8]) -> Option<Access> {
        let elements = data.chunks_exact_mut(size);
        let accesses = elements.filter_map(|data| (!self.bus.read(address, data)).then(|| Access::read(address, size)));
        accesses.reduce(Access::and)
    }

    /// The guest writes, likewise.
    #[inline]
    fn write(&self, address: u64, size: usize, data: &[u8]) -> Option<Access> {
        if data.len() == size {
            return self.unanswered(self.bus.write(address, data), || Access::write(address, data));
        }
        self.write_each(address, size, data)
    }

    #[cold]
    fn write_each(&self, address: u64, size: usize, data: &[u8]) -> Option<Access> {
        let unanswered = data.chunks_exact(size).filter(|data| !self.bus.write(address, data));
        unanswered.map(|data| Access::write(address, data)).reduce(Access::and)
    }

    /// What is to be told of an access.
    #[inline]
    fn unanswered(&self, answered: bool, access: impl FnOnce() -> Access) -> Option<Access> {
        (!answered && self.unclaimed.is_told()).then(access)
    }
}

/// A vCPU thread, seen from others.
pub(crate) struct VcpuHandle {
    kicker: Arc<Kicker>,
    exits: Arc<Exits>,
}

/// How often a vCPU came back from the guest; on a cache line of its own, for it is written often. And what the last times
/// were, as of when it last came to the gate.
#[derive(Default)]
#[repr(align(64))]
pub struct Exits(AtomicU64, Mutex<Vec<Record>>);

impl Exits {
    /// One more; only the vCPU's own thread counts.
    fn count(&self) {
        self.0.store(self.get() + 1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The vCPU comes to the gate after these; none where nothing is recorded.
    fn keep(&self, last: Vec<Record>) {
        *lock(&self.1) = last;
    }
}

impl VcpuHandle {
    /// Makes the vCPU leave the guest and come to the gate, again and again until [`Self::release`]. Its thread must not
    /// have been joined.
    pub(crate) fn kick(&self) {
        self.kicker.kick();
    }

    /// Takes the kick back; the vCPU must be waiting at the gate.
    pub(crate) fn release(&self) {
        self.kicker.clear();
    }

    /// How often the vCPU came back from the guest.
    pub(crate) fn exits(&self) -> u64 {
        self.exits.get()
    }

    /// Its last exits when it came to the gate, as far as they are recorded; the latest last.
    pub(crate) fn last_exits(&self) -> Vec<Record> {
        lock(&self.exits.1).clone()
    }
}

/// Starts vCPU number `index` on a thread of its own, on host CPU `pin` if one is given.
pub(crate) fn spawn(
    index: u32,
    mut vcpu: KvmVcpu,
    pin: Option<usize>,
    shared: Arc<VcpuShared>,
) -> io::Result<(VcpuHandle, JoinHandle<()>)> {
    let handle = VcpuHandle { kicker: Arc::new(vcpu.kicker().map_err(io::Error::other)?), exits: Arc::default() };
    let (kicker, exits) = (Arc::clone(&handle.kicker), Arc::clone(&handle.exits));
    let presence = shared.gate.enter();
    let thread = axvm_sandbox::spawn(Role::Vcpu, format!("vcpu{index}"), move || {
        // Dropped in reverse order: the reason to stop is there before the gate sees the thread end.
        let _presence = presence;
        let _ends = EndsMachine { index, shared: &shared };
        kicker.attach();
        if let Some(Err(error)) = pin.map(pin_to) {
            let message = format!(
                "cannot pin vCPU {index} to host CPU {}: {error}. --pin takes CPUs of /sys/devices/system/cpu/online \
                 that this process may use",
                pin.unwrap_or_default()
            );
            return shared.stop.request(StopReason::HostError(message));
        }
        run_recorded(index, &mut vcpu, &exits, &shared);
    })?;
    Ok((handle, thread))
}

/// However a vCPU thread ends, the machine ends with it: no guest runs on with a CPU that is gone.
struct EndsMachine<'a> {
    index: u32,
    shared: &'a VcpuShared,
}

impl Drop for EndsMachine<'_> {
    fn drop(&mut self) {
        if self.shared.gate.current() != Order::Stop {
            let message = format!("thread of vCPU {} ended unexpectedly", self.index);
            self.shared.stop.request(StopReason::HostError(message));
        }
    }
}

fn pin_to(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// KVM cannot run the vCPU at all.
fn refused(index: u32, error: &io::Error) -> StopReason {
    let remedy = match error.kind() {
        io::ErrorKind::WouldBlock => "; KVM could not start a thread of its own, raise the limit (ulimit -u, pids.max)",
        _ => "",
    };
    StopReason::HostError(format!("KVM_RUN of vCPU {index}: {error}{remedy}"))
}

/// Runs the loop that records while recording is on, and the one that does not while it is off: each pause may change it.
fn run_recorded(index: u32, vcpu: &mut dyn Vcpu, exits: &Exits, shared: &VcpuShared) {
    let (name, mut tape) = (format!("vcpu{index}"), None);
    loop {
        tape = shared.events.tape_after(tape, &name);
        vcpu.leave_registers(tape.is_some());
        let passage = match &mut tape {
            None => run(index, vcpu, exits, shared, &mut Off),
            Some(tape) => run_on_tape(index, vcpu, exits, shared, tape),
        };
        match passage {
            Passage::Closed => return,
            Passage::Open | Passage::Reopened => vcpu.was_paused(),
        }
    }
}

/// The loop on a tape, and at its end where the guest's kernel is.
fn run_on_tape(index: u32, vcpu: &mut dyn Vcpu, exits: &Exits, shared: &VcpuShared, tape: &mut Tape) -> Passage {
    let passage = run(index, vcpu, exits, shared, tape);
    if let Some(entry) = vcpu.syscall_entry() {
        tape.mark(Kind::Entry, entry, 0);
    }
    passage
}

/// The vCPU loop. Returns [`Passage::Closed`] when the machine stops, having pressed the power switch if this vCPU is the
/// reason, and [`Passage::Reopened`] after a pause.
///
/// Only a kick leads to the gate: then the exit before it is answered and its instruction completed. Each exit goes onto
/// `tape`, for which there is a loop of its own.
pub(crate) fn run(
    index: u32,
    vcpu: &mut dyn Vcpu,
    exits: &Exits,
    shared: &VcpuShared,
    tape: &mut impl ExitTape,
) -> Passage {
    let VcpuShared { ports, mmio, stop, gate, activity, crash, stops, .. } = shared;
    loop {
        let (exit, rip) = match tape.run(vcpu) {
            Ok(exited) => exited,
            Err(error) => {
                stop.request(refused(index, &error));
                return Passage::Closed;
            }
        };
        // A kick is none of the guest's.
        if !matches!(exit, Exit::Interrupted) {
            exits.count();
            activity.note();
        }
        let mut recording;
        let unclaimed = match exit {
            Exit::IoIn { port, size, data } => {
                recording = tape.begin(Kind::PortRead, port.into(), size, data, rip);
                let unanswered = ports.read(port.into(), size, data);
                recording.answered(data);
                unanswered.map(|access| (ports, access))
            }
            Exit::IoOut { port, size, data } => {
                recording = tape.begin(Kind::PortWrite, port.into(), size, data, rip);
                ports.write(port.into(), size, data).map(|access| (ports, access))
            }
            Exit::MmioRead { address, data } => {
                recording = tape.begin(Kind::MmioRead, address, data.len(), data, rip);
                let unanswered = mmio.read(address, data.len(), data);
                recording.answered(data);
                unanswered.map(|access| (mmio, access))
            }
            Exit::MmioWrite { address, data } => {
                recording = tape.begin(Kind::MmioWrite, address, data.len(), data, rip);
                mmio.write(address, data.len(), data).map(|access| (mmio, access))
            }
            Exit::Halted => {
                recording = tape.begin(Kind::Halt, 0, 0, &[], rip);
                None
            }
            Exit::Interrupted => {
                recording = tape.begin(Kind::Kick, 0, 0, &[], rip);
                exits.keep(recording.before());
                match gate.pass(index, vcpu) {
                    Passage::Open => None,
                    passage => return passage,
                }
            }
            Exit::Debug { pc, dr6, exception } => {
                let _recording = tape.begin(Kind::End, 0, 0, &[], rip);
                return stops.hit(index, Hit { pc, dr6, exception }, vcpu, gate);
            }
            other => {
                recording = tape.begin(Kind::End, 0, 0, &[], rip);
                if let Some(failure) = Failure::of(&other) {
                    let exits = recording.before().iter().map(|exit| shared.words(exit)).collect();
                    stop.request(crash::end(index, failure, vcpu, exits, crash));
                    return Passage::Closed;
                }
                None
            }
        };
        if let Some((space, access)) = unclaimed {
            space.unclaimed.tell(access, index, || vcpu.rip());
        }
        // Answered.
        drop(recording);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axvm_devices::{BusBuilder, BusDevice};
    use axvm_events::tape::{Capacity, Tapes};
    use axvm_kvm::tsc;
    use std::collections::VecDeque;
    use std::sync::Mutex;

    /// A vCPU that plays back a script: the loop runs without KVM.
    struct Scripted(VecDeque<Step>, Vec<Vec<u8>>);

    enum Step {
        In(u16, usize, usize),
        Out(u16, usize, Vec<u8>),
        Read(u64, usize),
        Shutdown,
        Internal,
        Fail,
        Error,
        Kick,
    }

    impl Vcpu for Scripted {
        fn run(&mut self) -> io::Result<Exit<'_>> {
            self.1.push(Vec::new());
            let data = self.1.last_mut().unwrap();
            Ok(match self.0.pop_front().expect("the loop ends with the script") {
                Step::In(port, size, len) => {
                    data.resize(len, 0);
                    Exit::IoIn { port, size, data }
                }
                Step::Out(port, size, bytes) => {
                    *data = bytes;
                    Exit::IoOut { port, size, data }
                }
                Step::Read(address, len) => {
                    data.resize(len, 0);
                    Exit::MmioRead { address, data }
                }
                Step::Shutdown => Exit::Shutdown,
                Step::Internal => Exit::Internal { suberror: 1, data: vec![1, 0x08c7_0f03] },
                Step::Fail => Exit::FailEntry { reason: 0x8000_0021, cpu: 0 },
                Step::Kick => Exit::Interrupted,
                Step::Error => return Err(io::ErrorKind::NotFound.into()),
            })
        }
    }

    #[derive(Default)]
    struct Chip(Mutex<Vec<Vec<u8>>>);

    impl BusDevice for Chip {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(0x40 + offset as u8);
        }
        fn write(&self, _: u64, data: &[u8]) {
            self.0.lock().unwrap().push(data.to_vec());
        }
    }

    fn shared(ports: BusBuilder, mmio: BusBuilder) -> VcpuShared {
        let (events, stop) = (Events::default(), Arc::new(StopSwitch::new().unwrap()));
        VcpuShared {
            ports: AddressSpace::new(Space::Port, ports.finish(), &events),
            mmio: AddressSpace::new(Space::Mmio, mmio.finish(), &events),
            stop,
            gate: Arc::new(Gate::new(Order::Run)),
            activity: Activity::new().unwrap(),
            stops: Stops::new().unwrap(),
            crash: OnceLock::new(),
            events,
        }
    }

    fn play(steps: Vec<Step>) -> (StopReason, Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let chip = Arc::new(Chip::default());
        let (mut ports, mut mmio) = (BusBuilder::default(), BusBuilder::default());
        ports.plug(0x10, 8, "chip", chip.clone()).unwrap();
        mmio.plug(0x1000, 8, "chip", chip.clone()).unwrap();
        let shared = shared(ports, mmio);
        let (count, exits) = (steps.len() as u64, Exits::default());
        let mut vcpu = Scripted(steps.into(), Vec::new());
        run(0, &mut vcpu, &exits, &shared, &mut Off);
        assert!(exits.get() == count || exits.get() + 1 == count, "an error is no exit");
        let written = chip.0.lock().unwrap().clone();
        (shared.stop.reason().unwrap(), vcpu.1, written)
    }

    #[test]
    fn a_kicked_vcpu_obeys_the_gate() {
        let shared = shared(BusBuilder::default(), BusBuilder::default());
        let mut vcpu = Scripted([Step::Kick, Step::Kick, Step::Shutdown].into(), Vec::new());
        run(0, &mut vcpu, &Exits::default(), &shared, &mut Off);
        assert_eq!(vcpu.0.len(), 0, "an open gate holds no vCPU");
        shared.gate.order(Order::Stop);
        let mut vcpu = Scripted([Step::In(0x99, 1, 1), Step::Kick, Step::Shutdown].into(), Vec::new());
        run(0, &mut vcpu, &Exits::default(), &shared, &mut Off);
        assert_eq!(vcpu.0.len(), 1, "the exit before the kick is answered, and nothing runs after it");
    }

    #[test]
    fn accesses_are_answered_on_their_bus() {
        let steps = vec![Step::In(0x12, 1, 1), Step::Read(0x1003, 4), Step::In(0x99, 2, 2), Step::Shutdown];
        let (event, answers, _) = play(steps);
        assert_eq!(answers[0], [0x42]);
        assert_eq!(answers[1], [0x43; 4]);
        assert_eq!(answers[2], [0xff; 2]);
        assert_eq!(event, StopReason::TripleFault);
    }

    #[test]
    fn string_io_is_one_access_per_element() {
        let (_, _, written) = play(vec![Step::Out(0x10, 2, vec![1, 2, 3, 4]), Step::Shutdown]);
        assert_eq!(written, [[1, 2], [3, 4]]);
    }

    #[test]
    fn fatal_exits_become_sentences() {
        for (step, word) in [(Step::Internal, "cannot emulate"), (Step::Fail, "0x80000021")] {
            let (event, ..) = play(vec![step]);
            assert!(
                matches!(&event, StopReason::Crash(text) if text.contains(word) && !text.contains('\n')),
                "{event:?}"
            );
        }
        let (event, ..) = play(vec![Step::Error]);
        assert!(matches!(event, StopReason::HostError(text) if text.contains("KVM_RUN")));
    }

    #[test]
    fn a_tape_has_each_exit_with_its_answer() {
        let chip = Arc::new(Chip::default());
        let (mut ports, mut mmio) = (BusBuilder::default(), BusBuilder::default());
        ports.plug(0x10, 8, "chip", chip.clone()).unwrap();
        mmio.plug(0x1000, 8, "chip", chip).unwrap();
        let shared = shared(ports, mmio);
        let steps = [
            Step::In(0x12, 1, 1),
            Step::Out(0x10, 2, vec![1, 2, 3, 4]),
            Step::Read(0x1003, 4),
            Step::Kick,
            Step::Shutdown,
        ];
        let before = tsc();
        let tapes = Tapes::new(tsc);
        let mut vcpu = Scripted(steps.into(), Vec::new());
        tapes.switch(true);
        run(0, &mut vcpu, &Exits::default(), &shared, &mut tapes.tape("vcpu0", Capacity::Thread).unwrap());
        let mut read = Vec::new();
        tapes.take_new()[0].read(9, |record| read.push(record));
        let ends = read.iter().scan(before, |end, record| {
            let begun_behind = record.at >= *end && record.took > 0;
            *end = record.at + u64::from(record.took);
            Some(begun_behind)
        });
        assert!(ends.into_iter().all(|begun_behind| begun_behind), "one after the other: {read:?}");
        let record =
            |kind, size, count, address, value| Record { at: 0, took: 0, kind, size, count, address, value, rip: 0 };
        assert_eq!(
            read.into_iter().map(|record| Record { at: 0, took: 0, ..record }).collect::<Vec<_>>(),
            [
                record(Kind::PortRead, 1, 1, 0x12, 0x42),
                record(Kind::PortWrite, 2, 2, 0x10, 0x0403_0201),
                record(Kind::MmioRead, 4, 1, 0x1003, 0x4343_4343),
                record(Kind::Kick, 0, 1, 0, 0),
                record(Kind::End, 0, 1, 0, 0),
            ]
        );
    }
}
