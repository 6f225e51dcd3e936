//! A running console: its threads, and what the machine tells them.
//!
//! ```text
//!   machine: open, resized, continued, close --> [console] <--> port
//!                                                    |
//!                                                    +--> stdout, or [console-out] --> a file
//! ```

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use axvm_sandbox::Role;
use axvm_socket::{Socket, SocketError};
use axvm_sync::EventFd;

use crate::hub::{Hub, Keyboard};
use crate::log_file::{LogFile, LogFileError};
use crate::pty::Pty;
use crate::shared::{Attacher, ConsoleShared, Hooks};
use crate::terminal::{Terminal, size};
use crate::writer::Writer;
use crate::{BackEnd, Port};

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// No file.
    #[error(transparent)]
    File(#[from] LogFileError),
    /// No pseudo-terminal.
    #[error("Cannot make a pseudo-terminal for the console; is /dev/pts mounted, and has it one free?")]
    Pty(#[source] io::Error),
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The process lacks descriptors or threads.
    #[error("Cannot set up the console: no more descriptors or threads (see ulimit -n and -u)")]
    Resources(#[source] io::Error),
}

/// The streams of [`BackEnd::Stdio`].
pub struct Stdio {
    /// What is typed; if it is a terminal, it becomes raw.
    pub input: OwnedFd,
    /// What is shown.
    pub output: OwnedFd,
}

impl Stdio {
    /// This process's own.
    pub fn of_process() -> io::Result<Stdio> {
        Ok(Stdio {
            input: io::stdin().as_fd().try_clone_to_owned()?,
            output: io::stdout().as_fd().try_clone_to_owned()?,
        })
    }
}

/// A back end that is open, before the first thread of its console: a place to restrict the process in between.
pub struct Opened(End);

enum End {
    /// What is typed, and where the output goes.
    Stdio(OwnedFd, LogFile),
    File(LogFile, String),
    Pty(Pty),
    Unix(Socket),
    None,
}

impl End {
    fn of(stdio: Stdio) -> End {
        End::Stdio(stdio.input, LogFile::without_limit(stdio.output))
    }
}

impl Opened {
    /// Opens the file, makes the socket or the pseudo-terminal, or takes the process's own streams.
    pub fn open(back_end: &BackEnd) -> Result<Opened, ConsoleError> {
        Ok(Opened(match back_end {
            BackEnd::None => End::None,
            BackEnd::Stdio => End::of(Stdio::of_process().map_err(ConsoleError::Resources)?),
            BackEnd::File(path, limit) => End::File(LogFile::open(path, *limit)?, format!("file {}", path.display())),
            BackEnd::Unix(path) => End::Unix(Socket::listen(path)?),
            BackEnd::Pty => End::Pty(Pty::open().map_err(ConsoleError::Pty)?),
        }))
    }
}

/// The host's end of a guest's console, while it runs. Dropped, it ends as [`Console::close`] says and waits for that.
pub struct Console {
    port: Port,
    shared: Arc<ConsoleShared>,
    terminal: Option<Arc<Terminal>>,
    /// The terminal whose size is the guest's.
    screen: Option<OwnedFd>,
    pty_path: Option<PathBuf>,
    hub: Option<JoinHandle<()>>,
}

impl Console {
    /// Connects `port` with `back_end`; the terminal is raw from now on.
    pub fn open(back_end: &BackEnd, port: Port, hooks: Hooks) -> Result<Console, ConsoleError> {
        Console::start(Opened::open(back_end)?, port, hooks)
    }

    /// Like [`Console::open`] with [`BackEnd::Stdio`], on other streams than the process's own.
    pub fn on(stdio: Stdio, port: Port, hooks: Hooks) -> Result<Console, ConsoleError> {
        Console::start(Opened(End::of(stdio)), port, hooks)
    }

    /// Connects `port` with what is open; the terminal is raw from now on.
    pub fn start(opened: Opened, port: Port, hooks: Hooks) -> Result<Console, ConsoleError> {
        let shared = Arc::new(ConsoleShared::new(hooks).map_err(ConsoleError::Resources)?);
        let mut console = Console { port, shared, terminal: None, screen: None, pty_path: None, hub: None };
        let mut hub = Hub::new(console.port.clone(), Arc::clone(&console.shared));
        match opened.0 {
            End::None => {}
            End::Stdio(input, output) => console.take_stdio(input, output, &mut hub)?,
            End::File(file, name) => hub.writer = Some(console.writer(file, name)?),
            End::Unix(listener) => hub.listener = Some(listener),
            End::Pty(pty) => {
                console.pty_path = Some(pty.path().clone());
                hub.pty = Some(pty);
            }
        }
        let ends = EndsConsole(Arc::clone(&console.shared));
        let run = move || {
            hub.run();
            drop(ends);
        };
        console.hub = Some(axvm_sandbox::spawn(Role::Console, "console", run).map_err(ConsoleError::Resources)?);
        Ok(console)
    }

    fn take_stdio(&mut self, input: OwnedFd, output: LogFile, hub: &mut Hub) -> Result<(), ConsoleError> {
        self.terminal = Terminal::new(input.as_fd());
        let output_is_terminal = output.as_fd().is_terminal();
        let screen = if output_is_terminal { Some(output.as_fd()) } else { None };
        let screen = screen.or(self.terminal.as_ref().map(|terminal| terminal.as_fd()));
        self.screen = screen.and_then(|fd| fd.try_clone_to_owned().ok());
        hub.keyboard = Some(Keyboard::new(input, self.terminal.clone(), output_is_terminal));
        hub.writer = Some(self.writer(output, "standard output".into())?);
        self.resized();
        if let Some(terminal) = &self.terminal {
            terminal.enter();
        }
        Ok(())
    }

    fn writer(&self, file: LogFile, name: String) -> Result<Writer, ConsoleError> {
        Writer::start(file, name, Arc::clone(&self.shared)).map_err(ConsoleError::Resources)
    }

    /// The pseudo-terminal to open, with [`BackEnd::Pty`].
    pub fn pty_path(&self) -> Option<&Path> {
        self.pty_path.as_deref()
    }

    /// Whether a keyboard is there, some of whose keys are AxVM's.
    pub fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Something that adds clients while the console runs.
    pub fn attacher(&self) -> Attacher {
        Attacher::to(&self.shared)
    }

    /// Tells the guest the terminal's size. Call it on SIGWINCH.
    pub fn resized(&self) {
        if let Some(size) = self.screen.as_ref().and_then(size) {
            self.port.resize(size);
        }
    }

    /// Makes the terminal raw again. Call it on SIGCONT: the shell had the terminal.
    pub fn continued(&self) {
        if let Some(terminal) = &self.terminal {
            terminal.enter();
        }
        self.resized();
        self.shared.wake.signal();
    }

    /// Ends the console once all readers have read what the port holds. Call it after the last output; it does not
    /// wait, [`Console::ended`] tells.
    pub fn close(&self) {
        self.shared.closing.signal();
        self.shared.wake.signal();
    }

    /// Ends the console without waiting for its readers.
    pub fn give_up(&self) {
        self.shared.given_up.signal();
        self.shared.wake.signal();
    }

    /// Readable once a closed console has ended; until then dropping it waits.
    pub fn ended(&self) -> &EventFd {
        &self.shared.ended
    }

    /// Closes the console, waits for its end and restores the terminal: the same as dropping it.
    pub fn finish(self) {}
}

impl Drop for Console {
    fn drop(&mut self) {
        self.close();
        if let Some(hub) = self.hub.take() {
            let _ = hub.join();
        }
        self.terminal.iter().for_each(|terminal| terminal.leave());
    }
}

/// However the hub ends, the console ends with it: no caller waits for a dead thread.
struct EndsConsole(Arc<ConsoleShared>);

impl Drop for EndsConsole {
    fn drop(&mut self) {
        self.0.ended.signal();
        // Clients that came too late to be served.
        drop(self.0.arrivals());
    }
}
