//! The main thread while a machine runs: console input, clock, signals, and the power switch.
//!
//! ```text
//!   epoll:  power switch | stdin | UART has room | RTC deadline | signals
//! ```

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

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

    /// Waits; the sources that are ready. With `ready` something is ready already: looks only.
    fn wait(&self, ready: bool) -> io::Result<Vec<u64>> {
        let mut events = [EpollEvent::default(); 8];
        match self.epoll.wait(if ready { 0 } else { -1 }, &mut events) {
            Ok(count) => Ok(events[..count].iter().map(EpollEvent::data).collect()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Serves `machine` until its power switch is pressed. Returns the signal that pressed it, if one did.
pub fn serve(machine: &Machine, input: &mut Input, signals: &Signals) -> Result<Option<i32>> {
    serve_until_pressed(machine, input, signals).context("Cannot wait for events")
}

fn serve_until_pressed(machine: &Machine, input: &mut Input, signals: &Signals) -> io::Result<Option<i32>> {
    let power = &machine.shared.power;
    let (uart, rtc) = (&machine.chips.uart, &machine.chips.rtc);
    let mut waiter = Waiter::new()?;
    waiter.watch(power.event_fd().as_raw_fd(), Source::Power, true)?;
    waiter.watch(rtc.timer_fd().as_raw_fd(), Source::Clock, true)?;
    for (_, stream) in &signals.0 {
        waiter.watch(stream.as_raw_fd(), Source::Signal, true)?;
    }
    loop {
        let stdin = waiter.watch(io::stdin().as_raw_fd(), Source::Stdin, input.wants_more())?;
        waiter.watch(uart.input_ready().as_raw_fd(), Source::UartRoom, input.is_pending())?;
        let ready = waiter.wait(stdin)?;
        let is_ready = |source: Source| ready.contains(&(source as u64));

        if let Some(signal) = signals.arrived() {
            power.press(PowerEvent::Quit(format!("signal {signal}")));
            return Ok(Some(signal));
        }
        if is_ready(Source::Power) {
            return Ok(None);
        }
        if is_ready(Source::Clock) {
            rtc.tick();
        }
        let key = if stdin || is_ready(Source::Stdin) { input.read() } else { None };
        match key {
            Some(Key::Quit) => power.press(PowerEvent::Quit("Ctrl-A x".into())),
            Some(Key::PowerButton) => machine.chips.acpi_pm.press_power_button(),
            Some(Key::Help) => eprint!("{HELP}"),
            None => {}
        }
        if input.is_pending() {
            input.feed(uart);
        }
    }
}
