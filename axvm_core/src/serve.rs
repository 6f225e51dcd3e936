//! The main thread while a machine runs: console input, clock, signals, and the power switch.
//!
//! ```text
//!   epoll:  power switch | stdin | UART has room | RTC deadline | signals
//! ```

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axvm_devices::PowerEvent;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXFSZ};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::console::{HELP, Input, Key};
use crate::machine::Machine;

/// Signals that end AxVM in order: the machine is stopped, the terminal restored.
const SIGNALS: [i32; 4] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];

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

    fn arrived(&self) -> Option<i32> {
        let got = |(_, stream): &&(i32, UnixStream)| matches!(rustix::io::read(stream, &mut [0; 64]), Ok(1..));
        self.0.iter().find(got).map(|(signal, _)| *signal)
    }
}

/// What the main thread waits for; the number comes back with the event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Power,
    Signal,
    Clock,
    Stdin,
    UartRoom,
}

/// The interest list, with the two entries that come and go.
struct Waiter {
    epoll: Epoll,
    watched: Vec<RawFd>,
}

impl Waiter {
    fn new() -> io::Result<Waiter> {
        Ok(Waiter { epoll: Epoll::new()?, watched: Vec::new() })
    }

    /// Watches `fd` for input, or no longer. A file that can not be waited for (a regular file as
    /// stdin) is always ready: says so.
    fn watch(&mut self, fd: RawFd, source: Source, wanted: bool) -> io::Result<bool> {
        let watched = self.watched.contains(&fd);
        let event = EpollEvent::new(EventSet::IN, source as u64);
        match (wanted, watched) {
            (true, false) => match self.epoll.ctl(ControlOperation::Add, fd, event) {
                Ok(()) => self.watched.push(fd),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(true),
                Err(error) => return Err(error),
            },
            (false, true) => {
                self.epoll.ctl(ControlOperation::Delete, fd, event)?;
                self.watched.retain(|&other| other != fd);
            }
            _ => {}
        }
        Ok(false)
    }

    /// Waits until a source is ready, `limit` at most; the sources that are ready.
    fn wait(&self, limit: Option<Duration>) -> io::Result<Vec<u64>> {
        let mut events = [EpollEvent::default(); 8];
        // Rounded up, so that a limit has passed when the wait ends.
        let millis = limit.map_or(-1, |limit| i32::try_from(limit.as_millis() + 1).unwrap_or(i32::MAX));
        match self.epoll.wait(millis, &mut events) {
            Ok(count) => Ok(events[..count].iter().map(EpollEvent::data).collect()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Vec::new()),
            Err(error) => Err(error),
        }
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
pub fn serve(machine: &Machine, input: &mut Input, signals: &Signals, grace: Duration) -> Result<()> {
    serve_until_pressed(machine, input, signals, grace).context("Cannot wait for events")
}

fn serve_until_pressed(machine: &Machine, input: &mut Input, signals: &Signals, grace: Duration) -> io::Result<()> {
    let power = machine.power();
    let (uart, rtc) = (&machine.chips().uart, &machine.chips().rtc);
    let mut waiter = Waiter::new()?;
    let mut farewell: Option<Farewell> = None;
    waiter.watch(power.event_fd().as_raw_fd(), Source::Power, true)?;
    waiter.watch(rtc.timer_fd().as_raw_fd(), Source::Clock, true)?;
    for (_, stream) in &signals.0 {
        waiter.watch(stream.as_raw_fd(), Source::Signal, true)?;
    }
    loop {
        let stdin = waiter.watch(io::stdin().as_raw_fd(), Source::Stdin, input.wants_more())?;
        waiter.watch(uart.input_ready().as_raw_fd(), Source::UartRoom, input.is_pending())?;
        let remaining = farewell.as_ref().map(|farewell| farewell.deadline.saturating_duration_since(Instant::now()));
        let ready = waiter.wait(if stdin { Some(Duration::ZERO) } else { remaining })?;
        let is_ready = |source: Source| ready.contains(&(source as u64));

        if is_ready(Source::Power) {
            return Ok(());
        }
        match (signals.arrived(), &farewell) {
            (Some(signal), None) if signal != SIGQUIT => {
                machine.chips().acpi_pm.press_power_button();
                farewell = Some(Farewell { signal, deadline: Instant::now() + grace });
            }
            (Some(signal), _) => power.press(PowerEvent::Signal(signal)),
            (None, Some(Farewell { signal, deadline })) if Instant::now() >= *deadline => {
                power.press(PowerEvent::Signal(*signal));
            }
            _ => {}
        }
        if is_ready(Source::Clock) {
            rtc.tick();
        }
        let key = if stdin || is_ready(Source::Stdin) { input.read() } else { None };
        match key {
            Some(Key::Quit) => power.press(PowerEvent::Quit),
            Some(Key::PowerButton) => machine.chips().acpi_pm.press_power_button(),
            Some(Key::Help) => eprint!("{HELP}"),
            None => {}
        }
        if input.is_pending() {
            input.feed(uart);
        }
    }
}
