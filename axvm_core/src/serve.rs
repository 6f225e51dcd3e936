//! The main thread while a machine runs: the power switch, the clock, and signals.
//!
//! ```text
//!   epoll:  power switch | RTC deadline | signals
//! ```

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axvm_console::Wake;
use axvm_devices::PowerEvent;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH, SIGXFSZ};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::consoles::Consoles;
use crate::machine::Machine;

/// Signals that end AxVM in order (the machine is stopped, the terminal restored), then those about the terminal.
const SIGNALS: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH, SIGCONT];

/// Those signals as something to wait for: each writes a byte into its socket.
pub struct Signals(Vec<(i32, UnixStream)>);

impl Signals {
    /// Catches them; and takes the sting out of SIGXFSZ, so that a write beyond a file size limit is an
    /// error for the guest's disk, not the end of AxVM.
    pub fn catch() -> io::Result<Signals> {
        signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        let catch = |signal| {
            let (read, write) = UnixStream::pair()?;
            read.set_nonblocking(true)?;
            signal_hook::low_level::pipe::register(signal, write)?;
            Ok((signal, read))
        };
        SIGNALS.into_iter().map(catch).collect::<io::Result<_>>().map(Signals)
    }

    /// Takes what arrived.
    fn arrived(&self) -> impl Iterator<Item = i32> {
        let got = |(_, stream): &&(i32, UnixStream)| matches!(rustix::io::read(stream, &mut [0; 64]), Ok(1..));
        self.0.iter().filter(got).map(|(signal, _)| *signal)
    }
}

/// A first signal asks the guest politely; this is how long it has to power off.
struct Farewell {
    signal: i32,
    deadline: Instant,
}

/// Serves `machine` until its power switch is pressed.
///
/// A first signal presses the guest's power button; a second one, or `grace` without power-off, ends the
/// machine. SIGQUIT does at once.
pub fn serve(machine: &Machine, consoles: &Consoles, signals: &Signals, grace: Duration) -> Result<()> {
    let (power, rtc) = (machine.power(), &machine.chips().rtc);
    let fds = [power.event_fd().as_raw_fd(), rtc.timer_fd().as_raw_fd()];
    let fds = fds.into_iter().chain(signals.0.iter().map(|(_, stream)| stream.as_raw_fd()));
    let events = Epoll::new().context("Cannot wait for events")?;
    for fd in fds {
        events.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).context("Cannot wait for events")?;
    }
    let mut farewell: Option<Farewell> = None;
    loop {
        let left = farewell.as_ref().map(|farewell| farewell.deadline.saturating_duration_since(Instant::now()));
        wait(&events, left).context("Cannot wait for events")?;
        if power.pressed().is_some() {
            return Ok(());
        }
        rtc.tick();
        for signal in signals.arrived() {
            match (signal, &farewell) {
                (SIGWINCH, _) => consoles.resized(),
                (SIGCONT, _) => consoles.continued(),
                (SIGQUIT, _) | (_, Some(_)) => {
                    power.press(PowerEvent::Signal(signal));
                    consoles.give_up();
                }
                (_, None) => {
                    machine.chips().acpi_pm.press_power_button();
                    farewell = Some(Farewell { signal, deadline: Instant::now() + grace });
                }
            }
        }
        if let Some(Farewell { signal, deadline }) = farewell
            && Instant::now() >= deadline
        {
            power.press(PowerEvent::Signal(signal));
        }
    }
}

/// Ends the consoles when everybody has read what the guest wrote; a signal ends the wait for a slow reader.
pub fn see_off(consoles: Consoles, signals: &Signals) {
    consoles.close();
    let mut open: Vec<&Wake> = consoles.endings().collect();
    while !open.is_empty() {
        let ends = open.iter().map(|end| PollFd::new(*end, PollFlags::IN));
        let mut fds: Vec<_> =
            ends.chain(signals.0.iter().map(|(_, stream)| PollFd::new(stream, PollFlags::IN))).collect();
        if matches!(poll(&mut fds, None), Err(error) if error != Errno::INTR) {
            break;
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

/// Waits until something is ready, `limit` at most.
fn wait(events: &Epoll, limit: Option<Duration>) -> io::Result<()> {
    // Rounded up, so that a limit has passed when the wait ends.
    let millis = limit.map_or(-1, |limit| i32::try_from(limit.as_millis() + 1).unwrap_or(i32::MAX));
    match events.wait(millis, &mut [EpollEvent::default()]) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}
