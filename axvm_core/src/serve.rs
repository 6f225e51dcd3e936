//! The main thread while a machine runs: signals and the time beside the machine's own wait.
//!
//! ```text
//!   Machine::wait:  a reason to stop | the clock | signals | the end of --grace or --timeout
//! ```
//!
//! A signal that was ignored when AxVM started stays ignored: that is how `nohup`, and a shell that starts a job in the
//! background, keep it away.
//!
//! Source: signal(7); proc_pid_status(5), "SigIgn".

use std::fs::File;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axvm_api::ApiServer;
use axvm_devices::StopReason;
use axvm_machine::{Machine, WaitOutcome};
use axvm_sandbox::CaughtSignals;
use axvm_sync::EventFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::signal::{
    SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGTRAP, SIGUSR1, SIGUSR2, SIGVTALRM, SIGWINCH,
    SIGXCPU, SIGXFSZ,
};

use crate::consoles::Consoles;
use crate::current::Current;
use crate::debug::Debugger;
use crate::explain::Explainer;
use crate::reception::Reception;
use crate::signs::Signs;
use crate::speech::{self, try_tell};

/// Signals that ask for an end: the guest is told first.
const POLITE: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];
/// Signals about the terminal.
const TERMINAL: [i32; 2] = [SIGWINCH, SIGCONT];
/// Signals whose default is to end the process: it ends in order, at once. SIGPWR and SIGSTKFLT have no name here.
/// The real-time signals from the second on follow; the first is for vCPUs.
const ENDING: [i32; 11] = [SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGXCPU, SIGIO, SIGTRAP, 16, 30];
const REAL_TIME: RangeInclusive<i32> = 36..=64;

/// All signals that can be caught, as something to wait for.
pub struct Signals(CaughtSignals);

impl Signals {
    /// Catches them; and takes the sting out of SIGXFSZ, so that a write beyond a file size limit is an error for the
    /// guest's disk, not the end of AxVM. Those that the program that started this one may have blocked arrive, too.
    pub fn catch() -> io::Result<Signals> {
        let ends = heeded(POLITE.into_iter().chain(ENDING).chain(REAL_TIME));
        CaughtSignals::catch(ends.chain(TERMINAL), &[SIGXFSZ]).map(Signals)
    }

    /// The signal that asks for an end, if one arrived while no guest runs. What concerns the terminal is passed on.
    pub fn ending(&self, consoles: &Consoles) -> Option<i32> {
        let mut ending = None;
        for signal in self.arrived() {
            match signal {
                SIGWINCH => consoles.resized(),
                SIGCONT => consoles.continued(),
                _ => ending = ending.or(Some(signal)),
            }
        }
        ending
    }

    /// Takes what arrived.
    pub fn arrived(&self) -> Vec<i32> {
        self.0.arrived()
    }
}

impl AsFd for Signals {
    /// Readable when a signal has arrived.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Those of `signals` that this process was not started to ignore.
pub fn heeded(signals: impl Iterator<Item = i32>) -> impl Iterator<Item = i32> {
    // Room for all of it: a file of /proc does not tell its length, and is read in small pieces otherwise.
    let mut status = String::with_capacity(4 << 10);
    let _ = File::open("/proc/self/status").and_then(|mut file| file.read_to_string(&mut status));
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    // Bit 0 is signal 1.
    signals.filter(move |signal| ignored.unwrap_or(0) >> (signal - 1) & 1 == 0)
}

/// A first signal asks the guest politely; this is how long it has to power off.
struct Ending {
    signal: i32,
    deadline: Instant,
}

/// What comes to a machine from outside.
#[derive(Clone, Copy)]
pub struct Outside<'a> {
    /// They end it at once, or after asking.
    pub signals: &'a Signals,
    /// Its first client is let in; none without a control socket.
    pub server: Option<&'a ApiServer>,
    /// How long a guest has after it was asked.
    pub grace: Duration,
    /// When the time is over.
    pub end: Option<Instant>,
    /// Makes reports of a guest that runs.
    pub explainer: Option<&'a Explainer>,
    /// May want the next machine to wait before its first instruction.
    pub debugger: Option<&'a Debugger>,
    /// Whom signals are for, as long as it takes them.
    pub taker: Option<&'a dyn Fn(i32) -> bool>,
}

