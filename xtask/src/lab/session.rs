//! One run of the outer machine, from restore to the end of the job.
//!
//! ```text
//!   host                      outer init
//!   hello, hello ...  -->
//!                     <--     axvm-lab: ready
//!   run EPOCH ...     -->     set clock, mount payload, start job
//!                     <--     axvm-lab: running UPTIME     (now the job's terminal takes input)
//!                     <--     axvm-lab: alive              (every 5 s, by a timer of the outer machine)
//!   (an empty line)   -->                                  (five a second of silence, see `LOOK`)
//!                     <--     axvm-lab: exit CODE UPTIME   (job ended; or we sent "stop" at its time limit)
//!                     <--     axvm-lab: done               (payload unmounted)
//! ```

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use super::outer::Outer;
use super::payload::Payload;
use super::qemu::{Qemu, Said};
use super::terminal::{self, RawTerminal};
use super::{Console, End, LabJob, LabReport};

const RESTORE_LIMIT: Duration = Duration::from_secs(60);
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
const UNMOUNT_LIMIT: Duration = Duration::from_secs(120);
/// How often to look at a silent machine: whether this host itself stood still, and to send it an empty line. The line's
/// interrupt frees an outer machine whose timer interrupt got lost: QEMU 7.2's emulated VMRUN and #VMEXIT change the
/// processor's word of pending events without the lock under which the timer's thread sets its bit. The interrupt then
/// stands in the local APIC (`info lapic`: IRR 236) and the processor, deep in a guest that waits, is never told; the next
/// interrupt of any device tells it of both.
const LOOK: Duration = Duration::from_millis(200);
/// What says that this host stood still (a virtual machine that was paused).
const STANDSTILL: Duration = Duration::from_secs(20);
/// Without a sign of life for so long, the outer machine is lost, or the user stopped QEMU. Its job would wait for ever, and
/// so would the job's own time limits.
const SILENCE_LIMIT: Duration = Duration::from_secs(90);
const FOREVER: Duration = Duration::from_secs(30 * 24 * 3600);
/// What an outer kernel says that is lost or soon will be.
const DEATH: [&str; 7] = [
    "Kernel panic",
    "BUG: ",
    "Oops",
    "soft lockup",
    "rcu_sched self-detected",
    "general protection",
    "axvm-lab: AxVM cannot be killed",
];

