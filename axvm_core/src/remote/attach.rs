//! `axvm ctl MACHINE console`: this terminal at the guest's console, until Ctrl-A x, a signal or the machine's end.
//!
//! ```text
//!   terminal <--> Console (raw mode, escape keys) <--> Port <--> two threads here <--> control socket <--> the machine
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use anyhow::{Context, Result};
use axvm_api::Client;
use axvm_api::types::{Action, ActionRequest, Explanation};
use axvm_console::{BackEnd, Console, Hooks, Key, Port};
use axvm_sandbox::Role;
use axvm_sync::EventFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::serve::heeded;
use crate::speech::{self, tell, try_tell};

/// Bytes moved at once.
const CHUNK: usize = 16 << 10;
/// Between two looks whether a slow terminal has room.
const BRIEFLY: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// Attaches `stream`, which came from the control socket at `socket`; comes back when the user leaves or the machine
/// ends.
///
/// With `has_break` the console is a serial port: then Ctrl-A b sends a BREAK on it, by a request of its own.
pub fn attach(stream: UnixStream, socket: PathBuf, has_break: bool) -> Result<u8> {
    let port = Port::new().context("Cannot make a console")?;
    // The port calls whenever something changed: one call that was not yet answered is as good as many.
    let (notifier, notified) = sync_channel(1);
    port.connect(move || {
        let _ = notifier.try_send(());
    });
    let mut signals = Signals::new(heeded([SIGINT, SIGTERM, SIGHUP, SIGQUIT].into_iter()).chain([SIGCONT]))
        .context("Cannot catch signals")?;
    let handle = signals.handle();
    axvm_sandbox::on_crash(axvm_console::restore_terminal_in_handler);
    let console = Console::open(&BackEnd::Stdio, port.clone(), hooks(stream.try_clone()?, socket.clone(), has_break))?;
    let (to_guest, at_end) = (stream.try_clone()?, stream.try_clone()?);
    let shown = thread::scope(|scope| {
        let on_signals = || {
            for signal in &mut signals {
                match signal {
                    SIGCONT => console.continued(),
                    _ => {
                        let _ = at_end.shutdown(Shutdown::Both);
                        // Nor is a terminal waited for that takes nothing.
                        console.give_up();
                    }
                }
            }
        };
        axvm_sandbox::spawn_scoped(scope, Role::Console, "signals", on_signals)?;
        let (typed, breaks) = (port.clone(), has_break.then_some(socket));
        let send_typed = move || send(&typed, to_guest, &notified, breaks.as_deref());
        if let Err(error) = axvm_sandbox::spawn_scoped(scope, Role::Console, "typed", send_typed) {
            // Ends the thread that waits for signals.
            handle.close();
            return Err(error);
        }
        let shown = show(stream, &port, console.ended());
        console.close();
        ends_within(console.ended(), None);
        handle.close();
        // Ends the thread that waits for the notifier.
        port.connect(|| {});
        shown
    });
    console.finish();
    shown.context("The connection to the machine broke")?;
    Ok(0)
}

fn hooks(stream: UnixStream, socket: PathBuf, has_break: bool) -> Hooks {
    Hooks {
        on_key: Box::new(move |key| match key {
            Key::Quit => drop(stream.shutdown(Shutdown::Both)),
            // A machine that refuses has its reasons, and a paused one does not react: nothing to do here.
            Key::PowerButton => request(&socket, Action::PowerButton),
            Key::Explain => explain(&socket),
        }),
        on_warning: Box::new(tell),
        on_help: Box::new(|words| _ = try_tell(words)),
        quit: "leaves the machine running",
        has_break,
    }
}

fn explain(socket: &Path) {
    match Client::connect(socket).and_then(|mut client| client.get::<Explanation>("/explain")) {
        Ok(explanation) => speech::show(format_args!("\n{}\n", explanation.text)),
        Err(error) => _ = try_tell(error),
    }
}

fn request(socket: &Path, action_type: Action) {
    let _ = Client::connect(socket).and_then(|mut client| client.put("/actions", &ActionRequest { action_type }));
}

/// From the guest to the terminal, as fast as the terminal takes it; until the console has `ended` at the latest.
fn show(mut stream: UnixStream, port: &Port, ended: &EventFd) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = match stream.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut rest = &chunk[..count];
        while !rest.is_empty() {
            let taken = port.send(rest);
            rest = &rest[taken..];
        }
        while port.room() == 0 {
            if ends_within(ended, Some(BRIEFLY)) {
                return Ok(());
            }
        }
    }
}

/// Waits for a console's end, for `limit` at most; whether it came.
fn ends_within(ended: &EventFd, limit: Option<Timespec>) -> bool {
    loop {
        match poll(&mut [PollFd::new(ended, PollFlags::IN)], limit.as_ref()) {
            Err(Errno::INTR) => {}
            ready => return ready != Ok(0),
        }
    }
}

/// From the keyboard to the guest. A BREAK is requested from `breaks`, the control socket, for no byte says it: what was
/// typed after it goes after it.
fn send(port: &Port, mut stream: UnixStream, notified: &Receiver<()>, breaks: Option<&Path>) {
    let mut chunk = [0; 64];
    while notified.recv().is_ok() {
        loop {
            let (count, marks) = port.receive_with_breaks(&mut chunk);
            if count == 0 {
                break;
            }
            let mut at = 0;
            while at < count {
                // Bytes up to the next BREAK, then that.
                let end = (at..count).find(|&n| marks >> n & 1 == 1).unwrap_or(count);
                if stream.write_all(&chunk[at..end]).is_err() {
                    return;
                }
                if let Some(socket) = breaks.filter(|_| end < count) {
                    request(socket, Action::Break);
                }
                at = end + 1;
            }
        }
    }
}