/// Serves `machine`, which is the current one, until its power switch is pressed. Gives the signal that asked the
/// guest to end, if one did. Meanwhile it watches for `signs` of life.
///
/// SIGUSR1 has the guest explained. A first SIGTERM, SIGINT or SIGHUP presses the guest's power button; a second one, or `grace` without power-off,
/// ends the machine. Other signals do at once, and so does the end of the time that it has.
pub fn serve(
    machine: &Machine,
    current: &Current,
    consoles: &Consoles,
    outside: &Outside<'_>,
    signs: &Signs<'_>,
) -> Result<Option<i32>> {
    let Outside { signals, server, grace, end, explainer, debugger, taker } = *outside;
    let errands = debugger.map(Debugger::errands);
    let mut ending: Option<Ending> = None;
    let mut look = signs.first_look();
    let mut reception = Reception::of(server);
    loop {
        if look.is_some_and(|look| Instant::now() >= look) {
            look = signs.look(machine, consoles);
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            machine.stop_switch().insist(StopReason::TimeOver);
        }
        reception.look();
        let again =
            [speech::catch_up(), reception.next_look(), look, end, ending.as_ref().map(|ending| ending.deadline)];
        let deadline = again.into_iter().flatten().min();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let own = [signals.as_fd(), consoles.explain().as_fd()];
        let others: Vec<_> = own
            .into_iter()
            .chain(errands.map(|errands| errands.wanted().as_fd()))
            .chain(speech::behind())
            .chain(reception.listeners())
            .collect();
        let outcome = machine.wait(&others, left).context("Cannot wait for events")?;
        match outcome {
            WaitOutcome::Stopped => return Ok(ending.map(|ending| ending.signal)),
            WaitOutcome::Halted(place) => signs.halted(machine, place),
            WaitOutcome::Readable | WaitOutcome::TimedOut => {}
        }
        errands.inspect(|errands| errands.serve());
        if consoles.explain().take() {
            explainer.inspect(|explainer| explainer.tell(machine));
        }
        for signal in signals.arrived() {
            if taker.is_some_and(|takes| takes(signal)) {
                continue;
            }
            match (signal, &ending) {
                (SIGWINCH, _) => consoles.resized(),
                (SIGCONT, _) => consoles.continued(),
                (SIGUSR1, _) if let Some(explainer) = explainer => explainer.tell(machine),
                (_, None) if POLITE.contains(&signal) => {
                    let pressed = machine.press_power_button();
                    if !grace.is_zero() {
                        let what = if pressed { "power button pressed" } else { "no power button without ACPI" };
                        try_tell(format_args!("{what}; ending in {} s, a second signal ends now", grace.as_secs()));
                    }
                    ending = Some(Ending { signal, deadline: Instant::now() + grace });
                }
                _ => {
                    current.request_stop(StopReason::Signal(signal));
                    consoles.give_up();
                }
            }
        }
        if let Some(Ending { signal, deadline }) = ending
            && Instant::now() >= deadline
        {
            machine.stop_switch().insist(StopReason::Signal(signal));
        }
    }
}

/// Ends the consoles when every reader has what the guest wrote; a signal, or `deadline`, ends the wait for a slow
/// reader.
pub fn see_off(consoles: Consoles, signals: &Signals, mut deadline: Option<Instant>) {
    consoles.close();
    let mut open: Vec<&EventFd> = consoles.endings().collect();
    while !open.is_empty() {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds: Vec<_> = open.iter().map(|end| PollFd::new(*end, PollFlags::IN)).collect();
        fds.push(PollFd::new(signals, PollFlags::IN));
        if matches!(poll(&mut fds, left.as_ref()), Err(error) if error != Errno::INTR) {
            break;
        }
        if deadline.take_if(|deadline| Instant::now() >= *deadline).is_some() {
            consoles.give_up();
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        open = open.into_iter().zip(ready).filter(|(_, ended)| !ended).map(|(end, _)| end).collect();
        for signal in signals.arrived() {
            match signal {
                SIGWINCH => consoles.resized(),
                SIGCONT => consoles.continued(),
                _ => consoles.give_up(),
            }
        }
    }
}