pub(super) fn run(outer: &Outer, job: &LabJob) -> Result<LabReport> {
    let payload = Payload::make(&job.files, &job.script)?;
    let mut qemu = Qemu::start(outer.command(&payload.image(), true), payload.work())?;
    let attached = job.console == Console::Attached;
    let (said, collector) = terminal::collect(qemu.job.try_clone()?, attached);
    let mut started = false;
    let end = match wake(&mut qemu)? {
        Some(failure) => {
            outer.forget_state();
            End::OuterDied(failure)
        }
        None => {
            started = true;
            let raw = if attached && terminal::attended() { Some(RawTerminal::enter()?) } else { None };
            let mut session = Session { qemu: &mut qemu, job, began: None, ended: None };
            let mut end = session.play(raw.is_some())?;
            if let Some(speed) = session.wrong_speed() {
                outer.forget_state();
                let why = format!("its clock ran {speed:.2} times as fast as the host's");
                if attached {
                    eprintln!("The lab's saved state was no good, the next run makes a new one: {why}\r");
                } else {
                    end = End::OuterDied(why);
                }
            }
            // The terminal is given back after the last byte is shown.
            qemu.kill();
            let _ = collector.join();
            end
        }
    };
    let outer_console = std::mem::take(&mut qemu.control.log);
    let console = std::mem::take(&mut *said.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    Ok(LabReport { end, console, outer_console, payload, started, first_try: None })
}

/// Waits until the restored machine answers; else says why it did not.
fn wake(qemu: &mut Qemu) -> Result<Option<String>> {
    let deadline = Instant::now() + RESTORE_LIMIT;
    while Instant::now() < deadline {
        // What is sent before the state is in is lost.
        if qemu.control.send("hello").is_err() {
            break;
        }
        match qemu.control.line(Instant::now() + Duration::from_millis(50))? {
            Said::Line(line) if line == "axvm-lab: ready" => return Ok(None),
            Said::Closed => break,
            _ => {}
        }
    }
    Ok(Some(format!("Saved state did not come back: {}{}", qemu.control.tail(), qemu.errors())))
}

struct Session<'a, 'job> {
    qemu: &'a mut Qemu,
    job: &'a LabJob<'job>,
    /// When the job began, and what the outer machine's uptime was.
    began: Option<(Instant, f64)>,
    ended: Option<(Instant, f64)>,
}

impl Session<'_, '_> {
    fn play(&mut self, terminal: bool) -> Result<End> {
        let (rows, columns) = terminal::size();
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64().round();
        let term = std::env::var("TERM").ok().filter(|term| terminal && !term.is_empty()).unwrap_or("linux".into());
        let mode = if terminal { "sane" } else { "raw" };
        if self.qemu.control.send(&format!("run {epoch} {rows} {columns} {term} {mode}")).is_err() {
            return Ok(self.died("gone before the job began"));
        }
        let end = Instant::now() + self.job.limit.unwrap_or(FOREVER);
        let mut heard = Instant::now();
        loop {
            let since = Instant::now();
            let said = self.qemu.control.line(end.min(since + LOOK))?;
            if since.elapsed() > STANDSTILL {
                // All clocks leapt, and with them every time limit in there.
                return Ok(self.died(&format!("this host stood still for {} s", since.elapsed().as_secs())));
            }
            if said != Said::Silence {
                heard = Instant::now();
            }
            match said {
                Said::Closed => return Ok(self.died("QEMU ended")),
                Said::Silence if heard.elapsed() > SILENCE_LIMIT => return Ok(self.died("no sign of life")),
                Said::Silence if Instant::now() < end => drop(self.qemu.control.send("")),
                Said::Silence => return self.stop(),
                Said::Line(line) if line == "axvm-lab: alive" => self.qemu.control.forget_line(),
                Said::Line(line) if DEATH.iter().any(|sign| line.contains(sign)) => {
                    // The rest of its last words.
                    let until = Instant::now() + Duration::from_secs(2);
                    while matches!(self.qemu.control.line(until)?, Said::Line(_)) {}
                    return Ok(self.died(&line));
                }
                Said::Line(line) => {
                    if let Some(words) = line.strip_prefix("axvm-lab: exit ") {
                        let (code, uptime) = words.split_once(' ').unwrap_or((words, ""));
                        self.ended = uptime.parse().ok().map(|uptime| (Instant::now(), uptime));
                        return self.finish(End::Exit(code.parse().unwrap_or(255)));
                    } else if let Some(note) = line.strip_prefix("axvm-lab: note ") {
                        (self.job.note)(note);
                    } else if let Some(uptime) = line.strip_prefix("axvm-lab: running ") {
                        self.began = uptime.parse().ok().map(|uptime| (Instant::now(), uptime));
                        if self.job.console == Console::Attached {
                            terminal::feed(self.qemu.job.try_clone()?);
                        }
                    } else if line == "axvm-lab: no payload" {
                        return Ok(self.died("it cannot mount the payload"));
                    }
                }
            }
        }
    }

    /// At the time limit: is it the job that hangs, or the outer machine?
    fn stop(&mut self) -> Result<End> {
        let limit = self.job.limit.unwrap_or(FOREVER);
        let deadline = Instant::now() + ANSWER_LIMIT;
        let _ = self.qemu.control.send("stop");
        loop {
            match self.qemu.control.line(deadline)? {
                Said::Line(line) if line.starts_with("axvm-lab: exit") => return self.finish(End::TimeLimit(limit)),
                Said::Line(_) => {}
                Said::Silence | Said::Closed => return Ok(self.died("it does not answer any more")),
            }
        }
    }

    fn finish(&mut self, end: End) -> Result<End> {
        let deadline = Instant::now() + UNMOUNT_LIMIT;
        loop {
            match self.qemu.control.line(deadline)? {
                Said::Line(line) if line == "axvm-lab: done" => return Ok(end),
                Said::Line(_) => {}
                Said::Silence | Said::Closed => return Ok(self.died("it ended before the payload was written")),
            }
        }
    }

    /// How fast the outer machine's clock ran, if that was wrong. Only a job of some seconds tells.
    fn wrong_speed(&self) -> Option<f64> {
        let (began, uptime) = self.began?;
        let (ended, last) = self.ended?;
        let (here, there) = ((ended - began).as_secs_f64(), last - uptime);
        let speed = there / here;
        (here > 3.0 && !(0.8..1.25).contains(&speed)).then_some(speed)
    }

    fn died(&self, why: &str) -> End {
        let (state, tail, errors) = (self.qemu.state(), self.qemu.control.tail(), self.qemu.errors());
        End::OuterDied(format!("{why} (QEMU: {state})\n{tail}\n{errors}").trim().to_owned())
    }
}
