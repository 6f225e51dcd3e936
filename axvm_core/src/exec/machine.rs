//! `axvm run ... -- COMMAND`: a machine for one command. The agent is its first process and calls; the machine ends when
//! the command does.
//!
//! ```text
//!   guest: axvm-agent --connect(host, port 348)--> vsock --> socket PATH_348 --> [command] <--> this process's streams
//!   main thread: signals --------------------------------------------------------^   '--> how it ended
//! ```
//!
//! The thread `command` does what `axvm exec` does, within AxVM: so signals come from the main thread, which has them.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axvm_console::Terminal;
use axvm_devices::StopReason;
use axvm_exec::{PORT, Request};
use axvm_sandbox::Role;
use axvm_socket::Socket;
use axvm_sync::wait_any;
use signal_hook::consts::{SIGCONT, SIGWINCH};

use super::conversation::{Arrivals, Conversation, Ended, GUEST_IS_OFF};
use super::{request, terminal};
use crate::config::Config;
use crate::current::Current;
use crate::speech::try_tell;

/// After so long without a call of the agent the user is told.
const LATE: Duration = Duration::from_secs(30);
/// How long output that the guest left behind may take.
const REST: Duration = Duration::from_secs(2);

/// A command whose guest is to be started: all is open that will be needed.
pub struct Expected {
    request: Request,
    terminal: Option<Arc<Terminal>>,
    way: Way,
    control: Control,
    signals: UnixStream,
}

/// A command whose guest runs.
pub struct Attended {
    signals: UnixStream,
    ended: Receiver<Result<Ended>>,
    _socket: Option<Socket>,
}

/// How the agent is reached.
enum Way {
    /// It calls, by vsock.
    Listen(Socket),
    /// It is asked, by its port, and answers when the guest is up.
    Ask(UnixStream),
}

/// Where the agent will be heard of.
enum Caller {
    Listener(UnixListener),
    Asked(UnixStream),
}

impl Way {
    fn split(self) -> io::Result<(Caller, Option<Socket>)> {
        Ok(match self {
            Way::Listen(socket) => (Caller::Listener(socket.listener()?), Some(socket)),
            Way::Ask(stream) => (Caller::Asked(stream), None),
        })
    }
}

impl Caller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Caller::Listener(listener) => listener.as_fd(),
            Caller::Asked(stream) => stream.as_fd(),
        }
    }

    /// The connection to the agent, once there is one.
    fn arrived(&mut self) -> io::Result<Option<UnixStream>> {
        match self {
            Caller::Listener(listener) => listener.accept().map(|(stream, _)| Some(stream)),
            // `OK 0`, of which only the end matters; what follows is the agent's.
            Caller::Asked(stream) => {
                let mut byte = [0];
                match stream.read(&mut byte)? {
                    0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    _ if byte == *b"\n" => stream.try_clone().map(Some),
                    _ => Ok(None),
                }
            }
        }
    }
}

/// Asks our own device for the agent: it takes clients once the guest has set it up.
fn ask(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    (&stream).write_all(format!("CONNECT {PORT}\n").as_bytes())?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// The thread's end of what the main thread tells.
struct Control(UnixStream);

impl Expected {
    /// Listens where the agent will call, if there is a command.
    pub fn open(config: &Config) -> Result<Option<Expected>> {
        if config.command.is_empty() {
            return Ok(None);
        }
        let way = match (&config.agent_port, &config.vsock) {
            (Some(path), _) => Way::Ask(ask(path).context("Cannot wait for the agent")?),
            (None, Some(path)) => Way::Listen(Socket::listen(Path::new(&at_port(path)))?),
            (None, None) => return Ok(None),
        };
        let terminal = terminal();
        let request = request(&config.command, None, Vec::new(), terminal.is_some())?;
        let (signals, control) = UnixStream::pair().context("Cannot wait for the agent")?;
        [&signals, &control].into_iter().try_for_each(|end| end.set_nonblocking(true))?;
        Ok(Some(Expected { request, terminal, way, control: Control(control), signals }))
    }

    /// Starts the thread. `grace` is how long the guest may take to power off when its command has ended.
    pub fn start(self, current: &Arc<Current>, grace: Duration) -> Result<Attended> {
        let Expected { request, terminal, way, control, signals } = self;
        let (caller, socket) = way.split().context("Cannot wait for the agent")?;
        let (sender, ended) = channel();
        let current = Arc::clone(current);
        let attend = move || {
            let ended = attend(caller, &request, terminal.clone(), &control, &current);
            terminal.iter().for_each(|terminal| terminal.leave());
            see_out(ended, &sender, &current, grace);
        };
        axvm_sandbox::spawn(Role::Console, "command", attend).context("Cannot start a thread (see ulimit -u)")?;
        Ok(Attended { signals, ended, _socket: socket })
    }
}

/// The socket at which the guest reaches the host at our port.
fn at_port(vsock: &Path) -> OsString {
    let mut path = vsock.as_os_str().to_owned();
    path.push(format!("_{PORT}"));
    path
}

/// Waits for the agent, and then for the command.
fn attend(
    mut caller: Caller,
    request: &Request,
    terminal: Option<Arc<Terminal>>,
    control: &Control,
    current: &Current,
) -> Result<Ended> {
    let mut late = Some(Instant::now() + LATE);
    let stream = loop {
        wait_any(&[caller.as_fd(), control.readable()], late).context("Cannot wait for the agent")?;
        match control.arrived().into_iter().find(|signal| ![SIGWINCH, SIGCONT].contains(signal)) {
            Some(GUEST_IS_OFF) => return Ok(Ended::Gone),
            Some(signal) => {
                // No command could be told of it.
                current.request_stop(StopReason::Signal(signal));
                return Ok(Ended::BySignal(signal as u8));
            }
            None => {}
        }
        match caller.arrived() {
            Ok(Some(stream)) => break stream,
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("Cannot talk to the agent"),
        }
        if late.take_if(|late| Instant::now() >= *late).is_some() {
            let why = "Its console may tell why: `axvm ctl MACHINE console` shows it";
            try_tell(format_args!("The guest has not called for its command for {} s. {why}", LATE.as_secs()));
        }
    };
    Conversation::new(stream, terminal)?.hold(request, control)
}

/// Says how it ended, and sees that the machine ends, too.
fn see_out(ended: Result<Ended>, sender: &Sender<Result<Ended>>, current: &Current, grace: Duration) {
    let is_off = matches!(ended, Ok(Ended::Gone));
    _ = sender.send(ended);
    if !is_off {
        // The agent powers the guest off; one that cannot is not waited for.
        thread::sleep(grace);
        current.request_stop(StopReason::Off);
    }
}

impl Attended {
    /// Passes a signal to the command; false if it has ended.
    pub fn signal(&self, signal: i32) -> bool {
        let Ok(byte) = u8::try_from(signal) else { return false };
        (&self.signals).write(&[byte]).is_ok_and(|count| count == 1)
    }

    /// How it ended; the guest is off. None if it did not, or what is left of its output has no reader.
    pub fn ended(self) -> Option<Result<Ended>> {
        _ = (&self.signals).write(&[GUEST_IS_OFF as u8]);
        self.ended.recv_timeout(REST).ok()
    }
}

impl Arrivals for Control {
    fn readable(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn arrived(&self) -> Vec<i32> {
        let mut bytes = [0; 64];
        let count = (&self.0).read(&mut bytes).unwrap_or(0);
        bytes[..count].iter().map(|&byte| byte.into()).collect()
    }
}
