//! How a guest ended, and what follows: another start, or an exit code and a word about it.
//!
//! ```text
//!   StopReason   reset         crash        panic        halted, off, signal ...
//!                  |             |            |               |
//!              --on-reboot   --on-crash   --on-panic          |
//!                  |             |            |               |
//!                  +---- start again, but in no loop ----> exit code
//! ```
//!
//! What the user asked for (a signal, a key, the control socket) goes before what the guest did; a reset by the control
//! socket is one as if the guest had asked for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Result;
use axvm_devices::{StopReason, StopSwitch};
use axvm_inspect::crash::CrashReport;

use crate::settings::{OnCrash, OnPanic, OnReboot, Settings};

/// How a guest ended.
pub struct End {
    reason: StopReason,
    /// Only the guest wanted it.
    by_guest: bool,
    /// Its kernel had panicked before, and was let go on.
    panicked: bool,
    /// It started again too often.
    in_loop: bool,
    /// Why a vCPU of it could not go on.
    report: Option<Box<CrashReport>>,
}

impl End {
    /// The end of a machine with this switch, for `reason`.
    pub fn of(reason: StopReason, stop: &StopSwitch) -> End {
        let (by_guest, panicked) = (stop.can_wait(), stop.has_panicked());
        End { reason, by_guest, panicked, in_loop: false, report: None }
    }

    /// The end of a run, not of a guest.
    pub fn of_run(reason: StopReason) -> End {
        End { reason, by_guest: false, panicked: false, in_loop: false, report: None }
    }

    /// The same, with what the machine knows of its crash.
    pub fn explained_by(mut self, report: Option<&CrashReport>) -> End {
        if matches!(self.reason, StopReason::TripleFault | StopReason::Crash(_)) {
            self.report = report.cloned().map(Box::new);
        }
        self
    }

    /// Why a vCPU could not go on, if that is how it ended.
    pub fn report(&self) -> Option<&CrashReport> {
        self.report.as_deref()
    }

    /// The same, to be completed.
    pub fn report_mut(&mut self) -> Option<&mut CrashReport> {
        self.report.as_deref_mut()
    }

    /// Whether the user ended it with a key, or by the control socket.
    pub fn is_quit(&self) -> bool {
        self.reason == StopReason::Quit
    }

    /// Whether the settings want another start.
    pub fn starts_again(&self, settings: &Settings) -> bool {
        match self.reason {
            StopReason::Reset(_) => settings.on_reboot() == OnReboot::Restart,
            StopReason::TripleFault | StopReason::Crash(_) => settings.on_crash() == OnCrash::Restart,
            StopReason::Panic => settings.on_panic() == OnPanic::Restart,
            _ => false,
        }
    }

    /// What happened before another start, in words.
    pub fn event(&self) -> String {
        match &self.reason {
            StopReason::Reset(source) => format!("reset ({source})"),
            StopReason::TripleFault => "triple fault".into(),
            StopReason::Panic => "kernel panic".into(),
            StopReason::Crash(why) => why.clone(),
            _ => String::new(),
        }
    }

    /// What every user should know when it starts again.
    pub fn warning(&self) -> Option<String> {
        match &self.reason {
            StopReason::TripleFault | StopReason::Crash(_) => {
                Some(format!("crashed ({}) and starts again; --on-crash end ends AxVM instead", self.event()))
            }
            StopReason::Panic => Some("its kernel panicked; it starts again; --on-panic end ends AxVM instead".into()),
            _ => None,
        }
    }

    /// What the user must know at the end.
    pub fn words(&self, settings: &Settings) -> Option<String> {
        if self.in_loop {
            let limit = settings.restart_limit();
            return Some(format!(
                "The guest started again {limit} times within a second and is ended, at last by {}; see --restart-limit",
                self.event()
            ));
        }
        match &self.reason {
            StopReason::TimeOver => {
                settings.timeout.map(|time| format!("The time is over: the machine was ended after {time} (--timeout)"))
            }
            StopReason::DebugExit(value) if !is_guests_own(*value) => {
                let (port, code) = (settings.debug_exit.map_or(0, |port| port.0), debug_exit_code(*value));
                Some(format!(
                    "The guest wrote {value:#x} to its debug-exit port {port:#x}; exit code {code} has other meanings, too"
                ))
            }
            StopReason::Panic => Some(match panic_time(&settings.append()) {
                Some(time) => format!(
                    "The guest's kernel panicked; its last words are on its console. It was told to reset itself \
                     then ({time}): --on-panic continue lets it"
                ),
                None => "The guest's kernel panicked; its last words are on its console".into(),
            }),
            StopReason::Reset(_) if self.panicked => {
                Some("The guest's kernel panicked and reset the machine; its last words are on its console".into())
            }
            StopReason::TripleFault => Some(
                "The guest crashed: triple fault. If that is how it resets (reboot=t), give --on-crash restart".into(),
            ),
            StopReason::Crash(why) => Some(format!("The guest crashed: {why}")),
            StopReason::DriverFault(what) => {
                Some(format!("A driver of the guest broke a rule of virtio (--virtio-check stop): {what}"))
            }
            StopReason::Halted(place) if self.panicked => {
                Some(format!("The guest's kernel panicked and halted: {place}; its last words are on its console"))
            }
            StopReason::Halted(place) => Some(format!(
                "The guest halted for good: {place}. A power-off needs ACPI and a driver for it; --on-halt wait keeps \
                 the machine"
            )),
            _ => None,
        }
    }

    /// The exit code of AxVM.
    pub fn code(&self) -> Result<u8> {
        match &self.reason {
            StopReason::Off | StopReason::Quit => Ok(0),
            StopReason::Panic => Ok(4),
            StopReason::Reset(_) | StopReason::Halted(_) if self.panicked => Ok(4),
            StopReason::Reset(_) => Ok(3),
            StopReason::TripleFault | StopReason::Crash(_) => Ok(5),
            StopReason::Halted(_) => Ok(6),
            StopReason::DriverFault(_) => Ok(7),
            StopReason::DebugExit(value) => Ok(debug_exit_code(*value)),
            StopReason::TimeOver => Ok(124),
            StopReason::Signal(signal) => Ok(128 + *signal as u8),
            StopReason::HostError(why) => anyhow::bail!("The host failed the guest: {why}"),
        }
    }
}

/// What a process can say of a value at the debug-exit port: as with QEMU, the lower eight bits of this formula.
fn debug_exit_code(value: u32) -> u8 {
    (value << 1 | 1) as u8
}

/// Whether the exit code of `value` at the debug-exit port says all of it, and has no other meaning (docs/life-cycle.md).
fn is_guests_own(value: u32) -> bool {
    (3..0x40).contains(&value)
}

/// The word of a kernel command line that has the kernel reset the machine some time after a panic.
fn panic_time(command_line: &str) -> Option<&str> {
    let last = command_line.split_whitespace().rfind(|word| word.starts_with("panic="))?;
    last.strip_prefix("panic=").and_then(|time| time.parse::<i32>().ok()).filter(|&time| time != 0).map(|_| last)
}

/// The latest starts that the guest brought about.
pub struct Restarts {
    limit: usize,
    latest: VecDeque<Instant>,
}

/// A guest that starts more often than its limit in so much time is in a loop: no kernel boots so fast.
const WINDOW: Duration = Duration::from_secs(1);

impl Restarts {
    /// None yet; `limit` 0 for no limit.
    pub fn new(limit: u32) -> Restarts {
        Restarts { limit: limit as usize, latest: VecDeque::new() }
    }

    /// Whether there may be another start at `now`, after `end`, which then says that it was in a loop if not. One that
    /// the user asked for counts for nothing.
    pub fn allow(&mut self, end: &mut End, now: Instant) -> bool {
        if self.limit == 0 || !end.by_guest {
            return true;
        }
        self.latest.retain(|&start| now.duration_since(start) < WINDOW);
        end.in_loop = self.latest.len() >= self.limit;
        self.latest.push_back(now);
        !end.in_loop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(reason: StopReason, by_user: bool) -> End {
        let stop = StopSwitch::new().unwrap();
        match by_user {
            true => stop.insist(reason.clone()),
            false => stop.request(reason.clone()),
        }
        End::of(reason, &stop)
    }

    #[test]
    fn a_loop_is_many_starts_of_the_guest_in_a_second() {
        let begin = Instant::now();
        let after = |millis| begin + Duration::from_millis(millis);
        let mut reset = end(StopReason::Reset("guest"), false);
        let mut restarts = Restarts::new(5);
        assert!((0..100).all(|n| restarts.allow(&mut reset, after(n * 201))), "five in a second are none too many");
        assert!((0..5).all(|n| restarts.allow(&mut reset, after(30_000 + n))));
        assert!(!restarts.allow(&mut reset, after(30_999)));
        let words = reset.words(&Settings::default()).unwrap();
        assert!(words.contains("5 times within a second") && words.contains("reset (guest)"), "{words}");
        let mut by_user = end(StopReason::Reset("control socket"), true);
        let mut restarts = Restarts::new(1);
        assert!((0..100).all(|n| restarts.allow(&mut by_user, after(n))));
        assert!((0..100).all(|n| Restarts::new(0).allow(&mut reset, after(n))));
    }

    #[test]
    fn each_end_has_its_option() {
        let said = |words: &str| crate::settings::parse(words).unwrap();
        let (crash, fault) = (|| StopReason::Crash("why".into()), || StopReason::TripleFault);
        for (reason, restart, stay) in [
            (StopReason::Reset("guest"), "", "on-reboot = 'end'"),
            (crash(), "on-crash = 'restart'", ""),
            (fault(), "on-crash = 'restart'", "on-reboot = 'restart'"),
            (StopReason::Panic, "on-panic = 'restart'", ""),
        ] {
            let end = end(reason.clone(), false);
            assert!(end.starts_again(&said(restart)) && !end.starts_again(&said(stay)), "{reason:?}");
        }
        for reason in [StopReason::Off, StopReason::Quit, StopReason::Halted("there".into()), StopReason::TimeOver] {
            let all = said("on-crash = 'restart'\non-panic = 'restart'");
            assert!(!end(reason.clone(), false).starts_again(&all), "{reason:?}");
        }
    }

    #[test]
    fn a_kernel_that_would_reset_itself_after_a_panic_is_known() {
        assert_eq!(panic_time("quiet panic=5 ro"), Some("panic=5"));
        assert_eq!(panic_time("panic=-1"), Some("panic=-1"));
        for none in ["", "quiet", "panic=0", "panic=5 panic=0", "xpanic=5", "panic=soon"] {
            assert_eq!(panic_time(none), None, "{none}");
        }
    }
}
